"""What the libp2p host promises beyond the mesh port: the guard, supervision, relaying, scoring."""

import dataclasses
import math
import socket
import struct
from functools import partial

import pytest
import trio
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.score import ScoreParams, TopicScoreParams
from trio.testing import MockClock

from node.guard import Guarded
from node.host import Host, HostSettings, gossip_gate
from node.host import swarm as swarm_module
from node.host.gossip_score import score_params
from node.host.mux_stream import MuxStream
from node.host.relay import HOP
from protocol.errors import StreamBroken, Unreachable
from protocol.identity import Identity
from protocol.mesh import PeerEvent, Verdict
from protocol.topics import STREAM_PROTOCOLS, TOPICS
from tests.node.host.peers import ECHO, NEWS, Journal, Peer, Start, echo

# --- the guard -------------------------------------------------------------------------------------------------------


def test_every_handler_of_the_host_is_under_the_guard() -> None:
    """One handler without it, and one packet kills the process: this test is what keeps it at none."""
    host = Host(Identity.generate(), HostSettings(), Journal())
    for protocol in STREAM_PROTOCOLS:
        host.serve(protocol, echo)
    for topic in TOPICS:
        host.subscribe(topic, lambda _data, _peer: Verdict.ACCEPT, Peer()._hear)

    served = set(host._protocols)

    assert {each.name for each in STREAM_PROTOCOLS} <= served
    assert {"/meshsub/1.2.0", "/meshsub/1.1.0", "/libp2p/circuit/relay/0.2.0/hop"} <= served
    assert all(isinstance(each, Guarded) and each.guard is host._guard for each in host._protocols.values())


async def test_every_task_of_pubsub_is_under_the_guard(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """libp2p starts a task for each peer and subscription; one that raises used to end the host."""
    ann, bob = await start(), await start()

    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(gossip_gate.GuardedPubsub, "_replay_recent_messages", fail)
    await ann.host.dial(bob.host.addresses[0])

    await ann.journal.until("handler_failed", where="gossip fail", peer_id=bob.peer_id)
    assert await ann.asks(bob) == b"hello"
    assert ann.journal.named("host_died") == []


async def test_a_watcher_that_raises_is_told_of_the_next_peer(start: Start, nursery: trio.Nursery) -> None:
    async def fail(_event: PeerEvent) -> None:
        raise ZeroDivisionError

    ann = Peer()
    ann.host.watch(fail)
    await nursery.start(ann.host.run)
    for _ in range(2):
        peer = await start()
        await peer.host.dial(ann.host.addresses[0])
        await ann.journal.until("handler_failed", where="watch", peer_id=peer.peer_id)


# --- supervision -----------------------------------------------------------------------------------------------------


async def test_a_host_that_dies_is_back_within_a_second_with_its_key_and_port(start: Start) -> None:
    ann, bob = await start(), await start()
    await ann.host.dial(bob.host.addresses[0])
    address = bob.host.addresses[0]
    died_at = trio.current_time()

    await bob.host._swarm.fail(ZeroDivisionError())

    await bob.journal.until("host_restarted", part="swarm")
    assert trio.current_time() - died_at < 1
    assert bob.journal.named("host_died")[0]["error"] == "ZeroDivisionError"
    assert bob.host.addresses[0] == address
    await ann.journal.until("lost", peer_id=bob.peer_id)
    assert await ann.asks(bob) == b"hello"


async def test_while_the_host_is_away_callers_wait_and_then_go_on(start: Start) -> None:
    ann, bob = await start(), await start()
    await bob.host.dial(ann.host.addresses[0])

    await bob.host._swarm.fail(ZeroDivisionError())
    await bob.journal.until("host_died")

    assert await bob.asks(ann) == b"hello"


async def dies_and_comes_back(*peers: Peer) -> None:
    """Whichever heartbeat came first has died of the planted fault."""
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:

            async def wait_for(peer: Peer) -> None:
                await peer.journal.until("host_died", part="gossip")
                await peer.journal.until("host_restarted", part="gossip")
                nursery.cancel_scope.cancel()

            for peer in peers:
                nursery.start_soon(wait_for, peer)


async def test_gossip_that_dies_is_back_within_a_second_and_no_stream_breaks(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The router's heartbeat runs outside the guard, as libp2p's own service: jobs must go on when it dies."""
    ann, bob = await start(), await start()
    await ann.host.dial(bob.host.addresses[0])
    stream = await ann.host.open_stream(bob.peer_id, ECHO)

    def fail(_router: GossipSub) -> None:
        monkeypatch.undo()
        raise ZeroDivisionError

    monkeypatch.setattr(GossipSub, "mesh_heartbeat", fail)
    await dies_and_comes_back(ann, bob)

    await stream.send(b"through all of it")
    assert await stream.receive() == b"through all of it"
    with trio.fail_after(10):
        number = 0
        while not bob.journal.named("news_heard"):
            await ann.host.publish(NEWS, b"news %d" % number)
            number += 1
            with trio.move_on_after(0.3):
                await bob.journal.until("news_heard")


async def test_a_peer_that_hangs_up_as_it_is_dialled_is_unreachable_and_no_more(
    start: Start, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reset may come before we have asked the socket for its address: that once ended the daemon."""
    ann, stranger = await start(), Identity.generate().peer_id

    async def hang_up(stream: trio.SocketStream) -> None:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close by a reset
        await trio.aclose_forcefully(stream)

    (listener,) = await nursery.start(partial(trio.serve_tcp, hang_up, 0, host="127.0.0.1"))
    connect = trio.open_tcp_stream

    async def connect_and_be_reset(host: str, port: int) -> trio.SocketStream:
        stream = await connect(host, port)
        await trio.lowlevel.wait_readable(stream.socket)
        return stream

    monkeypatch.setattr(trio, "open_tcp_stream", connect_and_be_reset)
    port = listener.socket.getsockname()[1]

    with pytest.raises(Unreachable, match="hung up at once"):
        await ann.host.dial(f"/ip4/127.0.0.1/tcp/{port}/p2p/{stranger}")


@pytest.mark.parametrize(
    "host", ["dns4/a..b", "dns/.a", "dns6/" + "a" * 64, "ip6/fe80::1%\0", "ip6/fe80::1%" + "ü" * 64]
)
async def test_a_name_that_no_resolver_takes_is_unreachable_and_no_more(start: Start, host: str) -> None:
    """Members name their own addresses, and everybody dials them: the resolver's `ValueError` once ended the daemon."""
    ann, stranger = await start(), Identity.generate().peer_id

    with pytest.raises(Unreachable):
        await ann.host.dial(f"/{host}/tcp/4420/p2p/{stranger}")


async def test_a_port_that_is_taken_is_told_at_once_and_not_supervised(start: Start) -> None:
    ann = await start()
    listen = "/".join(ann.host.addresses[0].split("/")[:5])

    with pytest.raises(OSError, match="Address already in use"):
        await Peer(listen=(listen,)).host.run()


async def test_a_host_that_does_not_run_is_unreachable(autojump_clock: MockClock) -> None:  # noqa: ARG001
    """After it has been waited for a moment."""
    ann = Peer()

    with pytest.raises(Unreachable, match="not running"):
        await ann.host.dial(f"/ip4/127.0.0.1/tcp/1/p2p/{Identity.generate().peer_id}")


# --- limits ----------------------------------------------------------------------------------------------------------


async def test_the_connection_idle_for_longest_makes_room_for_a_new_one(start: Start) -> None:
    ann = await start(connections_max=2)
    first, busy, third = [await start() for _ in range(3)]
    await first.host.dial(ann.host.addresses[0])
    await busy.host.dial(ann.host.addresses[0])
    stream = await busy.host.open_stream(ann.peer_id, ECHO)
    await stream.send(b"busy")
    assert await stream.receive() == b"busy"

    await third.host.dial(ann.host.addresses[0])

    await ann.journal.until("peer_lost", peer_id=first.peer_id, reason="trimmed to make room")
    assert await third.asks(ann) == b"hello"
    await stream.send(b"still here")
    assert await stream.receive() == b"still here"


async def test_a_connection_is_idle_once_what_was_told_on_it_is_over(start: Start) -> None:
    """Who only tells something never reads the peer's end. Counted as busy, it had a heartbeat a second, for ever."""
    ann, bob = await start(), await start()
    await ann.host.dial(bob.host.addresses[0])
    (connection,) = ann.host._swarm.connections(bob.peer_id)

    stream = await ann.host.open_stream(bob.peer_id, ECHO)
    was_busy = connection.busy
    await stream.end()

    with trio.fail_after(5):
        while connection.busy:
            await trio.lowlevel.checkpoint()
    assert was_busy == 1


async def test_a_peer_with_a_third_connection_loses_its_oldest(start: Start) -> None:
    """Two are needed when both dial at once; more are a peer that lost its old ones, or wants them all."""
    ann = await start()
    identity = Identity.generate()
    for _ in range(3):
        twin = await start(identity=identity)
        await twin.host.dial(ann.host.addresses[0])

    connections = ann.host._swarm._connections[identity.peer_id]
    with trio.fail_after(5):
        await connections[0].closed.wait()

    assert len(ann.host._swarm.connections(identity.peer_id)) == swarm_module.CONNECTIONS_PER_PEER
    assert ann.journal.named("peer_lost") == []


def test_no_gossip_score_is_left_at_its_default() -> None:
    """libp2p's defaults are all "off": a weight of 0, a threshold of minus infinity."""
    ours, default = score_params(lambda _peer: 0.0), ScoreParams()
    assert math.isinf(default.graylist_threshold)

    unset = [
        field.name
        for field in dataclasses.fields(ScoreParams)
        if getattr(ours, field.name) == getattr(default, field.name)
    ]
    unset += [
        f"{field.name}.{part.name}"
        for field in dataclasses.fields(ScoreParams)
        if isinstance(value := getattr(ours, field.name), TopicScoreParams)
        for part in dataclasses.fields(TopicScoreParams)
        if getattr(value, part.name) == getattr(TopicScoreParams(), part.name)
    ]

    assert unset == []


# --- relays ----------------------------------------------------------------------------------------------------------


async def test_a_peer_that_only_a_relay_can_reach_is_reached_through_it(start: Start) -> None:
    """Bob listens nowhere, as behind a router: his only address is his place at the relay."""
    relay = await start()
    bob = await start(listen=(), relays=(relay.host.addresses[0],))
    ann = await start()
    await bob.journal.until("relay_reserved", relay=relay.peer_id)
    (address,) = bob.host.addresses
    assert address == f"{relay.host.addresses[0]}/p2p-circuit/p2p/{bob.peer_id}"

    assert await ann.host.dial(address) == bob.peer_id

    frame = bytes(range(256)) * 256
    assert await ann.asks(bob, frame) == frame
    assert await bob.asks(ann) == b"hello"
    assert ann.host._swarm.connections(bob.peer_id)[0].is_relayed
    await ann.host.disconnect(bob.peer_id)
    await bob.journal.until("lost", peer_id=ann.peer_id)


async def test_a_relay_that_goes_takes_its_circuits_and_places_with_it(
    start: Start, nursery: trio.Nursery
) -> None:
    relay = Peer()
    scope = trio.CancelScope()

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await relay.host.run(task_status=task_status)

    await nursery.start(run)
    bob = await start(listen=(), relays=(relay.host.addresses[0],))
    ann = await start()
    await bob.journal.until("relay_reserved")
    address = bob.host.addresses[0]
    await ann.host.dial(address)

    scope.cancel()

    await ann.journal.until("lost", peer_id=bob.peer_id)
    await bob.journal.until("lost", peer_id=relay.peer_id)
    with trio.fail_after(5):
        while bob.host.addresses:
            await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(Unreachable):
        await ann.host.dial(address)


async def test_a_relay_serves_members_only(start: Start) -> None:
    relay = Peer()
    relay.host.allow_relaying(lambda _peer: False)
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.host.run)
        bob = await start(listen=(), relays=(relay.host.addresses[0],))

        await bob.journal.until("relay_refused", relay=relay.peer_id)

        assert bob.host.addresses == ()
        nursery.cancel_scope.cancel()


async def test_a_peer_without_a_place_is_not_called(start: Start) -> None:
    """A relay carries to those who asked for it, never to whoever happens to be connected."""
    relay, bob, ann = await start(), await start(), await start()
    await bob.host.dial(relay.host.addresses[0])

    with pytest.raises(Unreachable):
        await ann.host.dial(f"{relay.host.addresses[0]}/p2p-circuit/p2p/{bob.peer_id}")


@pytest.mark.parametrize("answer", [b"\xff" * 6, b"\x03abc", b""], ids=["too_long", "no_protobuf", "nothing"])
async def test_a_relay_that_answers_garbage_makes_a_peer_unreachable_and_no_more(
    start: Start, answer: bytes
) -> None:
    """Any member may name an address through a relay of its own: a dial of it must not end the daemon."""
    relay, ann = await start(), await start()

    async def babble(stream: MuxStream) -> None:
        if answer:
            await stream.send_all(answer)

    relay.host._register(HOP, babble)

    with pytest.raises(Unreachable, match="gave no answer"):
        await ann.host.dial(f"{relay.host.addresses[0]}/p2p-circuit/p2p/{Identity.generate().peer_id}")


async def test_a_node_that_does_not_relay_says_so(start: Start) -> None:
    refuser = await start(relay=False)
    ann = await start()

    with pytest.raises(Unreachable):
        await ann.host.dial(f"{refuser.host.addresses[0]}/p2p-circuit/p2p/{Identity.generate().peer_id}")


async def test_a_stream_through_a_relay_breaks_when_the_called_peer_leaves(
    start: Start, nursery: trio.Nursery
) -> None:
    relay, ann = await start(), await start()
    bob = Peer(listen=(), relays=(relay.host.addresses[0],))
    scope = trio.CancelScope()

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await bob.host.run(task_status=task_status)

    await nursery.start(run)
    await bob.journal.until("relay_reserved")
    await ann.host.dial(bob.host.addresses[0])
    stream = await ann.host.open_stream(bob.peer_id, ECHO)

    scope.cancel()

    with pytest.raises(StreamBroken), trio.fail_after(10):
        await stream.receive()
