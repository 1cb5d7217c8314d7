"""Room: how soon an engine can take one more job, and why it had better not.

What was awarded and has not reached the engine yet counts already: a burst would else be promised one slot many times over,
between a bid and the moment when the engine hears of the job.
"""

from dataclasses import dataclass, replace

WAIT_MS_MAX = 5_000  # for a slot; whoever waits longer for a first word thinks that nothing is happening


@dataclass(frozen=True)
class Room:
    """An engine as of now.

    Attributes:
        slots: jobs at a time.
        queued: jobs that wait.
        queue_free: how many more may.
        wait_ms: until one more would have a slot.
    """

    slots: int
    slots_free: int
    queued: int
    queue_free: int
    wait_ms: int

    def beside(self, jobs: int, seconds: float) -> "Room":
        """Return the room that is left when so many jobs, of so much work together, have come in."""
        waiting = max(0, jobs - max(0, self.slots_free))
        is_full = jobs >= self.slots_free
        more_ms = round(1000 * seconds / self.slots) if is_full and jobs and self.slots else 0
        return replace(
            self,
            slots_free=max(0, self.slots_free - jobs),
            queued=self.queued + waiting,
            queue_free=max(0, self.queue_free - waiting),
            wait_ms=self.wait_ms + more_ms,
        )

    @property
    def why_busy(self) -> str:
        """Why one more job had better go elsewhere; empty: a slot is free, or near.

        The same for a bid, for the second thoughts at its award, and for a lease.
        """
        if self.slots_free > 0:
            return ""
        full = f"{self.slots} slots in use, {self.queued} waiting"
        if self.queue_free <= 0:
            return f"{full}, and nobody more may wait"
        if self.wait_ms > WAIT_MS_MAX:
            return f"{full}: free in about {self.wait_ms / 1000:.1f} s, at most {WAIT_MS_MAX / 1000:.0f} s wanted"
        return ""


class Coming:
    """Jobs that were taken on and are on their way to the engine, whose models share its slots."""

    def __init__(self) -> None:
        self._seconds: dict[object, float] = {}

    def __len__(self) -> int:
        return len(self._seconds)

    @property
    def seconds(self) -> float:
        """How much work they are together."""
        return sum(self._seconds.values())

    def expect(self, job: object, seconds: float) -> None:
        """A job was taken on; it is about so much work."""
        self._seconds[job] = seconds

    def arrived(self, job: object) -> None:
        """The engine knows of it now, or it will not come. May be called twice."""
        self._seconds.pop(job, None)
