"""What training spends of a record's privacy: reserved before the first step, never twice, never over the budget."""

from dataclasses import dataclass, field

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.defaults import DEFAULT_RECIPE
from federation.privacy import StepsTaken, delta_for, epsilon_milli
from node import records
from node.data_sets import DataSet
from node.privacy_book import PrivacyBook, Refused, sampling_rate_ppm
from protocol.envelope import open_sealed
from protocol.messages import Recipe, Spend
from runtime.trainer import NoisePlan
from tests.node.world import Daemon, Holder, World

RUN = b"r" * 16
NOISE = NoisePlan(noise_milli=1_000, rate_ppm=20_000)
STEPS = 30
BUDGET_MILLI = 4_000


def recipe(**changes: int) -> Recipe:
    """Sixteen rounds of 30 steps, half of each batch of 16 replayed."""
    return msgspec.structs.replace(
        DEFAULT_RECIPE, **{"rounds": 16, "steps": STEPS, "batch": 16, "replay_percent": 50, **changes}
    )


def insert(
    daemon: Daemon, name: str = "logs", start: int = 0, end: int = 400, budget_milli: int = BUDGET_MILLI
) -> DataSet:
    lines = records.encode((f"prompt {at}", f"response {at}") for at in range(start, end))
    return daemon.data.insert(name, records.read(lines, name), budget_milli).data_set


def book(daemon: Daemon) -> PrivacyBook:
    assert daemon.node.privacy_book is not None
    return daemon.node.privacy_book


async def device(world: World, run_percent: int = 100) -> Daemon:
    """Its owner lets one run spend a whole budget, but where the story is about that."""
    ann = await world.add("ann", engine=Holder(), privacy_run_percent=run_percent)
    await world.acquaint(world.founder, ann)
    return ann


def spends(daemon: Daemon) -> list[Spend]:
    """Every spend that was ever acknowledged by its disk."""
    found = []
    for batch in daemon.disk.appends:
        for record in batch:
            if record.kind == "entry" and record.body is not None and record.key != daemon.world.mesh_id:
                message = open_sealed(record.body, mesh=daemon.world.mesh_id).message
                if isinstance(message, Spend):
                    found.append(message)
    return found


async def spend_all(daemon: Daemon, data_set: DataSet, run: bytes = RUN) -> tuple[int, Refused]:
    """Reserve round after round until one is refused."""
    for round_ in range(1, 1_000):
        refused = await book(daemon).reserve(data_set, run, round_, NOISE, STEPS)
        if refused is not None:
            return round_ - 1, refused
    raise AssertionError("no budget is endless")


# --- reserving --------------------------------------------------------------------------------------------------------
async def test_a_round_is_on_disk_when_it_is_reserved(world: World) -> None:
    ann = await device(world)
    data_set = insert(ann)

    assert book(ann).spent_milli(data_set) == 0
    assert await book(ann).reserve(data_set, RUN, 1, NOISE, STEPS) is None

    [spend] = spends(ann)
    assert (spend.source, spend.run, spend.round) == (data_set.digest, RUN, 1)
    assert (spend.noise_milli, spend.rate_ppm, spend.steps) == (1_000, 20_000, STEPS)
    expected = epsilon_milli([StepsTaken(1_000, 20_000, STEPS)], 1 / (10 * data_set.samples))
    assert 0 < book(ann).spent_milli(data_set) == expected == book(ann).run_milli(data_set, RUN)
    [event] = ann.events("privacy_reserved")
    assert (event["round"], event["spent_milli"], event["budget_milli"]) == (1, expected, BUDGET_MILLI)


async def test_rounds_are_composed_and_not_added_up(world: World) -> None:
    ann = await device(world)
    data_set = insert(ann)
    one = book(ann).cost_milli(data_set, NOISE, STEPS)

    for round_ in (1, 2, 3):
        assert await book(ann).reserve(data_set, RUN, round_, NOISE, STEPS) is None

    assert book(ann).spent_milli(data_set) == book(ann).cost_milli(data_set, NOISE, 3 * STEPS)
    assert one < book(ann).spent_milli(data_set) < 3 * one


async def test_what_was_spent_is_there_after_a_restart(world: World) -> None:
    ann = await device(world)
    data_set = insert(ann)
    await book(ann).reserve(data_set, RUN, 1, NOISE, STEPS)
    spent = book(ann).spent_milli(data_set)

    await ann.restart()

    assert book(ann).spent_milli(data_set) == spent


async def test_a_round_over_the_budget_is_refused_with_both_numbers(world: World) -> None:
    ann = await device(world)
    data_set = insert(ann)

    rounds, refused = await spend_all(ann, data_set)

    assert rounds > 1
    would_be = book(ann).cost_milli(data_set, NOISE, (rounds + 1) * STEPS)
    assert would_be > BUDGET_MILLI
    assert refused == Refused(
        "budget",
        f"epsilon of 'logs' with round {rounds + 1} would be {would_be / 1000:g}, its budget is 4",
    )
    assert len(spends(ann)) == rounds
    assert book(ann).spent_milli(data_set) <= BUDGET_MILLI


async def test_a_second_run_finds_what_the_first_has_left(world: World) -> None:
    ann = await device(world)
    data_set = insert(ann)
    await spend_all(ann, data_set)

    refused = await book(ann).reserve(data_set, b"another run's id", 1, NOISE, STEPS)

    assert refused is not None
    assert refused.reason == "budget"
    assert book(ann).run_milli(data_set, b"another run's id") == 0


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_a_round_is_not_reserved_twice(world: World, is_restarted: bool) -> None:
    """The trainer was killed after the reserve: that round's privacy is lost, and not spent again unseen."""
    ann = await device(world)
    data_set = insert(ann)
    await book(ann).reserve(data_set, RUN, 1, NOISE, STEPS)
    if is_restarted:
        await ann.restart()
        await world.acquaint(world.founder, ann)

    refused = await book(ann).reserve(data_set, RUN, 1, NOISE, STEPS)

    assert refused == Refused("repeated", f"round 1 of run {RUN.hex()[:8]} was reserved before")
    assert len(spends(ann)) == 1
    assert await book(ann).reserve(data_set, RUN, 2, NOISE, STEPS) is None


async def test_two_rounds_at_once_do_not_share_what_is_left(world: World) -> None:
    """Two coordinators ask at the same moment, and the disk is slow."""
    ann = await device(world)
    ann.disk._sync_s = 0.5
    one_round = epsilon_milli([StepsTaken(1_000, 20_000, STEPS)], delta_for(360))
    data_set = insert(ann, budget_milli=one_round)
    answers: list[Refused | None] = []

    async def reserve(run: bytes) -> None:
        answers.append(await book(ann).reserve(data_set, run, 1, NOISE, STEPS))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reserve, RUN)
        nursery.start_soon(reserve, b"another run's id")

    assert sorted(each is None for each in answers) == [False, True]
    assert len(spends(ann)) == 1


async def test_a_round_of_no_steps_spends_nothing(world: World) -> None:
    ann = await device(world)
    data_set = insert(ann)

    assert await book(ann).reserve(data_set, RUN, 1, NOISE, 0) is None

    assert spends(ann) == []


async def test_a_set_without_a_budget_is_in_no_book(world: World) -> None:
    ann = await device(world)
    data_set = insert(ann, budget_milli=0)

    assert await book(ann).reserve(data_set, RUN, 1, None, STEPS) is None

    assert spends(ann) == []
    assert (book(ann).spent_milli(data_set), book(ann).run_milli(data_set, RUN)) == (0, -1)


async def test_a_set_with_a_budget_is_not_trained_on_without_noise(world: World) -> None:
    """Whatever a coordinator asks for: the owner has decided."""
    ann = await device(world)
    data_set = insert(ann)

    refused = await book(ann).reserve(data_set, RUN, 1, None, STEPS)

    assert refused is not None
    assert refused.reason == "private"
    assert spends(ann) == []


@pytest.mark.parametrize("noise", [NoisePlan(0, 20_000), NoisePlan(1_000, 0), NoisePlan(1_000, 1_000_001)])
async def test_noise_that_the_protocol_cannot_say_is_not_written(world: World, noise: NoisePlan) -> None:
    """An entry that does not read back would refuse the next start."""
    ann = await device(world)
    data_set = insert(ann)

    with pytest.raises(ValueError, match="cannot be composed"):
        await book(ann).reserve(data_set, RUN, 1, noise, STEPS)

    assert spends(ann) == []


# --- one record in several sets -----------------------------------------------------------------------------------------
async def test_a_record_in_another_set_brings_along_what_was_spent_on_it(world: World) -> None:
    ann = await device(world)
    first = insert(ann)
    await book(ann).reserve(first, RUN, 1, NOISE, STEPS)

    second = insert(ann, "more", 390, 600)
    apart = insert(ann, "apart", 1_000, 1_200)

    assert second.shares_records(first)
    assert book(ann).spent(second) == book(ann).spent(first) != []
    assert book(ann).spent_milli(apart) == 0


async def test_a_larger_set_does_not_spend_what_a_smaller_one_has_not(world: World) -> None:
    """The budget of the set that a record came in first holds for it wherever it is trained on."""
    ann = await device(world)
    small = insert(ann, "small", 0, 400, budget_milli=2_000)
    large = insert(ann, "large", 0, 800, budget_milli=50_000)

    _, refused = await spend_all(ann, large)

    assert refused.detail.startswith("epsilon of 'small'")
    assert book(ann).spent_milli(small) <= 2_000


async def test_removing_a_set_and_adding_its_records_again_gives_no_new_budget(world: World) -> None:
    ann = await device(world)
    first = insert(ann)
    await spend_all(ann, first)
    spent = book(ann).spent(first)
    await ann.data.remove(first.digest)

    again = insert(ann, "again", 0, 405)

    assert again.digest != first.digest
    assert book(ann).spent(again) == spent
    assert isinstance(await book(ann).reserve(again, b"another run's id", 1, NOISE, STEPS), Refused)


# --- crashes, disks, backups -----------------------------------------------------------------------------------------------
async def test_a_full_disk_refuses_the_round(world: World) -> None:
    ann = await device(world)
    data_set = insert(ann)
    await ann.disk.fill()

    refused = await book(ann).reserve(data_set, RUN, 1, NOISE, STEPS)

    assert refused is not None
    assert refused.reason == "disk"
    assert book(ann).spent_milli(data_set) == 0
    ann.disk.empty()
    assert await book(ann).reserve(data_set, RUN, 1, NOISE, STEPS) is None


async def test_a_log_that_nobody_has_confirmed_reserves_nothing(world: World) -> None:
    ann = await device(world)
    data_set = insert(ann)
    await world.founder.kill()
    await ann.restart()

    refused = await book(ann).reserve(data_set, RUN, 1, NOISE, STEPS)

    assert refused is not None
    assert refused.reason == "unconfirmed"
    assert spends(ann) == []


async def test_a_restored_backup_that_a_member_disputes_reserves_nothing(world: World) -> None:
    """One member has seen an entry that the backup does not hold, another has not and confirms the old log."""
    ann, bob = await device(world), await world.add("bob")
    await world.acquaint(ann, bob, world.founder)
    data_set = insert(ann)
    backup = await ann.backup()
    world.suspend(world.founder)
    assert await book(ann).reserve(data_set, RUN, 1, NOISE, STEPS) is None
    await world.until(lambda: bob.node.logbook.furthest(ann.peer_id, "bilateral") is not None)

    await ann.kill()
    await ann.disk.replace(backup)
    world.resume(world.founder)
    await ann.start()
    await world.until(lambda: ann.node.logbook.is_confirmed and ann.events("own_log_disputed") != [])
    refused = await book(ann).reserve(data_set, b"another run's id", 1, NOISE, STEPS)

    assert refused is not None
    assert refused.reason == "unconfirmed"
    assert "restoring an old backup" in refused.detail


async def test_a_restored_backup_whose_entries_come_back_goes_on(world: World) -> None:
    """Whoever holds the device's log gives it back, and what was spent is known again."""
    ann, bob = await device(world), await world.add("bob")
    await world.acquaint(ann, bob, world.founder)
    data_set = insert(ann)
    backup = await ann.backup()
    await book(ann).reserve(data_set, RUN, 1, NOISE, STEPS)
    spent = book(ann).spent_milli(data_set)
    for member in (bob, world.founder):
        await member.node.sync.pull(ann.peer_id, ann.peer_id, "bilateral")

    await ann.kill()
    await ann.disk.replace(backup)
    await ann.start()
    await world.until(lambda: ann.node.logbook.is_confirmed)

    assert book(ann).spent_milli(data_set) == spent
    assert isinstance(await book(ann).reserve(data_set, RUN, 1, NOISE, STEPS), Refused)
    assert await book(ann).reserve(data_set, RUN, 2, NOISE, STEPS) is None


async def test_what_another_member_says_it_spent_is_nothing_to_us(world: World) -> None:
    """And it moves no money: a spend stands among the entries of the market and is none."""
    ann, eve = await device(world), await world.puppet("eve")
    data_set = insert(ann)
    await eve.meet(ann)
    spend = eve.entry(
        Spend, source=data_set.digest, run=RUN, round=1, noise_milli=1, rate_ppm=1_000_000, steps=10_000
    )
    before = ann.node.ledger()

    await ann.node.logbook.take([spend])

    assert ann.node.logbook.head(eve.peer_id, "bilateral") is not None
    assert ann.node.ledger() == before
    assert ann.events("entry_refused") == []
    assert book(ann).spent_milli(data_set) == 0
    assert await book(ann).reserve(data_set, RUN, 1, NOISE, STEPS) is None


# --- planning -------------------------------------------------------------------------------------------------------------
async def test_a_plan_lets_all_rounds_of_a_run_fit_and_hardly_one_more(world: World) -> None:
    ann = await device(world)
    data_set = insert(ann)
    wanted = recipe(rounds=8)

    plan = book(ann).plan(data_set, wanted)

    assert isinstance(plan, NoisePlan)
    assert plan.rate_ppm == -(-8 * 1_000_000 // data_set.samples)  # half of a batch of 16 is replayed
    for round_ in range(1, 9):
        assert await book(ann).reserve(data_set, RUN, round_, plan, wanted.steps) is None
    assert 0.99 * BUDGET_MILLI < book(ann).spent_milli(data_set) <= BUDGET_MILLI
    assert book(ann).run_milli(data_set, RUN) == book(ann).cost_milli(data_set, plan, 8 * wanted.steps)


async def test_a_plan_after_a_run_takes_more_noise(world: World) -> None:
    ann = await device(world)
    data_set = insert(ann)
    fresh = book(ann).plan(data_set, recipe())
    await book(ann).reserve(data_set, RUN, 1, NOISE, 100)

    later = book(ann).plan(data_set, recipe())

    assert isinstance(fresh, NoisePlan)
    assert isinstance(later, NoisePlan)
    assert later.noise_milli > fresh.noise_milli


async def test_nothing_left_plans_nothing(world: World) -> None:
    ann = await device(world)
    one_round = epsilon_milli([StepsTaken(1_000, 20_000, STEPS)], delta_for(360))
    data_set = insert(ann, budget_milli=one_round)
    await book(ann).reserve(data_set, RUN, 1, NOISE, STEPS)

    plan = book(ann).plan(data_set, recipe())

    assert isinstance(plan, Refused)
    spent = f"{one_round / 1000:g}"
    assert plan.reason == "budget"
    assert plan.detail.startswith("480 steps on 'logs' take an epsilon of 0.")
    assert plan.detail.endswith(
        f" at least, left for one run is 0: it may spend {spent}, and {spent} of {spent} is spent"
    )


async def test_a_plan_keeps_the_budget_of_every_set_that_shares_a_record(world: World) -> None:
    ann = await device(world)
    small = insert(ann, "small", 0, 400, budget_milli=1_000)
    large = insert(ann, "large", 0, 800, budget_milli=8_000)

    plan = book(ann).plan(large, recipe())

    assert isinstance(plan, NoisePlan)
    taken = StepsTaken(plan.noise_milli, plan.rate_ppm, recipe().steps * recipe().rounds)
    assert epsilon_milli([taken], delta_for(small.samples)) <= 1_000


# --- one run's share ----------------------------------------------------------------------------------------------------
async def test_one_run_is_planned_with_its_share_and_leaves_the_rest_to_others(world: World) -> None:
    """A quarter of the whole budget each: runs compose to less than their sum, so that four of them are not all."""
    ann = await device(world, run_percent=25)
    data_set = insert(ann)
    wanted = recipe(rounds=2)
    runs = [bytes([number]) * 16 for number in range(4)]

    for run in runs:
        plan = book(ann).plan(data_set, wanted)
        assert isinstance(plan, NoisePlan)
        assert 990 < book(ann).cost_milli(data_set, plan, 2 * wanted.steps) <= BUDGET_MILLI // 4
        for round_ in (1, 2):
            assert await book(ann).reserve(data_set, run, round_, plan, wanted.steps) is None

    assert [990 < book(ann).run_milli(data_set, run) <= 1_000 for run in runs] == [True] * 4
    assert book(ann).spent_milli(data_set) < BUDGET_MILLI


async def test_a_run_whose_rounds_would_cost_more_than_its_share_is_refused_with_both_numbers(
    world: World,
) -> None:
    """Whatever was planned: what its coordinator asks for is held against the owner's word, once more."""
    ann = await device(world, run_percent=25)
    data_set = insert(ann)

    rounds, refused = await spend_all(ann, data_set)

    would_be = book(ann).cost_milli(data_set, NOISE, (rounds + 1) * STEPS)
    assert refused == Refused(
        "budget",
        f"epsilon of 'logs' in this run would be {would_be / 1000:g} with round {rounds + 1}, one run may spend 1 of "
        "its budget of 4",
    )
    assert book(ann).run_milli(data_set, RUN) <= 1_000
    assert await book(ann).reserve(data_set, b"another run's id", 1, NOISE, STEPS) is None


async def test_a_run_that_no_noise_brings_within_its_share_is_not_planned(world: World) -> None:
    ann = await device(world, run_percent=1)
    data_set = insert(ann)

    plan = book(ann).plan(data_set, recipe(rounds=64, batch=256))

    assert plan == Refused(
        "budget",
        "1920 steps on 'logs' take an epsilon of 2.924 at least, left for one run is 0.04: it may spend 0.04, and 0 of 4 is "
        "spent",
    )


async def test_a_share_is_of_every_set_that_bears_the_record(world: World) -> None:
    """Trained under one name and then under another, within one run: it is the same record's privacy."""
    ann = await device(world, run_percent=25)
    first = insert(ann)
    second = insert(ann, "more", 0, 405, budget_milli=BUDGET_MILLI)
    rounds, _ = await spend_all(ann, first)

    refused = await book(ann).reserve(second, RUN, rounds + 1, NOISE, STEPS)

    assert refused is not None
    assert "in this run would be" in refused.detail


async def test_a_set_without_a_budget_plans_no_noise(world: World) -> None:
    ann = await device(world)

    assert book(ann).plan(insert(ann, budget_milli=0), recipe()) is None


@pytest.mark.parametrize(
    ("samples", "batch", "replay_percent", "rate_ppm"),
    [(1_000, 16, 50, 8_000), (1_000, 16, 0, 16_000), (3, 16, 50, 1_000_000), (1_000, 1, 90, 1_000), (300, 2, 50, 3_334)],
)  # fmt: skip
def test_the_sampling_rate_is_of_the_private_part_of_a_batch(
    samples: int, batch: int, replay_percent: int, rate_ppm: int
) -> None:
    assert sampling_rate_ppm(samples, recipe(batch=batch, replay_percent=replay_percent)) == rate_ppm


# --- whatever happens ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Reserve:
    """One attempt; `after_s` is when its caller is gone or the power goes, if at all."""

    source: int
    run: int
    round: int
    noise_milli: int
    steps: int
    end: str = "none"  # none, cancel, crash
    after_s: float = field(default=0.0)


RESERVES = st.builds(
    Reserve,
    source=st.integers(0, 2),
    run=st.integers(0, 2),
    round=st.integers(1, 4),
    noise_milli=st.sampled_from([600, 1_000, 2_500]),
    steps=st.sampled_from([1, 30, 200]),
    end=st.sampled_from(["none", "none", "cancel", "crash"]),
    after_s=st.sampled_from([0.0, 0.004, 0.006, 0.011]),
)
SETS = (
    ("a", 0, 300, 1_500),
    ("b", 200, 500, 3_000),
    ("c", 450, 900, 6_000),
)  # each shares records with the next


@settings(max_examples=40, deadline=None)
@given(batches=st.lists(st.lists(RESERVES, min_size=1, max_size=3), min_size=1, max_size=8))
def test_no_budget_is_ever_exceeded_and_no_round_spent_twice(batches: list[list[Reserve]]) -> None:
    """Reserves at once, callers that leave, power cuts: what is on disk composes to no more than any set's budget."""
    from tests.node.conftest import run_on_virtual_time  # noqa: PLC0415  the runner of the async tests

    async def story() -> None:
        async with trio.open_nursery() as nursery:
            world = World(nursery)
            async with world.running():
                await world.open()
                ann = await device(world)
                ann.disk._sync_s = 0.01
                sets = [insert(ann, *each) for each in SETS]
                granted: list[Reserve] = []
                for batch in batches:
                    await _try(world, ann, sets, batch, granted)
                    _check(ann, sets, granted)
                await ann.restart()
                _check(ann, sets, granted)
                world.check()

    run_on_virtual_time(story)


async def _try(
    world: World, ann: Daemon, sets: list[DataSet], batch: list[Reserve], granted: list[Reserve]
) -> None:
    """Begin a batch of reserves at once, and let happen what each of them says."""

    async def reserve(wanted: Reserve) -> None:
        with trio.move_on_after(wanted.after_s if wanted.end == "cancel" else float("inf")):
            refused = await asked.reserve(
                sets[wanted.source],
                wanted.run.to_bytes(16),
                wanted.round,
                NoisePlan(wanted.noise_milli, 20_000),
                wanted.steps,
            )
            if refused is None:
                granted.append(wanted)

    asked = book(ann)
    crashes = [each.after_s for each in batch if each.end == "crash"]
    async with trio.open_nursery() as nursery:
        for wanted in batch:
            nursery.start_soon(reserve, wanted)
        if crashes:
            await trio.sleep(min(crashes))
            await ann.kill()
    if crashes:
        await ann.start()
        await world.until(lambda: ann.node.logbook.is_confirmed)


def _check(ann: Daemon, sets: list[DataSet], granted: list[Reserve]) -> None:
    log = ann.node.logbook.entries(ann.peer_id, "bilateral", 0)
    kept = [entry.message for entry in log if isinstance(entry.message, Spend)]
    places = [(spend.run, spend.round) for spend in kept]
    assert len(places) == len(set(places)), "a round was spent twice"
    assert {(each.run.to_bytes(16), each.round) for each in granted} <= set(places), "a round ran unpaid"
    for data_set in sets:
        sources = {each.digest for each in sets if each.shares_records(data_set)}
        taken = [
            StepsTaken(each.noise_milli, each.rate_ppm, each.steps) for each in kept if each.source in sources
        ]
        assert epsilon_milli(taken, delta_for(data_set.samples)) <= data_set.budget_milli
        assert book(ann).spent(data_set) == taken or sorted(map(str, book(ann).spent(data_set))) == sorted(
            map(str, taken)
        )
