"""A mesh outgrows its founder: the charter's next version through the mesh."""

import pytest

from node.charters import CharterChange, Voter
from node.errors import StartError
from tests.node.world import World


async def grow(world: World) -> None:
    """Bob and cat are members and become voters beside ann."""
    bob, cat = await world.add("bob"), await world.add("cat")
    await world.acquaint(world.founder, bob, cat)
    proposed = await world.founder.node.propose_charter(
        CharterChange(voters=(Voter(bob.peer_id), Voter(cat.peer_id)))
    )
    assert not proposed["in_force"]
    await world.run(2)
    for daemon in (bob, cat):
        await daemon.node.sign_charter(proposed["id"][:8])
        await world.run(2)


async def test_members_become_voters_when_all_have_agreed(world: World) -> None:
    await grow(world)

    rolls = [set(daemon.node.logbook.assembly.roll) for daemon in world.daemons.values()]
    assert rolls == [{daemon.peer_id for daemon in world.daemons.values()}] * 3
    shown = world.daemons["bob"].node.charter()
    assert (shown["version"], shown["facts"]["weight_to_pass"], shown["proposed"]) == (2, 3, [])


async def test_a_grown_roll_survives_a_restart_and_reaches_who_comes_later(world: World) -> None:
    await grow(world)
    cat = world.daemons["cat"]
    await cat.kill()
    await cat.start()

    late = await world.add("dan")
    await world.run(5)

    for daemon in (cat, late):
        assert daemon.node.charter()["version"] == 2


async def test_one_who_is_no_voter_proposes_nothing(world: World) -> None:
    bob = await world.add("bob")

    with pytest.raises(StartError, match="only devices on the charter's roll"):
        await bob.node.propose_charter(CharterChange(voters=(Voter(bob.peer_id),)))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (CharterChange(), "leaves the charter as it is"),
        (CharterChange(approvals_min=2), "2 humans must approve and there are 1"),
        (CharterChange(former_approvers=("ab" * 32,)), "is no approver"),
    ],
)
async def test_a_change_that_makes_no_charter_is_refused(
    world: World, change: CharterChange, line: str
) -> None:
    with pytest.raises(StartError, match=line):
        await world.founder.node.propose_charter(change)


async def test_the_last_voter_cannot_take_itself_off(world: World) -> None:
    with pytest.raises(StartError, match="nobody would be left"):
        await world.founder.node.propose_charter(CharterChange(leaving=(world.founder.peer_id,)))


async def test_terms_alone_change_at_once_where_one_device_decides(world: World) -> None:
    outcome = await world.founder.node.propose_charter(CharterChange(veto_ms=60_000, approvals_min=0))

    assert outcome["in_force"]
    assert world.founder.node.charter()["veto_ms"] == 60_000


async def test_nobody_agrees_twice(world: World) -> None:
    bob = await world.add("bob")
    await world.acquaint(world.founder, bob)
    proposed = await world.founder.node.propose_charter(CharterChange(voters=(Voter(bob.peer_id),)))

    with pytest.raises(StartError, match="agreed to it already"):
        await world.founder.node.sign_charter(proposed["id"][:8])
