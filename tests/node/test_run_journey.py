"""A training run from its announcement to its proposal, between whole nodes."""

import pytest
import trio

from node.errors import StartError
from node.services.cohort_link import SILENCE_S
from node.services.round_stream import CONFIRMATION_S
from node.simulation.learning import LINE, SKILL
from protocol.messages import Accept, FailedFrame, Head, Manifest
from tests.node.run_puppets import Coordinator, Member
from tests.node.run_town import (
    ROUNDS,
    STEP_MICRO,
    STEPS,
    finish,
    in_round,
    options,
    settle_town,
    spends,
    trained,
)
from tests.node.world import Daemon, World

COST_MICRO = ROUNDS * STEPS * STEP_MICRO  # of one member


async def start(world: World, coordinator: Daemon | None = None, **changes: object) -> str:
    return (await (coordinator or world.founder).node.train(options(**changes))).run_id


# --- the journey ------------------------------------------------------------------------------------------------------
async def test_three_devices_train_and_what_comes_of_it_is_proposed(world: World) -> None:
    """Each is paid for its steps, the skill is learned, and the manifest says who did what."""
    devices = await settle_town(world)

    run = await start(world)
    view = await finish(world, world.founder, run)

    assert (view.state, view.round) == ("finished", ROUNDS)
    assert {member.peer_id for member in view.cohort} == {device.peer_id for device in devices}
    assert [len(each.members) for each in view.history] == [3, 3, 3]
    manifest = world.founder.node.logbook.assembly.ballots(world.founder.clock.utc_ms())[0].manifest.message
    assert isinstance(manifest, Manifest)
    assert (manifest.line, manifest.run.hex(), manifest.rounds) == (LINE, run, ROUNDS)
    assert {(each.peer, each.rounds, each.epsilon_milli) for each in manifest.cohort} == {
        (device.peer_id, ROUNDS, -1) for device in devices
    }
    before = {score.domain: score.right for score in manifest.before}
    after = {score.domain: score.right for score in manifest.after}
    assert after[SKILL] > before[SKILL]
    assert view.manifest == world.founder.node.logbook.assembly.ballots(0)[0].id.hex()
    assert world.founder.blobs.has(manifest.adapter)  # type: ignore[arg-type]  # a digest


async def test_each_round_is_paid_and_the_holds_are_given_back(world: World) -> None:
    devices = await settle_town(world)

    run = await start(world)
    await finish(world, world.founder, run)

    assert world.founder.accounts() == {
        world.founder.peer_id: -3 * COST_MICRO,
        **{device.peer_id: COST_MICRO for device in devices},
    }
    for daemon in (world.founder, *devices):
        ledger = daemon.node.logbook.ledger
        assert ledger.held_micro(world.founder.peer_id) == 0
        assert len(daemon.events("receipt_settled")) == (0 if daemon is world.founder else ROUNDS)


async def test_each_round_is_examined_and_the_curve_rises(world: World) -> None:
    await settle_town(world)

    view = await finish(world, world.founder, await start(world, rounds=6))

    losses = [domain.loss for each in view.history for domain in each.domains if domain.domain == SKILL]
    assert len(losses) == 6
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < view.before[0].loss


async def test_the_coordinator_takes_part_when_it_has_data(world: World) -> None:
    """By the same rules, without a stream, an award or money."""
    devices = await settle_town(world, members=2)
    world.learning.give_data(world.founder, samples=400, first=90_000)

    view = await finish(world, world.founder, await start(world))

    assert view.state == "finished"
    assert {member.peer_id: member.paid_micro for member in view.cohort} == {
        world.founder.peer_id: 0,
        **{device.peer_id: COST_MICRO for device in devices},
    }
    assert trained(world.founder) == [1, 2, 3]


async def test_private_sets_spend_in_each_round_and_the_view_says_how_much(world: World) -> None:
    devices = await settle_town(world, budget_milli=8_000)

    view = await finish(world, world.founder, await start(world))

    for device in devices:
        (data_set,) = device.data.named(SKILL)
        book = device.node.privacy_book
        assert book is not None
        assert [spend.round for spend in spends(device)] == [1, 2, 3]
        assert 0 < book.spent_milli(data_set) <= 8_000
        told = [each.epsilon_milli[device.peer_id] for each in view.history]
        assert told == sorted(told)
        in_order = [
            each.name for each in device.recent() if each.name in ("privacy_reserved", "receipt_settled")
        ]
        assert (
            in_order == ["privacy_reserved", "receipt_settled"] * ROUNDS
        )  # each round is paid on its own stream
        assert told[-1] == book.spent_milli(data_set)
    assert view.outlook.startswith("3 devices, in the middle 360 records under epsilon")


async def test_a_member_sees_the_run_too(world: World) -> None:
    devices = await settle_town(world)

    run = await start(world)
    await finish(world, world.founder, run)

    view = devices[0].node.training_run(run)
    assert (view.role, view.state, view.round) == ("member", "finished", ROUNDS)
    assert view.coordinator == world.founder.peer_id
    assert len(view.cohort) == 3


async def test_more_devices_than_wanted_are_told_that_others_were_chosen(world: World) -> None:
    """The cheapest are; the fourth is free for another run once its bid is forgotten."""
    devices = await settle_town(world, members=4)

    view = await finish(world, world.founder, await start(world, cohort_max=3))

    assert len(view.cohort) == 3
    assert sorted(len(trained(device)) for device in devices) == [0, ROUNDS, ROUNDS, ROUNDS]


# --- nobody to train with ---------------------------------------------------------------------------------------------
async def test_a_run_that_nobody_has_data_for_ends_unsold_with_the_reasons(world: World) -> None:
    devices = await settle_town(world)

    view = await finish(world, world.founder, await start(world, data="whale-songs"))

    assert view.state == "unsold"
    assert {(each["peer_id"], each["reason"]) for each in view.declines} == {
        (daemon.peer_id, "data") for daemon in (world.founder, *devices)
    }
    assert world.founder.accounts() == {}


async def test_a_run_that_nobody_can_afford_ends_unsold_with_the_reasons(world: World) -> None:
    devices = await settle_town(world)

    view = await finish(world, world.founder, await start(world, step_micro_max=STEP_MICRO - 1))

    reasons = {each["peer_id"]: each["reason"] for each in view.declines}
    assert view.state == "unsold"
    assert [reasons[device.peer_id] for device in devices] == ["price"] * 3


async def test_a_run_dearer_than_the_credit_line_is_declined_for_it(world: World) -> None:
    """10,000 rounds of a thousand steps each: no account of this mesh holds that."""
    devices = await settle_town(world)

    view = await finish(world, world.founder, await start(world, rounds=1_000, steps=1_000))

    reasons = {each["peer_id"]: each["reason"] for each in view.declines}
    assert view.state == "unsold"
    assert [reasons[device.peer_id] for device in devices] == ["credit"] * 3


async def test_a_budget_too_small_for_the_run_is_kept(world: World) -> None:
    devices = await settle_town(world, budget_milli=1)

    view = await finish(world, world.founder, await start(world))

    reasons = {each["peer_id"]: each["reason"] for each in view.declines}
    assert view.state == "unsold"
    assert [reasons[device.peer_id] for device in devices] == ["budget"] * 3
    assert [spends(device) for device in devices] == [[], [], []]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"train": False}, "policy"), ({"cohort_min": 9}, "cohort"), ({"price_step_micro": 20_000}, "price")],
    ids=["unwilling", "wants_more_company", "dear"],
)
async def test_an_owners_terms_are_kept(world: World, settings: dict[str, object], reason: str) -> None:
    devices = await settle_town(world, device=settings)

    view = await finish(world, world.founder, await start(world))

    reasons = {each["peer_id"]: each["reason"] for each in view.declines}
    assert view.state == "unsold"
    assert [reasons[device.peer_id] for device in devices] == [reason] * 3


async def test_a_cohort_of_two_owners_is_refused_by_its_members(world: World) -> None:
    """Three devices enlist, two of one owner: whoever knows those two learns what the third has sent."""
    await settle_town(world, members=1)
    for name in ("left", "right"):
        device = await world.add(name, owner="one-and-the-same")
        world.learning.give_data(device, first=50_000 if name == "left" else 60_000)
        await world.acquaint(world.founder, device)

    view = await finish(world, world.founder, await start(world))

    assert view.state == "aborted"
    assert world.founder.accounts() == {}
    assert world.founder.node.logbook.ledger.held_micro(world.founder.peer_id) == 0


async def test_a_model_without_a_line_is_refused_before_anything_is_announced(world: World) -> None:
    await settle_town(world)

    with pytest.raises(StartError, match="model 'other' has no line"):
        await start(world, line="other")

    assert world.founder.node.runs() == []
    assert world.founder.events("run_announced") == []


# --- steered ----------------------------------------------------------------------------------------------------------
async def test_a_paused_run_asks_for_nothing_until_it_is_resumed(world: World) -> None:
    devices = await settle_town(world)
    run = await start(world)
    await in_round(world, world.founder, run, 2)

    await world.founder.node.steer_run(run, "pause")
    await world.run(100)
    paused = world.founder.node.training_run(run)
    await world.founder.node.steer_run(run, "resume")
    view = await finish(world, world.founder, run)

    assert (paused.state, paused.round) == ("paused", 1)
    assert view.state == "finished"
    assert [trained(device) for device in devices] == [[1, 2, 3]] * 3


async def test_a_paused_run_stays_so_through_a_restart(world: World) -> None:
    await settle_town(world)
    run = await start(world)
    await in_round(world, world.founder, run, 2)
    await world.founder.node.steer_run(run, "pause")

    await world.founder.restart()
    await world.run(100)
    paused = world.founder.node.training_run(run)
    await world.founder.node.steer_run(run, "resume")
    view = await finish(world, world.founder, run)

    assert (paused.state, paused.round) == ("paused", 1)
    assert view.state == "finished"


async def test_a_cancelled_run_stops_its_members_and_pays_for_what_is_done(world: World) -> None:
    devices = await settle_town(world)
    run = await start(world)
    await in_round(world, world.founder, run, 2)

    await world.founder.node.steer_run(run, "cancel")
    view = await finish(world, world.founder, run)

    assert (view.state, view.round) == ("cancelled", 1)
    for device in devices:
        assert device.node.training_run(run).state == "finished"
        assert device.balance() == STEPS * STEP_MICRO
        assert device.node.logbook.ledger.held_micro(world.founder.peer_id) == 0


async def test_a_member_goes_on_from_the_checkpoint_of_a_run_that_ended(world: World) -> None:
    """A child run: the parent's seed and shape, its newest state, and another coordinator."""
    devices = await settle_town(world, members=4)
    run = await start(world)
    await in_round(world, world.founder, run, 3)
    await world.founder.node.steer_run(run, "cancel")
    await finish(world, world.founder, run)
    await world.run(90)

    child = await start(world, devices[0], start_from=run[:8], rounds=2)
    view = await finish(world, devices[0], child)

    parent = world.founder.node.training_run(run)
    assert (view.state, view.parent) == ("finished", run)
    first = next(domain.loss for domain in view.history[0].domains if domain.domain == SKILL)
    last = next(domain.loss for domain in parent.history[0].domains if domain.domain == SKILL)
    assert first < last


# --- crashes ----------------------------------------------------------------------------------------------------------
async def test_a_coordinator_killed_in_mid_round_goes_on_from_its_checkpoint(world: World) -> None:
    """Members that had trained the round send the same bytes again: nothing is trained, spent or paid twice."""
    devices = await settle_town(world, budget_milli=8_000)
    run = await start(world)
    await in_round(world, world.founder, run, 2)

    await world.founder.restart()
    view = await finish(world, world.founder, run)

    assert (view.state, view.round) == ("finished", ROUNDS)
    for device in devices:
        assert trained(device) == [1, 2, 3]
        assert [spend.round for spend in spends(device)] == [1, 2, 3]
        assert device.balance() == COST_MICRO
    assert world.founder.node.logbook.ledger.held_micro(world.founder.peer_id) == 0


async def test_a_coordinator_killed_while_it_enlists_ends_the_run_and_holds_nothing(world: World) -> None:
    await settle_town(world)
    run = await start(world)
    await world.run(1)

    await world.founder.restart()
    await world.until(lambda: world.founder.node.training_run(run).state == "aborted")

    view = world.founder.node.training_run(run)
    assert view.reason == "this device was restarted before the run had begun"
    assert world.founder.node.logbook.ledger.held_micro(world.founder.peer_id) == 0


async def test_a_member_killed_in_mid_step_spends_once_and_is_back_in_the_next_round(world: World) -> None:
    devices = await settle_town(world, members=4, budget_milli=8_000)
    run = await start(world)
    await in_round(world, world.founder, run, 2)

    await devices[0].restart()
    view = await finish(world, world.founder, run)

    assert view.state == "finished"
    assert [len(each.members) for each in view.history] == [4, 3, 4]
    (dropped,) = view.history[1].dropped
    assert dropped["peer_id"] == devices[0].peer_id
    assert "was reserved before" in dropped["reason"]
    assert [spend.round for spend in spends(devices[0])] == [1, 2, 3]
    assert trained(devices[0]) == [1, 2, 3]
    assert devices[0].balance() == 2 * STEPS * STEP_MICRO


async def test_a_member_that_is_asked_before_its_log_is_confirmed_waits_for_that(world: World) -> None:
    """It was restarted between two rounds, and whoever could confirm it answers late: it does not miss the round."""
    (device,) = await settle_town(world, 1, device={"cohort_min": 1})
    coordinator = await unconfirmed(world, device)

    async def heal() -> None:
        await trio.sleep(8)
        world.heal()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(heal)
        update = await coordinator.ask(device)

    assert isinstance(update, bytes)
    assert trained(device) == [1]


@pytest.mark.parametrize(("left_ms", "within_s"), [(60_000, CONFIRMATION_S), (5_000, 5.0)])
async def test_a_member_that_nobody_confirms_refuses_within_the_rounds_time(
    world: World, left_ms: int, within_s: float
) -> None:
    """And before its coordinator takes it for dead."""
    (device,) = await settle_town(world, 1, device={"cohort_min": 1})
    coordinator = await unconfirmed(world, device)
    began_s = trio.current_time()

    refused = await coordinator.ask(device, left_ms=left_ms)

    assert isinstance(refused, FailedFrame)
    assert refused.detail == "the own log is not confirmed yet"
    assert within_s <= trio.current_time() - began_s < within_s + 1 < SILENCE_S
    assert trained(device) == []


async def unconfirmed(world: World, device: Daemon) -> Coordinator:
    """A puppet whose run a device has joined, which is back after a restart and is told of an entry that it has not written."""
    puppet = await world.puppet("coordinator")
    await puppet.meet(device)
    coordinator = Coordinator(puppet)
    await coordinator.announce()
    assert isinstance(await coordinator.open(device), Accept)
    world.partition([device], [world.founder])
    puppet.yours = (Head(author=device.peer_id, log="bilateral", index=99, entry=bytes(32)),)
    await device.restart()
    await puppet.meet(device)
    return coordinator


async def test_a_member_without_a_budget_trains_the_broken_round_again(world: World) -> None:
    """Nothing of it had left the device."""
    devices = await settle_town(world)
    run = await start(world)
    await in_round(world, world.founder, run, 2)

    await devices[0].restart()
    view = await finish(world, world.founder, run)

    assert [len(each.members) for each in view.history] == [3, 3, 3]
    assert trained(devices[0]) == [1, 2, 2, 3]
    assert devices[0].balance() == COST_MICRO


async def test_a_member_that_is_gone_for_good_is_dismissed_and_the_others_finish(world: World) -> None:
    devices = await settle_town(world, members=4)
    run = await start(world)
    await in_round(world, world.founder, run, 2)

    await devices[0].kill()
    view = await finish(world, world.founder, run)

    assert view.state == "finished"
    assert [len(each.members) for each in view.history] == [4, 3, 3]
    assert world.founder.accounts()[devices[0].peer_id] == STEPS * STEP_MICRO


async def test_a_run_that_loses_its_company_ends_with_its_checkpoint(world: World) -> None:
    devices = await settle_town(world)
    run = await start(world)
    await in_round(world, world.founder, run, 2)

    await devices[0].kill()
    await devices[1].kill()
    view = await finish(world, world.founder, run)

    assert (view.state, view.round) == ("aborted", 1)
    assert world.founder.blobs.has(bytes.fromhex(view.checkpoint))  # type: ignore[arg-type]  # a digest
    assert world.founder.node.logbook.assembly.ballots(0) == []


async def test_a_run_that_is_left_with_fewer_owners_than_it_began_with_ends(world: World) -> None:
    """Three devices still, as many as were wanted, and two are of one owner: that one would read what the third has sent."""
    (lone, other) = await settle_town(world, members=2)
    twins = [await world.add(name, owner="one-and-the-same") for name in ("left", "right")]
    for number, twin in enumerate(twins):
        world.learning.give_data(twin, first=50_000 + 10_000 * number)
        await world.acquaint(world.founder, twin)
    run = await start(world)
    await in_round(world, world.founder, run, 2)
    await lone.kill()
    await world.founder.restart()

    view = await finish(world, world.founder, run)

    assert (view.state, view.round) == ("aborted", 1)
    assert view.reason == "3 updates in round 2, of 2 owners, at least 3 owners wanted"
    assert [len(each.members) for each in view.history] == [4]
    assert {each.peer_id for each in view.cohort if not each.out} == {
        other.peer_id,
        *(twin.peer_id for twin in twins),
    }


async def test_a_round_that_was_not_paid_can_be_claimed_after_the_coordinators_restart(world: World) -> None:
    """What was taken stands in the checkpoint until it is paid."""
    await settle_town(world)
    member = Member(await world.puppet("slow"))
    await member.puppet.meet(world.founder)
    member.is_slow_to_charge = True
    run = await start(world)
    await member.enlist(world, run, step_micro=500)
    await world.until(lambda: world.founder.node.training_run(run).round == 1, 120)

    receipt = member.receipts[0]
    await world.founder.restart()
    await member.puppet.meet(world.founder)
    accepted = await member.claim(world, receipt)

    assert (accepted.completion_tokens, accepted.output) == (STEPS, receipt.message.output)
    assert [each.message.receipt for each in member.countersigned] == [receipt.raw]
    assert world.founder.accounts()[member.puppet.peer_id] == STEPS * 500
