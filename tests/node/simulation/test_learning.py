"""What stories can say about learning, and that whoever means ill in it is refused, outvoted or outweighed."""

import subprocess
import sys
from collections import Counter

import pytest

from marketplace.assembly.ballot import BallotState
from node.simulation.adversaries import turn
from node.simulation.adversaries.poisoner import KINDS, Poisoner
from node.simulation.daemon import Daemon
from node.simulation.founding import Terms
from node.simulation.learned import Learned
from node.simulation.toys import SKILL, crafted_adapter, digest_of
from node.simulation.world import World
from protocol.errors import BallotClosed
from tests.node.simulation.learning_stories import GOOD, over, parliament, pass_a_patch, school
from tests.node.simulation.story import tell

CHATTING = """
import sys
from node.simulation.main import simulate
from node.simulation.options import SimulationOptions
from node.simulation.scenario import load
from node.simulation.trace import Header, Trace

options = SimulationOptions(load("calm"), 6, 60.0, 1)
simulate(options, Trace(Header.of(options)))
print(*sorted({"numpy", "flwr", "torch"} & set(sys.modules)))
"""


def learned(world: World) -> Learned:
    """Count what a world learns from now on."""
    counted = Learned()
    world.watch(counted.note)
    return counted


def attacks(device: Daemon) -> Counter[str]:
    assert device.adversary is not None
    return device.adversary.attacks


# --- words ------------------------------------------------------------------------------------------------------------
def test_a_world_in_which_nobody_learns_imports_nothing_that_computes() -> None:
    done = subprocess.run([sys.executable, "-c", CHATTING], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""


def test_a_patch_that_voters_and_a_human_let_in_is_served_by_all_and_told_once() -> None:
    async def story(world: World) -> None:
        counted = learned(world)
        voters, (member,) = await parliament(world)

        patch = await pass_a_patch(world, member)

        adapter = digest_of(crafted_adapter({SKILL: GOOD}))
        assert all(adapter in each.engine.adapters for each in (world.founder, member, *voters))
        assert (counted.patches, counted.votes) == ({patch.id.hex()}, 4)

    assert tell(story, 1) == ""


def test_a_killed_device_has_lost_what_its_engine_held_and_takes_it_up_again() -> None:
    async def story(world: World) -> None:
        _, (member,) = await parliament(world)
        patch = await pass_a_patch(world, member)

        await world.kill(member)
        assert member.engine.adapters == {}

        await world.restart(member)
        await world.run(20)
        assert patch.message.adapter in member.engine.adapters

    assert tell(story, 1) == ""


def test_a_human_who_speaks_on_both_sides_of_a_cut_does_not_contradict_itself() -> None:
    """It has one log; whichever device it speaks on is told what it said elsewhere."""

    async def story(world: World) -> None:
        voters, (member,) = await parliament(world)
        first = await pass_a_patch(world, member)
        second = await pass_a_patch(world, member, 990_000, version=2)
        world.partition([world.founder, voters[0]], [*voters[1:], member])
        await world.learning.withdraw(second.message.adapter, at=world.founder)
        await world.learning.withdraw(first.message.adapter, at=voters[1])
        world.heal()
        await world.run(90)

        human = world.learning.human.peer_id
        assert not any(each.node.logbook.assembly.is_barred(human) for each in (world.founder, *voters))

    assert tell(story, 1) == ""


def test_a_word_of_the_human_that_comes_too_late_was_never_said() -> None:
    async def story(world: World) -> None:
        _, (member,) = await parliament(world)
        patch = await pass_a_patch(world, member)

        with pytest.raises(BallotClosed):
            await world.learning.approve(patch.id)
        await world.learning.veto(patch.id)
        await world.run(20)

        view = world.learning.ballot(patch.id)
        assert view is not None
        assert view.state is BallotState.VETOED

    assert tell(story, 1) == ""


def test_who_votes_is_said_before_anybody_is_there() -> None:
    async def story(world: World) -> None:
        await world.add(1, profile="laptop")
        with pytest.raises(ValueError, match="voters are seated before any other device"):
            await world.learning.seat(3)
        await world.run(1)

    assert tell(story, 1) == ""


def test_a_world_that_runs_cannot_begin_to_learn() -> None:
    async def story(world: World) -> None:
        (device,) = await world.add(1, profile="laptop", is_seller=True)
        await world.run(1)
        with pytest.raises(ValueError, match="speak of learning before 'run'"):
            world.learning.give_data(device)

    assert tell(story, 1) == ""


def test_a_run_spends_what_its_owners_allow_and_pays_whoever_trained() -> None:
    async def story(world: World) -> None:
        counted = learned(world)
        teacher, pupils = await school(world, budget_milli=8_000)

        run = await world.learning.train(by=teacher, rounds=3)
        await over(world, teacher, run)
        await world.run(10)

        assert counted.runs == {run.hex(): "finished"}
        assert set(counted.spent_milli) == {
            (each.name, data.digest.hex()) for each in pupils for data in each.data.sets()
        }
        assert 0 < counted.epsilon_milli_max <= 8_000
        assert all(teacher.node.logbook.ledger.balance_micro(each.peer_id) > 0 for each in pupils)

    assert tell(story, 1) == ""


# --- who means ill ----------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_one_poisoner_of_five_changes_nothing_of_what_is_learned(kind: str) -> None:
    async def story(world: World) -> None:
        await world.learning.seat(2)
        await world.learning.line()
        pupils: list[Daemon] = []
        for number in range(5):
            pupils += await world.add(1, profile="laptop", owner=f"pupil {number}", is_seller=True)
            world.learning.give_data(pupils[-1])
        turn(world, pupils[0], "poisoner")
        poisoner = pupils[0].adversary
        assert isinstance(poisoner, Poisoner)
        poisoner.kind = kind
        await world.run(12)

        patch = await world.learning.until_proposed(await world.learning.train(by=world.founder, rounds=8))

        assert attacks(pupils[0])[kind] > 0
        view = world.learning.ballot(patch)
        assert view is not None
        after = {score.domain: score.right / score.total for score in view.manifest.message.after}
        assert after[SKILL] >= 0.8  # without anybody who means ill it is 0.85
        await world.learning.until_certified(patch)

    assert tell(story, 1) == ""


@pytest.mark.slow
def test_a_double_voter_is_barred_by_everybody_and_passes_nothing() -> None:
    async def story(world: World) -> None:
        counted = learned(world)
        voters = await world.learning.seat(3)
        turn(world, voters[2], "double-voter")
        await world.learning.line()
        members = await world.add(2, profile="laptop", owner="member", is_seller=True)
        await world.run(12)
        for member, skill in zip(members, (GOOD, 990_000), strict=True):
            await world.learning.propose(member, crafted_adapter({SKILL: skill}))
        await world.run(90)

        assert attacks(voters[2])["voted_again"] > 0
        honest = (world.founder, *voters[:2], *members)
        assert all(each.node.logbook.assembly.is_barred(voters[2].peer_id) for each in honest)
        assert counted.patches == set()

    assert tell(story, 1) == ""


@pytest.mark.slow
def test_who_proposes_rubbish_with_perfect_scores_convinces_nobody() -> None:
    async def story(world: World) -> None:
        counted = learned(world)
        await world.learning.seat(3)
        await world.learning.line()
        (scorer,) = await world.add(1, profile="laptop", owner="mallory", is_seller=True)
        turn(world, scorer, "false-scorer")
        await world.run(240)

        assert attacks(scorer)["proposed"] > 1
        assert counted.votes >= 4
        assert counted.patches == set()
        assert all(not each.engine.adapters for each in world.daemons.values())

    assert tell(story, 1) == ""


@pytest.mark.slow
def test_what_a_lying_coordinator_says_is_trained_only_where_it_is_true() -> None:
    async def story(world: World) -> None:
        counted = learned(world)
        await world.learning.seat(2)
        await world.learning.line()
        (liar,) = await world.add(1, profile="laptop", owner="mallory", is_seller=True)
        turn(world, liar, "lying-coordinator")
        pupils: list[Daemon] = []
        for number in range(6):
            pupils += await world.add(1, profile="laptop", owner=f"pupil {number}", is_seller=True)
            world.learning.give_data(pupils[-1], budget_milli=8_000)
        await world.run(12)
        await world.learning.train(by=liar, rounds=4)
        await world.run(120)

        assert attacks(liar).keys() >= {"a_false_cohort", "another_state"}
        assert counted.patches == set()
        assert all(task.round <= task.recipe.rounds for each in pupils for task in each.fits)

    assert tell(story, 1) == ""


def test_terms_of_the_charter_are_those_that_the_story_says() -> None:
    async def story(world: World) -> None:
        await world.learning.seat(2, terms=Terms(approvals_min=0, veto_s=90, machine_vote_s=60))
        charter = world.founding.assembly.charter

        assert (charter.approvals_min, charter.veto_ms, charter.machine_vote_ms) == (0, 90_000, 60_000)
        assert len(charter.roll) == 3
        await world.run(1)

    assert tell(story, 1) == ""
