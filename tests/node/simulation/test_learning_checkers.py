"""The laws of learning can be broken, and say so: each is shown a mesh in which all is well, and then one fault."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
import trio

from marketplace.batch import run_job_id
from node.data_sets import DataSet
from node.enlisted import ENLISTED, EnlistedRun
from node.event import Event
from node.logbook import ENTRY
from node.runs import RUN, RunFile, Seat
from node.simulation.checkers import ballots, patches, privacy, runs
from node.simulation.checkers.checks import LAWS, Checks
from node.simulation.checkers.scene import Loaded
from node.simulation.daemon import Daemon
from node.simulation.founding import Terms
from node.simulation.toys import LINE, SHAPE, crafted_adapter, digest_of, perfect
from node.simulation.virtual_clock import NOON_MS
from node.simulation.world import World
from node.store import Record
from protocol.envelope import Sealed, seal
from protocol.identity import Identity, PeerId
from protocol.messages import (
    NO_HASH,
    Approval,
    Award,
    Enlistment,
    Entry,
    Manifest,
    Recipe,
    Spend,
    Veto,
    Vote,
)
from runtime.echo import ECHO_MODEL
from runtime.trainer import Fit, NoisePlan

RUN_ID = b"r" * 16
ALL = 10**6  # entries of a log: whatever lies on the disk was known
RECIPE = Recipe(
    shape=SHAPE,
    seed=1,
    is_a_frozen=True,
    rounds=4,
    steps=30,
    batch=16,
    learning_rate_ppm=5_000,
    replay_percent=50,
    strategy="default",
    parameters=(),
)


class Hall:
    """Three voters beside the founder, one human, a line, and a data set under a budget."""

    def __init__(self, world: World, checks: Checks, voters: list[Daemon], data: DataSet) -> None:
        self.world = world
        self.scene = checks.scene
        self.voters = voters
        self.data = data
        self.owner = voters[0]

    # --- what is signed -------------------------------------------------------------------------------------------
    def sealed(self, message: Entry, identity: Identity, at_s: float = 60.0) -> Sealed[Any]:
        time_ms = NOON_MS + int(at_s * 1000)
        return seal(message, identity, mesh=self.world.mesh_id, seq=(1, 1), time_ms=time_ms)

    async def put(self, device: Daemon, *planted: Sealed[Any]) -> None:
        """Lay entries on a disk behind its daemon's back."""
        await device.disk.append([Record(ENTRY, each.id, each.raw) for each in planted])

    def manifest(self, version: int = 1, skill: int = 900_000) -> Sealed[Manifest]:
        adapter = crafted_adapter({"heat_pump": skill})
        message = Manifest(
            index=50 + version,
            prev=NO_HASH,
            line=LINE,
            version=version,
            parent=NO_HASH,
            base=ECHO_MODEL,
            adapter=digest_of(adapter),
            adapter_bytes=len(adapter),
            shape=SHAPE,
            rolls_back_to=0,
            run=bytes(16),
            rounds=0,
            cohort=(),
            evaluation=NO_HASH,
            before=(),
            after=perfect(),
            expires_at=NOON_MS + 10**9,
            reason="",
        )
        return self.sealed(message, self.owner.identity)

    def vote(
        self, voter: Daemon, about: Sealed[Manifest], at_s: float = 61.0, index: int = 60
    ) -> Sealed[Vote]:
        message = Vote(
            index=index,
            prev=NO_HASH,
            manifest=about.id,
            line=about.message.line,
            version=about.message.version,
            is_yes=True,
            scores=(),
            private="none",
            reason="",
        )
        return self.sealed(message, voter.identity, at_s)

    def ballot(self, about: Sealed[Manifest]) -> list[Sealed[Any]]:
        """A manifest with enough votes."""
        return [about, *(self.vote(voter, about, index=60 + about.message.version) for voter in self.voters)]

    def approval(self, about: Sealed[Manifest]) -> Sealed[Approval]:
        place = about.message.version
        return self.sealed(
            Approval(index=place, prev=NO_HASH, manifest=about.id), self.world.learning.human, 62.0
        )

    # --- what happens ---------------------------------------------------------------------------------------------
    def loads(self, device: Daemon, about: Sealed[Manifest], at_s: float = 100.0) -> None:
        message = about.message
        fields = {
            "line": message.line,
            "version": message.version,
            "adapter": message.adapter.hex(),
            "base": message.base.hex(),
            "manifest": about.id.hex(),
        }
        known = {each.peer_id: ALL for each in self.world.daemons.values()}
        known[self.world.learning.human.peer_id] = ALL
        event = Event(0, "patch_loaded", 0.0, at_s, fields)
        self.scene.loaded.append(Loaded(at_s, device.name, event, known))

    async def spends(self, device: Daemon, *, number: int, index: int, steps: int = 30) -> None:
        spend = Spend(
            index=index,
            prev=NO_HASH,
            source=self.data.digest,
            run=RUN_ID,
            round=number,
            noise_milli=1_000,
            rate_ppm=20_000,
            steps=steps,
        )
        await self.put(device, self.sealed(spend, device.identity))

    def fit(self, *, noise: NoisePlan | None) -> Fit:
        digest = digest_of(b"")
        return Fit(ECHO_MODEL, self.data.digest, None, RECIPE, 1, None, b"", digest, noise, 1)

    def award(self, member: PeerId) -> Sealed[Award]:
        """The award of a member of the owner's run."""
        ledger = self.owner.node.logbook
        head = ledger.head(self.owner.peer_id, "bilateral")
        message = Award(
            index=head.index + 1 if head else 0,
            prev=head.entry if head else NO_HASH,
            request=NO_HASH,
            bid=NO_HASH,
            job_id=run_job_id(RUN_ID, member),
            attempt=1,
            seller=member,
            model=ECHO_MODEL,
            adapter=NO_HASH,
            hold_micro=500,
            prompt_micro=0,
            completion_micro=1,
            lease_ms=3_600_000,
            session=NO_HASH,
        )
        return self.sealed(message, self.owner.identity)

    async def joins(self, device: Daemon, *members: Daemon) -> None:
        enlistment = Enlistment(
            announcement=NO_HASH, samples=1, step_micro=0, steps_per_ks=0, epsilon_milli=-1
        )
        signed = [
            seal(enlistment, each.identity, mesh=self.world.mesh_id, seq=(1, 1), time_ms=NOON_MS).raw
            for each in members
        ]
        known = EnlistedRun(
            run=RUN_ID,
            coordinator=self.world.founder.peer_id,
            announcement=b"",
            enlistments=signed,
            award=b"",
            data=self.data.digest,
            noise=None,
        )
        await device.disk.append([Record(ENLISTED, RUN_ID, msgspec.msgpack.encode(known))])

    async def broken(self, law: Callable[..., Any]) -> list[str]:
        """What a law finds now."""
        await self.scene.read_disks()
        return [each.found for each in law(self.scene)]


@pytest.fixture
async def hall(virtual_time: None, nursery: trio.Nursery) -> AsyncIterator[Hall]:  # noqa: ARG001  its effect
    world = World(nursery, seed=5, nodes=4, seconds=600)
    checks = Checks(world)
    async with world.running():
        voters = await world.learning.seat(3, terms=Terms(approvals_min=1))
        data = world.learning.give_data(voters[0], budget_milli=3_000)
        await world.run(20)
        yield Hall(world, checks, voters, data)


# --- one fault for each law -------------------------------------------------------------------------------------------
async def too_few_have_voted(hall: Hall) -> None:
    patch = hall.manifest()
    await hall.put(hall.owner, *hall.ballot(patch)[:3], hall.approval(patch))
    hall.loads(hall.owner, patch)


async def no_human_has_approved(hall: Hall) -> None:
    patch = hall.manifest()
    await hall.put(hall.owner, *hall.ballot(patch))
    hall.loads(hall.owner, patch)


async def a_human_has_vetoed(hall: Hall) -> None:
    patch = hall.manifest()
    veto = hall.sealed(Veto(index=9, prev=NO_HASH, manifest=patch.id, reason=""), hall.world.learning.human)
    await hall.put(hall.owner, *hall.ballot(patch), hall.approval(patch), veto)
    hall.loads(hall.owner, patch)


async def a_voter_says_yes_to_two_and_both_pass(hall: Hall) -> None:
    first, second = hall.manifest(), hall.manifest(skill=100)
    early = [hall.vote(voter, first, 61.0) for voter in hall.voters]
    late = [hall.vote(voter, second, 62.0, index=61) for voter in hall.voters]
    await hall.put(hall.owner, first, second, *early, *late, hall.approval(second))
    hall.loads(hall.owner, second)


async def a_proposal_is_loaded_that_nobody_holds(hall: Hall) -> None:
    hall.loads(hall.owner, hall.manifest())


async def an_older_patch_is_loaded(hall: Hall) -> None:
    old, new = hall.manifest(1), hall.manifest(2, skill=950_000)
    for patch in (old, new):
        await hall.put(hall.owner, *hall.ballot(patch), hall.approval(patch))
    hall.loads(hall.owner, old, at_s=200.0)


async def two_load_different_patches(hall: Hall) -> None:
    hall.loads(hall.voters[0], hall.manifest())
    hall.loads(hall.voters[1], hall.manifest(skill=100))


async def a_vetoed_adapter_stays(hall: Hall) -> None:
    adapter = crafted_adapter({"heat_pump": 5})
    await hall.world.learning.propose(hall.owner, adapter)
    await hall.world.learning.withdraw(digest_of(adapter), at=hall.owner)
    hall.owner.engine._adapters[digest_of(adapter)] = ECHO_MODEL
    await hall.broken(patches.what_was_vetoed_is_unloaded)
    await hall.world.run(61)
    hall.owner.engine._adapters[digest_of(adapter)] = ECHO_MODEL


async def heads_differ(hall: Hall) -> None:
    await hall.world.learning.line()
    await hall.world.run(5)
    patch = await hall.world.learning.propose(hall.owner, crafted_adapter({"heat_pump": 5}))
    assembly = hall.voters[1].node.logbook.assembly
    assembly._lines.ratified = lambda *_: patch  # type: ignore[method-assign]


async def a_voter_says_yes_twice(hall: Hall) -> None:
    one, other = hall.manifest(), hall.manifest(skill=100)
    await hall.put(hall.owner, hall.vote(hall.owner, one), hall.vote(hall.owner, other, index=61))


async def a_voter_has_not_looked(hall: Hall) -> None:
    hall.owner.journal.write("vote_cast", manifest="aa", line=LINE, version=1, is_yes=True)


async def a_voter_has_seen_it_fail(hall: Hall) -> None:
    hall.owner.journal.write("exam_held", manifest="aa", adapter="bb", passed=False, reason="worse")
    hall.owner.journal.write("vote_cast", manifest="aa", line=LINE, version=1, is_yes=True)


async def a_device_approves(hall: Hall) -> None:
    await hall.put(
        hall.owner, hall.sealed(Approval(index=50, prev=NO_HASH, manifest=NO_HASH), hall.owner.identity)
    )


async def too_much_is_spent(hall: Hall) -> None:
    await hall.spends(hall.owner, number=1, index=50, steps=5_000)


async def one_run_spends_it_all(hall: Hall) -> None:
    """It stays within the budget, and leaves nothing to the next one."""
    await hall.spends(hall.owner, number=1, index=50, steps=300)


async def more_is_spent_on_the_same_records(hall: Hall) -> None:
    """Each set by itself keeps its budget; the records that are in both do not."""
    other = hall.world.learning.give_data(hall.owner, "appliances", samples=500, budget_milli=3_000)
    again = hall.world.learning.give_data(hall.owner, "appliances", samples=450, budget_milli=3_000)
    assert other.shares_records(again)
    for index, data in enumerate((other, again)):
        hall.data = data
        await hall.spends(hall.owner, number=index + 1, index=50 + index, steps=600)


async def a_round_is_spent_twice(hall: Hall) -> None:
    await hall.spends(hall.owner, number=1, index=50)
    await hall.spends(hall.owner, number=1, index=51)


async def a_round_is_trained_unpaid(hall: Hall) -> None:
    hall.owner.fits.append(hall.fit(noise=NoisePlan(1_000, 20_000)))


async def private_records_are_trained_bare(hall: Hall) -> None:
    hall.owner.fits.append(hall.fit(noise=None))


async def a_round_is_trained_again(hall: Hall) -> None:
    hall.owner.fitted.extend([(hall.owner.starts, hall.fit(noise=None))] * 2)


async def a_stranger_to_the_cohort_trains(hall: Hall) -> None:
    await hall.joins(hall.owner, *hall.voters[1:])
    await hall.spends(hall.owner, number=1, index=50)


async def nobody_was_awarded(hall: Hall) -> None:
    await hall.joins(hall.owner, *hall.voters)
    await hall.spends(hall.owner, number=1, index=50)


async def a_cohort_is_too_small(hall: Hall) -> None:
    await hall.joins(hall.owner, *hall.voters[:2])


async def a_run_goes_on(hall: Hall) -> None:
    file = RunFile(run=RUN_ID, announcement=b"", state="running", done=2)
    await hall.owner.disk.append([Record(RUN, RUN_ID, msgspec.msgpack.encode(file))])


async def a_checkpoint_is_gone(hall: Hall) -> None:
    file = RunFile(run=RUN_ID, announcement=b"", state="running", done=2, next=b"checkpoint".ljust(32))
    await hall.owner.disk.append([Record(RUN, RUN_ID, msgspec.msgpack.encode(file))])


async def an_ended_run_holds_credit(hall: Hall) -> None:
    member = hall.voters[1].peer_id
    seats = {str(member): Seat(enlistment=b"")}
    file = RunFile(run=RUN_ID, announcement=b"", state="aborted", seats=seats)
    await hall.owner.disk.append([Record(RUN, RUN_ID, msgspec.msgpack.encode(file))])
    hall.owner.node.logbook.ledger.apply(hall.award(member))


FAULTS: tuple[tuple[Callable[..., Any], Callable[[Hall], Awaitable[None]], str], ...] = (
    (patches.no_unratified_patch_is_loaded, too_few_have_voted, "2 of 4 voted for it, 67 % needed"),
    (patches.no_unratified_patch_is_loaded, no_human_has_approved, "0 of 1 humans approved it"),
    (patches.no_unratified_patch_is_loaded, a_human_has_vetoed, "there is a human's veto"),
    (patches.no_unratified_patch_is_loaded, a_voter_says_yes_to_two_and_both_pass, "0 of 4 voted for it"),
    (
        patches.no_unratified_patch_is_loaded,
        a_proposal_is_loaded_that_nobody_holds,
        "without holding its manifest",
    ),
    (
        patches.nothing_older_takes_the_place_of_a_head,
        an_older_patch_is_loaded,
        "it knew that version 2 is in force",
    ),
    (patches.no_two_run_different_patches_of_one_version, two_load_different_patches, "and voter-1 another"),
    (patches.what_was_vetoed_is_unloaded, a_vetoed_adapter_stays, "s after it heard of its withdrawal"),
    (patches.all_follow_the_same_head, heads_differ, "the heads of line echo differ"),
    (ballots.each_voter_says_yes_once, a_voter_says_yes_twice, "for version 1 of line echo"),
    (ballots.who_says_yes_has_looked, a_voter_has_not_looked, "no exam of its own passed"),
    (ballots.who_says_yes_has_looked, a_voter_has_seen_it_fail, "no exam of its own passed"),
    (ballots.only_members_propose_and_humans_decide, a_device_approves, "the approval of voter-1"),
    (privacy.no_privacy_budget_is_overdrawn, too_much_is_spent, "on its data set 'heat_pump', 3.000 allowed"),
    (
        privacy.no_privacy_budget_is_overdrawn,
        more_is_spent_on_the_same_records,
        "on its data set 'appliances', 3.000 allowed",
    ),
    (
        privacy.no_run_spends_more_than_its_share,
        one_run_spends_it_all,
        "on its data set 'heat_pump', 0.750 allowed to one",
    ),
    (privacy.no_round_is_spent_twice, a_round_is_spent_twice, "it spent 2 times on round 1"),
    (privacy.nothing_private_is_trained_unpaid, a_round_is_trained_unpaid, "it trained 1 times on round 1"),
    (privacy.nothing_private_is_trained_unpaid, private_records_are_trained_bare, "without noise"),
    (runs.who_trained_was_in_the_cohort, a_stranger_to_the_cohort_trains, "does not name it"),
    (runs.who_trained_was_in_the_cohort, nobody_was_awarded, "accepted no award of it"),
    (runs.no_round_is_trained_twice, a_round_is_trained_again, "it trained round 1 of one run 2 times"),
    (runs.no_cohort_is_smaller_than_its_members_allow, a_cohort_is_too_small, "a cohort of 2, 3 wanted"),
    (runs.every_run_ends, a_run_goes_on, "is running after 2 rounds"),
    (
        runs.what_a_run_goes_on_from_is_there,
        a_checkpoint_is_gone,
        "is running, names blob 636865636b70, and it is gone",
    ),
    (runs.ended_runs_hold_nothing, an_ended_run_holds_credit, "are still set aside for voter-2"),
)


@pytest.mark.parametrize(("law", "fault", "found"), FAULTS, ids=[fault.__name__ for _, fault, _ in FAULTS])
async def test_a_fault_breaks_its_law(
    hall: Hall, law: Callable[..., Any], fault: Callable[[Hall], Awaitable[None]], found: str
) -> None:
    assert await hall.broken(law) == []

    await fault(hall)

    assert found in (await hall.broken(law))[0]


def test_every_law_of_learning_has_a_fault_that_breaks_it() -> None:
    modules = {patches.__name__, ballots.__name__, privacy.__name__, runs.__name__}
    assert {law for law, _ in LAWS if law.__module__ in modules} == {law for law, _, _ in FAULTS}
