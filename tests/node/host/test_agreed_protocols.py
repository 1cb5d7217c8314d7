"""A protocol that a peer has agreed to once is proposed together with the first frame: no round trip before it."""

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator

from node.host import negotiation
from node.host import yamux_frame as wire
from node.host.gossip_view import GossipStream
from node.host.mux_stream import MuxStream
from node.host.streams import FrameStream
from protocol.errors import StreamBroken, StreamEnded, TooLarge, Unreachable
from protocol.mesh import Stream
from protocol.topics import StreamProtocol
from tests.node.host.peers import ECHO, Peer, Start, echo

GREETING = StreamProtocol("/test/greeting/1", frame_bytes_max=64)
NOBODYS = StreamProtocol("/test/nobodys/1", frame_bytes_max=64)
OPENING = negotiation.opening(ECHO.name)


@pytest.fixture
async def pair(start: Start) -> tuple[Peer, Peer]:
    """Ann has dialled Bob, and Bob has agreed to echo."""
    ann, bob = await start(), await start()
    await ann.host.dial(bob.host.addresses[0])
    assert await ann.asks(bob) == b"hello"
    return ann, bob


def answer_with(peer: Peer, answer: Callable[[MuxStream], Awaitable[None]]) -> None:
    """From now on, a peer answers streams with code of its own."""
    peer.host._swarm._answer = answer


def bytes_written(peer: Peer, to: Peer) -> list[bytes]:
    """Record what a peer writes on its connection to another, before it is encrypted; gossip and pings among it."""
    (connection,) = peer.host._swarm.connections(to.peer_id)
    writes: list[bytes] = []
    write = connection._secured.write

    async def record(data: bytes) -> None:
        writes.append(data)
        await write(data)

    connection._secured.write = record  # type: ignore[method-assign]
    return writes


async def test_a_second_stream_goes_out_with_its_proposal_and_first_frame_in_one_write(
    pair: tuple[Peer, Peer],
) -> None:
    ann, bob = pair
    writes = bytes_written(ann, bob)

    stream = await ann.host.open_stream(bob.peer_id, ECHO)
    assert OPENING not in b"".join(writes)
    await stream.send(b"question")
    assert await stream.receive() == b"question"

    said = OPENING + b"\x00\x00\x00\x08question"
    stream_id = stream._raw.stream_id
    speaking = wire.frame(wire.DATA, 0, stream_id, len(said)) + said
    assert sum(speaking in data for data in writes) == 1


async def test_the_proposal_is_said_once(pair: tuple[Peer, Peer]) -> None:
    ann, bob = pair
    stream = await ann.host.open_stream(bob.peer_id, ECHO)

    for number in range(3):
        await stream.send(b"%d" % number)
    answers = [await stream.receive() for _ in range(3)]
    await stream.end()

    assert answers == [b"0", b"1", b"2"]
    with pytest.raises(StreamEnded):
        await stream.receive()


async def test_whoever_waits_first_says_the_proposal_too(start: Start, nursery: trio.Nursery) -> None:
    """The other side may be the one that speaks first; a reader and a writer may be two tasks."""
    bob = Peer()

    async def greet(stream: Stream) -> None:
        await stream.send(b"welcome")
        await echo(stream)

    bob.host.serve(GREETING, greet)
    await nursery.start(bob.host.run)
    ann = await start()
    await ann.host.dial(bob.host.addresses[0])

    for _ in range(2):
        stream = await ann.host.open_stream(bob.peer_id, GREETING)
        async with trio.open_nursery() as both:
            both.start_soon(stream.send, b"hello")
            with trio.fail_after(5):
                assert [await stream.receive() for _ in range(2)] == [b"welcome", b"hello"]


async def test_a_reader_that_gives_up_and_comes_back_loses_nothing(pair: tuple[Peer, Peer]) -> None:
    """The answer to the proposal may come in pieces, with a cancelled reader between any two of them."""
    ann, bob = pair
    go_on = trio.Event()

    async def dribble(stream: MuxStream) -> None:
        for byte in OPENING[:10]:
            await stream.send_all(bytes([byte]))
        await go_on.wait()
        await stream.send_all(OPENING[10:] + b"\x00\x00\x00\x06answer")

    answer_with(bob, dribble)
    stream = await ann.host.open_stream(bob.peer_id, ECHO)
    await stream.send(b"question")
    while len(stream._buffer) < 10:
        with trio.move_on_after(0.001):
            await stream.receive()
    go_on.set()

    with trio.fail_after(5):
        assert await stream.receive() == b"answer"


async def test_a_stream_may_end_without_a_frame(pair: tuple[Peer, Peer]) -> None:
    ann, bob = pair
    stream = await ann.host.open_stream(bob.peer_id, ECHO)

    await stream.end()

    with trio.fail_after(5), pytest.raises(StreamEnded):
        await stream.receive()


async def test_a_protocol_that_was_never_agreed_is_still_asked_for_first(pair: tuple[Peer, Peer]) -> None:
    ann, bob = pair

    with pytest.raises(Unreachable):
        await ann.host.open_stream(bob.peer_id, NOBODYS)
    with pytest.raises(Unreachable):
        await ann.host.open_stream(bob.peer_id, NOBODYS)


async def test_a_new_connection_agrees_anew(pair: tuple[Peer, Peer]) -> None:
    """Behind it may be another version of the peer, which no longer speaks the protocol."""
    ann, bob = pair
    await ann.host.disconnect(bob.peer_id)
    await bob.journal.until("lost", peer_id=ann.peer_id)
    del bob.host._protocols[ECHO.name]

    with pytest.raises(Unreachable):
        await ann.host.open_stream(bob.peer_id, ECHO)


async def test_a_peer_that_has_changed_its_mind_breaks_the_stream_and_charges_nobody(
    pair: tuple[Peer, Peer],
) -> None:
    """What came with the refused proposal looks like nonsense to it, and is nobody's offence."""
    ann, bob = pair
    del bob.host._protocols[ECHO.name]

    stream = await ann.host.open_stream(bob.peer_id, ECHO)
    await stream.send(b"question")
    with trio.fail_after(5), pytest.raises(StreamBroken):
        await stream.receive()
    with pytest.raises(StreamBroken):
        await stream.send(b"another")

    assert bob.journal.named("offence_counted") == []
    assert ann.journal.named("offence_counted") == []


async def test_whoever_only_tells_learns_of_a_refusal_when_telling_more(pair: tuple[Peer, Peer]) -> None:
    ann, bob = pair
    del bob.host._protocols[ECHO.name]
    stream = await ann.host.open_stream(bob.peer_id, ECHO)

    async def tell() -> None:
        while True:
            await stream.send(b"news")

    with trio.fail_after(5), pytest.raises(StreamBroken):
        await tell()


@pytest.mark.parametrize(
    "answer",
    [
        b"\x13/multistream/1.0.0\n\x03na\n",
        b"\x13/multistream/1.0.0\n\x0e/test/other/1\n",
        b"\x13/multistream/2.0.0\n",
        b"\xff" * 5,
        b"\x00\x00\x00\x06answer",
        OPENING[:-1] + b"\x00",
    ],
    ids=[
        "refused",
        "another protocol",
        "another version",
        "no text",
        "a frame without an answer",
        "no newline",
    ],
)
async def test_any_other_answer_to_a_proposal_breaks_the_stream_alone(
    pair: tuple[Peer, Peer], answer: bytes
) -> None:
    """At its first wrong byte: a peer cannot make us read on, nor pass a frame off as agreed."""
    ann, bob = pair
    good = await ann.host.open_stream(bob.peer_id, ECHO)
    await good.send(b"before")
    assert await good.receive() == b"before"

    async def lie(stream: MuxStream) -> None:
        await stream.send_all(answer)

    answer_with(bob, lie)
    stream = await ann.host.open_stream(bob.peer_id, ECHO)
    await stream.send(b"question")

    with trio.fail_after(5), pytest.raises(StreamBroken):
        await stream.receive()
    await good.send(b"after")
    assert await good.receive() == b"after"


async def test_a_frame_too_long_behind_a_good_answer_is_refused(pair: tuple[Peer, Peer]) -> None:
    ann, bob = pair

    async def lie(stream: MuxStream) -> None:
        await stream.send_all(OPENING + b"\x00\x10\x00\x00")

    answer_with(bob, lie)
    stream = await ann.host.open_stream(bob.peer_id, ECHO)

    with trio.fail_after(5), pytest.raises(TooLarge):
        await stream.receive()


async def test_a_stock_negotiator_takes_a_proposal_and_a_frame_at_once(pair: tuple[Peer, Peer]) -> None:
    """py-libp2p's own multistream-select at the other end."""
    ann, bob = pair
    agreed: list[str | None] = []

    async def answer_as_stock(stream: MuxStream) -> None:
        selector = Multiselect({TProtocol(ECHO.name): partial(pytest.fail, "not called here")})
        channel = MultiselectCommunicator(GossipStream(stream, ""))  # type: ignore[arg-type]  # reads and writes
        protocol, _ = await selector.negotiate(channel)
        agreed.append(protocol)
        await echo(FrameStream(stream, ECHO))

    answer_with(bob, answer_as_stock)

    assert await ann.asks(bob, b"to a stock peer") == b"to a stock peer"
    assert agreed == [ECHO.name]
