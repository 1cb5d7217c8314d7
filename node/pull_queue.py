"""Which logs are to be pulled from whom, and which of them may be pulled now.

A pull lasts as long as its peer likes, up to a timeout. So several run at once; but one peer is asked for one log at a
time, else a single silent one would fill all places, and one log is asked of one peer at a time, else all that have just
said that they hold it would send the same entries.
"""

from dataclasses import dataclass

import trio

from protocol.identity import PeerId
from protocol.messages import LogName


@dataclass(frozen=True)
class Pull:
    """A peer, and the log that it is to be asked for."""

    peer: PeerId
    author: PeerId
    log: LogName

    def excludes(self, other: "Pull") -> bool:
        """Whether the two may not run at once."""
        return self.peer == other.peer or (self.author, self.log) == (other.author, other.log)


class PullQueue:
    """First come, first served, among those that may run now; a pull that waits already is not noted twice."""

    def __init__(self, *, waiting_max: int, running_max: int) -> None:
        self._waiting_max = waiting_max
        self._running_max = running_max
        self._waiting: list[Pull] = []
        self._running: list[Pull] = []
        self._changed = trio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, pull: Pull) -> bool:
        """Note a pull; False when too many wait."""
        if pull in self._waiting:
            return True
        if len(self._waiting) >= self._waiting_max:
            return False
        self._waiting.append(pull)
        self._tell()
        return True

    async def next(self) -> Pull:
        """Wait for a pull that may run; it counts as running until it is `done`."""
        while (pull := self._first()) is None:
            await self._changed.wait()
        self._waiting.remove(pull)
        self._running.append(pull)
        return pull

    def done(self, pull: Pull) -> None:
        """A pull has ended: another may have its place."""
        self._running.remove(pull)
        self._tell()

    def _first(self) -> Pull | None:
        if len(self._running) >= self._running_max:
            return None
        for pull in self._waiting:
            if not any(pull.excludes(other) for other in self._running):
                return pull
        return None

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
