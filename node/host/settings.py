"""What a node may choose about its host. Everything has a value that is right for a server."""

from dataclasses import dataclass

CONNECTIONS_SERVER = 4_096


@dataclass(frozen=True)
class HostSettings:
    """How a host listens, whom it looks for, and how patient it is.

    Attributes:
        listen: `/ip4/HOST/tcp/PORT` or `/ip6/…`; port 0 takes any. Empty: only dials.
        announce: further multiaddrs, without `/p2p/…`, under which others can reach us (a router forwards a port).
        mdns: look for peers on the local network and be found; ignored when listening on loopback alone.
        relay: carry bounded circuits for members that cannot be dialled.
        relays: multiaddrs of relays to keep a reservation at, for a node that cannot be dialled.
        connections_max: above it, the connection idle for longest is closed for each new one.
        connections_per_address_max: the same for one IP address; a house or an office stands behind one.
        handshake_timeout_s: a socket that has not proved a key by then is closed (stock libp2p: 10 s).
        dial_timeout_s: a dial that takes longer has failed.
        negotiation_timeout_s: a stream that has not named its protocol by then is reset.
        heartbeat_busy_s: between heartbeats while an application stream is open.
        heartbeat_idle_s: between heartbeats otherwise; the only wake-up of an idle connection.
        silence_s: a peer that has sent nothing for this long after a heartbeat is lost.
        gossip_per_s: messages published per second after a burst; each costs every node 2-5 ms of CPU.
    """

    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4420",)
    announce: tuple[str, ...] = ()
    mdns: bool = True
    relay: bool = True
    relays: tuple[str, ...] = ()
    connections_max: int = CONNECTIONS_SERVER
    connections_per_address_max: int = 1_024
    handshake_timeout_s: float = 3.0
    dial_timeout_s: float = 10.0
    negotiation_timeout_s: float = 5.0
    heartbeat_busy_s: float = 1.0
    heartbeat_idle_s: float = 15.0
    silence_s: float = 5.0
    gossip_per_s: float = 20.0
