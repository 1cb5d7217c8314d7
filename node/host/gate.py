"""Who may hold a socket before proving a key.

300 silent sockets from one address kept every newcomer of stock libp2p out for 10 s. Here each address may have a few
unproven sockets; one more displaces its *oldest*, so an attacker competes with itself, and an honest peer behind the
same address still gets its 20 ms for a handshake.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

UNPROVEN_PER_ADDRESS = 32
UNPROVEN_TOTAL = 512  # over all addresses: 512 sockets and half-made handshakes are about 10 MB


@dataclass(frozen=True, eq=False)
class Ticket:
    """One socket that has proved nothing yet."""

    address: str
    drop: Callable[[], None]


class AcceptGate:
    """The sockets that are still in their handshake."""

    def __init__(self) -> None:
        self._unproven: OrderedDict[Ticket, None] = OrderedDict()
        self._by_address: dict[str, OrderedDict[Ticket, None]] = {}

    def __len__(self) -> int:
        return len(self._unproven)

    def enter(self, address: str, drop: Callable[[], None]) -> Ticket:
        """Let a socket in; `drop` is called if it has to make room for a later one."""
        here = self._by_address.setdefault(address, OrderedDict())
        if len(here) >= UNPROVEN_PER_ADDRESS:
            self._drop(next(iter(here)))
        elif len(self._unproven) >= UNPROVEN_TOTAL:
            crowded = max(self._by_address.values(), key=len)
            self._drop(next(iter(crowded)))
        ticket = Ticket(address, drop)
        self._unproven[ticket] = None
        self._by_address.setdefault(address, here)[ticket] = None
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """The socket has proved its key, or is gone. May be called twice."""
        if self._unproven.pop(ticket, 0) is None:
            here = self._by_address[ticket.address]
            del here[ticket]
            if not here:
                del self._by_address[ticket.address]

    def _drop(self, ticket: Ticket) -> None:
        self.leave(ticket)
        ticket.drop()
