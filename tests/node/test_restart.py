"""Crashes, backups and doubles: what was acknowledged is there again, and no log ever forks."""

import pytest

from node.chat import ChatError, UnknownModelName, Unsold
from node.logbook import ECHO_S, NotConfirmed
from node.store import Record
from protocol.envelope import Sealed, open_sealed
from protocol.limits import ADVERT_INTERVAL_IDLE_S
from protocol.messages import Accept, Decline, Entry
from tests.node.world import Daemon, Holder, World, echo_text, person

QUESTION = "what is an agora?"


def own_entries(daemon: Daemon) -> list[tuple[str, int, bytes]]:
    """The entries that a daemon has ever put on its disk as its own: log, index, id."""
    found = {
        (entry.message.log, entry.message.index, entry.id)
        for batch in daemon.disk.appends
        for record in batch
        if record.kind == "entry" and record.body is not None
        for entry in [_opened(record, daemon)]
        if entry is not None and entry.sender == daemon.peer_id
    }
    return sorted(found)


def _opened(record: Record, daemon: Daemon) -> Sealed[Entry] | None:
    if record.body is None or record.key == daemon.world.mesh_id:
        return None
    return open_sealed(record.body, mesh=daemon.world.mesh_id)  # type: ignore[return-value]  # entries alone are kept


def assert_no_fork(*daemons: Daemon) -> None:
    """Nobody has signed two entries with one index, not even across a restore."""
    for daemon in daemons:
        places = [(log, index) for log, index, _ in own_entries(daemon)]
        assert len(places) == len(set(places)), f"the log of {daemon.name} forks"
        assert daemon.events("contradiction_found") == []


@pytest.mark.parametrize("at_ms", range(0, 700, 90))
async def test_a_buyer_killed_at_any_moment_agrees_with_its_seller_afterwards(
    world: World, at_ms: int
) -> None:
    """Whatever was countersigned is paid, on both sides, once; what was not is claimed or given up."""
    buyer, seller = await world.add("dan", engine=Holder()), await world.add("bob")
    await world.acquaint(buyer, seller, world.founder)

    world.nursery.start_soon(_ask_quietly, buyer)
    await world.run(at_ms / 1000)
    await buyer.restart()
    await world.acquaint(buyer, seller, world.founder)
    await world.run(250)

    assert buyer.node.ledger().receipts == seller.node.ledger().receipts
    assert (buyer.balance(), seller.balance()) in {(0, 0), (-1040, 1040)}
    assert buyer.node.ledger().held_micro == 0
    assert_no_fork(buyer, seller)


@pytest.mark.parametrize("at_ms", range(0, 700, 90))
async def test_a_seller_killed_at_any_moment_agrees_with_its_buyer_afterwards(
    world: World, at_ms: int
) -> None:
    """Every receipt that it has acknowledged is there again; one that it had only written is presented."""
    seller, spare = await world.add("bob"), await world.add("cat", price_completion_micro=60)
    await world.acquaint(world.founder, seller, spare)

    world.nursery.start_soon(_ask_quietly, world.founder)
    await world.run(at_ms / 1000)
    acknowledged = seller.node.ledger().receipts
    await seller.restart()
    assert seller.node.ledger().receipts == acknowledged
    await world.acquaint(world.founder, seller, spare)
    await world.run(250)

    ours = [receipt for receipt in world.founder.node.ledger().receipts if receipt.payee == seller.peer_id]
    assert seller.node.ledger().receipts == ours
    assert (await world.founder.ended_job()).completion_tokens == 24
    assert world.founder.node.ledger().held_micro == 0
    assert_no_fork(world.founder, seller, spare)


async def _ask_quietly(daemon: Daemon) -> None:
    try:
        await daemon.chat(QUESTION)
    except Unsold:
        return


async def test_a_restart_brings_the_same_state_back(world: World) -> None:
    """Members, names, accounts, jobs: folded again from the same entries."""
    bob, cat = await world.add("bob"), await world.add("cat")
    await world.acquaint(world.founder, bob, cat)
    await world.founder.node.publish_model(bob.node.models()[0].digest[:8], "parrot")
    for _ in range(3):
        await world.founder.chat(QUESTION)
    await world.run(2)
    before = {
        daemon.name: (
            daemon.node.logbook.assembly.members(),
            daemon.node.logbook.assembly.names(),
            daemon.node.ledger(),
            daemon.node.jobs(),
        )
        for daemon in world.daemons.values()
    }

    for daemon in world.daemons.values():
        await daemon.restart()

    for daemon in world.daemons.values():
        assembly = daemon.node.logbook.assembly
        after = (assembly.members(), assembly.names(), daemon.node.ledger(), daemon.node.jobs())
        assert after == before[daemon.name]


async def test_a_tampered_store_is_refused_at_start(world: World) -> None:
    """Every signature is checked again: a file is no friend."""
    bob = await world.add("bob")
    await world.acquaint(world.founder, bob)
    await world.founder.chat(QUESTION)
    await world.run(1)
    await bob.kill()
    records = await bob.backup()
    place = max(number for number, record in enumerate(records) if record.kind == "entry")
    body = bytearray(records[place].body or b"")
    body[-1] ^= 1
    records[place] = Record("entry", records[place].key, bytes(body))
    await bob.disk.replace(records)

    with pytest.raises(Exception, match=r"does not hold|not MessagePack|Object|field"):
        await bob.start()

    world.network.kill(bob.peer_id)
    world.daemons.pop("bob")


# --- restored backups -------------------------------------------------------------------------------------------------
async def test_a_restored_buyer_gets_its_own_newest_entries_back_from_its_sellers(world: World) -> None:
    """The backup knows one chat, the seller three: before a word is written, the other two are there again."""
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)
    buyer = await world.add("dan", engine=Holder())
    await world.acquaint(buyer, seller, world.founder)
    await buyer.chat(QUESTION)
    await world.run(1)
    backup = await buyer.backup()
    for _ in range(2):
        await buyer.chat(QUESTION)
        await world.run(1)
    await buyer.kill()

    await buyer.disk.replace(backup)
    world.network.partition([buyer.peer_id], [world.founder.peer_id])
    await buyer.start()
    await world.until(lambda: buyer.node.logbook.is_confirmed, within_s=60)

    assert buyer.balance() == -3 * 1040
    assert len(buyer.node.ledger().receipts) == 3
    await buyer.chat(QUESTION)
    await world.run(1)
    assert_no_fork(buyer, seller)
    assert seller.balance() == 4 * 1040


async def test_a_restored_buyer_is_not_misled_by_a_member_that_knows_less(world: World) -> None:
    """A member that never traded with it still has its adverts, and they say how far its log went."""
    seller = await world.add("bob")
    other = await world.add("cat", price_completion_micro=90)
    buyer = await world.add("dan", engine=Holder())
    await world.acquaint(buyer, seller, other, world.founder)
    await buyer.chat(QUESTION)
    await world.run(70)
    backup = await buyer.backup()
    await buyer.chat(QUESTION)
    await world.run(130)
    await buyer.kill()
    await seller.kill()

    await buyer.disk.replace(backup)
    await buyer.start()
    await world.run(100)

    assert not buyer.node.logbook.is_confirmed
    assert buyer.events("own_log_disputed") != []
    await seller.start()
    await world.until(lambda: buyer.node.logbook.is_confirmed, within_s=60)
    await buyer.chat(QUESTION)
    await world.run(1)
    assert_no_fork(buyer, seller, other)


async def test_a_restored_seller_does_not_fork_its_log(world: World) -> None:
    """Its buyers hold its receipts inside their countersignatures: they know how far it had come."""
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)
    await world.founder.chat(QUESTION)
    await world.run(1)
    backup = await seller.backup()
    await world.founder.chat(QUESTION)
    await world.run(1)
    await seller.kill()

    await seller.disk.replace(backup)
    await seller.start()
    await world.run(100)

    with pytest.raises(Unsold):
        await world.founder.chat(QUESTION)
    await world.run(1)
    assert_no_fork(seller, world.founder)


async def test_a_restored_founder_gets_its_admissions_back(world: World) -> None:
    """Its assembly log is with every member, so the first that greets it brings it up to date."""
    bob = await world.add("bob")
    await world.acquaint(world.founder, bob)
    backup = await world.founder.backup()
    cat = await world.add("cat")
    await world.founder.node.publish_model(bob.node.models()[0].digest[:8], "parrot")
    await world.run(1)
    await world.founder.kill()

    await world.founder.disk.replace(backup)
    await world.founder.start()
    await world.until(lambda: world.founder.node.logbook.is_confirmed, within_s=60)

    assert set(world.founder.node.logbook.assembly.members()) == {
        each.peer_id for each in (world.founder, bob, cat)
    }
    dan = await world.add("dan")
    await world.run(1)
    assert bob.node.logbook.assembly.is_member(dan.peer_id)
    assert_no_fork(world.founder, bob, cat)


# --- before the first confirmation --------------------------------------------------------------------------------------
async def test_nothing_durable_is_written_before_a_member_has_confirmed_the_log(world: World) -> None:
    """Cut off after its start it can neither buy, sell nor sign, and says so; then all of it works."""
    bob, cat = await world.add("bob"), await world.add("cat")
    await world.acquaint(world.founder, bob, cat)
    world.partition([world.founder], [bob, cat])
    await world.founder.restart()
    before = world.founder.disk.kinds()

    with pytest.raises(ChatError):
        await world.founder.chat(QUESTION)
    with pytest.raises(UnknownModelName):
        await world.founder.node.publish_model(bob.node.models()[0].digest[:8], "parrot")
    with pytest.raises(NotConfirmed, match="connect to the mesh first"):
        await world.admit(person("dan").peer_id, owner="dan")
    await world.run(30)

    assert "entry" not in world.founder.disk.kinds()[len(before) :]
    status = world.founder.node.status()
    assert (status.is_durable, len(status.warnings)) == (False, 1)
    world.heal()
    await world.until(lambda: world.founder.node.status().is_durable, within_s=60)
    assert (await world.founder.chat(QUESTION)).text == echo_text(QUESTION)
    assert world.founder.node.status().warnings == []


async def test_an_unconfirmed_seller_declines(world: World) -> None:
    bob = await world.add("bob")
    eve = await world.puppet("dan")
    await eve.meet(bob)
    world.partition([bob], [world.founder])
    await bob.restart()
    await eve.mesh.dial(bob.address)

    _, _, answer = await eve.ask(bob)

    assert isinstance(answer.message, Decline)
    assert (answer.message.reason, answer.message.detail) == ("policy", "the own log is not confirmed yet")


async def test_a_lone_founder_needs_nobodys_confirmation(world: World) -> None:
    await world.founder.restart()

    assert world.founder.node.status().is_durable


# --- one key, two daemons ---------------------------------------------------------------------------------------------
async def test_a_key_that_runs_twice_stops_writing_and_says_so(world: World) -> None:
    """A copied home directory: each of the two hears the other's advert from a third, under its own name."""
    bob = await world.add("bob")
    await world.acquaint(world.founder, bob)
    twin = world.twin_of(bob)
    await world.run(ECHO_S)  # before that it could be an earlier life's, still on its way
    twin.offer()

    bob.node.advertiser.hear(twin.advert, world.founder.peer_id)

    (warning,) = bob.node.status().warnings
    assert "this device's key is running on another machine or home directory at the same time" in warning
    with pytest.raises(NotConfirmed, match="stop one of the two"):
        await bob.node.logbook.write(
            Accept,
            lambda index, prev: Accept(
                index=index,
                prev=prev,
                award=bytes(32),
                buyer=world.founder.peer_id,
                job_id=bytes(16),
                attempt=1,
            ),
        )
    buyer = await world.puppet("dan")
    await buyer.meet(bob)
    _, _, answer = await buyer.ask(bob)
    assert isinstance(answer.message, Decline)
    assert answer.message.reason == "policy"


async def test_an_old_advert_of_ones_own_is_no_double(world: World) -> None:
    """From before the restart, handed back by a member: another boot, and older than this one."""
    bob = await world.add("bob")
    await world.acquaint(world.founder, bob)

    await bob.restart()
    await world.acquaint(world.founder, bob)
    await world.run(100)

    assert bob.node.status().warnings == []


async def test_a_clock_that_was_behind_at_the_start_makes_no_double_of_an_earlier_life(world: World) -> None:
    """A board without a battery for its clock: it starts ten minutes in the past, and is then told the time.

    What it signed in its earlier life seems newer than its start, and members still hand it on.
    """
    bob, cat = await world.add("bob"), await world.add("cat")
    await world.acquaint(world.founder, bob, cat)
    await world.run(ADVERT_INTERVAL_IDLE_S)
    echo = bob.node.advertiser.own().raw
    await bob.kill()
    world.jump(bob, seconds=-600)
    await bob.start()
    world.jump(bob, seconds=600)

    await world.acquaint(world.founder, bob, cat)
    bob.node.advertiser.hear(echo, cat.peer_id)
    await world.run(ECHO_S)

    assert bob.node.status().warnings == []
    assert bob.node.logbook.halted == ""


async def test_a_restored_backup_takes_no_echo_of_the_lives_that_it_does_not_know_for_a_double(
    world: World,
) -> None:
    """Its store knows nothing of the life that others have just heard; what they say of it is old all the same."""
    bob, cat = await world.add("bob"), await world.add("cat")
    backup = await bob.backup()
    await bob.restart()
    await world.acquaint(world.founder, bob, cat)
    echo = bob.node.advertiser.own().raw
    await bob.kill()
    await bob.disk.replace(backup)
    world.jump(bob, seconds=-600)
    await bob.start()
    world.jump(bob, seconds=600)

    await world.acquaint(world.founder, bob, cat)
    bob.node.advertiser.hear(echo, cat.peer_id)
    await world.run(ECHO_S)

    assert bob.node.logbook.halted == ""


async def test_an_advert_of_an_earlier_life_that_a_hostile_member_kept_stops_nobody(world: World) -> None:
    """Its clock was an hour ahead then; an hour later the advert is of now, for whoever has kept it."""
    bob, eve = await world.add("bob"), await world.puppet("eve")
    world.jump(bob, seconds=3_600)
    bob.node.advertiser.refresh()
    kept = bob.node.advertiser.own().raw
    world.jump(bob, seconds=-3_600)
    for _ in range(3):
        await bob.restart()
    await world.run(3_600)

    bob.node.advertiser.hear(kept, eve.peer_id)

    assert bob.node.logbook.halted == ""


async def test_an_entry_that_a_full_disk_did_not_take_keeps_no_later_start(world: World) -> None:
    """It is heard, the disk has no room; the entry behind it is stored. The next start leaves that out, and asks again."""
    bob = await world.add("bob")
    await bob.disk.fill()
    lost = await world.admit(person("cat").peer_id, owner="cat")
    await world.run(1)
    bob.disk.empty()
    await world.admit(person("dan").peer_id, owner="dan")
    await world.run(1)
    stored = {record.key for record in await bob.backup()}
    assert lost.id not in stored

    await bob.restart()
    left_out = bob.events("entry_left_out")
    await world.acquaint(bob, world.founder)

    assert [each["index"] for each in left_out] == [lost.message.index + 1]
    assert bob.node.logbook.heads("assembly") == world.founder.node.logbook.heads("assembly")
    await bob.restart()
    assert bob.events("entry_left_out") == left_out


async def test_income_is_kept_though_its_payers_admission_stands_behind_it_on_the_disk(world: World) -> None:
    """Sweep, seed 603: a full disk had not taken the admission, which came again later; each start then lost the income."""
    seller = await world.add("bob")
    buyer = await world.add("cat")
    buyer.engine.forget_models()
    await world.acquaint(world.founder, seller, buyer)
    await buyer.chat("hi")
    await world.until(lambda: seller.balance() > 0)
    earned = seller.balance()
    records = await seller.backup()
    admission = world.founder.node.logbook.assembly.admission_of(buyer.peer_id)
    assert admission is not None

    await seller.kill()
    await seller.disk.replace(sorted(records, key=lambda record: record.key == admission.id))
    await seller.start()

    assert seller.events("entry_refused") == []
    assert seller.balance() == earned
