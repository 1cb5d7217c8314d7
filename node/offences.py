"""Counting what peers do wrong, and barring the ones that do too much of it.

A peer may err: it is old, new, or was cut off in the middle. So offences fade, and only many in a short time bar it,
for a while. Keys are free, so this protects against a broken peer and slows a hostile one down; no more.
"""

from collections import OrderedDict
from dataclasses import dataclass

from protocol.identity import PeerId

OFFENCES_MAX = 16  # within the window; then the peer is barred
WINDOW_S = 60.0
BARRED_S = 60.0  # long enough to make an attack slow, short enough that a fixed peer is not lost
PEERS_MAX = 4_096  # remembered; the one charged longest ago is forgotten first


@dataclass
class _Account:
    count: float = 0.0
    charged_at: float = 0.0
    barred_until: float = 0.0


class Offences:
    """The offences of every peer. `now` is monotonic seconds."""

    def __init__(self) -> None:
        self._accounts: OrderedDict[PeerId, _Account] = OrderedDict()

    def charge(self, peer_id: PeerId, now: float) -> bool:
        """Count one offence; return whether the peer is to be cut off."""
        account = self._accounts.pop(peer_id, None) or _Account(charged_at=now)
        self._accounts[peer_id] = account
        while len(self._accounts) > PEERS_MAX:
            self._accounts.popitem(last=False)
        faded = OFFENCES_MAX * (now - account.charged_at) / WINDOW_S
        account.count = max(0.0, account.count - faded) + 1
        account.charged_at = now
        if account.count <= OFFENCES_MAX - 1:
            return False
        account.count = 0.0
        account.barred_until = now + BARRED_S
        return True

    def is_barred(self, peer_id: PeerId, now: float) -> bool:
        """Whether connections of this peer are refused at the moment."""
        account = self._accounts.get(peer_id)
        return account is not None and now < account.barred_until

    def score(self, peer_id: PeerId, now: float) -> float:
        """Offences still held against a peer, as a number for gossip scoring: 0 is clean."""
        account = self._accounts.get(peer_id)
        if account is None:
            return 0.0
        if now < account.barred_until:
            return float(OFFENCES_MAX)
        return max(0.0, account.count - OFFENCES_MAX * (now - account.charged_at) / WINDOW_S)
