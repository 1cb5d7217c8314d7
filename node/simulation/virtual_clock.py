"""A node's clock in a world: trio's virtual seconds, and a wall clock that goes with them and may be wrong."""

import trio

NOON_MS = 1_700_000_000_000  # Unix milliseconds when a world begins


class VirtualClock:
    """See `node.clock.Clock`.

    Each look at the clock costs a microsecond: a rule that only holds when no time passes must not pass here.

    Args:
        skew_ms: how far the wall clock is ahead of the world's.
    """

    def __init__(self, skew_ms: int = 0) -> None:
        self.skew_ms = skew_ms
        self._looks = 0

    def now(self) -> float:
        """Return virtual seconds; they never go back."""
        self._looks += 1
        return trio.current_time() + self._looks / 1e6

    def utc_ms(self) -> int:
        """Return the wall clock, as wrong as it is."""
        return NOON_MS + self.skew_ms + round(trio.current_time() * 1000)

    def jump(self, ms: int) -> None:
        """Set the wall clock forward, or back."""
        self.skew_ms += ms
