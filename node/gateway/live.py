"""Answers that take their time: work that ends the moment its client is gone, and event streams that stay alive."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

import trio
from starlette.responses import Response

from node.gateway.errors import too_much
from node.gateway.guards import Receive, Scope, Send

SSE_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}
SSE_WAITING = b": waiting\n\n"  # a comment: clients pass over it


class Places:
    """A bound on what is under way at once; beyond it a client is told to come again."""

    def __init__(self, count: int, what: str) -> None:
        self._left = count
        self._count = count
        self._what = what

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold a place.

        Raises:
            HttpError: 429: all are taken.
        """
        if not self._left:
            raise too_much(f"{self._count} {self._what} are under way, expected fewer")
        self._left -= 1
        try:
            yield
        finally:
            self._left += 1


class Live(Response):
    """A response that is written by `work` and cancelled when the client leaves.

    Args:
        work: sends the ASGI messages of the response. What it raises before the first of them becomes an error answer.
    """

    def __init__(self, work: Callable[[Send], Awaitable[None]]) -> None:
        self._work = work
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Run the work."""

        async def cancel_when_gone(scope: trio.CancelScope) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            scope.cancel()

        await _beside(cancel_when_gone, lambda: self._work(send))


class Writer:
    """Writes a streaming response, each piece at once. Its start is held back until there is something to say.

    Args:
        sign_of_life: what is written after `keep_alive_s` of silence: an SSE comment, an empty line.
    """

    def __init__(
        self, send: Send, headers: Mapping[str, str], *, sign_of_life: bytes, keep_alive_s: float
    ) -> None:
        self.headers = dict(headers)  # may be added to until the start
        self.is_started = False
        self._send = send
        self._sign_of_life = sign_of_life
        self._keep_alive_s = keep_alive_s
        self._written_at = trio.current_time()
        self._lock = trio.Lock()  # a sign of life may come while a piece is being written

    async def write(self, data: bytes) -> None:
        """Send a piece, after the headers if it is the first."""
        async with self._lock:
            if not self.is_started:
                self.is_started = True
                headers = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
                await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            self._written_at = trio.current_time()

    async def end(self, data: bytes = b"") -> None:
        """Send the last piece."""
        await self.write(data)
        async with self._lock:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run the work that writes, with signs of life whenever it wrote nothing for a while."""

        async def keep_alive(_: trio.CancelScope) -> None:
            while True:
                await trio.sleep_until(self._written_at + self._keep_alive_s)
                if trio.current_time() >= self._written_at + self._keep_alive_s:
                    await self.write(self._sign_of_life)

        await _beside(keep_alive, work)


async def _beside(
    background: Callable[[trio.CancelScope], Awaitable[None]], work: Callable[[], Awaitable[None]]
) -> None:
    """Run work until it ends or the background cancels the scope it is given; raise what work raised, ungrouped."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(background, nursery.cancel_scope)
        try:
            await work()
        except Exception as error:  # noqa: BLE001  # raised again below
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
