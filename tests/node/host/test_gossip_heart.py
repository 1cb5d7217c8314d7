"""The router's heart: every second while there is something to do, and on the ticks of idle heartbeats otherwise."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import trio
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from trio.testing import MockClock

from node.guard import Guard
from node.host.gossip import Gossip
from node.host.gossip_gate import Subscription
from node.host.gossip_heart import QUIET_BEAT_S
from node.host.mux_stream import MuxStream
from node.host.negotiation import uvarint
from node.host.settings import HostSettings
from node.host.upgrade import libp2p_key_pair
from protocol.identity import Identity, PeerId
from protocol.mesh import Verdict
from tests.node.host.peers import NEWS, Journal

BOB = Identity(bytes([2]) * 32).peer_id


@dataclass
class Bench:
    """Gossip that runs without peers, and when its heart beat."""

    gossip: Gossip
    beats: list[float]

    async def beats_until(self, at: float) -> list[float]:
        """Let time pass; return the beats since the last call."""
        await trio.sleep_until(at)
        beats, self.beats[:] = list(self.beats), []
        return beats


class Carrier:
    """What a stream needs of a connection, when nothing of it is sent."""

    peer_id = BOB
    is_relayed = False
    unread_bytes = 0
    busy = 0
    is_closed = False

    def control(self, *_: object) -> None:
        pass

    def schedule(self, _stream: MuxStream) -> None:
        pass

    def forget(self, _stream: MuxStream) -> None:
        pass

    def consumed(self, _count: int) -> None:
        pass


@pytest.fixture(autouse=True)
def virtual_time(request: pytest.FixtureRequest) -> None:
    request.node.add_marker(pytest.mark.trio(run=run_on_virtual_time), append=False)


def run_on_virtual_time(test: Callable[[], Awaitable[None]], **options: Any) -> None:
    trio.run(test, **{**options, "clock": MockClock(autojump_threshold=0)})


@pytest.fixture
async def bench(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    async def hear(_data: bytes, _peer: PeerId) -> None:
        pass

    gossip = Gossip(
        libp2p_key_pair(Identity(bytes(32))),
        Guard(Journal(), lambda _peer: None),
        {NEWS.name: Subscription(NEWS, lambda _data, _peer: Verdict.ACCEPT, hear)},
        per_s=20.0,
        open_gossip=partial(pytest.fail, "nobody is connected"),
        connections_of=lambda _peer: (),
    )
    beats: list[float] = []
    beat = gossip.router.mesh_heartbeat

    def record() -> Any:
        beats.append(round(trio.current_time(), 3))
        return beat()

    monkeypatch.setattr(gossip.router, "mesh_heartbeat", record)
    nursery.start_soon(gossip.run, lambda: None)
    await trio.testing.wait_all_tasks_blocked()
    yield Bench(gossip, beats)
    nursery.cancel_scope.cancel()


async def test_a_heart_without_anything_to_do_beats_with_the_heartbeats_of_idle_connections(
    bench: Bench,
) -> None:
    """Three quarters of the wake-ups of an idle daemon were this heart's."""
    assert await bench.beats_until(61) == [0.1, 15, 30, 45, 60]
    assert HostSettings().heartbeat_idle_s == QUIET_BEAT_S


async def test_a_message_is_told_of_for_as_many_seconds_as_it_is_kept(bench: Bench) -> None:
    """As if the heart had never rested: the first time is not at once, while the message is still on its way."""
    await bench.beats_until(20.3)

    await bench.gossip.publish(NEWS, b"news")

    assert await bench.beats_until(46) == [21, 22, 23, 24, 25, 30, 45]


async def test_a_message_just_before_a_slow_beat_is_told_of_as_long(bench: Bench) -> None:
    await bench.beats_until(29.9)

    await bench.gossip.publish(NEWS, b"news")

    assert await bench.beats_until(46) == [30, 31, 32, 33, 34, 45]


async def test_a_peer_that_leaves_is_made_good_within_a_second(bench: Bench) -> None:
    await bench.beats_until(20.3)

    bench.gossip.router.remove_peer(ID.from_base58(BOB))

    assert await bench.beats_until(31) == [21, 30]


async def test_a_peer_that_says_something_is_heeded_within_a_second(bench: Bench) -> None:
    """A graft may have made the mesh too full, a prune too small."""
    await bench.beats_until(20.3)
    rpc = rpc_pb2.RPC(control=rpc_pb2.ControlMessage(prune=[rpc_pb2.ControlPrune(topicID=NEWS.name)]))
    frame = rpc.SerializeToString()
    stream = MuxStream(Carrier(), 1)
    stream.feed(uvarint(len(frame)) + frame)
    stream.peer_ended()

    await bench.gossip.serve(stream, "/meshsub/1.2.0")

    assert await bench.beats_until(31) == [21, 30]


async def test_scores_fade_by_the_second_however_long_the_heart_rests(bench: Bench) -> None:
    """A peer that misbehaved is not to be an outcast for fifteen times as long because nobody spoke."""
    await bench.beats_until(20.3)
    scorer, bob = bench.gossip.pubsub.scorer, ID.from_base58(BOB)
    scorer.behavior_penalty[bob] = 100.0

    await bench.beats_until(60.5)

    decay = scorer.params.p5_behavior_penalty_decay
    assert scorer.behavior_penalty[bob] == pytest.approx(100.0 * decay ** (60 - 15))
