"""One HTTP/1.1 connection: Hypercorn's protocol between a socket and the application.

Hypercorn's own loop is not used, for what it leaves open: its writes are shielded, so that a client which never reads would
outlive even the daemon's stop; a reader that waits for a pipelined request can wait for ever; an HTTP/2 upgrade in clear
text, which serves no client of ours, would be a second way in. Here every wait has a bound and ends with the connection.
"""

import math
import socket

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from node.gateway.bounds import Bounds
from node.gateway.guards import App

_READ_BYTES = 65_536
_WRITE_BYTES = 65_536  # at once; a client that takes none of it for `stall_s` is cut off


class Connection:
    """Serves one client until it leaves, idles, stalls, or `close` is called.

    Args:
        stream: owned by the connection from now on.
    """

    def __init__(self, app: App, stream: trio.SocketStream, bounds: Bounds) -> None:
        self._app = ASGIWrapper(app)  # type: ignore[arg-type]  # Hypercorn has a type for each ASGI message
        self._stream = stream
        self._bounds = bounds
        self._protocol: _Http1 | None = None
        self._writing = trio.Lock()
        self._reading = trio.CancelScope(deadline=trio.current_time() + bounds.idle_s)

    async def run(self) -> None:
        """Serve; returns when the connection is closed and the last request's task has ended."""
        try:
            async with TaskGroup() as tasks:
                self._protocol = _Http1(
                    self._app,
                    _config(),
                    WorkerContext(None),
                    tasks,
                    ConnectionState({}),
                    ssl=False,
                    client=None,
                    server=_address(self._stream.socket),
                    send=self._handle_event,
                )
                with self._reading:
                    await self._read(self._protocol)
                await self._protocol.handle(Closed())
        finally:
            self.close()

    def close(self) -> None:
        """Close at once; whoever waits on it is told."""
        self._stream.socket.close()

    async def _read(self, protocol: "_Http1") -> None:
        while True:
            try:
                data = await self._stream.receive_some(_READ_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            await protocol.handle(RawData(bytes(data)))
            if not data:
                return

    async def _handle_event(self, event: Event) -> None:
        """Do what the protocol asks for."""
        match event:
            case RawData(data=data):
                if not await self._write(data):
                    self._leave()
            case Closed():
                self._leave()
            case Updated(idle=is_idle):
                now = trio.current_time()
                self._reading.deadline = now + self._bounds.idle_s if is_idle else math.inf

    async def _write(self, data: bytes) -> bool:
        """Send all of it, or return False."""
        view = memoryview(data)
        async with self._writing:
            for start in range(0, len(view), _WRITE_BYTES):
                with trio.move_on_after(self._bounds.stall_s) as in_time:
                    try:
                        await self._stream.send_all(view[start : start + _WRITE_BYTES])
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        return False
                if in_time.cancelled_caught:
                    return False
        return True

    def _leave(self) -> None:
        """Stop reading, upon which `run` tells the protocol and the request under way."""
        self.close()
        self._reading.cancel()


class _Http1(H11Protocol):
    """HTTP/1.1 and nothing else; an offer to upgrade may be ignored (RFC 9110, section 7.8)."""

    async def _check_protocol(self, event: object) -> None:
        """Take every request as it is."""


def _config() -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = None  # what goes wrong is journaled, without the text of tracebacks
    config.include_server_header = False
    return config


def _address(connection: trio.socket.SocketType) -> tuple[str, int] | None:
    if connection.family == socket.AF_UNIX:
        return None
    host, port = connection.getsockname()[:2]
    return host, port
