"""What a coordinated run is gone on with after a crash, what becomes of a run whose checkpoint is lost, and full disks.

Each story was a fault once: the daemon ended with a `KeyError`, at its start, and at every start after that.
"""

import msgspec
import pytest

from node.runs import RUN, RunBook, RunFile, RunView
from node.store import Record
from runtime.engine import Digest
from tests.node.run_town import ROUNDS, finish, in_round, options, settle_town, trained
from tests.node.world import Daemon, World


async def start(world: World, **changes: object) -> str:
    return (await world.founder.node.train(options(**changes))).run_id


async def kept(device: Daemon, run: str) -> RunFile:
    """A run as the record on a device's disk has it."""
    book = RunBook(device.disk)
    book.load(await device.disk.load())
    file = book.get(bytes.fromhex(run))
    assert file is not None
    return file


async def restarted_without(world: World, run: str, blob: str) -> RunView:
    """Lose a blob that the founder's record names, while its daemon is down; return what became of the run."""
    await world.founder.kill()
    file = await kept(world.founder, run)
    assert world.founder.blobs.has(Digest(getattr(file, blob)))
    await world.founder.blobs.drop(Digest(getattr(file, blob)))
    await world.founder.start()
    return await finish(world, world.founder, run)


async def write(device: Daemon, file: RunFile) -> None:
    """Have another record of a run on the disk of a device that is down."""
    device.disk.is_plugged_in = True
    await device.disk.append([Record(RUN, file.run, msgspec.msgpack.encode(file))])


def blobs_held(device: Daemon) -> set[str]:
    """Every blob of a device."""
    return {digest.hex() for digest in device.blobs.digests()}


async def learns(world: World) -> str:
    """Train another run; how it ended."""
    return (await finish(world, world.founder, await start(world))).state


# --- a checkpoint that is gone ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("blob", ["payload", "next"])
async def test_a_checkpoint_that_is_gone_ends_its_run_with_one_line_and_nothing_else(
    world: World, blob: str
) -> None:
    devices = await settle_town(world)
    run = await start(world)
    await in_round(world, world.founder, run, 2)
    lost = getattr(await kept(world.founder, run), blob).hex()[:12]

    view = await restarted_without(world, run, blob)

    assert (view.state, view.round) == ("aborted", 1)
    assert view.reason == f"its checkpoint cannot be gone on from: blob {lost} is not on this device"
    assert [device.node.training_run(run).reason for device in devices] == [
        "its coordinator has ended it"
    ] * len(devices)
    assert world.founder.node.logbook.ledger.held_micro(world.founder.peer_id) == 0
    assert await learns(world) == "finished"


async def test_a_checkpoint_that_is_no_state_ends_its_run(world: World) -> None:
    """Whatever wrote it: the daemon does not fall over bytes."""
    await settle_town(world)
    run = await start(world)
    await in_round(world, world.founder, run, 2)
    await world.founder.kill()
    file = await kept(world.founder, run)
    file.next = await world.founder.blobs.put(b"\xff" * 100)
    await write(world.founder, file)

    await world.founder.start()
    view = await finish(world, world.founder, run)

    assert view.state == "aborted"
    assert view.reason.startswith("its checkpoint cannot be gone on from: not a state: ")
    assert await learns(world) == "finished"


async def test_a_paused_run_whose_checkpoint_is_gone_ends_too(world: World) -> None:
    """It would be resumed into nothing."""
    await settle_town(world)
    run = await start(world)
    await in_round(world, world.founder, run, 2)
    await world.founder.node.training.coordinator.pause(run)

    view = await restarted_without(world, run, "payload")

    assert view.state == "aborted"


async def test_a_run_whose_last_state_is_gone_is_not_proposed(world: World) -> None:
    """Its rounds are done and its end is not on disk, as the disk is full; the restart looks for the state in vain."""
    await settle_town(world)
    run = await start(world)
    await world.until(lambda: world.founder.node.training_run(run).round == ROUNDS, 300)
    await world.founder.disk.fill()
    await world.run(30)
    world.founder.disk.empty()

    view = await restarted_without(world, run, "next")

    assert view.state == "aborted"
    assert view.reason.startswith("its adapter could not be proposed: blob ")
    assert await learns(world) == "finished"


async def test_a_run_whose_base_is_gone_ends_at_the_restart(world: World) -> None:
    """Its user has removed the model meanwhile."""
    await settle_town(world)
    run = await start(world)
    await in_round(world, world.founder, run, 2)
    await world.founder.kill()
    world.founder.engine.forget_models()

    await world.founder.start()
    view = await finish(world, world.founder, run)

    assert view.state == "aborted"
    assert view.reason.startswith("it cannot go on: no model ")
    assert world.founder.node.logbook.ledger.held_micro(world.founder.peer_id) == 0


async def test_a_start_checkpoint_that_is_gone_ends_the_run_that_wanted_it(world: World) -> None:
    await settle_town(world)
    parent = await start(world)
    state = (await finish(world, world.founder, parent)).checkpoint
    run = await start(world, start_from=parent)

    await world.founder.blobs.drop(Digest(bytes.fromhex(state)))
    view = await finish(world, world.founder, run)

    assert view.state == "aborted"
    assert view.reason == f"it could not begin: blob {state[:12]} is not on this device"
    assert await learns(world) == "finished"


async def test_a_run_that_goes_on_from_another_leaves_it_its_checkpoint(world: World) -> None:
    """Its first state is the same blob: it is cancelled in its first round, and the other one can still be gone on from."""
    await settle_town(world)
    parent = await start(world)
    state = Digest(bytes.fromhex((await finish(world, world.founder, parent)).checkpoint))
    run = await start(world, start_from=parent)
    await in_round(world, world.founder, run, 1)

    await world.founder.node.training.coordinator.cancel(run)
    await finish(world, world.founder, run)

    assert world.founder.blobs.has(state)
    again = await finish(world, world.founder, await start(world, start_from=parent))
    assert again.state == "finished"


# --- a full disk ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("what", ["records", "blobs"])
async def test_a_disk_that_is_full_when_a_run_would_begin_ends_that_run_alone(
    world: World, what: str
) -> None:
    devices = await settle_town(world)
    run = await start(world)
    await world.until(lambda: world.founder.events("run_opened") != [], 30)
    held = blobs_held(world.founder)

    if what == "records":
        await world.founder.disk.fill()
    else:
        world.founder.blobs.size_bytes_max = 0
    view = await finish(world, world.founder, run)

    assert (view.state, view.round) == ("aborted", 0)
    assert view.reason.startswith("it could not begin: the simulated disk ")
    assert [trained(device) for device in devices] == [[], [], []]
    world.founder.disk.empty()
    world.founder.blobs.size_bytes_max = None
    await world.run(120)
    assert blobs_held(world.founder) == held
    assert await learns(world) == "finished"


async def test_what_the_record_on_disk_names_is_there_however_full_the_disk_was(world: World) -> None:
    """Seed 1554 of the sweep: the end of the run was not on disk, its blobs were dropped, and the record named them still."""
    await settle_town(world)
    run = await start(world)
    await in_round(world, world.founder, run, 3)
    await world.founder.disk.fill()
    view = await finish(world, world.founder, run)
    assert (view.state, view.round) == ("aborted", 2)
    assert view.reason.startswith("round 3 could not be aggregated: the simulated disk takes no more")

    file = await kept(world.founder, run)
    named = [file.since, file.next, file.payload]
    assert (file.state, [world.founder.blobs.has(Digest(each)) for each in named]) == ("running", [True] * 3)
    world.founder.disk.empty()
    await world.founder.restart()

    assert (await finish(world, world.founder, run)).state == "finished"


async def test_a_run_that_a_full_disk_has_ended_stays_so_when_there_is_room_again(world: World) -> None:
    """Its end is written as soon as it can be, and then only its newest state is left of it."""
    await settle_town(world)
    run = await start(world)
    await in_round(world, world.founder, run, 2)
    await world.founder.disk.fill()
    before = await kept(world.founder, run)
    view = await finish(world, world.founder, run)

    world.founder.disk.empty()
    await world.run(120)
    file = await kept(world.founder, run)
    assert (file.state, file.since, file.payload) == ("aborted", b"", b"")
    assert view.checkpoint == file.next.hex() == before.next.hex()
    assert [
        world.founder.blobs.has(Digest(each)) for each in (before.since, before.next, before.payload)
    ] == [
        False,
        True,
        False,
    ]
    await world.founder.restart()
    await world.run(60)
    assert world.founder.node.training_run(run).state == "aborted"


async def test_pay_that_finds_a_members_disk_full_is_claimed_once_more(world: World) -> None:
    """Seed 603 of the sweep: there was no room for what the payer had signed, and nobody asked it again."""
    member, *_ = await settle_town(world)

    def unpaid() -> bool:
        return bool(member.node.logbook.ledger.unsettled(member.peer_id))

    run = await start(world)
    await world.until(unpaid, 120)
    await member.disk.fill()
    await finish(world, world.founder, run)
    assert unpaid()

    member.disk.empty()
    await world.run(180)

    assert not unpaid()


async def test_what_an_ended_run_has_left_behind_is_dropped_at_the_next_start(world: World) -> None:
    """The power went between the record of its end and the drop."""
    await settle_town(world)
    run = await start(world)
    await finish(world, world.founder, run)
    await world.founder.kill()
    file = await kept(world.founder, run)
    file.payload = await world.founder.blobs.put(b"the change that led to its newest state")
    await write(world.founder, file)
    left = Digest(file.payload)

    await world.founder.start()
    await world.run(30)

    assert not world.founder.blobs.has(left)
    assert world.founder.blobs.has(Digest(file.next))
