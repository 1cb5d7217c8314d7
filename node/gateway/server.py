"""Where connections come in: a loopback port for the gateway, a Unix socket for the owner.

Hypercorn speaks HTTP/1.1 on each connection; accepting, counting and ending connections is done here, for what its own
loop leaves open: a client that never reads would hold a task that not even the daemon's stop could end, an error inside
Hypercorn would end the daemon, and nobody would look at who is on the other end of a Unix socket.
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
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from node.errors import StartError
from node.gateway.bounds import Bounds
from node.gateway.guards import App, record_bug
from node.journal import Journal

if TYPE_CHECKING:
    from trio_typing import TaskStatus

_PIECE_BYTES = 65_536  # written at once; a client that takes none of it for `stall_s` is cut off
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
    connections = _Connections(app, journal, bounds)
    accept = _Listener(listener, bounds, is_full=lambda: len(connections.streams) >= bounds.connections)
    async with trio.open_nursery() as nursery:
        try:
            listening: list[trio.abc.Listener[_Stream]] = await nursery.start(
                partial(trio.serve_listeners, connections.handle, [accept])
            )
            assert listening
            started()
            await trio.sleep_forever()
        finally:
            for stream in connections.streams:  # Hypercorn shields its writes from being cancelled
                stream.close()


class _Stream(trio.abc.HalfCloseableStream):
    """A connection whose writes end: in time, or with the connection."""

    def __init__(self, stream: trio.SocketStream, stall_s: float) -> None:
        self.socket = stream.socket  # Hypercorn asks it for the two addresses
        self._stream = stream
        self._stall_s = stall_s

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        for start in range(0, len(view), _PIECE_BYTES):
            with trio.move_on_after(self._stall_s) as in_time:
                await self._stream.send_all(view[start : start + _PIECE_BYTES])
            if in_time.cancelled_caught:
                self.close()
                raise trio.BrokenResourceError("the client takes nothing")

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def aclose(self) -> None:
        await self._stream.aclose()

    def close(self) -> None:
        """Close at once; whoever is waiting on it is told."""
        self.socket.close()


class _Listener(trio.abc.Listener[_Stream]):
    """Accepts connections of those who may come, as long as there is room."""

    def __init__(self, listener: socket.socket, bounds: Bounds, is_full: Callable[[], bool]) -> None:
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        self._bounds = bounds
        self._is_full = is_full

    async def accept(self) -> _Stream:
        while True:
            stream = await self._listener.accept()
            if not self._is_full() and _is_owner(stream.socket):
                return _Stream(stream, self._bounds.stall_s)
            stream.socket.close()

    async def aclose(self) -> None:
        await self._listener.aclose()


class _H11Only(H11Protocol):
    """HTTP/1.1 and nothing else: HTTP/2 in clear text serves no client of ours and is a second way in."""

    async def _check_protocol(self, event: object) -> None:
        """Take every request as it is; an offer to upgrade may be ignored (RFC 9110, section 7.8)."""


class _Connections:
    """Runs one Hypercorn server per connection."""

    def __init__(self, app: App, journal: Journal, bounds: Bounds) -> None:
        self.streams: set[_Stream] = set()
        self._app = ASGIWrapper(app)  # type: ignore[arg-type]  # Hypercorn names every ASGI message's type
        self._journal = journal
        self._config = Config()
        self._config.accesslog = None
        self._config.errorlog = None  # what goes wrong is journaled, without the text of tracebacks
        self._config.include_server_header = False
        self._config.keep_alive_timeout = bounds.idle_s

    async def handle(self, stream: _Stream) -> None:
        """Serve one connection to its end; nothing that happens on it reaches the others."""
        self.streams.add(stream)
        try:
            server = TCPServer(self._app, self._config, WorkerContext(None), ConnectionState({}), stream)  # type: ignore[arg-type]
            await server
        except Exception as error:  # noqa: BLE001  # one connection, whatever it was sent
            record_bug(self._journal, "", error)
        finally:
            self.streams.discard(stream)
            stream.close()


def _bind_tcp(bind: str) -> socket.socket:
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        number = int(port)
        if not 0 <= number <= 65_535:
            raise ValueError  # noqa: TRY301  # one line for all that is no address
    except ValueError:
        raise StartError(f"gateway address is {bind!r}, expected HOST:PORT such as 127.0.0.1:8420") from None
    if not address.is_loopback:
        raise StartError(
            f"gateway address {bind} is open to the network, expected a loopback one such as 127.0.0.1:8420; "
            "put a proxy with TLS before it"
        )
    listener = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(address), number))
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
