"""A client that sends exact bytes and reads what comes, when it comes."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import trio

from tests.node.gateway.fake_node import KEY


class RawClient:
    """One connection. `received` is everything that came so far."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, host: str) -> None:
        self.stream = stream
        self.host = host
        self.received = b""

    async def send(self, head: str, body: bytes = b"") -> None:
        """Send a request's head, lines separated by \\n; Host and key are added unless the head has its own."""
        lines = head.splitlines()
        names = {line.partition(":")[0].lower() for line in lines[1:]}
        lines += [f"Host: {self.host}"] * ("host" not in names)
        lines += [f"Authorization: Bearer {KEY}"] * ("authorization" not in names)
        await self.stream.send_all("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    async def post(self, path: str, value: Any) -> None:
        body = json.dumps(value).encode()
        await self.send(
            f"POST {path} HTTP/1.1\nContent-Type: application/json\nContent-Length: {len(body)}", body
        )

    async def until(self, end: bytes) -> bytes:
        """Return what came up to and with these bytes, which are then no longer in `received`."""
        with trio.fail_after(5):
            while end not in self.received:
                piece = await self.stream.receive_some()
                assert piece, f"closed after {self.received!r}, expected {end!r}"
                self.received += piece
        found, _, self.received = self.received.partition(end)
        return found + end

    async def rest(self) -> bytes:
        """Return what comes until the server closes; with bytes of ours unread, that is a reset."""
        with trio.fail_after(5), suppress(trio.BrokenResourceError):
            async for piece in self.stream:
                self.received += piece
        return self.received

    async def answer(self) -> tuple[int, Any]:
        """Return status and JSON of an answer with a Content-Length."""
        head = (await self.until(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        with trio.fail_after(5):
            while len(self.received) < length:
                piece = await self.stream.receive_some()
                assert piece, "closed inside the body"
                self.received += piece
        body, self.received = self.received[:length], self.received[length:]
        return int(head.split()[1]), json.loads(body) if body else None


def events(text: str) -> list[Any]:
    """Return the events of a stream; comments are passed over."""
    data = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return [each if each == "[DONE]" else json.loads(each) for each in data]


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[RawClient]:
    """Open a connection to the server of a URL."""
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    stream = await trio.open_tcp_stream(address.hostname, address.port)
    async with stream:
        yield RawClient(stream, address.netloc)
