"""Stories of ballots and of runs, beside `bug_stories.py`: short, and every law of learning holds in each of them."""

from contextlib import suppress
from dataclasses import replace
from typing import Final

from node.simulation.adversaries import turn
from node.simulation.daemon import Daemon
from node.simulation.founding import Terms
from node.simulation.toys import LINE, SKILL, crafted_adapter, digest_of
from node.simulation.world import World
from protocol.envelope import Sealed
from protocol.errors import AgoraError
from protocol.messages import Approval, Entry, Manifest, Vote
from protocol.topics import ASSEMBLY
from tests.node.simulation.story import lead, when

GOOD: Final = 900_000
BETTER: Final = 990_000


async def parliament(
    world: World, *, terms: Terms | None = None, members: int = 1
) -> tuple[list[Daemon], list[Daemon]]:
    """Three voters beside the founder, a line, and members who hold the model and have no vote."""
    voters = await world.learning.seat(3, terms=terms)
    await world.learning.line()
    others = await world.add(members, profile="laptop", owner="member", is_seller=True)
    await world.run(12)
    return voters, others


async def pass_a_patch(world: World, by: Daemon, skill: int = GOOD, version: int = 1) -> Sealed[Manifest]:
    """Have a patch proposed, voted on and approved."""
    patch = await world.learning.propose(by, crafted_adapter({SKILL: skill}), version=version)
    await world.learning.until_certified(patch.id)
    await world.learning.approve(patch.id)
    await world.run(10)
    return patch


# --- ballots ----------------------------------------------------------------------------------------------------------
async def half_a_roll(world: World) -> None:
    """Two of four voters are out of reach, and a human approves what the other two have found good."""
    voters, (member,) = await parliament(world)
    world.partition([world.founder, voters[0], member], voters[1:])
    patch = await world.learning.propose(member, crafted_adapter({SKILL: GOOD}))
    await world.run(20)
    await world.learning.approve(patch.id)
    await world.run(20)
    world.heal()
    await world.run(90)


async def unapproved(world: World) -> None:
    """All vote for a patch, and no human has read of it yet."""
    _, (member,) = await parliament(world)
    await world.learning.propose(member, crafted_adapter({SKILL: GOOD}))
    await world.run(30)


async def unopposed(world: World) -> None:
    """No approval is asked for; a human has an hour to say no, and says it."""
    _, (member,) = await parliament(world, terms=Terms(approvals_min=0, veto_s=600))
    patch = await world.learning.propose(member, crafted_adapter({SKILL: GOOD}))
    await world.run(300)
    await world.learning.veto(patch.id)
    await world.run(400)


async def vetoed(world: World) -> None:
    """A patch is loaded everywhere when a human says no, and another one is withdrawn."""
    voters, (member,) = await parliament(world)
    patch = await pass_a_patch(world, member)
    await world.learning.veto(patch.id, at=voters[0])
    await world.run(80)
    again = await pass_a_patch(world, member, BETTER, version=2)
    await world.learning.withdraw(again.message.adapter, at=voters[1])
    await world.run(80)


async def vetoed_at_once(world: World) -> None:
    """A human approves on one device and says no on another, in the same moment."""
    _, (member,) = await parliament(world)
    adapter = crafted_adapter({SKILL: GOOD})
    patch = await world.learning.propose(member, adapter)
    await world.learning.until_certified(patch.id)
    await world.learning.approve(patch.id)
    await world.run(0.05)
    await world.learning.withdraw(digest_of(adapter))
    await world.run(80)


async def late_votes(world: World) -> None:
    """Votes are due within a minute; two voters are cut off until it is over."""
    voters, (member,) = await parliament(world, terms=Terms(machine_vote_s=60))
    world.partition([world.founder, voters[0], member], voters[1:])
    patch = await world.learning.propose(member, crafted_adapter({SKILL: GOOD}))
    await world.run(90)
    world.heal()
    await world.run(60)
    with suppress(AgoraError):  # too late
        await world.learning.approve(patch.id)
    await world.run(20)


async def rival_proposals(world: World) -> None:
    """Two patches of one version come at once; voters lose their power while they vote."""
    voters, members = await parliament(world, members=2)
    for member, skill in zip(members, (GOOD, BETTER), strict=True):
        await world.learning.propose(member, crafted_adapter({SKILL: skill}))
    await world.run(1.5)
    await world.restart(*voters)
    await world.run(60)


async def worse_patch(world: World) -> None:
    """A patch that breaks a domain is proposed by somebody who says so honestly, and another as a false scorer does."""
    _, (member,) = await parliament(world)
    await world.learning.propose(member, crafted_adapter({SKILL: GOOD}, poison=1))
    await world.run(40)


async def false_scores(world: World) -> None:
    """Somebody proposes rubbish with perfect scores."""
    await world.learning.seat(3)
    await world.learning.line()
    (scorer,) = await world.add(1, profile="laptop", owner="mallory", is_seller=True)
    turn(world, scorer, "false-scorer")
    await world.run(60)


async def double_voter(world: World) -> None:
    """One voter says yes to everything, also to two patches of one version; the others are cut in two."""
    voters = await world.learning.seat(3)
    turn(world, voters[2], "double-voter")
    await world.learning.line()
    members = await world.add(2, profile="laptop", owner="member", is_seller=True)
    await world.run(12)
    world.partition([world.founder, voters[0], members[0]], [voters[1], voters[2], members[1]])
    for member, skill in zip(members, (GOOD, BETTER), strict=True):
        await world.learning.propose(member, crafted_adapter({SKILL: skill}))
    await world.run(20)
    world.heal()
    await world.run(120)


async def two_versions(world: World) -> None:
    """A second patch follows on the first; whoever loses its power comes back to the newer one."""
    voters, (member,) = await parliament(world)
    await pass_a_patch(world, member)
    await pass_a_patch(world, member, BETTER, version=2)
    await world.restart(voters[0], member)
    await world.run(40)


async def member_votes(world: World) -> None:
    """Somebody who has no vote says yes to its own patch; one voter is out of reach."""
    voters = await world.learning.seat(3)
    await world.learning.line()
    (mallory,) = await world.add(1, profile="laptop", owner="mallory", is_seller=True)
    lead(world, mallory)
    await world.run(12)
    world.partition([world.founder, voters[0], mallory], voters[1:])
    patch = await world.learning.propose(mallory, crafted_adapter({SKILL: GOOD}))
    await world.run(5)

    def yes(index: int, prev: bytes) -> Vote:
        return Vote(
            index=index,
            prev=prev,
            manifest=patch.id,
            line=LINE,
            version=1,
            is_yes=True,
            scores=(),
            private="none",
            reason="",
        )

    await say(mallory, yes(patch.message.index + 1, patch.id))
    await world.run(10)
    world.heal()
    await world.run(90)


async def member_approves(world: World) -> None:
    """Somebody who is no human signs an approval of its own patch."""
    await world.learning.seat(3)
    await world.learning.line()
    (mallory,) = await world.add(1, profile="laptop", owner="mallory", is_seller=True)
    lead(world, mallory)
    await world.run(12)
    patch = await world.learning.propose(mallory, crafted_adapter({SKILL: GOOD}))
    await world.learning.until_certified(patch.id)
    place = patch.message.index + 1
    await say(mallory, Approval(index=place, prev=patch.id, manifest=patch.id))
    await world.run(60)


async def say(mallory: Daemon, entry: Entry) -> None:
    """Gossip an entry that no sound node of its author would write."""
    await mallory.mesh.publish(ASSEMBLY, mallory.node.wire.seal(entry).raw)


# --- runs -------------------------------------------------------------------------------------------------------------
async def school(
    world: World, *, trainers: int = 3, owners: int = 99, budget_milli: int = 0, samples: int = 400
) -> tuple[Daemon, list[Daemon]]:
    """A founder who coordinates, a line, and devices with data, each of an owner of its own while there are so many."""
    world.learning.begin()
    await world.learning.line()
    pupils: list[Daemon] = []
    for number in range(trainers):
        pupils += await world.add(1, profile="laptop", owner=f"pupil {number % owners}", is_seller=True)
        world.learning.give_data(pupils[-1], samples=samples, budget_milli=budget_milli)
    (teacher,) = await world.add(1, profile="laptop", owner="teacher", is_seller=True)
    await world.run(12)
    return teacher, pupils


async def over(world: World, teacher: Daemon, run: bytes, within_s: float = 300.0) -> None:
    """Wait for the end of a run, or no longer."""
    ends = ("finished", "aborted", "cancelled", "unsold")

    def is_over() -> bool:
        views = teacher.node.runs() if teacher.is_online else []
        return any(view.run_id == run.hex() and view.state in ends for view in views)

    with suppress(TimeoutError):
        await world.until(is_over, within_s)


async def two_runs(world: World) -> None:
    """The first run spends most of everybody's privacy, as their owners let it; a second one is announced."""
    teacher, pupils = await school(world, budget_milli=3_000)
    for pupil in pupils:
        pupil.config = replace(pupil.config, privacy_run_percent=100)
        await pupil.restart()
    await world.run(12)
    for _ in range(2):
        await over(world, teacher, await world.learning.train(by=teacher, rounds=3))
        await world.run(5)


async def one_run(world: World) -> None:
    """Whose owners let one run spend a quarter of the budget, as is usual."""
    teacher, _ = await school(world, budget_milli=8_000)
    await over(world, teacher, await world.learning.train(by=teacher, rounds=3))


async def small_cohort(world: World) -> None:
    """Three hold such data, two of them of one owner, and their owners want three parties; the coordinator is content."""
    teacher, _ = await school(world, trainers=3, owners=2)
    await over(world, teacher, await world.learning.train(by=teacher, rounds=2))


async def false_cohort(world: World) -> None:
    """A coordinator shows members cohorts in which they stand thrice, alone."""
    world.learning.begin()
    await world.learning.line()
    (liar,) = await world.add(1, profile="laptop", owner="mallory", is_seller=True)
    turn(world, liar, "lying-coordinator")
    for number in range(6):
        (pupil,) = await world.add(1, profile="laptop", owner=f"pupil {number}", is_seller=True)
        world.learning.give_data(pupil, budget_milli=8_000)
    await world.run(12)
    await world.learning.train(by=liar, rounds=4)
    await world.run(80)


async def participant_dies(world: World) -> None:
    """A participant loses its power in mid-step, is back at once, and asked for the same round again."""
    teacher, pupils = await school(world, budget_milli=8_000)
    begun = when(world, "privacy_reserved")
    run = await world.learning.train(by=teacher, rounds=3)
    await begun.wait()
    await world.run(0.6)
    await world.restart(*pupils)
    await over(world, teacher, run)


async def coordinator_dies(world: World) -> None:
    """The coordinator loses its power in mid-round, and is back after a while."""
    teacher, _ = await school(world, budget_milli=8_000)
    ended = when(world, "round_ended")
    run = await world.learning.train(by=teacher, rounds=3)
    await ended.wait()
    await world.run(0.5)
    await world.kill(teacher)
    await world.run(10)
    await world.restart(teacher)
    await over(world, teacher, run)


async def full_in_a_run(world: World) -> None:
    """The coordinator's disk is full after the first round, and stays so."""
    teacher, _ = await school(world)
    ended = when(world, "round_ended")
    run = await world.learning.train(by=teacher, rounds=3)
    await ended.wait()
    await world.run(1)
    await teacher.disk.fill()
    await over(world, teacher, run)
    await world.run(5)


async def coordinator_gone_early(world: World) -> None:
    """The coordinator loses its power while it waits for bids."""
    teacher, _ = await school(world)
    await world.learning.train(by=teacher, rounds=2)
    await world.run(5)
    await world.restart(teacher)
    await world.run(30)


async def cancelled(world: World) -> None:
    """The run's owner cancels it after the first round."""
    teacher, _ = await school(world)
    ended = when(world, "round_ended")
    run = await world.learning.train(by=teacher, rounds=8)
    await ended.wait()
    await world.run(1)
    await teacher.node.steer_run(run.hex(), "cancel")
    await over(world, teacher, run)


async def old_rounds(world: World) -> None:
    """A coordinator asks for rounds again that were trained before, without privacy; whoever trains wants to be paid."""
    world.learning.begin()
    await world.learning.line()
    (liar,) = await world.add(1, profile="laptop", owner="mallory", is_seller=True)
    turn(world, liar, "lying-coordinator")
    for number in range(6):
        (pupil,) = await world.add(1, profile="laptop", owner=f"pupil {number}", is_seller=True)
        world.learning.give_data(pupil)
    await world.run(12)
    await world.learning.train(by=liar, rounds=6)
    await world.run(120)
