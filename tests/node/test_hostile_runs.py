"""Training runs whose coordinator or member is hostile: each attack by its name, and nothing has changed."""

from typing import Any

import pytest

from node.jobs import CLAIM_WINDOW_S
from protocol.errors import MeshError
from protocol.messages import Accept, Decline, FailedFrame
from tests.node.run_puppets import RECIPE, Coordinator, Member, companion
from tests.node.run_town import finish, options, settle_town, spends, trained
from tests.node.world import Daemon, World


async def facing_a_member(world: World, **config: Any) -> tuple[Daemon, Coordinator]:
    """A device with private data that trains even alone, and a puppet that coordinates."""
    (device,) = await settle_town(world, 1, budget_milli=8_000, device={"cohort_min": 1, **config})
    puppet = await world.puppet("mallory")
    await puppet.meet(device)
    return device, Coordinator(puppet)


async def in_a_run(world: World) -> tuple[Daemon, Coordinator]:
    device, coordinator = await facing_a_member(world)
    await coordinator.announce()
    assert isinstance(await coordinator.open(device), Accept)
    return device, coordinator


def is_untouched(device: Daemon) -> bool:
    """Nothing was trained or spent there, and nothing was agreed to."""
    return (trained(device), spends(device), device.events("run_joined")) == ([], [], [])


# --- a hostile coordinator --------------------------------------------------------------------------------------------
async def test_an_honest_puppet_is_served(world: World) -> None:
    """So it is the lie that the tests below refuse."""
    device, coordinator = await in_a_run(world)

    update = await coordinator.ask(device)

    assert isinstance(update, bytes)
    assert [spend.round for spend in spends(device)] == trained(device) == [1]


async def test_invented_companions_do_not_make_a_cohort(world: World) -> None:
    """With keys of its own around one member, a coordinator would read that member's update by subtraction."""
    device, coordinator = await facing_a_member(world, cohort_min=3)
    await coordinator.announce(cohort_min=3)
    invented = [companion(world, name, coordinator.announcement) for name in ("one", "two")]

    answer = await coordinator.open(device, invented)

    assert isinstance(answer, Decline)
    assert answer.reason == "cohort"
    assert is_untouched(device)


async def test_a_cohort_of_one_is_refused_by_default(world: World) -> None:
    device, coordinator = await facing_a_member(world, cohort_min=3)
    await coordinator.announce(cohort_min=3)

    answer = await coordinator.open(device)

    assert isinstance(answer, Decline)
    assert (answer.reason, answer.detail) == ("cohort", "cohort of 1, at least 3 wanted")
    assert is_untouched(device)


async def test_a_run_that_may_go_on_with_fewer_than_its_member_wants_is_not_for_it(world: World) -> None:
    """The cohort at its opening may be as large as one likes: nobody tells its members who has left since."""
    device, coordinator = await facing_a_member(world, cohort_min=3)

    await coordinator.announce(cohort_min=2)

    [answer] = coordinator.answers
    assert isinstance(answer.message, Decline)
    assert (answer.message.reason, answer.message.detail) == (
        "cohort",
        "it goes on with 2 members, at least 3 wanted",
    )
    assert is_untouched(device)


@pytest.mark.parametrize(
    "changes",
    [{"hold_micro": 1}, {"completion_micro": 0}, {"lease_ms": 0}, {"model": b"m" * 32}],
    ids=lambda changes: next(iter(changes)),
)
async def test_an_award_that_is_not_what_was_bid_is_refused(world: World, changes: dict[str, Any]) -> None:
    device, coordinator = await facing_a_member(world)
    await coordinator.announce()

    with pytest.raises(MeshError):
        await coordinator.open(device, **changes)

    assert is_untouched(device)
    assert device.events("offence_counted")[-1]["peer_id"] == coordinator.puppet.peer_id


async def test_a_round_of_a_run_that_was_never_joined_trains_nothing(world: World) -> None:
    device, coordinator = await facing_a_member(world)
    await coordinator.announce()
    coordinator.award = coordinator.announcement  # type: ignore[assignment]  # no award was ever given

    answer = await coordinator.ask(device)

    assert isinstance(answer, FailedFrame)
    assert answer.reason == "refused"
    assert is_untouched(device)


async def test_a_replayed_round_trains_and_spends_nothing_again(world: World) -> None:
    """Whoever asks again is sent the same bytes: averaging two noises over one spend would tell more than it cost."""
    device, coordinator = await in_a_run(world)
    first = await coordinator.ask(device)

    second = await coordinator.ask(device)

    assert second == first
    assert trained(device) == [1]
    assert len(spends(device)) == 1


async def test_a_replayed_round_is_sent_the_same_bytes_after_a_restart(world: World) -> None:
    device, coordinator = await in_a_run(world)
    first = await coordinator.ask(device)
    await device.restart()
    await coordinator.puppet.meet(device)

    second = await coordinator.ask(device)

    assert second == first
    assert trained(device) == [1]
    assert len(spends(device)) == 1


async def test_a_round_from_another_state_is_refused_once_it_was_trained(world: World) -> None:
    device, coordinator = await in_a_run(world)
    await coordinator.ask(device)

    answer = await coordinator.ask(device, state=b"s" * 32)

    assert isinstance(answer, FailedFrame)
    assert trained(device) == [1]
    assert len(spends(device)) == 1


async def test_a_state_that_the_payload_does_not_lead_to_costs_no_privacy(world: World) -> None:
    """A coordinator that names a wrong state would else burn a round of each member's budget, as often as it likes."""
    device, coordinator = await in_a_run(world)

    answer = await coordinator.ask(device, state=b"s" * 32)

    assert isinstance(answer, FailedFrame)
    assert answer.reason == "prompt"
    assert (trained(device), spends(device)) == ([], [])


async def test_an_older_round_is_fenced_off(world: World) -> None:
    device, coordinator = await in_a_run(world)
    await coordinator.ask(device, 2)

    answer = await coordinator.ask(device, 1)

    assert isinstance(answer, FailedFrame)
    assert [spend.round for spend in spends(device)] == [2]


async def test_more_rounds_than_were_announced_are_refused(world: World) -> None:
    """The privacy that the run would cost was planned for those that were."""
    device, coordinator = await in_a_run(world)

    answer = await coordinator.ask(device, RECIPE.rounds + 1)

    assert isinstance(answer, FailedFrame)
    assert (trained(device), spends(device)) == ([], [])


async def test_rounds_of_anothers_run_are_not_for_the_asking(world: World) -> None:
    """A member that overhears run and award asks in its own name."""
    device, coordinator = await in_a_run(world)
    thief = await world.puppet("thief")
    await thief.meet(device)

    with pytest.raises(MeshError):
        await coordinator.ask(device, by=thief)

    assert (trained(device), spends(device)) == ([], [])
    assert device.events("offence_counted")[-1]["peer_id"] == thief.peer_id


async def test_a_payload_other_than_its_task_names_is_refused_before_anything_is_spent(world: World) -> None:
    device, coordinator = await in_a_run(world)

    with pytest.raises(MeshError):
        await coordinator.ask(device, sent=b"x" * 100)

    assert (trained(device), spends(device)) == ([], [])


async def test_an_announcement_of_a_stranger_is_not_answered(world: World) -> None:
    (device,) = await settle_town(world, 1, device={"cohort_min": 1})
    stranger = Coordinator(await world.puppet("stranger", is_admitted=False))
    await stranger.puppet.mesh.dial(device.address)  # for the three seconds that a hello may take

    await stranger.announce()

    assert stranger.answers == []
    assert device.events("enlisted") == []


@pytest.mark.parametrize("ttl_ms", [0, 3_600_000], ids=["for_ever", "for_an_hour"])
async def test_an_announcement_that_lives_too_long_is_not_answered(world: World, ttl_ms: int) -> None:
    """It could be replayed to every newcomer, each of which would enlist in a run long over."""
    _device, coordinator = await facing_a_member(world)

    await coordinator.announce(ttl_ms=ttl_ms)

    assert coordinator.answers == []


# --- a hostile member -------------------------------------------------------------------------------------------------
async def with_a_member(
    world: World, name: str = "mallory", **changes: Any
) -> tuple[list[Daemon], Member, str]:
    """Three honest devices and a puppet that enlists beside them."""
    devices = await settle_town(world)
    puppet = await world.puppet(name, is_admitted=changes.pop("is_admitted", True))
    if changes.pop("is_met", True):
        await puppet.meet(world.founder)
    member = Member(puppet)
    run = (await world.founder.node.train(options(rounds=1, strategy="mean"))).run_id
    await member.enlist(world, run, **changes)
    return devices, member, run


async def test_an_honest_puppet_takes_part_and_is_countersigned(world: World) -> None:
    _devices, member, run = await with_a_member(world)

    view = await finish(world, world.founder, run)

    assert len(view.history[0].members) == 4
    assert len(member.countersigned) == 1


@pytest.mark.parametrize(
    ("payload", "update"),
    [
        (b"", {}),
        (b"\x01garbage", {}),
        (b"\x00" * 2_000, {}),
        (None, {"payload": b"h" * 32}),
        (None, {"steps": 10_000}),
        (None, {"samples": 2**40}),
        (None, {"round": 2}),
        (None, {"task": b"t" * 32}),
        (None, {"run": b"o" * 16}),
        (None, {"payload_bytes": 60 * 2**20}),
    ],
    ids=["empty", "garbage", "zeros", "other_hash", "steps", "absurd_weight", "round", "task", "run", "size"],
)
async def test_a_hostile_update_enters_no_aggregate_and_is_not_paid(
    world: World, payload: bytes | None, update: dict[str, Any]
) -> None:
    """The others' round goes on without it, and is worth what it would have been."""
    devices, member, run = await with_a_member(world)
    member.payload, member.update = payload, update

    view = await finish(world, world.founder, run)

    assert view.state == "finished"
    assert set(view.history[0].members) == {device.peer_id for device in devices}
    assert [each["peer_id"] for each in view.history[0].dropped] == [member.puppet.peer_id]
    assert member.countersigned == []


async def test_a_receipt_that_lies_about_a_round_is_not_countersigned_in_a_run(world: World) -> None:
    devices, member, run = await with_a_member(world, step_micro=500)
    member.receipt = {"completion_tokens": 1_000, "amount_micro": 500_000}

    view = await finish(world, world.founder, run)
    await world.run(CLAIM_WINDOW_S)

    assert view.state == "finished"
    assert member.countersigned == []
    assert member.puppet.peer_id not in world.founder.accounts()
    assert world.founder.node.logbook.ledger.held_micro(world.founder.peer_id) == 0
    assert [device.balance() for device in devices] == [12_000] * 3


async def test_a_stranger_does_not_enlist(world: World) -> None:
    devices = await settle_town(world)
    puppet = await world.puppet("stranger", is_admitted=False)
    await puppet.mesh.dial(world.founder.address)
    member = Member(puppet)
    run = (await world.founder.node.train(options(rounds=1))).run_id

    await member.enlist(world, run)
    view = await finish(world, world.founder, run)

    assert {each.peer_id for each in view.cohort} == {device.peer_id for device in devices}


async def test_an_enlistment_dearer_than_announced_is_not_taken(world: World) -> None:
    devices, _member, run = await with_a_member(world, step_micro=10_001)

    view = await finish(world, world.founder, run)

    assert {each.peer_id for each in view.cohort} == {device.peer_id for device in devices}
