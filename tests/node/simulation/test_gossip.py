"""Gossip between simulated nodes: a bounded mesh, eager copies, lazy repair, and silence when there is nothing to say."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from random import Random

import pytest
import trio

from node.guard import Guard
from node.host.gossip import Gossip as HostGossip
from node.host.upgrade import libp2p_key_pair
from node.simulation import determinism
from node.simulation.gossip import (
    BACKOFF_S,
    DEGREE,
    DEGREE_HIGH,
    DEGREE_LOW,
    HEARTBEAT_S,
    KEPT_TICKS,
    TOLD_MIN,
    TOLD_TICKS,
)
from node.simulation.memory_mesh import MemoryMesh
from node.simulation.network import Network
from protocol.identity import Identity, PeerId
from protocol.mesh import Verdict
from protocol.topics import Topic

NEWS = Topic("/test/news/1", frozenset())
OTHER = Topic("/test/other/1", frozenset())
QUIET_S = (TOLD_TICKS + 2) * HEARTBEAT_S  # after the last message


class Journal:
    def write(self, event: str, /, **fields: object) -> None:
        pass


class World:
    """Nodes that all subscribe to the news, and what their handlers got: when, who, what."""

    def __init__(self, nursery: trio.Nursery, network: Network) -> None:
        self.network = network
        self.meshes: list[MemoryMesh] = []
        self.heard: list[tuple[float, PeerId, bytes]] = []
        self._nursery = nursery

    async def add(self, count: int, *topics: Topic) -> Sequence[MemoryMesh]:
        new = [await self._node(PeerId(f"node{len(self.meshes) + each}"), topics) for each in range(count)]
        self.meshes += new
        return new

    async def connect_at_random(self, dials: int) -> None:
        rng = Random(5)
        for mesh in self.meshes:
            for other in rng.sample([each for each in self.meshes if each is not mesh], dials):
                await mesh.dial(other.addresses[0])
        await trio.sleep(2 * HEARTBEAT_S)

    def who_heard(self, data: bytes) -> list[PeerId]:
        return sorted(who for _, who, what in self.heard if what == data)

    @property
    def degrees(self) -> list[int]:
        return [len(mesh.gossip.mesh[NEWS.name]) for mesh in self.meshes if mesh.is_running]

    @property
    def scheduled(self) -> int:
        return len(self.network._due)

    async def _node(self, peer_id: PeerId, topics: Sequence[Topic]) -> MemoryMesh:
        mesh = self.network.join(peer_id, Journal())

        async def hear(data: bytes, _peer: PeerId) -> None:
            self.heard.append((trio.current_time(), peer_id, data))

        for topic in topics or (NEWS,):
            mesh.subscribe(topic, lambda _data, _peer: Verdict.ACCEPT, hear)
        await self._nursery.start(mesh.run)
        return mesh


def in_world(story: Callable[[World], Awaitable[None]], *, seed: int = 1, gossip_loss: float = 0.0) -> World:
    """Run a story on virtual time; its world is returned as it was at the end."""

    async def main() -> World:
        async with trio.open_nursery() as nursery:
            network = Network(Random(seed), latency_s=(0.01, 0.05), gossip_loss=gossip_loss)
            await nursery.start(network.run)
            world = World(nursery, network)
            await story(world)
            nursery.cancel_scope.cancel()
        return world

    return determinism.run(main, seed=seed)


def test_every_subscriber_of_a_connected_mesh_hears_a_message_once() -> None:
    async def story(world: World) -> None:
        await world.add(50)
        await world.connect_at_random(dials=5)
        await world.meshes[7].publish(NEWS, b"once")
        await trio.sleep(QUIET_S)

    world = in_world(story)

    assert world.who_heard(b"once") == sorted(f"node{number}" for number in range(50) if number != 7)


def test_a_message_goes_to_the_mesh_and_not_to_every_connected_peer() -> None:
    """A flood would bring a node as many copies as it has connections."""

    async def story(world: World) -> None:
        await world.add(50)
        await world.connect_at_random(dials=12)
        await world.meshes[0].publish(NEWS, b"news")
        await trio.sleep(QUIET_S)
        copies = sum(mesh.gossip.copies for mesh in world.meshes)
        assert sum(mesh.gossip.firsts for mesh in world.meshes) == 49
        assert 49 * (DEGREE_LOW - 1) <= copies <= sum(world.degrees)
        assert min(len(mesh.connected) for mesh in world.meshes) > DEGREE_HIGH

    in_world(story)


def test_a_mesh_keeps_between_its_bounds_while_everybody_connects_to_everybody() -> None:
    async def story(world: World) -> None:
        await world.add(40)
        await world.connect_at_random(dials=39)
        for number in range(5):
            await world.meshes[number].publish(NEWS, b"%d" % number)
            await trio.sleep(QUIET_S)
            assert all(DEGREE_LOW <= degree <= DEGREE_HIGH for degree in world.degrees)

    in_world(story)


def test_meshes_are_mutual() -> None:
    async def story(world: World) -> None:
        await world.add(30)
        await world.connect_at_random(dials=10)
        links = {(mesh.peer_id, other) for mesh in world.meshes for other in mesh.gossip.mesh[NEWS.name]}
        assert links
        assert links == {(other, one) for one, other in links}

    in_world(story)


def test_a_mesh_that_is_too_full_lets_go_and_does_not_take_back_for_a_while() -> None:
    """Everybody who comes late finds its first peers at the same node."""

    async def story(world: World) -> None:
        centre, *others = await world.add(1 + DEGREE_HIGH + 1)
        for each in others:
            await each.dial(centre.addresses[0])
        assert len(centre.gossip.mesh[NEWS.name]) == DEGREE_HIGH + 1
        await trio.sleep(HEARTBEAT_S)
        kept = list(centre.gossip.mesh[NEWS.name])
        assert len(kept) == DEGREE
        await trio.sleep(BACKOFF_S / 2)
        assert list(centre.gossip.mesh[NEWS.name]) == kept

        await centre.publish(NEWS, b"for all")
        await trio.sleep(QUIET_S)

        assert len(world.who_heard(b"for all")) == len(others)  # those outside are told of it, and ask

    in_world(story)


def test_who_was_let_go_is_not_taken_back_by_connecting_anew() -> None:
    async def story(world: World) -> None:
        centre, *others = await world.add(1 + DEGREE_HIGH + 1)
        for each in others:
            await each.dial(centre.addresses[0])
        await trio.sleep(HEARTBEAT_S)
        let_go = next(each for each in others if each.peer_id not in centre.gossip.mesh[NEWS.name])

        await let_go.disconnect(centre.peer_id)
        await let_go.dial(centre.addresses[0])
        assert let_go.peer_id not in centre.gossip.mesh[NEWS.name]

        await trio.sleep(BACKOFF_S)
        await let_go.disconnect(centre.peer_id)
        await let_go.dial(centre.addresses[0])
        assert let_go.peer_id in centre.gossip.mesh[NEWS.name]

    in_world(story)


def test_a_node_killed_before_its_heartbeat_lets_nobody_go() -> None:
    async def story(world: World) -> None:
        centre, *others = await world.add(1 + DEGREE_HIGH + 1)
        for each in others:
            await each.dial(centre.addresses[0])
        world.network.kill(centre.peer_id)
        await trio.sleep(HEARTBEAT_S)
        reborn = await world._node(centre.peer_id, ())
        for each in others:
            await each.dial(reborn.addresses[0])
        assert len(reborn.gossip.mesh[NEWS.name]) == len(others)

    in_world(story)


def test_what_links_lose_is_repaired_by_telling_who_has_it() -> None:
    """With a third of all transmissions lost some node always misses every eager copy."""
    eager: list[int] = []

    async def story(world: World) -> None:
        await world.add(50)
        await world.connect_at_random(dials=12)
        for number in range(20):
            await world.meshes[number].publish(NEWS, b"%d" % number)
            await trio.sleep(0.3)
            eager.append(len(world.who_heard(b"%d" % number)))
            await trio.sleep(QUIET_S)

    world = in_world(story, gossip_loss=0.33)

    assert min(eager) < 49
    assert [len(world.who_heard(b"%d" % number)) for number in range(20)] == [49] * 20
    assert len(set(world.heard)) == len(world.heard)


def test_nobody_is_told_of_a_message_for_ever() -> None:
    """Whoever comes too late has to fetch what it missed by other means."""

    async def story(world: World) -> None:
        ann, _, late, later = await world.add(4)
        await ann.dial(world.meshes[1].addresses[0])
        await ann.publish(NEWS, b"news")
        await late.dial(ann.addresses[0])
        await trio.sleep((KEPT_TICKS + 1) * HEARTBEAT_S)
        await later.dial(ann.addresses[0])
        await trio.sleep(QUIET_S)

    world = in_world(story)

    assert world.who_heard(b"news") == ["node1", "node2"]


def test_a_node_that_left_is_replaced_in_the_mesh() -> None:
    async def story(world: World) -> None:
        await world.add(30)
        await world.connect_at_random(dials=10)
        ann = next(mesh for mesh in world.meshes if len(mesh.gossip.mesh[NEWS.name]) == DEGREE_LOW)
        gone = list(ann.gossip.mesh[NEWS.name])[:2]
        for peer_id in gone:
            world.network.kill(peer_id)
        assert len(ann.gossip.mesh[NEWS.name]) == DEGREE_LOW - 2

        await trio.sleep(HEARTBEAT_S)

        assert len(ann.gossip.mesh[NEWS.name]) >= DEGREE
        assert not set(gone) & set(ann.gossip.mesh[NEWS.name])

    in_world(story)


def test_a_node_that_came_back_hears_again_and_its_former_self_says_nothing() -> None:
    async def story(world: World) -> None:
        ann, bob = await world.add(2)
        await ann.dial(bob.addresses[0])
        world.network.kill(bob.peer_id)
        await bob.publish(NEWS, b"from the dead")
        reborn = await world._node(bob.peer_id, ())
        await ann.dial(reborn.addresses[0])
        await ann.publish(NEWS, b"welcome")
        await trio.sleep(QUIET_S)
        assert list(ann.gossip.mesh[NEWS.name]) == [bob.peer_id]

    world = in_world(story)

    assert [(who, what) for _, who, what in world.heard] == [("node1", b"welcome")]


def test_a_topic_reaches_its_subscribers_alone() -> None:
    async def story(world: World) -> None:
        await world.add(10, NEWS, OTHER)
        await world.add(10, NEWS)
        await world.connect_at_random(dials=8)
        await world.meshes[0].publish(OTHER, b"for ten")
        await trio.sleep(QUIET_S)

    world = in_world(story)

    assert world.who_heard(b"for ten") == [f"node{number}" for number in range(1, 10)]


def test_nothing_stays_scheduled_once_all_is_quiet() -> None:
    """A timer a node and second is what makes a large world slow."""

    async def story(world: World) -> None:
        await world.add(30)
        await world.connect_at_random(dials=10)
        assert world.scheduled == 0
        await world.meshes[0].publish(NEWS, b"news")
        assert world.scheduled > 0
        await trio.sleep(QUIET_S)
        assert world.scheduled == 0

    in_world(story)


def test_one_seed_is_one_order_and_another_is_another() -> None:
    def history(seed: int) -> list[tuple[float, PeerId, bytes]]:
        async def story(world: World) -> None:
            await world.add(25)
            await world.connect_at_random(dials=8)
            for number in range(5):
                await world.meshes[number].publish(NEWS, b"%d" % number)
            await trio.sleep(QUIET_S)

        return in_world(story, seed=seed, gossip_loss=0.2).heard

    assert history(1) == history(1)
    assert history(1) != history(2)


@pytest.mark.trio
async def test_the_model_is_set_as_the_host_is() -> None:
    host = HostGossip(
        libp2p_key_pair(Identity.generate()),
        Guard(Journal(), lambda _peer: None),
        {},
        per_s=1.0,
        open_gossip=partial(pytest.fail, "nothing is opened"),
        connections_of=lambda _peer: (),
    ).router

    assert (host.degree, host.degree_low, host.degree_high) == (DEGREE, DEGREE_LOW, DEGREE_HIGH)
    assert host.heartbeat_interval == HEARTBEAT_S
    assert (host.mcache.window_size, host.mcache.history_size) == (TOLD_TICKS, KEPT_TICKS)
    assert host.prune_back_off == BACKOFF_S
    assert host._get_adaptive_gossip_peers_count(NEWS.name, 8) == TOLD_MIN
    assert host._get_adaptive_gossip_peers_count(NEWS.name, 100) == 25
