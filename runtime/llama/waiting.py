"""Who waits for a slot, in an order that is fair between payers. Pure.

Payers take turns; within one, who came first goes first. Somebody who cannot start yet (their model is being loaded,
say) keeps their place and holds up nobody behind them.

The queue is bounded. When it is full, the payer with the most waiting bears it: its newest request is cut short if
that makes room for somebody who has at least two fewer waiting, else the newcomer is refused. So nobody fills the
queue against others by asking often.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class WaitingQueue(Generic[Item]):
    """Items by payer; each item is in it at most once."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Item]] = {}  # whose turn is next comes first; none is empty

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[Item]:
        """Yield all, in the order in which they would be taken if each could start."""
        lines = [list(line) for line in self._lines.values()]
        for place in range(max(map(len, lines), default=0)):
            yield from (line[place] for line in lines if place < len(line))

    def __contains__(self, item: object) -> bool:
        return any(item in line for line in self._lines.values())

    def offer(self, payer: str, item: Item, items_max: int) -> Item | None:
        """Let an item wait; return who has to leave for it: nobody, somebody's newest, or the item itself."""
        leaver: Item | None = None
        if len(self) >= items_max:
            longest = max(self._lines, key=lambda each: len(self._lines[each]), default=payer)
            if len(self._lines.get(payer, ())) + 2 > len(self._lines.get(longest, ())):
                return item
            leaver = self._lines[longest][-1]
            self.remove(leaver)
        self._lines.setdefault(payer, deque()).append(item)
        return leaver

    def take(self, can_start: Callable[[Item], bool]) -> Item | None:
        """Return the first who can start, and let their payer's next turn come after everybody's; None: nobody can."""
        for payer, line in self._lines.items():
            for item in line:
                if can_start(item):
                    line.remove(item)
                    del self._lines[payer]
                    if line:
                        self._lines[payer] = line
                    return item
        return None

    def put_back(self, payer: str, item: Item) -> None:
        """Let an item that was taken wait again, as the next."""
        line = self._lines.pop(payer, deque())
        line.appendleft(item)
        self._lines = {payer: line, **self._lines}

    def remove(self, item: Item) -> bool:
        """Take an item out of the queue; False if it does not wait."""
        for payer, line in self._lines.items():
            if item in line:
                line.remove(item)
                if not line:
                    del self._lines[payer]
                return True
        return False
