"""A mesh that grows beyond its founder: the next charter in the fold of all entries."""

from itertools import permutations
from typing import Any

import pytest

from marketplace.assembly.assembly import Assembly
from protocol.envelope import Sealed
from protocol.errors import BrokenLog, MalformedMessage, NotAuthorised
from protocol.identity import Identity
from protocol.messages import Charter, CharterConsent, RollEntry
from tests.marketplace.assembly.assembly_town import (
    ANN,
    BOB,
    CAT,
    DAN,
    EVE,
    HOUR,
    HUMAN,
    LLAMA,
    NOON,
    Town,
    person,
)

LOST = person("recovery")


def founded() -> Town:
    return Town((ANN, "ann"), recovery=(LOST.public_key,))


def propose(
    town: Town, by: Identity, *voters: Identity, version: int = 2, at: int = NOON + 10, **changes: Any
) -> Sealed[Charter]:
    first = town.founding.message
    fields = {name: getattr(first, name) for name in first.__struct_fields__ if name not in ("index", "prev")}
    roll = tuple(
        RollEntry(key=key.public_key, owner=f"owner of {key.peer_id[-4:]}", weight=1) for key in voters
    )
    return town.write(by, Charter, at=at, **{**fields, "version": version, "roll": roll, **changes})


def agree(town: Town, to: Sealed[Charter], by: Identity, at: int = NOON + 20) -> Sealed[CharterConsent]:
    return town.write(by, CharterConsent, at=at, charter=to.id, version=to.message.version)


def grown(town: Town) -> tuple[Sealed[Any], ...]:
    """Ann's town after bob and cat were admitted, proposed as voters, and agreed."""
    admissions = town.admit(BOB), town.admit(CAT)
    second = propose(town, ANN, ANN, BOB, CAT)
    return (*admissions, second, agree(town, second, BOB), agree(town, second, CAT, at=NOON + 30))


def test_who_agrees_to_be_a_voter_becomes_one() -> None:
    town = founded()

    assembly = town.assembly(*grown(town))

    assert set(assembly.roll) == {ANN.peer_id, BOB.peer_id, CAT.peer_id}
    assert [assembly.weight(key.peer_id) for key in (ANN, BOB, CAT, DAN)] == [1, 1, 1, 0]
    assert assembly.charter.version == 2
    assert assembly.apply(town.card("llama", LLAMA, by=BOB, at=NOON + HOUR))
    assert assembly.digest_of("llama") == LLAMA


def test_until_all_that_is_needed_have_agreed_the_old_roll_decides() -> None:
    town = founded()
    admit_bob, admit_cat, second, bobs_word, _ = grown(town)

    assembly = town.assembly(admit_bob, admit_cat, second, bobs_word)

    assert set(assembly.roll) == {ANN.peer_id}
    ((_, found),) = assembly.proposed_charters()
    assert (found.new_weight, found.new_needed, found.missing) == (2, 3, (CAT.peer_id,))
    with pytest.raises(NotAuthorised):
        assembly.apply(town.card("llama", LLAMA, by=BOB, at=NOON + HOUR))


def test_the_order_in_which_logs_arrive_does_not_matter() -> None:
    town = founded()
    entries = (*grown(town), town.card("llama", LLAMA, by=CAT, at=NOON + HOUR))
    expected = town.assembly(*entries)

    for order in permutations(entries):
        assembly, left = Assembly.found(town.founding), list(order)
        for _ in order:
            left = [entry for entry in left if not taken(assembly, entry)]
        assert not left
        assert assembly.fingerprint() == expected.fingerprint()
        assert (assembly.roll, assembly.names()) == (expected.roll, expected.names())


def taken(assembly: Assembly, entry: Sealed[Any]) -> bool:
    """Whether it is in; one that comes too early is offered again."""
    try:
        assembly.apply(entry)
    except (NotAuthorised, BrokenLog):
        return False
    return True


def test_what_a_newcomer_dates_back_to_before_its_time_does_nothing() -> None:
    town = founded()

    assembly = town.assembly(*grown(town), town.card("llama", LLAMA, by=BOB, at=NOON + 5))

    assert assembly.digest_of("llama") is None


def test_who_was_taken_off_the_roll_says_nothing_more() -> None:
    town = founded()
    second = grown(town)
    third = propose(town, ANN, ANN, CAT, version=3, at=NOON + 40)
    words = [agree(town, third, CAT, at=NOON + 41), agree(town, third, BOB, at=NOON + 42)]

    assembly = town.assembly(*second, third, *words, town.admit(EVE, by=BOB, at=NOON + HOUR))

    assert set(assembly.roll) == {ANN.peer_id, CAT.peer_id}
    assert not assembly.is_member(EVE.peer_id)
    assert assembly.is_member(BOB.peer_id)  # as ann admitted it


def test_a_founder_that_lost_its_disk_comes_back_by_the_recovery_key() -> None:
    town = founded()
    admitted = town.admit(DAN)
    second = propose(town, LOST, DAN)

    assembly = town.assembly(admitted, second, agree(town, second, DAN))

    assert set(assembly.roll) == {DAN.peer_id}
    assert assembly.may_speak(LOST.peer_id)


@pytest.mark.parametrize("by", [BOB, EVE, HUMAN], ids=["member", "stranger", "approver"])
def test_a_charter_that_nobody_gave_the_right_to_is_refused(by: Identity) -> None:
    town = founded()
    assembly = town.assembly(town.admit(BOB))

    with pytest.raises(NotAuthorised):
        assembly.apply(propose(town, by, by))

    assert set(assembly.roll) == {ANN.peer_id}


def test_a_charter_that_names_a_voter_twice_is_refused() -> None:
    """Its one key would weigh double."""
    town = founded()

    with pytest.raises(MalformedMessage, match="twice"):
        town.assembly().apply(propose(town, ANN, ANN, BOB, BOB))


def test_a_second_founding_charter_is_refused() -> None:
    town = founded()

    with pytest.raises(NotAuthorised, match="second founding"):
        town.assembly().apply(propose(town, ANN, ANN, BOB, version=1))


def test_what_a_human_withdrew_stays_so_and_one_who_was_replaced_withdraws_nothing_more() -> None:
    town = founded().with_a_line()
    ratified = [*town.ratify(b"a" * 32, 1, ANN), *town.ratify(b"b" * 32, 2, ANN, at=NOON + 1)]
    before = town.withdraw(b"a" * 32, at=NOON + 2)
    second = propose(town, ANN, ANN, approvers=(person("second human").public_key,))
    after = town.withdraw(b"b" * 32, at=NOON + HOUR)

    assembly = town.assembly(*ratified, before, second, after)

    assert not assembly.may_speak(HUMAN.peer_id)
    assert "withdrawn" in assembly.may_load(b"a" * 32, NOON + 2 * HOUR)
    assert assembly.may_load(b"b" * 32, NOON + 2 * HOUR) == ""


def test_who_was_replaced_approves_and_vetoes_nothing_that_is_proposed_afterwards() -> None:
    town = founded().with_a_line()
    second = propose(town, ANN, ANN, approvers=(person("second human").public_key,))
    one = town.ratify(b"a" * 32, 1, ANN, at=NOON + HOUR)
    two = town.propose(b"b" * 32, 2, at=NOON + HOUR)
    words = [
        town.vote(two, ANN),
        town.approve(two, person("second human")),
        town.veto(two, HUMAN),
    ]

    assembly = town.assembly(second, *one, two, *words)

    found = assembly.ratified("llama", NOON + 2 * HOUR)
    assert found == two
    ballot = assembly.ballot(one[0].id, NOON + 2 * HOUR)
    assert ballot is not None
    assert ballot.approved_by == ()


def test_a_ballot_is_judged_by_the_roll_of_its_time() -> None:
    """A roll that grows later takes nothing back of what one voter had ratified."""
    town = founded().with_a_line()
    manifest = town.propose(at=NOON + 1)
    ratified = (
        manifest,
        town.vote(manifest, by=ANN, at=NOON + 2),
        town.approve(manifest, at=NOON + 3),
    )

    assembly = town.assembly(*ratified, *grown(town))

    ballot = assembly.ballot(manifest.id, NOON + HOUR)
    assert ballot is not None
    assert ballot.roll_weight == 1
    assert assembly.ratified("llama", NOON + HOUR) == manifest
