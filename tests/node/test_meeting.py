"""Meeting: who is let in, what a hello hands over, and how often adverts are sent."""

from contextlib import suppress
from itertools import pairwise

import msgspec
import pytest
import trio

from protocol import limits
from protocol.errors import MeshError
from protocol.identity import PeerId
from protocol.mesh import Stream
from protocol.messages import AdvertsWanted
from protocol.topics import ADVERT, ADVERTS_WANTED, HELLO, StreamProtocol
from runtime.echo import ECHO_MODEL
from tests.node.world import MAINS, Daemon, World, person


def adverts_sent(daemon: Daemon) -> list[tuple[float, PeerId]]:
    """A list that grows by when and to whom this daemon sends its advert."""
    sent: list[tuple[float, PeerId]] = []
    post = daemon.mesh.post

    def watched(peer_id: PeerId, protocol: StreamProtocol, frame: bytes) -> None:
        if protocol is ADVERT:
            sent.append((trio.current_time(), peer_id))
        post(peer_id, protocol, frame)

    daemon.mesh.post = watched  # type: ignore[method-assign]
    return sent


async def test_a_stranger_is_disconnected_after_three_seconds(world: World) -> None:
    """It may connect; without a hello of a member it does not stay."""
    eve = await world.puppet("eve", is_admitted=False)
    await eve.mesh.dial(world.founder.address)
    await world.run(2.9)
    assert eve.peer_id in world.founder.mesh.connected

    await world.run(0.2)

    assert world.founder.mesh.connected == frozenset()


async def test_a_strangers_hello_shows_it_the_door_at_once(world: World) -> None:
    eve = await world.puppet("eve", is_admitted=False)
    await eve.mesh.dial(world.founder.address)
    stream = await eve.open(world.founder, HELLO)

    await eve.wire.send(stream, eve.hello())
    await world.run(0.2)

    assert world.founder.mesh.connected == frozenset()
    assert world.founder.node.meeting.greeted == frozenset()


async def test_a_member_that_is_dialled_and_says_nothing_is_disconnected(world: World) -> None:
    """The side that dialled waits no longer than the other."""
    bob = await world.add("bob")
    eve = await world.puppet("eve")

    async def say_nothing(_stream: object) -> None:
        await trio.sleep_forever()

    eve.serve(HELLO, say_nothing)
    await bob.mesh.dial(eve.address)
    await world.run(3.1)

    assert eve.peer_id not in bob.mesh.connected


async def test_a_hello_of_another_mesh_is_refused(world: World) -> None:
    """The mesh id stands in the envelope, so a hello of elsewhere does not even open."""
    eve = await world.puppet("eve")
    eve.wire.mesh_id = b"x" * 32
    await eve.mesh.dial(world.founder.address)
    stream = await eve.open(world.founder, HELLO)

    await eve.wire.send(stream, eve.hello())
    with pytest.raises(MeshError):
        await stream.receive()
    await world.run(3.1)

    assert world.founder.mesh.connected == frozenset()
    assert [each["offence"] for each in world.founder.events("offence_counted")] == ["foreign_mesh"]


async def test_a_newcomer_knows_the_sellers_after_its_first_hello(world: World) -> None:
    """Their adverts come with it, and are not lost on a newcomer that hears of their authors in the same moment."""
    sellers = [await world.add(name) for name in ("bob", "cat", "dan")]
    await world.acquaint(world.founder, sellers[0])

    late = await world.add("fay")

    known = {offer.advert.sender for offer in late.node.directory.holders(ECHO_MODEL, trio.current_time())}
    assert known == {seller.peer_id for seller in sellers}


async def test_members_find_each_other_through_the_one_they_know(world: World) -> None:
    daemons = [await world.add(name) for name in ("bob", "cat", "dan")]

    await world.run(5)

    for daemon in daemons:
        assert daemon.node.meeting.greeted == {each.peer_id for each in world.daemons.values()} - {
            daemon.peer_id
        }


async def test_a_node_remembers_where_its_peers_were(world: World) -> None:
    """After a restart it dials them without its bootstrap peer, which may be gone for good."""
    bob, cat = await world.add("bob"), await world.add("cat")
    await world.acquaint(world.founder, bob, cat)
    await world.founder.kill()

    await cat.restart()
    await world.until(lambda: bob.peer_id in cat.node.meeting.greeted, within_s=20)

    assert cat.node.logbook.is_confirmed
    await world.founder.start()


async def test_a_node_whose_bootstrap_peers_are_dead_serves_itself_and_keeps_trying(world: World) -> None:
    bob = await world.add("bob")
    await world.founder.kill()
    await bob.restart()

    answer = await bob.chat("hello", privacy="local")

    assert answer.text == "hello " * 4
    assert "no member has confirmed" in bob.node.status().warnings[0]
    await world.run(60)
    await world.founder.start()
    await world.until(lambda: bob.node.logbook.is_confirmed, within_s=40)


async def test_a_wrong_clock_is_seen_and_moves_nothing(world: World) -> None:
    """Two minutes ahead: its live messages are out of everybody's window, and it is told so by nobody but the log."""
    bob = await world.add("bob")
    await world.acquaint(world.founder, bob)
    cat = await world.add("cat", skew_ms=20_000)
    await world.acquaint(world.founder, cat)

    assert (await world.founder.chat("hello")).text == "hello " * 4
    assert [event["peer"] for event in world.founder.events("clock_skew_seen")] == [cat.peer_id]
    assert cat.node._members_time.utc_ms() - world.founder.clock.utc_ms() <= 20_000


# --- adverts ----------------------------------------------------------------------------------------------------------
async def test_an_idle_node_advertises_once_a_minute(world: World) -> None:
    bob = await world.add("bob")
    await world.acquaint(world.founder, bob)
    sent = adverts_sent(bob)

    await world.run(600)

    times = [at for at, _ in sent]
    assert 9 <= len(times) <= 10
    assert all(later - earlier >= 60 for earlier, later in pairwise(times))


async def test_a_busy_node_advertises_every_ten_seconds_at_most(world: World) -> None:
    """Its free slots change all the time, and each change is worth telling, though not at once."""
    bob = await world.add("bob")
    await world.acquaint(world.founder, bob)
    sent = adverts_sent(bob)

    for number in range(120):
        bob.device = msgspec.structs.replace(MAINS, is_charging=bool(number % 2))
        bob.node.advertiser.refresh()
        await world.run(0.5)

    times = [at for at, _ in sent]
    assert len(times) >= 4
    assert all(later - earlier >= 10 for earlier, later in pairwise(times))


async def test_a_model_that_was_added_is_advertised_as_soon_as_the_rate_allows(world: World) -> None:
    bob = await world.add("bob", device=MAINS)
    await world.acquaint(world.founder, bob)
    await world.run(30)
    bob.engine._cards = {}
    bob.node.advertiser.refresh()

    took = await world.until(
        lambda: world.founder.node.directory.holders(ECHO_MODEL, trio.current_time()) == [], within_s=15
    )

    assert took <= 11.1


async def test_an_advert_goes_to_twenty_members_at_most(world: World) -> None:
    """What a node sends and receives must not grow with the mesh."""
    puppets = [await world.puppet(f"p{number}") for number in range(25)]
    bob = await world.add("bob")
    for puppet in puppets:
        await puppet.meet(bob)
    sent = adverts_sent(bob)

    await world.run(61)

    assert len(sent) == 20
    assert len({peer for _, peer in sent}) == 20


async def test_a_seller_that_fell_silent_is_forgotten_after_three_minutes(world: World) -> None:
    bob = await world.add("bob")
    await world.acquaint(world.founder, bob)
    await world.run(1)
    await bob.kill()

    await world.run(limits.ADVERT_TTL_S - 65)
    assert len(world.founder.node.models()) == 1
    await world.run(70)

    assert world.founder.node.models() == []
    assert world.founder.node.directory.holders(ECHO_MODEL, trio.current_time()) == []


async def test_a_buyer_that_knows_too_few_sellers_asks_its_peers(world: World) -> None:
    """The second chat may already choose between more of them."""
    bob = await world.add("bob")
    await world.acquaint(world.founder, bob)
    world.network.partition([person("cat").peer_id], [world.founder.peer_id])
    cat = await world.add("cat", is_met=False, price_completion_micro=1, bootstrap=(bob.address,))
    await world.until(lambda: cat.peer_id in bob.node.meeting.greeted)
    world.heal()
    first = await world.founder.chat("hello")
    await world.run(1)

    second = await world.founder.chat("hello")

    assert [first.started[0].seller, second.started[0].seller] == [bob.peer_id, cat.peer_id]


async def test_a_strangers_advert_is_not_taken_and_nobody_hands_it_any(world: World) -> None:
    bob = await world.add("bob")
    eve = await world.puppet("eve", is_admitted=False)
    eve.offer()
    await eve.mesh.dial(bob.address)
    stream = await eve.open(bob, ADVERT)
    with suppress(MeshError):
        await stream.send(eve.advert)
    asking = await eve.open(bob, ADVERTS_WANTED)
    with suppress(MeshError):  # it may be reset already
        await eve.wire.send(asking, AdvertsWanted(model=ECHO_MODEL))

    with pytest.raises(MeshError):
        await asking.receive()

    assert bob.node.directory.offer(eve.peer_id, trio.current_time()) is None


async def test_an_advert_does_not_outlive_the_membership(world: World) -> None:
    """A revoked seller's offer is no offer, whoever hands it on."""
    bob, cat = await world.add("bob"), await world.add("cat")
    await world.acquaint(world.founder, bob, cat)
    await world.founder.node.revoke(bob.peer_id, "sold")
    world.barred.add(bob.peer_id)
    await bob.kill()
    await world.run(1)

    late = await world.add("dan")
    answer = await world.founder.chat("hello")

    assert answer.started[0].seller in {cat.peer_id, late.peer_id}
    assert bob.peer_id not in [holder for view in late.node.models() for holder in view.holders]


async def test_a_full_disk_parts_nobody(world: World) -> None:
    """Where a newcomer can be dialled is not kept then; that is all."""
    eve = await world.puppet("eve")
    await world.founder.disk.fill()

    await eve.meet(world.founder)
    await world.run(1)

    assert [each["peer"] for each in world.founder.events("peer_met")] == [eve.peer_id]
    assert eve.peer_id in world.founder.mesh.connected


async def test_who_never_answers_collects_no_questions(world: World) -> None:
    """Every chat asks a few peers for more sellers; each question ends by itself."""
    bob = await world.add("bob")
    eve = await world.puppet("eve")

    async def say_nothing(_stream: Stream) -> None:
        await trio.sleep_forever()

    eve.serve(ADVERTS_WANTED, say_nothing)
    await eve.meet(world.founder)
    await world.acquaint(world.founder, bob)
    before = len(world.founder.node.buyer._nursery.child_tasks)

    for _ in range(5):
        await world.founder.chat("hello")
    await world.run(10)

    assert len(world.founder.node.buyer._nursery.child_tasks) == before


async def test_a_clock_that_is_set_moves_our_own_vote_alone(world: World) -> None:
    """Sweep, seed 2183: a device whose clock stepped back by half a minute found honest members a minute ahead."""
    bob, cat = await world.add("bob", skew_ms=20_000), await world.add("cat", skew_ms=25_000)
    await world.acquaint(world.founder, bob, cat)
    before_ms = bob.node.wire._members_time.utc_ms()

    bob.clock.jump(-45_000)

    after_ms = bob.node.wire._members_time.utc_ms()
    assert abs(after_ms - before_ms) <= 20_100
    assert (await bob.chat("hello", privacy="mesh")).text == "hello " * 4


async def test_a_barred_device_rings_ever_more_rarely(world: World) -> None:
    """It may be the last to hear that it was barred; each member hangs up on it at once."""
    bob = await world.add("bob")
    await world.acquaint(world.founder, bob)
    world.barred.add(bob.peer_id)
    world.partition([world.founder], [bob])
    await world.founder.node.revoke(bob.peer_id, "stolen")
    await world.run(30)
    world.heal()
    began = len(world.founder.events("peer_dismissed")) + len(bob.events("peer_dismissed"))

    await world.run(300)

    ended = len(world.founder.events("peer_dismissed")) + len(bob.events("peer_dismissed"))
    assert 0 < ended - began <= 40
