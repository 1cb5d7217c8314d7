"""The mesh port's acceptance suite: what holds over libp2p on real sockets holds in the simulator's memory too."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from random import Random
from typing import Any

import pytest
import trio

from node.host import Host, HostSettings
from node.simulation.network import Network
from protocol.errors import (
    LocalProtocolError,
    MalformedMessage,
    MeshError,
    StreamBroken,
    StreamEnded,
    TooLarge,
    Unreachable,
)
from protocol.identity import Identity, PeerId
from protocol.mesh import Mesh, PeerConnected, PeerEvent, PeerLost, Stream, StreamHandler, Verdict
from protocol.topics import StreamProtocol, Topic
from tests.contracts.virtual_time import on_virtual_time

ECHO = StreamProtocol("/test/echo/1", frame_bytes_max=256 * 1024)
SINK = StreamProtocol("/test/sink/1", frame_bytes_max=256 * 1024)
SMALL = StreamProtocol("/test/small/1", frame_bytes_max=16)
SMALL_AS_A_LIAR_SEES_IT = StreamProtocol("/test/small/1", frame_bytes_max=1024)
FEW = StreamProtocol("/test/few/1", frame_bytes_max=16, streams_max=2)
POSTS = StreamProtocol("/test/posts/1", frame_bytes_max=16)
NEWS = Topic("/test/news/1", frozenset())


class Happenings(list[Any]):
    """A list that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._grew = trio.Event()

    def add(self, item: object) -> None:
        self.append(item)
        self._grew.set()
        self._grew = trio.Event()

    async def until(self, enough: Callable[["Happenings"], bool]) -> None:
        with trio.fail_after(10):
            while not enough(self):
                await self._grew.wait()


class RecordingJournal:
    def __init__(self) -> None:
        self.events = Happenings()

    def write(self, event: str, /, **fields: object) -> None:
        self.events.add((event, fields))

    def named(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == event]

    async def until_written(self, event: str) -> dict[str, Any]:
        await self.events.until(lambda _: bool(self.named(event)))
        return self.named(event)[0]


class Node:
    """A mesh, its journal, and what it was told."""

    def __init__(self, mesh: Mesh, journal: RecordingJournal) -> None:
        self.mesh = mesh
        self.journal = journal
        self.peers = Happenings()
        self.news = Happenings()
        self.posts = Happenings()
        self.verdict: Callable[[bytes, PeerId], Verdict] = lambda _data, _peer: Verdict.ACCEPT
        mesh.watch(self._hear_of_peer)
        mesh.serve(ECHO, echo)
        mesh.serve_posts(POSTS, self._take_post)
        mesh.subscribe(NEWS, self._judge_news, self._hear_news)

    def _take_post(self, frame: bytes, peer: PeerId) -> None:
        if frame == b"nonsense":
            raise MalformedMessage("a post that means nothing")
        self.posts.add((frame, peer))

    async def _hear_of_peer(self, event: PeerEvent) -> None:
        self.peers.add(event)

    def _judge_news(self, data: bytes, peer: PeerId) -> Verdict:
        return self.verdict(data, peer)

    async def _hear_news(self, data: bytes, _peer: PeerId) -> None:
        self.news.add(data)

    @property
    def peer_id(self) -> PeerId:
        return self.mesh.peer_id


async def echo(stream: Stream) -> None:
    while True:
        try:
            frame = await stream.receive()
        except StreamEnded:
            return
        await stream.send(frame)


class World:
    """Makes nodes of one backend; those are running when it returns them."""

    def __init__(self, make: Callable[[RecordingJournal], Mesh], nursery: trio.Nursery) -> None:
        self._make = make
        self._nursery = nursery

    async def node(self, **handlers: tuple[StreamProtocol, StreamHandler]) -> Node:
        journal = RecordingJournal()
        node = Node(self._make(journal), journal)
        for protocol, handler in handlers.values():
            node.mesh.serve(protocol, handler)
        await self._nursery.start(node.mesh.run)  # type: ignore[attr-defined]
        return node

    async def pair(self, **handlers: tuple[StreamProtocol, StreamHandler]) -> tuple[Node, Node]:
        """Two connected nodes; the first dialled the second, and the second has the handlers."""
        ann, bob = await self.node(), await self.node(**handlers)
        await join(ann, bob)
        return ann, bob


async def join(dialler: Node, answerer: Node) -> None:
    await dialler.mesh.dial(answerer.mesh.addresses[0])
    await dialler.peers.until(lambda events: PeerConnected(answerer.peer_id, we_dialled=True) in events)
    await answerer.peers.until(lambda events: PeerConnected(dialler.peer_id, we_dialled=False) in events)


@pytest.fixture(params=["memory", "libp2p"])
def backend(request: pytest.FixtureRequest) -> str:
    """The simulator's nodes wait for nothing; real sockets need real time."""
    if request.param == "memory":
        on_virtual_time(request)
    return str(request.param)


@pytest.fixture
async def world(backend: str) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        if backend == "memory":
            network = Network(Random(7))
            await nursery.start(network.run)
            yield World(lambda journal: network.join(Identity.generate().peer_id, journal), nursery)
        else:
            settings = HostSettings(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False)
            yield World(lambda journal: Host(Identity.generate(), settings, journal), nursery)
        nursery.cancel_scope.cancel()


# --- peers -----------------------------------------------------------------------------------------------------------


async def test_addresses_carry_the_peer_id_and_never_the_wildcard(world: World) -> None:
    node = await world.node()

    assert node.mesh.addresses
    assert all(
        each.endswith(f"/p2p/{node.peer_id}") and "0.0.0.0" not in each for each in node.mesh.addresses
    )


async def test_a_dial_connects_both_and_both_know_who_dialled(world: World) -> None:
    ann, bob = await world.node(), await world.node()

    assert await ann.mesh.dial(bob.mesh.addresses[0]) == bob.peer_id
    await ann.peers.until(len)
    await bob.peers.until(len)

    assert ann.peers == [PeerConnected(bob.peer_id, we_dialled=True)]
    assert bob.peers == [PeerConnected(ann.peer_id, we_dialled=False)]
    assert ann.mesh.connected == {bob.peer_id}
    assert bob.mesh.connected == {ann.peer_id}


async def test_dialling_a_connected_peer_changes_nothing(world: World) -> None:
    ann, bob = await world.pair()

    await ann.mesh.dial(bob.mesh.addresses[0])

    assert ann.peers == [PeerConnected(bob.peer_id, we_dialled=True)]


async def test_a_dial_that_finds_another_key_is_refused(world: World) -> None:
    """Whoever answers at an address must hold the key that the address names."""
    ann, bob = await world.pair()
    stranger = Identity.generate().peer_id

    with pytest.raises(Unreachable):
        await ann.mesh.dial(bob.mesh.addresses[0].replace(bob.peer_id, stranger))

    assert ann.mesh.connected == {bob.peer_id}


@pytest.mark.parametrize(
    "address", ["", "nonsense", "/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1/p2p/nobody"]
)
async def test_an_address_that_is_none_is_unreachable(world: World, address: str) -> None:
    ann = await world.node()

    with pytest.raises(Unreachable):
        await ann.mesh.dial(address)


async def test_a_node_does_not_dial_itself(world: World) -> None:
    ann = await world.node()

    with pytest.raises(Unreachable):
        await ann.mesh.dial(ann.mesh.addresses[0])


async def test_peers_that_dial_each_other_at_once_are_connected_and_one_speaks_first(world: World) -> None:
    ann, bob = await world.node(), await world.node()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ann.mesh.dial, bob.mesh.addresses[0])
        nursery.start_soon(bob.mesh.dial, ann.mesh.addresses[0])
    await ann.peers.until(len)
    await bob.peers.until(len)

    assert any(event.we_dialled for event in (ann.peers[0], bob.peers[0]))
    assert await ask(ann, bob, b"from ann") == b"from ann"
    assert await ask(bob, ann, b"from bob") == b"from bob"


async def test_a_disconnect_is_told_on_both_sides_and_breaks_streams(world: World) -> None:
    ann, bob = await world.pair()
    stream = await ann.mesh.open_stream(bob.peer_id, ECHO)

    await ann.mesh.disconnect(bob.peer_id)

    await ann.peers.until(lambda events: events[-1] == PeerLost(bob.peer_id))
    await bob.peers.until(lambda events: events[-1] == PeerLost(ann.peer_id))
    assert ann.mesh.connected == frozenset()
    with pytest.raises(StreamBroken):
        await stream.receive()
    with pytest.raises(StreamBroken):
        await stream.send(b"into the void")


async def test_a_stream_to_a_known_peer_that_was_lost_dials_it_again(world: World) -> None:
    ann, bob = await world.pair()
    await ann.mesh.disconnect(bob.peer_id)
    await bob.peers.until(lambda events: events[-1] == PeerLost(ann.peer_id))

    assert await ask(ann, bob, b"back") == b"back"

    await ann.peers.until(lambda events: len(events) == 3)
    assert ann.peers[-1] == PeerConnected(bob.peer_id, we_dialled=True)


async def test_a_peer_that_was_let_go_at_once_is_not_dialled_again_by_gossip(world: World) -> None:
    """Gossip may be greeting it just then; only somebody with something to say to a lost peer dials it."""
    ann, bob, carol = await world.node(), await world.node(), await world.node()

    await ann.mesh.dial(bob.mesh.addresses[0])
    await ann.mesh.disconnect(bob.peer_id)

    await join(ann, carol)  # takes as long as dialling bob again would have
    assert ann.mesh.connected == {carol.peer_id}


async def test_a_stream_to_a_stranger_is_unreachable(world: World) -> None:
    ann = await world.node()

    with pytest.raises(Unreachable):
        await ann.mesh.open_stream(Identity.generate().peer_id, ECHO)


async def test_the_round_trip_to_a_peer_becomes_known(world: World) -> None:
    ann, bob = await world.pair()

    assert ann.mesh.round_trip_s(Identity.generate().peer_id) is None
    with trio.fail_after(10):
        while (seconds := ann.mesh.round_trip_s(bob.peer_id)) is None:
            await ask(ann, bob, b"")

    assert 0 < seconds < 1


async def test_a_peer_with_many_offences_is_cut_off_and_barred_for_a_while(world: World) -> None:
    ann, bob = await world.pair()

    for _ in range(16):
        bob.mesh.charge(ann.peer_id, "malformed")

    await bob.peers.until(lambda events: events[-1] == PeerLost(ann.peer_id))
    assert len(bob.journal.named("offence_counted")) == 16
    assert bob.journal.named("peer_barred") == [{"peer_id": ann.peer_id, "offence": "malformed"}]
    with pytest.raises(Unreachable):
        await bob.mesh.dial(ann.mesh.addresses[0])


async def test_handlers_are_registered_before_a_mesh_runs(world: World) -> None:
    node = await world.node()

    with pytest.raises(LocalProtocolError):
        node.mesh.serve(SINK, echo)
    with pytest.raises(LocalProtocolError):
        node.mesh.watch(node.peers.add)  # type: ignore[arg-type]


# --- streams ---------------------------------------------------------------------------------------------------------


async def ask(asker: Node, asked: Node, frame: bytes) -> bytes:
    stream = await asker.mesh.open_stream(asked.peer_id, ECHO)
    await stream.send(frame)
    answer = await stream.receive()
    await stream.end()
    return answer


async def test_frames_arrive_whole_and_in_order(world: World) -> None:
    """From nothing to the most the protocol allows: a frame is never cut or joined."""
    ann, bob = await world.pair()
    frames = [b"", b"x", os.urandom(70_000), b"", os.urandom(ECHO.frame_bytes_max), b"last"]
    stream = await ann.mesh.open_stream(bob.peer_id, ECHO)

    async def send_all() -> None:
        for frame in frames:
            await stream.send(frame)
        await stream.end()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all)
        received = [await stream.receive() for _ in frames]

    assert received == frames
    assert stream.peer_id == bob.peer_id
    with pytest.raises(StreamEnded):
        await stream.receive()


async def test_an_end_is_said_once_and_heard_every_time(world: World) -> None:
    ann, bob = await world.pair()
    stream = await ann.mesh.open_stream(bob.peer_id, ECHO)

    await stream.end()
    await stream.end()

    for _ in range(2):
        with pytest.raises(StreamEnded):
            await stream.receive()
    with pytest.raises(LocalProtocolError):
        await stream.send(b"too late")


async def test_a_handler_that_returns_ends_its_stream(world: World) -> None:
    async def greet(stream: Stream) -> None:
        await stream.send(b"hello")

    ann, bob = await world.pair(greet=(SINK, greet))
    stream = await ann.mesh.open_stream(bob.peer_id, SINK)

    assert await stream.receive() == b"hello"
    with pytest.raises(StreamEnded):
        await stream.receive()


async def test_an_answer_is_heard_though_its_handler_never_read_our_end(world: World) -> None:
    async def answer_once(stream: Stream) -> None:
        await stream.send(await stream.receive() + b" answered")

    ann, bob = await world.pair(answer=(SINK, answer_once))
    for _ in range(20):
        stream = await ann.mesh.open_stream(bob.peer_id, SINK)
        await stream.send(b"question")
        await stream.end()

        assert await stream.receive() == b"question answered"
        with pytest.raises(StreamEnded):
            await stream.receive()


async def test_a_refusal_given_early_is_heard_by_whoever_is_still_sending(world: World) -> None:
    """A decline must not be lost under the prompt that it declines."""

    async def refuse(stream: Stream) -> None:
        await stream.receive()
        await stream.send(b"no")

    ann, bob = await world.pair(refuse=(SINK, refuse))
    stream = await ann.mesh.open_stream(bob.peer_id, SINK)

    async def send_long_request() -> None:
        with suppress(StreamBroken):
            for _ in range(10):
                await stream.send(bytes(200_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_long_request)
        assert await stream.receive() == b"no"
        with pytest.raises(StreamEnded):
            await stream.receive()


async def test_frames_sent_to_a_handler_that_has_returned_break_the_stream(world: World) -> None:
    async def leave(_stream: Stream) -> None:
        pass

    ann, bob = await world.pair(leave=(SINK, leave))
    stream = await ann.mesh.open_stream(bob.peer_id, SINK)
    with pytest.raises(StreamEnded):
        await stream.receive()

    async def send_without_end() -> None:
        while True:
            await stream.send(bytes(1000))

    with pytest.raises(StreamBroken), trio.fail_after(10):
        await send_without_end()


async def test_an_aborted_stream_is_broken_at_the_other_end(world: World) -> None:
    outcome = Happenings()

    async def read(stream: Stream) -> None:
        try:
            await stream.receive()
        except MeshError as error:
            outcome.add(type(error))

    ann, bob = await world.pair(read=(SINK, read))
    stream = await ann.mesh.open_stream(bob.peer_id, SINK)

    stream.abort()
    stream.abort()

    await outcome.until(len)
    assert outcome == [StreamBroken]
    with pytest.raises(StreamBroken):
        await stream.receive()


async def test_a_frame_over_our_own_limit_is_our_bug_and_the_stream_goes_on(world: World) -> None:
    ann, bob = await world.pair()
    stream = await ann.mesh.open_stream(bob.peer_id, ECHO)

    with pytest.raises(LocalProtocolError):
        await stream.send(bytes(ECHO.frame_bytes_max + 1))
    await stream.send(b"fine")

    assert await stream.receive() == b"fine"


async def test_a_frame_over_the_limit_of_the_receiver_is_counted_against_the_sender(world: World) -> None:
    outcome = Happenings()

    async def read(stream: Stream) -> None:
        try:
            await stream.receive()
        except TooLarge:
            outcome.add("too large")
            raise

    ann, bob = await world.pair(read=(SMALL, read))
    stream = await ann.mesh.open_stream(bob.peer_id, SMALL_AS_A_LIAR_SEES_IT)

    await stream.send(bytes(17))

    with pytest.raises(StreamBroken):
        await stream.receive()
    assert outcome == ["too large"]
    assert (await bob.journal.until_written("offence_counted"))["offence"] == "too_large"


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (MalformedMessage("rubbish"), "offence_counted"),
        (Unreachable("somebody else is away"), None),
        (ZeroDivisionError("our bug"), "handler_failed"),
        (
            ExceptionGroup("nursery", [ExceptionGroup("inner", [MalformedMessage("rubbish")])]),
            "offence_counted",
        ),
    ],
    ids=["the peer's fault", "nobody's fault", "our fault", "the peer's fault, in a nursery"],
)
async def test_a_handler_that_raises_costs_its_stream_and_nothing_else(
    world: World, error: Exception, event: str | None
) -> None:
    async def fail(_stream: Stream) -> None:
        raise error

    ann, bob = await world.pair(fail=(SINK, fail))

    with pytest.raises(MeshError):
        await (await ann.mesh.open_stream(bob.peer_id, SINK)).receive()

    if event:
        await bob.journal.until_written(event)
    assert [name for name, _ in bob.journal.events if name in ("offence_counted", "handler_failed")] == (
        [event] if event else []
    )
    assert await ask(ann, bob, b"still there") == b"still there"


async def test_a_protocol_nobody_serves_is_unreachable(world: World) -> None:
    ann, bob = await world.pair()

    with pytest.raises(Unreachable):
        await ann.mesh.open_stream(bob.peer_id, SINK)

    assert await ask(ann, bob, b"still there") == b"still there"


async def test_a_peer_has_only_so_many_streams_of_a_protocol(world: World) -> None:
    ann, bob = await world.pair(few=(FEW, echo))
    kept = [await ann.mesh.open_stream(bob.peer_id, FEW) for _ in range(FEW.streams_max)]
    for stream in kept:
        await stream.send(b"mine")
        assert await stream.receive() == b"mine"

    with pytest.raises(MeshError):
        await (await ann.mesh.open_stream(bob.peer_id, FEW)).receive()

    kept.pop().abort()
    with trio.fail_after(10):
        while True:
            stream = await ann.mesh.open_stream(bob.peer_id, FEW)
            try:
                await stream.send(b"room again")
                assert await stream.receive() == b"room again"
                break
            except StreamBroken:
                continue


async def test_a_posted_frame_arrives_and_nobody_waited_for_it(world: World) -> None:
    ann, bob = await world.pair()

    ann.mesh.post(bob.peer_id, POSTS, b"an advert")

    await bob.posts.until(len)
    assert bob.posts == [(b"an advert", ann.peer_id)]


async def test_a_post_to_a_peer_that_is_away_is_lost_and_harms_nothing(world: World) -> None:
    ann, bob = await world.pair()

    ann.mesh.post(Identity.generate().peer_id, POSTS, b"lost")
    ann.mesh.post(bob.peer_id, POSTS, b"found")

    await bob.posts.until(len)
    assert bob.posts == [(b"found", ann.peer_id)]


async def test_a_post_that_its_handler_refuses_is_counted_against_the_sender(world: World) -> None:
    ann, bob = await world.pair()

    ann.mesh.post(bob.peer_id, POSTS, b"nonsense")

    assert (await bob.journal.until_written("offence_counted"))["peer_id"] == ann.peer_id
    assert bob.posts == []


async def test_a_frame_on_a_stream_of_its_own_is_a_post(world: World) -> None:
    """Whoever does not know `post` opens the stream by hand."""
    ann, bob = await world.pair()

    stream = await ann.mesh.open_stream(bob.peer_id, POSTS)
    await stream.send(b"by hand")
    await stream.end()

    await bob.posts.until(len)
    assert bob.posts == [(b"by hand", ann.peer_id)]


async def test_a_post_over_our_own_limit_is_our_bug(world: World) -> None:
    ann, bob = await world.pair()

    with pytest.raises(LocalProtocolError):
        ann.mesh.post(bob.peer_id, POSTS, bytes(17))


async def test_a_slow_reader_holds_the_writer_back_and_loses_nothing(world: World) -> None:
    """Memory for a peer that does not read is bounded: the writer waits instead."""
    start = trio.Event()
    received = Happenings()

    async def read_later(stream: Stream) -> None:
        await start.wait()
        while True:
            received.add(await stream.receive())

    ann, bob = await world.pair(read=(SINK, read_later))
    stream = await ann.mesh.open_stream(bob.peer_id, SINK)
    sent = []

    async def send_without_end() -> None:
        while True:
            frame = len(sent).to_bytes(4, "big") * 25_000
            await stream.send(frame)
            sent.append(frame)

    with trio.move_on_after(1):
        await send_without_end()
    assert len(sent) < 30
    start.set()

    await received.until(lambda frames: len(frames) == len(sent))
    assert received == sent


async def test_a_cancelled_send_goes_out_whole_or_not_at_all(world: World) -> None:
    received = Happenings()
    start = trio.Event()

    async def read_later(stream: Stream) -> None:
        await start.wait()
        try:
            while True:
                received.add(await stream.receive())
        except StreamEnded:
            received.add("end")

    ann, bob = await world.pair(read=(SINK, read_later))
    stream = await ann.mesh.open_stream(bob.peer_id, SINK)
    frames = [bytes([number]) * 200_000 for number in range(12)]
    sent = []

    for frame in frames:
        with trio.move_on_after(0.05):
            await stream.send(frame)
            sent.append(frame)
    start.set()
    await stream.end()

    await received.until(lambda frames: frames[-1:] == ["end"])
    assert len(sent) < len(frames)
    assert received == [*sent, "end"]


async def test_a_cancelled_receive_loses_no_byte(world: World) -> None:
    ann, bob = await world.pair()
    stream = await ann.mesh.open_stream(bob.peer_id, ECHO)
    frames = [bytes([number]) * 100_000 for number in range(10)]
    received = []

    async def send_all() -> None:
        for frame in frames:
            await stream.send(frame)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all)
        with trio.fail_after(10):
            while len(received) < len(frames):
                with trio.move_on_after(0.0005):
                    received.append(await stream.receive())

    assert received == frames


# --- gossip ----------------------------------------------------------------------------------------------------------


async def line_of_three(world: World) -> tuple[Node, Node, Node]:
    """Ann knows Bob, Bob knows Cid, and gossip has begun to flow."""
    ann, bob, cid = await world.node(), await world.node(), await world.node()
    await join(ann, bob)
    await join(bob, cid)
    number = 0
    with trio.fail_after(20):
        while not (cid.news and bob.news):
            await ann.mesh.publish(NEWS, b"warm up %d" % number)
            number += 1
            with trio.move_on_after(0.2):
                await cid.news.until(len)
    await cid.news.until(lambda news: b"warm up %d" % (number - 1) in news)
    for node in (ann, bob, cid):
        node.news.clear()
    return ann, bob, cid


async def test_gossip_reaches_peers_of_peers_once_and_not_its_author(world: World) -> None:
    ann, bob, cid = await line_of_three(world)

    await ann.mesh.publish(NEWS, b"one")
    await cid.mesh.publish(NEWS, b"two")

    await cid.news.until(lambda news: b"one" in news)
    await ann.news.until(lambda news: b"two" in news)
    await bob.news.until(lambda news: len(news) == 2)
    assert ann.news == [b"two"]
    assert sorted(bob.news) == [b"one", b"two"]
    assert cid.news == [b"one"]


async def test_a_burst_of_gossip_is_paced_and_not_lost(world: World) -> None:
    """Stock libp2p delivered 32 of 100 messages published at once, silently."""
    ann, _, cid = await line_of_three(world)
    messages = [b"message %d" % number for number in range(60)]

    for message in messages:
        await ann.mesh.publish(NEWS, message)

    await cid.news.until(lambda news: len(news) == len(messages))
    assert sorted(cid.news) == sorted(messages)


async def test_the_same_bytes_are_the_same_message(world: World) -> None:
    ann, _, cid = await line_of_three(world)

    for _ in range(3):
        await ann.mesh.publish(NEWS, b"again")
    await ann.mesh.publish(NEWS, b"last")

    await cid.news.until(lambda news: b"last" in news)
    assert sorted(cid.news) == [b"again", b"last"]


@pytest.mark.parametrize(
    ("verdict", "events"),
    [(Verdict.REJECT, ["offence_counted"]), (Verdict.IGNORE, [])],
    ids=["reject", "ignore"],
)
async def test_gossip_that_a_validator_refuses_goes_no_further(
    world: World, verdict: Verdict, events: list[str]
) -> None:
    ann, bob, cid = await line_of_three(world)
    bob.verdict = lambda data, _peer: verdict if data == b"bad" else Verdict.ACCEPT

    await ann.mesh.publish(NEWS, b"bad")
    await ann.mesh.publish(NEWS, b"good")

    await cid.news.until(lambda news: b"good" in news)
    assert bob.news == [b"good"]
    assert cid.news == [b"good"]
    assert [name for name, _ in bob.journal.events if name in ("offence_counted", "handler_failed")] == events


async def test_a_validator_that_raises_is_our_fault_and_the_message_is_ignored(world: World) -> None:
    ann, bob, cid = await line_of_three(world)

    def fail(data: bytes, _peer: PeerId) -> Verdict:
        if data == b"bad":
            raise ZeroDivisionError
        return Verdict.ACCEPT

    bob.verdict = fail
    await ann.mesh.publish(NEWS, b"bad")
    await ann.mesh.publish(NEWS, b"good")

    await cid.news.until(lambda news: b"good" in news)
    assert cid.news == [b"good"]
    assert bob.journal.named("handler_failed")[0]["error"] == "ZeroDivisionError"
    assert bob.journal.named("offence_counted") == []


async def test_gossip_that_is_too_long_or_on_a_foreign_topic_is_our_own_bug(world: World) -> None:
    ann = await world.node()

    with pytest.raises(LocalProtocolError):
        await ann.mesh.publish(NEWS, bytes(NEWS.message_bytes_max + 1))
    with pytest.raises(LocalProtocolError):
        await ann.mesh.publish(Topic("/test/other/1", frozenset()), b"x")
