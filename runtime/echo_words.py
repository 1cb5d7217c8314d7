"""What `EchoEngine` makes of tasks that only read: vectors of texts, and gaps of claimed tokens.

A vector counts the text's bytes, so equal texts have one vector and texts with much in common near ones. A gap is none
where the claimed token is the one that the engine would have said at that place, and plain to see anywhere else.
"""

from collections.abc import Iterable
from itertools import chain, repeat
from math import sqrt

ONE = 1_000_000  # a coordinate of 1, as a word counts it from -1
GAP_MILLI = 20_000  # of any other token: twenty logits


def vector_words(text: str, dimensions: int) -> tuple[int, ...]:
    """Return the words of a text's unit vector."""
    counts = [0] * dimensions
    for place, byte in enumerate(text.encode()):
        counts[(byte + place % 2) % dimensions] += 1 if byte % 3 else -1
    length = sqrt(sum(count * count for count in counts))
    unit = [count / length for count in counts] if length else [1.0, *[0.0] * (dimensions - 1)]
    return tuple(round((x + 1) * ONE) for x in unit)


def gap_words(claimed: Iterable[int], answer: Iterable[int]) -> tuple[int, ...]:
    """Return the gap of each claimed token from the answer that the engine would have given; it may have ended before."""
    would_be = chain(answer, repeat(-1))
    return tuple(0 if token == said else GAP_MILLI for token, said in zip(claimed, would_be, strict=False))
