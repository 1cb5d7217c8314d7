"""The multiaddrs that Agora dials and announces, parsed and written.

    /ip4/192.0.2.7/tcp/4420/p2p/PEER                                 direct (also ip6, dns, dns4, dns6)
    /ip4/192.0.2.7/tcp/4420/p2p/RELAY/p2p-circuit/p2p/PEER           through a circuit relay

Source: https://github.com/multiformats/multiaddr
"""

import ipaddress
import re
from dataclasses import dataclass

import ifaddr

from protocol.errors import MalformedMessage, Unreachable
from protocol.identity import PeerId, public_key_of
from protocol.limits import ADDRESS_CHARS_MAX

_NAME = re.compile(r"[A-Za-z0-9.-]{1,253}")


@dataclass(frozen=True)
class Address:
    """Where a peer can be dialled: a host and port of its own, or of the relay in front of it."""

    family: str
    host: str
    port: int
    peer_id: PeerId
    relay: PeerId | None = None

    def __str__(self) -> str:
        socket = f"/{self.family}/{self.host}/tcp/{self.port}"
        if self.relay is None:
            return f"{socket}/p2p/{self.peer_id}"
        return f"{socket}/p2p/{self.relay}/p2p-circuit/p2p/{self.peer_id}"

    @property
    def through(self) -> "Address":
        """The relay's own address."""
        assert self.relay is not None
        return Address(self.family, self.host, self.port, self.relay)


def parse(text: str) -> Address:
    """Parse one multiaddr.

    Raises:
        Unreachable: it is none that Agora can dial.
    """
    match text[:ADDRESS_CHARS_MAX].split("/"):
        case ["", family, host, "tcp", port, "p2p", peer] if _is_endpoint(family, host, port) and _is_peer(
            peer
        ):
            return Address(family, host, int(port), PeerId(peer))
        case ["", family, host, "tcp", port, "p2p", relay, "p2p-circuit", "p2p", peer] if (
            _is_endpoint(family, host, port) and _is_peer(relay) and _is_peer(peer)
        ):
            return Address(family, host, int(port), PeerId(peer), PeerId(relay))
    raise Unreachable(
        f"address {text[:ADDRESS_CHARS_MAX]!r} is not /ip4/HOST/tcp/PORT/p2p/PEER or a circuit address"
    )


def _is_endpoint(family: str, host: str, port: str) -> bool:
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65_536):
        return False
    match family:
        case "ip4" | "ip6":
            try:
                return ipaddress.ip_address(host).version == int(family[-1])
            except ValueError:
                return False
        case "dns" | "dns4" | "dns6":
            return bool(_NAME.fullmatch(host))
    return False


def _is_peer(text: str) -> bool:
    try:
        public_key_of(PeerId(text))
    except MalformedMessage:
        return False
    return True


def parse_listen(text: str) -> tuple[str, int]:
    """Parse `/ip4/HOST/tcp/PORT` (or ip6), as given to `--listen`; port 0 means any.

    Raises:
        ValueError: it is not of this form.
    """
    match text.split("/"):
        case ["", "ip4", host, "tcp", port]:
            ipaddress.IPv4Address(host)
        case ["", "ip6", host, "tcp", port]:
            ipaddress.IPv6Address(host)
        case _:
            raise ValueError(f"listen address {text!r} is not /ip4/HOST/tcp/PORT")
    return host, int(port)


def is_wildcard(host: str) -> bool:
    """Whether a listening socket on this host answers on every interface."""
    return ipaddress.ip_address(host).is_unspecified


def interface_hosts() -> list[str]:
    """Return this machine's own addresses, those that others can reach first; loopback only when there is no other.

    A node that listens on 0.0.0.0 must never say so: peers who hear `/ip4/0.0.0.0/…` know each other and never connect.
    """
    found = [
        ipaddress.ip_address(ip.ip if isinstance(ip.ip, str) else ip.ip[0])
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
    ]
    usable = sorted(
        {ip for ip in found if not ip.is_loopback and not ip.is_link_local}, key=lambda ip: (ip.version, ip)
    )
    return [str(ip) for ip in usable] or ["127.0.0.1"]


def announced(host: str, port: int, peer_id: PeerId) -> list[str]:
    """Return the addresses under which a listening socket can be dialled."""
    hosts = [host]
    if is_wildcard(
        host
    ):  # only then: the kernel answers in 0.5 ms, or much later while interfaces come and go
        hosts = [each for each in interface_hosts() if (":" in each) == (":" in host)]
    return [str(Address("ip6" if ":" in each else "ip4", each, port, peer_id)) for each in hosts]
