"""The slots of an engine that only pretends to compute: who runs, who waits, and how long everything takes.

Time is told in seconds of a stream that is alone; beside others each takes longer (`shared_speed.py`). Who comes first is
served first.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heapreplace

import trio

from protocol.limits import PROGRESS_INTERVAL_S
from runtime.engine import EngineBusy
from runtime.shared_speed import stream_share


@dataclass(eq=False)
class Turn:
    """One request's place.

    Attributes:
        left_s: what is still to be done for it, alone, as far as its caps tell.
        is_ours: set when it has a slot.
    """

    left_s: float
    is_ours: trio.Event = field(default_factory=trio.Event)


class Slots:
    """So many requests at a time, and a bounded queue."""

    def __init__(self, slots: int, queue_max: int) -> None:
        self.count = slots
        self._queue_max = queue_max
        self._running: list[Turn] = []
        self._waiting: deque[Turn] = deque()

    @property
    def free(self) -> int:
        """Slots that nobody has."""
        return self.count - len(self._running)

    @property
    def queued(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    @property
    def queue_free(self) -> int:
        """How many more may wait."""
        return self._queue_max - len(self._waiting)

    @property
    def wait_s(self) -> float:
        """Until one more request would have a slot, if all slots stay in use until then."""
        if self.free > 0:
            return 0.0
        share = stream_share(self.count)
        ends = [turn.left_s / share for turn in self._running]
        heapify(ends)
        for turn in self._waiting:
            heapreplace(ends, ends[0] + turn.left_s / share)
        return max(0.0, ends[0])

    @property
    def next_share(self) -> float:
        """The share of its lonely speed that one more stream would have."""
        return stream_share(min(len(self._running) + 1, self.count))

    def take(self, alone_s: float) -> Turn:
        """Take a slot, or a place in the queue, for so much work.

        Raises:
            EngineBusy: the queue is full.
        """
        turn = Turn(alone_s)
        if self.free > 0:
            self._running.append(turn)
            turn.is_ours.set()
        elif self.queue_free > 0:
            self._waiting.append(turn)
        else:
            raise EngineBusy(
                f"{len(self._waiting)} requests wait already, expected fewer than {self._queue_max}"
            )
        return turn

    def end(self, turn: Turn) -> None:
        """Give a place back; the first in the queue inherits a slot."""
        if turn in self._waiting:
            self._waiting.remove(turn)
            return
        self._running.remove(turn)
        if self._waiting:
            heir = self._waiting.popleft()
            self._running.append(heir)
            heir.is_ours.set()

    def pieces(self, turn: Turn, alone_s: float) -> Iterator[float]:
        """Cut so much of a running turn's work into the times that it takes now, each short enough to say something after.

        At least one, be it of no length. Whoever joins or leaves meanwhile counts from the next piece on.
        """
        while True:
            share = stream_share(len(self._running))
            piece_s = min(alone_s, PROGRESS_INTERVAL_S * share)
            is_last = piece_s == alone_s
            yield piece_s / share if is_last else PROGRESS_INTERVAL_S
            turn.left_s -= piece_s
            alone_s -= piece_s
            if is_last:
                return
