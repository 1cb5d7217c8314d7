"""Real hosts that gossip, all in this process, and a record of every copy of every message.

`python -m node.bench.gossip_hosts SEED HOSTS DIALS MESSAGES PAUSE_S`: each host dials so many others at random, then one
after another publishes. Prints one line of JSON, a `Record`.

They meet on loopback, but each connection passes a delay line. Without it every host would get a message at the same
moment as all others do, and the one processor that they share would have to take in some hundred copies in a row: that
measures the queue, and not the way that a message takes.

Copies are counted where they come out of the socket, before the host drops those that it knows. In the product nobody
needs that count, so it is taken here, around the one method that every copy passes.
"""

import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Final

import msgspec
import trio

from node.host import Host, HostSettings
from node.host.address import parse
from protocol.identity import Identity, PeerId
from protocol.mesh import Verdict
from protocol.topics import Topic

NEWS: Final = Topic("/bench/news/1", frozenset())
MESSAGE_BYTES: Final = 300
DELAY_S: Final = (0.05, 0.25)  # one way; a line's own is drawn from between
LINE_CHUNKS: Final = 1_024  # on their way in one direction of a line
LINE_BYTES: Final = 64 * 1024
SETTLE_S: Final = 4.0  # heartbeats until no mesh is too small any more, and what came of them
DRAIN_S: Final = 1.5  # the last message's heartbeats
SET_UP_S_MAX: Final = 45.0  # for starting and dialling, on a busy machine
LOOPBACK: Final = "127.0.0.1"
SETTINGS: Final = HostSettings(listen=(f"/ip4/{LOOPBACK}/tcp/0",), mdns=False, relay=False)


@dataclass
class Gossiped:
    """One message's way. Times are seconds since it was published; hosts are numbers.

    Attributes:
        heard_s: when each host but the author had it; who is missing never had it.
        copies: from whom, at whom, when: every copy that a host took from a socket.
    """

    author: int
    heard_s: dict[int, float] = field(default_factory=dict)
    copies: list[tuple[int, int, float]] = field(default_factory=list)
    at_s: float = 0.0


@dataclass
class Record:
    """What happened.

    Attributes:
        dials: who dialled whom, in order, and how long a byte then travels between them, one way.
        fan_outs: how many peers each host had in its mesh, looked at when each message was published.
    """

    dials: list[tuple[int, int, float]]
    messages: list[Gossiped] = field(default_factory=list)
    fan_outs: list[list[int]] = field(default_factory=list)


class Silence:
    """A journal that nobody reads."""

    def write(self, event: str, /, **fields: object) -> None:
        """Forget it."""


class DelayLine:
    """A TCP port that leads to another one; what passes is late by `delay_s`, each way."""

    def __init__(self, target_port: int) -> None:
        self.delay_s = 0.0
        self._target_port = target_port

    async def open(self, nursery: trio.Nursery) -> int:
        """Serve in the nursery; return the port."""
        listeners = await nursery.start(
            partial(trio.serve_tcp, self._serve, 0, host=LOOPBACK, handler_nursery=nursery)
        )
        port: int = listeners[0].socket.getsockname()[1]
        return port

    async def _serve(self, near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream(LOOPBACK, self._target_port)
        async with near, far, trio.open_nursery() as nursery:
            for source, sink in ((near, far), (far, near)):
                send, receive = trio.open_memory_channel[tuple[float, bytes]](LINE_CHUNKS)
                nursery.start_soon(self._take, source, send)
                nursery.start_soon(self._give, sink, receive)

    async def _take(
        self, source: trio.SocketStream, line: "trio.MemorySendChannel[tuple[float, bytes]]"
    ) -> None:
        async with line:
            while chunk := await source.receive_some(LINE_BYTES):
                await line.send((trio.current_time() + self.delay_s, chunk))

    async def _give(
        self, sink: trio.SocketStream, line: "trio.MemoryReceiveChannel[tuple[float, bytes]]"
    ) -> None:
        async for due_s, chunk in line:
            await trio.sleep_until(due_s)
            await sink.send_all(chunk)


class Watched:
    """One host, and what it hears."""

    def __init__(self, number: int, record: Record, numbers: dict[PeerId, int]) -> None:
        identity = Identity.generate()
        numbers[identity.peer_id] = number
        self.host = Host(identity, SETTINGS, Silence())
        self._number = number
        self._record = record
        self._numbers = numbers
        self.host.subscribe(NEWS, lambda _data, _peer: Verdict.ACCEPT, self._hear)

    def watch_copies(self) -> None:
        """Count every copy from now on; the host must be running."""
        pubsub = self._pubsub
        take = pubsub.push_msg

        async def push_msg(forwarder: Any, message: Any) -> None:
            sender = self._numbers[PeerId(forwarder.to_base58())]
            if sender != self._number:
                news = self._news(message.data)
                news.copies.append((sender, self._number, trio.current_time() - news.at_s))
            await take(forwarder, message)

        pubsub.push_msg = push_msg

    @property
    def fan_out(self) -> int:
        """How many peers a new message goes to."""
        return len(self._pubsub.router.mesh[NEWS.name])

    async def dial(self, other: "Watched", nursery: trio.Nursery) -> DelayLine:
        """Connect to another host, through a line that does not delay yet."""
        address = parse(other.host.addresses[0])
        line = DelayLine(address.port)
        port = await line.open(nursery)
        await self.host.dial(f"/ip4/{LOOPBACK}/tcp/{port}/p2p/{address.peer_id}")
        return line

    @property
    def _pubsub(self) -> Any:
        return self.host._gossip.pubsub  # type: ignore[union-attr]  # noqa: SLF001  it runs; nobody else looks in

    async def _hear(self, data: bytes, _peer: PeerId) -> None:
        news = self._news(data)
        news.heard_s[self._number] = trio.current_time() - news.at_s

    def _news(self, data: bytes) -> Gossiped:
        return self._record.messages[int.from_bytes(data[:4])]


def draw_dials(rng: Random, hosts: int, dials: int) -> list[tuple[int, int, float]]:
    """Let each host dial some others; who is connected already is not dialled again."""
    drawn: dict[tuple[int, int], float] = {}
    for dialler in range(hosts):
        for answerer in rng.sample([each for each in range(hosts) if each != dialler], dials):
            if (answerer, dialler) not in drawn:
                drawn[dialler, answerer] = rng.uniform(*DELAY_S)
    return [(*pair, delay_s) for pair, delay_s in drawn.items()]


async def main(seed: int, hosts: int, dials: int, messages: int, pause_s: float) -> None:
    """Let hosts gossip, and print what happened."""
    rng = Random(seed)  # noqa: S311  the same draw each time
    record = Record(draw_dials(rng, hosts, dials))
    numbers: dict[PeerId, int] = {}
    watched = [Watched(number, record, numbers) for number in range(hosts)]
    async with trio.open_nursery() as nursery:
        for each in watched:
            await nursery.start(each.host.run)
            each.watch_copies()
        lines = [
            await watched[dialler].dial(watched[answerer], nursery) for dialler, answerer, _ in record.dials
        ]
        await trio.sleep(SETTLE_S)
        for line, (_, _, delay_s) in zip(lines, record.dials, strict=True):
            line.delay_s = delay_s
        for number in range(messages):
            author = rng.randrange(hosts)
            record.fan_outs.append([each.fan_out for each in watched])
            record.messages.append(Gossiped(author, at_s=trio.current_time()))
            await watched[author].host.publish(NEWS, number.to_bytes(4) + rng.randbytes(MESSAGE_BYTES - 4))
            await trio.sleep(pause_s)
        await trio.sleep(DRAIN_S)
        print(msgspec.json.encode(record).decode(), flush=True)
        nursery.cancel_scope.cancel()


async def bounded(work: Callable[[], Awaitable[None]], pauses_s: float) -> None:
    """Work, and end with an error rather than hang."""
    with trio.fail_after(SET_UP_S_MAX + SETTLE_S + pauses_s + DRAIN_S):
        await work()


if __name__ == "__main__":
    seed, hosts, dials, messages = (int(text) for text in sys.argv[1:5])
    pause_s = float(sys.argv[5])
    trio.run(bounded, partial(main, seed, hosts, dials, messages, pause_s), messages * pause_s)
