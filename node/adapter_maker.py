"""What a coordinator needs to know of base models: the shapes that an adapter of one has, and how it becomes a file.

The daemon's backend reads the GGUF header and writes a GGUF adapter (`node/gguf_adapters.py`); a world swaps in a toy one.
Both are called inside `Ports.compute`, so they may take their time and use numpy.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

from protocol.messages import Recipe
from runtime.engine import Digest

T = TypeVar("T")

Shapes = Mapping[str, tuple[int, int]]  # of each adapted tensor, as in GGUF ("blk.0.attn_q"): (out, in)


class AdapterMaker(Protocol):
    """Knows the bases of this device."""

    def shapes(self, base: Digest, recipe: Recipe) -> Shapes:
        """Return the tensors of the base that the recipe's adapter changes.

        Raises:
            AgoraError: this device does not hold the base, or the base has no such tensors.
        """

    def export(self, state: bytes, recipe: Recipe, base: Digest) -> bytes:
        """Return the adapter file of a run's state (`federation.codec.state_bytes`), as an engine loads it.

        Raises:
            AgoraError: the state does not fit the base.
        """


class Compute(Protocol):
    """Runs what computes for long without holding up the daemon: in a thread; in a world, where none may be, at once."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]:
        """Return what `work` returns; raise what it raises."""


async def at_once(work: Callable[[], T], /) -> T:
    """Compute inline."""
    return work()
