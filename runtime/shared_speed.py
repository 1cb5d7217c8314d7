"""How much slower a stream is beside others in one batch: what the fakes and the simulator share with real engines.

A step of a batch reads the weights once for all of its streams, so together they are faster than one, and each is slower.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

# Tokens/s of all streams together, prompts read in the same batches: llama.cpp's continuous batching of a model of a
# billion parameters in 4 bits on two cores (32 + 32 tokens each), measured at 1, 4, 8 and 16 streams.
TOGETHER: Final[Sequence[tuple[int, float]]] = ((1, 14.4), (4, 32.9), (8, 35.7), (16, 50.4))


def stream_share(streams: int) -> float:
    """Return the speed of each of so many streams, as a share of one that is alone: 1 for one, and falling.

    Between what was measured it is interpolated; beyond, all together get no faster.
    """
    most, peak = TOGETHER[-1]
    if streams >= most:
        return peak / TOGETHER[0][1] / streams
    counts = [count for count, _ in TOGETHER]
    (few, slow), (many, fast) = list(pairwise(TOGETHER))[max(0, bisect_left(counts, max(1, streams)) - 1)]
    together = slow + (fast - slow) * (max(1, streams) - few) / (many - few)
    return together / TOGETHER[0][1] / max(1, streams)
