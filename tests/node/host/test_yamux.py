"""The multiplexer, against a peer that writes any frame it likes; no sockets, and time that jumps."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from node.host import yamux_frame as wire
from node.host.mux_stream import MuxStream
from node.host.yamux import CONTROL_FRAMES, INBOUND_STREAMS, UNREAD_BYTES, Connection
from protocol.errors import StreamBroken
from protocol.identity import Identity

KIB = 1024


class Channel:
    """An encrypted channel without the encryption."""

    def __init__(self, stream: trio.StapledStream) -> None:  # type: ignore[type-arg]
        self.stream = stream

    async def read(self, n: int | None = None) -> bytes:
        return bytes(await self.stream.receive_some(n))

    async def write(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def close(self) -> None:
        await self.stream.aclose()


@dataclass
class Bench:
    """A connection that runs, the raw channel at its other end, and the streams that the peer opened."""

    connection: Connection
    raw: Channel
    accepted: list[MuxStream]

    async def write(self, *frames: bytes) -> None:
        await self.raw.write(b"".join(frames))
        await trio.testing.wait_all_tasks_blocked()

    async def frames(self, count: int) -> list[tuple[int, int, int, int]]:
        """Read the headers of `count` frames, over their payloads."""
        headers: list[tuple[int, int, int, int]] = []
        buffer = b""
        with trio.fail_after(5):
            while len(headers) < count:
                while len(buffer) < wire.HEADER.size:
                    buffer += await self.raw.read()
                _, kind, flags, stream_id, length = wire.HEADER.unpack(buffer[: wire.HEADER.size])
                buffer = buffer[wire.HEADER.size :]
                while kind == wire.DATA and len(buffer) < length:
                    buffer += await self.raw.read()
                buffer = buffer[length:] if kind == wire.DATA else buffer
                headers.append((kind, flags, stream_id, length))
        return headers


@pytest.fixture(autouse=True)
def virtual_time(request: pytest.FixtureRequest) -> None:
    """Heartbeats come at once: time jumps to whatever is due next."""
    request.node.add_marker(pytest.mark.trio(run=run_on_virtual_time), append=False)


def run_on_virtual_time(test: Callable[[], Awaitable[None]], **options: Any) -> None:
    trio.run(test, **{**options, "clock": MockClock(autojump_threshold=0)})


@pytest.fixture
async def bench(nursery: trio.Nursery) -> AsyncIterator[Bench]:
    """We answered, the peer dialled: it opens odd streams, we open even ones."""
    ours, theirs = memory_stream_pair()
    accepted: list[MuxStream] = []
    connection = Connection(
        Channel(ours),
        Identity.generate().peer_id,
        we_dialled=False,
        remote_ip="192.0.2.1",
        is_relayed=False,
        accept=accepted.append,
    )

    async def run() -> None:
        await connection.run(idle_s=15, busy_s=1, silence_s=5)

    nursery.start_soon(run)
    await trio.testing.wait_all_tasks_blocked()
    yield Bench(connection, Channel(theirs), accepted)
    connection.close("test over")
    nursery.cancel_scope.cancel()


def syn(stream_id: int, payload: bytes = b"") -> bytes:
    return wire.frame(wire.DATA, wire.SYN, stream_id, len(payload)) + payload


def data(stream_id: int, payload: bytes) -> bytes:
    return wire.frame(wire.DATA, 0, stream_id, len(payload)) + payload


@pytest.mark.parametrize(
    "frames",
    [
        [b"\x01" + bytes(11)],
        [wire.frame(4, 0, 1, 0)],
        [syn(2)],
        [syn(3), syn(3)],
        [syn(3), syn(1)],
        [syn(1), wire.frame(wire.DATA, 0, 1, wire.WINDOW_BYTES + 1)],
        [syn(1), data(1, bytes(200 * KIB)), data(1, bytes(57 * KIB))],
        [data(1, b"on a stream that never was")],
        [syn(1), wire.frame(wire.WINDOW, 0, 1, 1 << 31)],
    ],
    ids=[
        "unknown version",
        "unknown type",
        "a stream of our parity",
        "a stream twice",
        "an older stream",
        "a frame longer than any window",
        "more than the window",
        "data on no stream",
        "a window without end",
    ],
)
async def test_a_peer_that_breaks_the_rules_is_cut_off(bench: Bench, frames: list[bytes]) -> None:
    await bench.write(*frames)

    with trio.fail_after(5):
        await bench.connection.closed.wait()
    assert bench.connection.violation
    for stream in bench.accepted:
        with pytest.raises(StreamBroken):
            await stream.send_all(b"into the void")


async def test_data_that_crosses_our_reset_is_nobodys_fault(bench: Bench) -> None:
    """One window of it may have been on the way; more would be ignoring windows."""
    await bench.write(syn(1))
    bench.accepted[0].reset()

    for _ in range(16):
        await bench.write(data(1, bytes(16 * KIB)))
    assert not bench.connection.is_closed
    await bench.write(data(1, b"x"))

    assert "no window left" in bench.connection.violation


async def test_a_token_does_not_wait_behind_a_blob(bench: Bench) -> None:
    """Streams take turns of 16 KiB: one batch that is on its way, and one turn, go out before the token."""
    blob, token = bench.connection.open_stream(), bench.connection.open_stream()
    await blob.send_all(bytes(200 * KIB))
    await token.send_all(b"token")

    order = [stream_id for kind, _, stream_id, _ in await bench.frames(11) if kind == wire.DATA]

    assert token.stream_id in order[:6]


async def test_the_window_is_given_back_in_halves(bench: Bench) -> None:
    await bench.write(syn(1))
    stream = bench.accepted[0]
    await stream.send_all(b"answer")
    assert await bench.frames(3) == [
        (wire.PING, wire.SYN, 0, 1),
        (wire.WINDOW, wire.ACK, 1, 0),
        (wire.DATA, 0, 1, len(b"answer")),
    ]

    await bench.write(data(1, bytes(127 * KIB)))
    await stream.receive_some()
    await bench.write(data(1, bytes(1 * KIB)))
    await stream.receive_some()

    assert await bench.frames(1) == [(wire.WINDOW, 0, 1, 128 * KIB)]
    assert stream.receive_window == wire.WINDOW_BYTES


async def test_more_streams_than_allowed_are_reset_and_the_first_ones_live(bench: Bench) -> None:
    await bench.write(*(syn(2 * number + 1) for number in range(INBOUND_STREAMS + 3)))

    assert len(bench.accepted) == INBOUND_STREAMS
    assert not any(stream.is_broken for stream in bench.accepted)
    assert not bench.connection.is_closed


async def test_a_stream_that_was_answered_makes_room_for_a_new_one(bench: Bench) -> None:
    """A peer that never ends its side of streams must not starve itself of new ones."""
    await bench.write(*(syn(2 * number + 1) for number in range(INBOUND_STREAMS)))
    bench.accepted[5].end()
    bench.accepted[5].discard()

    await bench.write(syn(2 * INBOUND_STREAMS + 1))

    assert len(bench.accepted) == INBOUND_STREAMS + 1
    assert bench.accepted[5].is_broken


async def test_a_socket_is_left_unread_while_its_streams_are(bench: Bench) -> None:
    """What one peer can make us hold is bounded, whatever the number of its streams."""
    for number in range(40):
        await bench.write(syn(2 * number + 1, bytes(wire.WINDOW_BYTES)))

    assert UNREAD_BYTES <= bench.connection.unread_bytes <= UNREAD_BYTES + wire.WINDOW_BYTES
    assert len(bench.accepted) < 40

    while len(bench.accepted) < 40:
        for stream in bench.accepted:
            if stream.incoming:
                await stream.receive_some()
        await trio.testing.wait_all_tasks_blocked()


async def test_a_peer_that_asks_without_reading_the_answers_is_cut_off(nursery: trio.Nursery) -> None:
    class Deaf(Channel):
        async def write(self, _data: bytes) -> None:
            await trio.sleep_forever()

    ours, theirs = memory_stream_pair()
    connection = Connection(
        Deaf(ours),
        Identity.generate().peer_id,
        we_dialled=False,
        remote_ip="",
        is_relayed=False,
        accept=lambda _: None,
    )

    async def run() -> None:
        await connection.run(idle_s=15, busy_s=1, silence_s=5)

    nursery.start_soon(run)
    await theirs.send_all(wire.frame(wire.PING, wire.SYN, 0, 7) * (CONTROL_FRAMES + 2))

    with trio.fail_after(5):
        await connection.closed.wait()
    assert connection.violation == "does not read"


async def test_an_idle_connection_has_a_heartbeat_every_15_s_and_a_busy_one_every_second(
    bench: Bench,
) -> None:
    pings: list[float] = []

    async def answer() -> None:
        while True:
            ((kind, flags, _, value),) = await bench_frames_of_any_age(bench)
            if kind == wire.PING and flags == wire.SYN:
                pings.append(trio.current_time())
                await trio.sleep(0.04)
                await bench.raw.write(wire.frame(wire.PING, wire.ACK, 0, value))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        began = trio.current_time()
        await trio.sleep(50)
        assert [round(at - began) for at in pings] == [0, 15, 30, 45]
        assert bench.connection.round_trip_s == pytest.approx(0.04)

        bench.connection.busy += 1
        pings.clear()
        began = trio.current_time()
        await trio.sleep(5.5)
        assert [round(at - began) for at in pings] == [1, 2, 3, 4, 5]
        nursery.cancel_scope.cancel()


async def test_the_heartbeats_of_all_connections_share_their_ticks(bench: Bench) -> None:
    """A node with twenty idle members wakes for all of them at once, not twenty times."""
    pings: list[float] = []
    await bench.frames(1)
    await bench.write(wire.frame(wire.PING, wire.ACK, 0, 1))
    await trio.sleep(7)
    ours, theirs = memory_stream_pair()
    later = Connection(
        Channel(ours),
        Identity.generate().peer_id,
        we_dialled=False,
        remote_ip="",
        is_relayed=False,
        accept=lambda _: None,
    )

    async def run() -> None:
        await later.run(idle_s=15, busy_s=1, silence_s=5)

    async def note_pings(channel: Channel) -> None:
        header = b""
        while True:
            header += await channel.read(wire.HEADER.size - len(header))
            if len(header) == wire.HEADER.size:
                pings.append(trio.current_time())
                _, _, _, _, value = wire.HEADER.unpack(header)
                await channel.write(wire.frame(wire.PING, wire.ACK, 0, value))
                header = b""

    async with trio.open_nursery() as nursery:
        for work in (run, partial(note_pings, bench.raw), partial(note_pings, Channel(theirs))):
            nursery.start_soon(work)
        await trio.sleep(30)
        nursery.cancel_scope.cancel()

    assert pings == [7, 15, 15, 30, 30]


async def test_a_new_stream_and_what_it_says_first_are_one_write(bench: Bench) -> None:
    """Each write costs both sides a wake-up."""
    await bench.frames(1)
    stream = bench.connection.open_stream()
    await trio.testing.wait_all_tasks_blocked()
    await stream.send_all(b"first")

    assert await bench.raw.read() == wire.frame(wire.WINDOW, wire.SYN, 2, 0) + data(2, b"first")


async def test_an_answer_that_is_held_back_goes_out_whole(bench: Bench) -> None:
    await bench.frames(1)
    await bench.write(syn(1, b"question"))
    stream = bench.accepted[0]
    await stream.send_held(b"answer ")
    await trio.testing.wait_all_tasks_blocked()
    await stream.send_held(b"and more")
    stream.release()

    assert await bench.raw.read() == wire.frame(wire.WINDOW, wire.ACK, 1, 0) + data(1, b"answer and more")


async def test_nothing_is_held_back_while_we_wait_for_the_peer(bench: Bench, nursery: trio.Nursery) -> None:
    """A stock peer sends its proposal only after it has read our header."""
    await bench.frames(1)
    await bench.write(syn(1))
    stream = bench.accepted[0]
    await stream.send_held(b"header")
    nursery.start_soon(stream.receive_some)

    assert await bench.raw.read() == wire.frame(wire.WINDOW, wire.ACK, 1, 0) + data(1, b"header")


async def bench_frames_of_any_age(bench: Bench) -> list[tuple[int, int, int, int]]:
    """One frame, however long it takes to come."""
    header = b""
    while len(header) < wire.HEADER.size:
        header += await bench.raw.read(wire.HEADER.size - len(header))
    _, kind, flags, stream_id, length = wire.HEADER.unpack(header)
    return [(kind, flags, stream_id, length)]


async def test_a_silent_peer_is_noticed_five_seconds_after_a_heartbeat(bench: Bench) -> None:
    began = trio.current_time()

    await bench.connection.closed.wait()

    assert bench.connection.close_reason == "silent for 5 s"
    assert trio.current_time() - began == pytest.approx(5, abs=0.3)


async def test_a_peer_that_talks_without_answering_heartbeats_is_alive(bench: Bench) -> None:
    """A pong may stand behind a long blob; any byte is a sign of life."""
    await bench.write(syn(1))

    for _ in range(30):
        await trio.sleep(2)
        await bench.write(data(1, b"still here"))

    assert not bench.connection.is_closed


async def test_what_arrived_before_a_connection_died_can_still_be_read(bench: Bench) -> None:
    """A receipt followed by the end of its sender's process is a receipt."""
    await bench.write(syn(1, b"receipt"))
    await bench.raw.close()
    await bench.connection.closed.wait()

    assert await bench.accepted[0].receive_some() == b"receipt"
    with pytest.raises(StreamBroken):
        await bench.accepted[0].receive_some()


async def test_a_reset_takes_what_was_unread_with_it(bench: Bench) -> None:
    await bench.write(syn(1, b"never mind"))
    await bench.write(wire.frame(wire.WINDOW, wire.RST, 1, 0))

    with pytest.raises(StreamBroken):
        await bench.accepted[0].receive_some()
    assert bench.connection.unread_bytes == 0
