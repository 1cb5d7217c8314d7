"""What a scenario may say to a world, word for word; and that the seed decides everything."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import trio

from node.logbook import NotConfirmed
from node.simulation.daemon import Daemon
from node.simulation.link import Link
from node.simulation.main import simulate
from node.simulation.network import SILENCE_S
from node.simulation.options import SimulationOptions
from node.simulation.scenario import Scenario
from node.simulation.trace import Header, Trace
from node.simulation.virtual_clock import NOON_MS
from node.simulation.workload import Workload
from node.simulation.world import World
from protocol.errors import AgoraError
from protocol.identity import PeerId
from protocol.messages import Card

HOUR_S = 3_600.0


@pytest.fixture
async def world(virtual_time: None, nursery: trio.Nursery) -> AsyncIterator[World]:  # noqa: ARG001  its effect
    """A founded world in which nobody but the founder is yet."""
    made = World(nursery)
    async with made.running():
        yield made


def knows(daemon: Daemon, peer_id: PeerId) -> bool:
    """Whether it has heard that somebody was admitted."""
    return daemon.node.logbook.assembly.is_member(peer_id)


async def admitted(world: World, name: str) -> PeerId:
    """Somebody whom the founder has admitted, and who has not come yet."""
    peer_id = world.identity(name).peer_id
    await world.admit(peer_id, owner=name)
    return peer_id


def are_connected(*daemons: Daemon) -> bool:
    return all(
        other.peer_id in one.mesh.connected for one in daemons for other in daemons if one is not other
    )


def have_parted(one: Daemon, other: Daemon) -> bool:
    return other.peer_id not in one.mesh.connected


# --- the seed ---------------------------------------------------------------------------------------------------------
async def everything(world: World) -> None:
    """Every word of the vocabulary, once."""
    devices = await world.add(6)
    one, two, three, *_ = devices
    world.churn(devices[3:])
    world.ask_everywhere(Workload(), chats_per_node_hour=6)
    world.skew(one, seconds=5)
    await world.run(60)
    world.partition({world.founder, one}, {two, three})
    world.weather(Link(jitter_s=0.05, loss=0.05, duplication=0.1, reordering=0.1))
    await world.run(20)
    world.heal()
    world.jump(two, seconds=-3)
    world.clog(one, seconds=2)
    world.suspend(two)
    await world.kill(one)
    await world.run(20)
    world.resume(two)
    world.set_latency(one, two, 0.2)
    await world.restart(one)
    await world.add(1)
    await world.until(lambda: one.peer_id in two.mesh.connected, within_s=300)
    await world.run(600)


def digest(seed: int) -> tuple[str, int]:
    """The digest of the trace of everything, and of how many events it is."""
    options = SimulationOptions(Scenario("everything", "", everything), 8, HOUR_S, seed)
    trace = Trace(Header.of(options))
    simulate(options, trace)
    return trace.digest, trace.events


def test_the_same_seed_does_the_same_again_and_another_one_does_not() -> None:
    """An incident can be looked at as often as one likes."""
    first = digest(seed=5)

    assert digest(seed=5) == first
    assert digest(seed=6) != first
    assert first[1] > 100


def test_no_order_of_a_set_decides_anything() -> None:
    """Python hashes text anew in each process: a world that went by it could be replayed in no other."""
    program = "from tests.node.simulation.test_world import digest; print(digest(5))"

    told = {
        subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }

    assert told == {str(digest(seed=5))}


# --- who is there -----------------------------------------------------------------------------------------------------
async def test_whoever_is_added_before_the_first_run_belongs_from_the_founding_on(world: World) -> None:
    devices = await world.add(4, profile="laptop")
    assert not any(each.is_online for each in devices)

    await world.run(0)

    assert all(each.is_online for each in devices)
    assert all(knows(one, other.peer_id) for one in devices for other in devices)


async def test_whoever_is_added_later_is_admitted_by_the_founder(world: World) -> None:
    """Everybody hears of it by gossip."""
    devices = await world.add(3, profile="server")
    await world.run(10)

    (late,) = await world.add(1, profile="phone", owner="zoe")
    assert late.is_online
    assert not any(knows(each, late.peer_id) for each in devices)
    await world.until(lambda: all(knows(each, late.peer_id) for each in devices))

    assert world.founder.node.logbook.assembly.member(late.peer_id).owner == "zoe"
    assert late.name == "phone-1"


async def test_devices_hold_the_models_as_the_story_says(world: World) -> None:
    (buyer,) = await world.add(1, profile="server", is_seller=False)
    (seller,) = await world.add(1, profile="phone", is_seller=True)

    assert (len(buyer.engine.models), len(seller.engine.models)) == (0, 2)


async def test_nobody_is_admitted_while_the_founder_is_down(world: World) -> None:
    await world.add(1, profile="server")
    await world.run(10)
    await world.kill(world.founder)

    with pytest.raises(NotConfirmed):
        await world.add(1)

    assert list(world.daemons) == ["founder", "server-1"]


async def test_a_profile_that_nobody_knows_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="no device profile 'toaster', expected one of server, laptop"):
        await world.add(1, profile="toaster")


# --- time -------------------------------------------------------------------------------------------------------------
async def test_until_says_how_long_it_took_and_gives_up(world: World) -> None:
    (laptop,) = await world.add(1, profile="laptop")

    took_s = await world.until(lambda: laptop.is_online and are_connected(laptop, world.founder))

    assert 0 < took_s < 5
    with pytest.raises(TimeoutError, match="not so within 7 virtual seconds"):
        await world.until(lambda: False, within_s=7)
    assert world.now == pytest.approx(took_s + 7, abs=0.1)


# --- faults -----------------------------------------------------------------------------------------------------------
async def test_a_partition_heals(world: World) -> None:
    """What one side did meanwhile, the other hears afterwards."""
    near, far = await world.add(2, profile="server")
    await world.until(lambda: are_connected(world.founder, near, far))

    world.partition({world.founder, near}, {far})
    await world.run(SILENCE_S + 1)
    late = await admitted(world, "late")
    await world.run(30)
    assert have_parted(near, far)
    assert (knows(near, late), knows(far, late)) == (True, False)

    world.heal()
    await world.until(lambda: knows(far, late) and are_connected(world.founder, near, far), within_s=120)


async def test_a_suspended_device_is_lost_and_found_again(world: World) -> None:
    """Neither hears it who is added while it is away, though nobody has cut that link by name."""
    one, other = await world.add(2, profile="server")
    await world.until(lambda: are_connected(world.founder, one, other))

    world.suspend(one)
    await world.run(SILENCE_S + 1)
    (late,) = await world.add(1, profile="laptop")
    await world.run(30)
    assert have_parted(one, other)
    assert have_parted(one, late)
    assert one.is_online

    world.resume(one)
    await world.until(lambda: are_connected(one, other) and knows(one, late.peer_id), within_s=120)


async def test_of_two_suspended_devices_one_is_resumed_alone(world: World) -> None:
    one, other = await world.add(2, profile="server")
    await world.until(lambda: are_connected(world.founder, one, other))

    world.suspend(one, other)
    world.resume(one)
    await world.run(SILENCE_S + 60)

    assert are_connected(one, world.founder)
    assert have_parted(one, other)
    world.heal()
    await world.until(lambda: are_connected(world.founder, one, other), within_s=120)


async def test_what_a_clogged_device_sends_comes_late(world: World) -> None:
    (listener,) = await world.add(1, profile="server")
    await world.run(10)

    world.clog(world.founder, seconds=3)
    late = await admitted(world, "late")
    took_s = await world.until(lambda: knows(listener, late))

    assert took_s == pytest.approx(3, abs=0.2)


async def test_weather_befalls_a_group_a_pair_of_groups_or_everybody(world: World) -> None:
    """Slowness stands for all of it: it can be measured."""
    near, far = await world.add(2, profile="server")
    await world.until(lambda: are_connected(world.founder, near, far))
    slow, slower = Link(slowness_s=1.0), Link(slowness_s=2.0)

    async def heard_s(hearer: Daemon) -> float:
        late = await admitted(world, f"late at {world.now}")
        return await world.until(lambda: knows(hearer, late))

    assert await heard_s(far) < 0.5
    world.weather(slow)
    assert await heard_s(far) == pytest.approx(1, abs=0.5)
    world.weather(slower, {far})
    assert await heard_s(near) == pytest.approx(1, abs=0.5)
    assert await heard_s(far) == pytest.approx(2, abs=0.5)
    world.weather(Link(), {far}, {world.founder})
    assert await heard_s(far) < 0.5
    assert world.network.link(far.peer_id, near.peer_id) == slower


async def test_a_latency_holds_in_both_directions(world: World) -> None:
    near, far = await world.add(2, profile="server")
    before = world.network.round_trip_s(near.peer_id, far.peer_id)

    world.set_latency(near, far, 0.7)

    assert world.network.round_trip_s(near.peer_id, far.peer_id) > 1.4 > before
    assert world.network.round_trip_s(near.peer_id, world.founder.peer_id) < before + 0.1


async def test_wall_clocks_are_wrong_and_jump_while_time_goes_on(world: World) -> None:
    """Who meets a clock that is far off says so; timers do not care."""
    (ahead,) = await world.add(1, profile="server")
    world.skew(ahead, seconds=20)
    await world.run(10)

    assert ahead.clock.utc_ms() == NOON_MS + round(1_000 * trio.current_time()) + 20_000
    before = ahead.clock.now()
    world.jump(ahead, seconds=-50)
    assert ahead.clock.utc_ms() == NOON_MS + round(1_000 * trio.current_time()) - 30_000
    assert ahead.clock.now() == pytest.approx(before, abs=1e-4)
    world.skew(ahead, seconds=0)
    assert ahead.clock.utc_ms() == world.founder.clock.utc_ms()
    seen = [
        dict(event.fields) for event in world.founder.journal.recent(64) if event.name == "clock_skew_seen"
    ]
    assert [each["peer"] for each in seen] == [ahead.peer_id]


async def test_a_killed_device_comes_back_with_what_was_acknowledged(world: World) -> None:
    """What was under way may be there or not, as after any power cut; but nobody was told that it was."""
    founder = world.founder
    await world.add(1, profile="server")
    acknowledged: list[str] = []

    async def name_model(name: str) -> None:
        def place(index: int, prev: bytes) -> Card:
            return Card(index=index, prev=prev, name=name, model=name.encode().ljust(32, b"."))

        with suppress(AgoraError):
            await founder.node.logbook.write(Card, place)
            acknowledged.append(name)

    survived = 0
    for number in range(8):
        await world.until(lambda: founder.is_online and founder.node.logbook.is_confirmed)
        await name_model(f"safe-{number}")
        world.nursery.start_soon(name_model, f"cut-{number}")
        await world.run(0.001)  # a sync takes twice as long
        await world.kill(founder)
        assert not founder.is_online
        await world.run(1)
        await world.restart(founder)
        names = founder.node.logbook.assembly.names()
        assert [name for name in acknowledged if name not in names] == []
        survived += f"cut-{number}" in names

    assert acknowledged == [f"safe-{number}" for number in range(8)]
    assert 0 < survived < 8


async def test_devices_keep_their_owners_hours(world: World) -> None:
    """Some are away when the world begins; a laptop comes and goes; the founder is a server and stays."""
    laptops = await world.add(12, profile="laptop")
    world.churn()

    await world.run(1)
    there = {each.name for each in laptops if each.is_online}
    assert 0 < len(there) < 12
    have_run = {each.name for each in laptops if each.journal.recent(1)}
    assert have_run == there
    await world.run(HOUR_S - 2)

    now_there = {each.name for each in laptops if each.is_online}
    assert there - now_there
    assert now_there - there
    assert world.founder.is_online


async def test_only_those_that_are_named_come_and_go(world: World) -> None:
    phones = await world.add(6, profile="phone")
    world.churn(phones[:3])
    world.churn([])

    await world.run(HOUR_S - 1)

    assert all(each.is_online for each in phones[3:])
    assert not all(each.is_online for each in phones[:3])


# --- load -------------------------------------------------------------------------------------------------------------
async def test_people_ask_on_devices_that_are_online(world: World) -> None:
    devices = await world.add(4, profile="server")
    world.ask_everywhere(Workload(), chats_per_node_hour=12)

    await world.run(HOUR_S / 2)
    asked = len(world.outcomes)
    await world.kill(*devices, world.founder)
    await world.run(HOUR_S / 2)

    assert 15 < asked < 60
    assert world.chats_finished > 0.8 * asked
    assert len(world.outcomes) == asked
    assert [sample.online for sample in world.samples[:2]] == [5, 5]
    assert world.samples[-1].online == 0
