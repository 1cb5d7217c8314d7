"""Which sellers answer in time: one that missed the window twice in a row is still asked, but not waited for.

So a silent seller costs its buyers one window, twice, and a single answer in time makes good for it.
"""

from collections import OrderedDict
from collections.abc import Iterable

from protocol import limits
from protocol.identity import PeerId


class Punctuality:
    """Windows missed in a row, per seller; the seller noted least recently is forgotten first."""

    def __init__(self) -> None:
        self._missed: OrderedDict[PeerId, int] = OrderedDict()

    def answered(self, peer: PeerId) -> None:
        """It answered inside its window, whatever it said, and even if the auction had been decided by then."""
        self._missed.pop(peer, None)

    def missed(self, peer: PeerId) -> None:
        """A window ended without its answer."""
        self._missed[peer] = self._missed.pop(peer, 0) + 1
        while len(self._missed) > limits.SENDERS_MAX:
            self._missed.popitem(last=False)

    def is_awaited(self, peer: PeerId) -> bool:
        """Whether an auction waits for this seller."""
        return self._missed.get(peer, 0) < limits.WINDOWS_MISSED_MAX

    def awaited(self, peers: Iterable[PeerId]) -> frozenset[PeerId]:
        """Return those of the asked that an auction waits for."""
        return frozenset(peer for peer in peers if self.is_awaited(peer))
