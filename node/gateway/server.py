"""Where connections come in: a loopback port for the gateway, a Unix socket for the owner.

Both end at once with the daemon. An error on one connection, whatever a client sent, ends that connection.
"""

import ipaddress
import os
import socket
import stat
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from node.errors import StartError
from node.gateway.bounds import Bounds
from node.gateway.connection import Connection
from node.gateway.guards import App, record_bug
from node.journal import Journal

if TYPE_CHECKING:
    from trio_typing import TaskStatus

_UCRED = struct.Struct("3i")  # pid, uid, gid of SO_PEERCRED


async def serve_tcp(
    app: App,
    bind: str,
    journal: Journal,
    bounds: Bounds | None = None,
    *,
    task_status: "TaskStatus[str]" = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; started with the URL, `http://127.0.0.1:PORT`, in which a port 0 has become a real one.

    Raises:
        StartError: not an address, not loopback, or in use.
    """
    listener = _bind_tcp(bind)
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    await _serve(app, listener, journal, bounds or Bounds(), partial(task_status.started, url))


async def serve_admin(
    app: App,
    path: Path,
    journal: Journal,
    bounds: Bounds | None = None,
    *,
    task_status: "TaskStatus[Path]" = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the owner on a Unix socket, mode 0600, until cancelled; `path` is free and in a directory of mode 0700.

    Raises:
        StartError: the socket cannot be made there.
    """
    listener = _bind_unix(path)
    await _serve(app, listener, journal, bounds or Bounds(), partial(task_status.started, path))


async def _serve(
    app: App, listener: socket.socket, journal: Journal, bounds: Bounds, started: Callable[[], None]
) -> None:
    open_now: set[Connection] = set()

    async def handle(stream: trio.SocketStream) -> None:
        if len(open_now) >= bounds.connections or not _is_owner(stream.socket):
            return  # and trio closes it
        connection = Connection(app, stream, bounds)
        open_now.add(connection)
        try:
            await connection.run()
        except Exception as error:  # noqa: BLE001  # one connection, whatever it was sent
            record_bug(journal, "", error)
        finally:
            open_now.discard(connection)

    accepting = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
    started()
    await trio.serve_listeners(handle, [accepting])


def loopback_address(bind: str) -> tuple[str, int]:
    """Return the host and the port of `HOST:PORT`, if only this machine can reach them.

    Raises:
        StartError: not an address, or not loopback.
    """
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        number = int(port)
        if not 0 <= number <= 65_535:
            raise ValueError  # one line for all that is no address
    except ValueError:
        raise StartError(f"gateway address is {bind!r}, expected HOST:PORT such as 127.0.0.1:8420") from None
    if not address.is_loopback:
        raise StartError(
            f"gateway address {bind} is open to the network, expected a loopback one such as 127.0.0.1:8420; "
            "put a proxy with TLS before it"
        )
    return str(address), number


def _bind_tcp(bind: str) -> socket.socket:
    host, number = loopback_address(bind)
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, number))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise StartError(
            f"cannot listen on gateway address {bind} ({error.strerror}); "
            "stop what uses it or choose another with --gateway"
        ) from error
    return listener


def _bind_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise StartError(
            f"cannot make admin socket {path} ({error.strerror}), expected a free path"
        ) from error
    return listener


def _is_owner(connection: trio.socket.SocketType) -> bool:
    """Tell whether the other end runs as this user. Where the system does not say, the socket's mode has to do."""
    if connection.family != socket.AF_UNIX or not hasattr(socket, "SO_PEERCRED"):
        return True
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    uid: int = _UCRED.unpack(raw)[1]
    return uid == os.geteuid()
