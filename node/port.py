"""Looking whether a port is free before the daemon starts on it, so that the refusal is one line and comes first."""

import errno
import ipaddress
import re
import socket

from node.errors import StartError


def check_free(host: str, port: int, *, what: str) -> None:
    """Return if this address can be listened on now; port 0 always can. `what` is the option that sets it.

    Raises:
        StartError: in use, not this machine's, or not allowed.
    """
    if port == 0:
        return
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as servers do: not held up by TIME_WAIT
            probe.bind(address)
            probe.listen(1)  # two sockets may bind one port; only one may listen
    except OSError as error:
        found = {
            errno.EADDRINUSE: "is in use",
            errno.EADDRNOTAVAIL: "is not an address of this machine",
            errno.EACCES: "needs more rights",
        }.get(error.errno or 0, f"cannot be bound ({error.strerror})")
        raise StartError(
            f"{what} {host}:{port} {found}, expected a free port; stop what uses it or choose another with --{what}"
        ) from error


def listen_address(multiaddr: str) -> tuple[str, int]:
    """Return host and port of a multiaddr that can be listened on, `/ip4/HOST/tcp/PORT` or `/ip6/…`.

    Raises:
        StartError: it is of another kind.
    """
    found = re.fullmatch(r"/ip([46])/([0-9a-fA-F:.]+)/tcp/(\d{1,5})", multiaddr)
    try:
        if found is not None and int(found[3]) <= 65_535:
            ipaddress.IPv4Address(found[2]) if found[1] == "4" else ipaddress.IPv6Address(found[2])
            return found[2], int(found[3])
    except ValueError:
        pass
    raise StartError(f"listen address is {multiaddr[:64]!r}, expected one such as '/ip4/0.0.0.0/tcp/4420'")
