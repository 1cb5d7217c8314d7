"""A token bucket: so many per second, after a burst."""

import trio


class Pace:
    """How much more may be done now."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._left = burst
        self._at = trio.current_time()

    def take(self, count: float = 1.0) -> bool:
        """Take `count` if there are that many; return whether there were."""
        self._refill()
        if self._left < count:
            return False
        self._left -= count
        return True

    async def wait(self) -> None:
        """Take one, now or when its turn comes; who waits first goes first."""
        self._refill()
        self._left -= 1.0
        if self._left < 0.0:
            await trio.sleep(-self._left / self._per_s)

    def _refill(self) -> None:
        now = trio.current_time()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
