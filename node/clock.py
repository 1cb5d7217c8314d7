"""What time it is: monotonic seconds for everything that waits, and wall-clock milliseconds for signed documents."""

import statistics
import time
from collections import OrderedDict
from typing import Protocol

import trio

from protocol import limits
from protocol.identity import PeerId

JUMP_MS = 100  # our wall clock has been set, or has drifted so far since the median was taken


class Clock(Protocol):
    """The two times a node knows. The simulator's stands on virtual time and may be skewed."""

    def now(self) -> float:
        """Monotonic seconds; only differences mean anything."""

    def utc_ms(self) -> int:
        """Unix time in milliseconds, as this device believes it."""


class SystemClock:
    """The daemon's clock: trio's for waiting, the system's for signing."""

    def now(self) -> float:
        """Return trio's clock, so that deadlines and rules speak of the same seconds."""
        return trio.current_time()

    def utc_ms(self) -> int:
        """Return the system's wall clock."""
        return time.time_ns() // 1_000_000


class MembersTime:
    """The members' median clock, as their hellos showed it: one wrong clock, ours included, moves nothing.

    What a hello says is kept as its distance from our monotonic seconds, which no hand sets: when our wall clock jumps,
    only our own vote goes with it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offsets_ms: OrderedDict[PeerId, int] = OrderedDict()  # from the monotonic clock
        self._own_ms: int | None = None  # our wall clock's distance when the median was taken
        self._median_ms = 0

    def note(self, peer_id: PeerId, their_ms: int) -> int:
        """Remember what a member's clock said just now; return how far it is from ours in milliseconds."""
        self._offsets_ms.pop(peer_id, None)
        self._offsets_ms[peer_id] = their_ms - self._monotonic_ms()
        if len(self._offsets_ms) > limits.HEADS_PER_HELLO_MAX:
            self._offsets_ms.popitem(last=False)
        self._own_ms = None
        return their_ms - self._clock.utc_ms()

    def utc_ms(self) -> int:
        """Return the median of all wall clocks, ours counted in."""
        monotonic_ms = self._monotonic_ms()
        own_ms = self._clock.utc_ms() - monotonic_ms
        if self._own_ms is None or abs(own_ms - self._own_ms) > JUMP_MS:
            self._own_ms = own_ms
            self._median_ms = int(statistics.median([own_ms, *self._offsets_ms.values()]))
        return monotonic_ms + self._median_ms

    def _monotonic_ms(self) -> int:
        return round(self._clock.now() * 1000)
