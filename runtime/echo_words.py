"""What `EchoEngine` makes of texts and tokens where a model would compute: vectors, gaps and contrasts.

A vector counts the text's bytes, so equal texts have one vector and texts with much in common near ones. A gap is none
where the claimed token is the one that the engine would have said at that place, and plain to see anywhere else. A contrast
is the same number whoever computes it with one model, and another one with any other.
"""

import hashlib
from collections.abc import Iterable
from itertools import chain, repeat
from math import sqrt

ONE = 1_000_000  # a coordinate of 1, as a word counts it from -1
GAP_MILLI = 20_000  # of any other token: twenty logits
CONTRAST_MILLI = 20_000  # at most, either way


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


def contrasts(weights: bytes, place: int, tokens: Iterable[int]) -> tuple[int, ...]:
    """Return the contrasts of tokens that follow each other.

    Args:
        weights: what computes: the model's digest, and the adapter's if there is one.
        place: of the first of them in the completion.
        tokens: written, or claimed.
    """
    return tuple(_contrast(weights, at, token) for at, token in enumerate(tokens, place))


def _contrast(weights: bytes, place: int, token: int) -> int:
    digest = hashlib.blake2b(f"{place}/{token}".encode(), key=weights, digest_size=8).digest()
    return int.from_bytes(digest, "big") % (2 * CONTRAST_MILLI + 1) - CONTRAST_MILLI
