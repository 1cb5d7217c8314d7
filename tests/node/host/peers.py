"""Hosts for tests: each echoes, hears the news and keeps a journal that can be waited for."""

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from node.host import Host, HostSettings
from protocol.errors import StreamEnded
from protocol.identity import Identity, PeerId
from protocol.mesh import PeerEvent, PeerLost, Stream, Verdict
from protocol.topics import StreamProtocol, Topic

ECHO = StreamProtocol("/test/echo/1", frame_bytes_max=64 * 1024)
NEWS = Topic("/test/news/1", frozenset())


class Journal:
    """Events, and waiting for them."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []
        self._grew = trio.Event()

    def write(self, event: str, /, **fields: object) -> None:
        self.events.append((event, fields))
        self._grew.set()
        self._grew = trio.Event()

    def named(self, event: str, **fields: object) -> list[dict[str, object]]:
        return [each for name, each in self.events if name == event and fields.items() <= each.items()]

    async def until(self, event: str, **fields: object) -> dict[str, object]:
        with trio.fail_after(10):
            while not self.named(event, **fields):
                await self._grew.wait()
        return self.named(event, **fields)[0]


async def echo(stream: Stream) -> None:
    while True:
        try:
            frame = await stream.receive()
        except StreamEnded:
            return
        await stream.send(frame)


class Peer:
    """A host that echoes and hears the news, and its journal."""

    def __init__(self, identity: Identity | None = None, **settings: Any) -> None:
        self.journal = Journal()
        defaults: dict[str, Any] = {"listen": ("/ip4/127.0.0.1/tcp/0",), "mdns": False}
        self.host = Host(
            identity or Identity.generate(), HostSettings(**{**defaults, **settings}), self.journal
        )
        self.host.serve(ECHO, echo)
        self.host.subscribe(NEWS, lambda _data, _peer: Verdict.ACCEPT, self._hear)
        self.host.watch(self._watch)
        self.peer_id = self.host.peer_id

    async def _hear(self, data: bytes, _peer: PeerId) -> None:
        self.journal.write("news_heard", data=data)

    async def _watch(self, event: PeerEvent) -> None:
        self.journal.write("lost" if isinstance(event, PeerLost) else "met", peer_id=event.peer_id)

    async def asks(self, other: "Peer", frame: bytes = b"hello") -> bytes:
        stream = await self.host.open_stream(other.peer_id, ECHO)
        await stream.send(frame)
        answer = await stream.receive()
        await stream.end()
        return answer


Start = Callable[..., Awaitable[Peer]]
