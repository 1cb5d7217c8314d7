"""What a ballot comes to: thresholds, terms, and the humans' words."""

from typing import Any

import pytest
from assembly_town import ANN, BOB, CAT, DAN, EVE, HOUR, HUMAN, NOON, Town, person

from marketplace.assembly.ballot import BallotState, BallotView
from protocol.envelope import Sealed
from protocol.errors import BallotClosed, ExpiredManifest, NotAuthorised, UnknownManifest, VetoTooLate
from protocol.identity import Identity
from protocol.messages import RollEntry

MINUTE = 60_000
VOTE, APPROVAL, VETO = 30 * MINUTE, 24 * HOUR, HOUR  # the charter's terms
ADAPTER = b"a" * 32


def voters(count: int) -> list[Identity]:
    return [ANN, *(person(f"voter {number}") for number in range(1, count))]


def town_of(count: int, **charter: Any) -> Town:
    roll = ((voter, f"owner {number}") for number, voter in enumerate(voters(count)))
    return Town(*roll, **charter).with_a_line()


def ballot(town: Town, *entries: Sealed[Any], at: int = NOON) -> BallotView:
    """The ballot of the first entry, after all of them."""
    view = town.assembly(*entries).ballot(entries[0].id, at)
    assert view is not None
    return view


@pytest.mark.parametrize(("roll", "enough"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (7, 5), (9, 7)])
def test_sixty_seven_percent_of_the_roll_and_not_one_vote_less(roll: int, enough: int) -> None:
    for yes, passed in ((enough, True), (enough - 1, False)):
        town = town_of(roll)
        proposal = town.propose(ADAPTER)

        found = ballot(town, proposal, *(town.vote(proposal, voter) for voter in voters(roll)[:yes]))

        assert (found.state is BallotState.CERTIFIED) is passed
        assert (found.yes_weight, found.roll_weight, found.weight_to_pass) == (yes, roll, enough)


def test_weights_count_and_not_heads() -> None:
    shares = ((ANN, "ann", 67), (BOB, "bob", 20), (CAT, "cat", 13))
    roll = tuple(
        RollEntry(key=voter.public_key, owner=owner, weight=weight) for voter, owner, weight in shares
    )
    for alone, passed in ((ANN, True), (BOB, False)):
        town = Town((ANN, "ann"), roll=roll).with_a_line()
        proposal = town.propose(ADAPTER)

        found = ballot(town, proposal, town.vote(proposal, alone))

        assert (found.state is BallotState.CERTIFIED) is passed


def test_silence_is_no_consent_and_whoever_is_silent_is_named() -> None:
    town = town_of(4)
    proposal = town.propose(ADAPTER)
    first, second, third, fourth = voters(4)

    found = ballot(town, proposal, town.vote(proposal, first), town.vote(proposal, second, is_yes=False))

    assert found.state is BallotState.VOTING
    assert found.missing == (third.peer_id, fourth.peer_id)
    assert found.still_needed == "yes of weight 2 more, of 4 on the roll"
    assert (found.yes_weight, found.no_weight) == (1, 1)
    assert found.votes[second.peer_id].message.is_yes is False


def test_a_ballot_that_cannot_pass_any_more_is_rejected_before_its_time() -> None:
    town = town_of(4)
    proposal = town.propose(ADAPTER)
    noes = [town.vote(proposal, voter, is_yes=False) for voter in voters(4)[:2]]

    assert ballot(town, proposal, noes[0]).state is BallotState.VOTING
    assert ballot(town, proposal, *noes).state is BallotState.REJECTED
    assert ballot(town, proposal, *noes, at=NOON + 2 * VOTE).state is BallotState.REJECTED


def test_a_no_may_become_a_yes_and_a_yes_stands() -> None:
    town = town_of(1)
    proposal = town.propose(ADAPTER)
    changed = [
        town.vote(proposal, ANN, is_yes=False, at=NOON),
        town.vote(proposal, ANN, is_yes=True, at=NOON + 1),
        town.vote(proposal, ANN, is_yes=False, at=NOON + 2),
    ]

    assert ballot(town, proposal, *changed[:1]).state is BallotState.REJECTED
    assert ballot(town, proposal, *changed[:2]).state is BallotState.CERTIFIED
    assert ballot(town, proposal, *changed).state is BallotState.CERTIFIED


@pytest.mark.parametrize(("late_by", "counts"), [(0, True), (1, False)])
def test_a_vote_counts_by_its_signed_time_whenever_it_arrives(late_by: int, counts: bool) -> None:
    town = town_of(1)
    proposal = town.propose(ADAPTER)
    vote = town.vote(proposal, ANN, at=NOON + VOTE + late_by)

    found = ballot(town, proposal, vote, at=NOON + 2 * VOTE)

    assert found.state is (BallotState.CERTIFIED if counts else BallotState.EXPIRED)


@pytest.mark.parametrize(
    ("now", "state"), [(NOON + VOTE, BallotState.VOTING), (NOON + VOTE + 1, BallotState.EXPIRED)]
)
def test_voting_ends_with_its_term(now: int, state: BallotState) -> None:
    town = town_of(1)
    proposal = town.propose(ADAPTER)

    assert ballot(town, proposal, at=now).state is state
    assert ballot(town, proposal, at=NOON).expires_ms == NOON + VOTE


@pytest.mark.parametrize(("late_by", "counts"), [(0, True), (1, False)])
def test_an_approval_counts_by_its_signed_time(late_by: int, counts: bool) -> None:
    town = town_of(1)
    proposal = town.propose(ADAPTER)
    words = [town.vote(proposal, ANN), town.approve(proposal, at=NOON + APPROVAL + late_by)]

    found = ballot(town, proposal, *words, at=NOON + 2 * APPROVAL)

    assert found.state is (BallotState.RATIFIED if counts else BallotState.EXPIRED)


def test_an_approval_before_the_votes_is_as_good_as_one_after_them() -> None:
    town = town_of(1)
    proposal = town.propose(ADAPTER)
    approval = town.approve(proposal)

    assert ballot(town, proposal, approval).state is BallotState.VOTING
    assert ballot(town, proposal, approval, town.vote(proposal, ANN, at=NOON + 5)).approved_by == (
        HUMAN.peer_id,
    )


def test_two_approvals_of_one_human_are_one() -> None:
    second = person("second human")
    keys = (HUMAN.public_key, second.public_key)
    town = town_of(1, approvers=keys, approvals_min=2)
    proposal = town.propose(ADAPTER)
    words = [town.vote(proposal, ANN), town.approve(proposal), town.approve(proposal)]

    found = ballot(town, proposal, *words)
    assert (found.state, found.still_needed) == (BallotState.CERTIFIED, "approval of a human")

    assert ballot(town, proposal, *words, town.approve(proposal, second)).state is BallotState.RATIFIED


@pytest.mark.parametrize(
    ("now", "state"), [(NOON + VETO - 1, BallotState.CERTIFIED), (NOON + VETO, BallotState.RATIFIED)]
)
def test_where_no_approval_is_asked_for_the_veto_window_has_to_end(now: int, state: BallotState) -> None:
    town = town_of(1, approvals_min=0)
    proposal = town.propose(ADAPTER)

    found = ballot(town, proposal, town.vote(proposal, ANN), at=now)

    assert found.state is state
    if state is BallotState.CERTIFIED:
        assert (found.still_needed, found.expires_ms) == ("the end of the veto window", NOON + VETO)


def test_where_no_approval_is_asked_for_one_still_ends_the_waiting() -> None:
    town = town_of(1, approvals_min=0)
    proposal = town.propose(ADAPTER)

    found = ballot(town, proposal, town.vote(proposal, ANN), town.approve(proposal), at=NOON)

    assert found.state is BallotState.RATIFIED


def test_who_approves_earlier_decides_which_version_stands_where_none_need_approve() -> None:
    """The end of the veto window would have come later for both."""
    town = town_of(1, approvals_min=0)
    old, new = town.propose(ADAPTER, 1), town.propose(b"b" * 32, 2, at=NOON + 1)
    words = [town.vote(old, ANN), town.vote(new, ANN)]
    approvals = [town.approve(new, at=NOON + 2), town.approve(old, at=NOON + 3)]

    assert ballot(town, old, new, *words, *approvals).state is BallotState.SUPERSEDED


def test_where_approval_is_asked_for_the_veto_window_alone_ratifies_nothing() -> None:
    town = town_of(1)
    proposal = town.propose(ADAPTER)

    found = ballot(town, proposal, town.vote(proposal, ANN), at=NOON + 2 * VETO)

    assert found.state is BallotState.CERTIFIED


@pytest.mark.parametrize(("late_by", "counts"), [(0, True), (1, False)])
def test_a_veto_unloads_even_what_was_ratified_but_not_after_its_window(late_by: int, counts: bool) -> None:
    town = town_of(1)
    entries = town.ratify(ADAPTER, 1, ANN)
    veto = town.veto(entries[0], at=NOON + VETO + late_by)
    assembly = town.assembly(*entries)
    assert assembly.may_load(ADAPTER, NOON + VETO) == ""

    assembly.apply(veto)

    assert (assembly.may_load(ADAPTER, NOON + 2 * VETO) == "") is not counts
    assert (assembly.ratified("llama", NOON + 2 * VETO) is None) is counts


# --- words that change nothing are refused where they are made ------------------------------------------------------------
def test_a_veto_after_the_window_is_refused_by_its_name() -> None:
    town = town_of(1)
    entries = town.ratify(ADAPTER, 1, ANN)
    veto = town.veto(entries[0])
    assembly = town.assembly(*entries)

    assembly.check_word(veto.message, NOON + VETO)
    with pytest.raises(VetoTooLate, match="withdraw"):
        assembly.check_word(veto.message, NOON + VETO + 1)


def test_an_approval_of_what_is_over_is_refused_by_its_name() -> None:
    town = town_of(1)
    proposal = town.propose(ADAPTER)
    approval = town.approve(proposal)
    vote = town.vote(proposal, ANN)
    assembly = town.assembly(proposal)

    with pytest.raises(ExpiredManifest, match="too few voters"):
        assembly.check_word(approval.message, NOON + VOTE + 1)
    assembly.apply(vote)
    with pytest.raises(ExpiredManifest, match="no human"):
        assembly.check_word(approval.message, NOON + APPROVAL + 1)
    assembly.apply(approval)
    with pytest.raises(BallotClosed, match="ratified"):
        assembly.check_word(approval.message, NOON)


def test_a_word_on_what_nobody_has_proposed_is_refused() -> None:
    town = town_of(1)
    proposal = town.propose(ADAPTER)
    elsewhere = town.vote(proposal, ANN, version=2)
    assembly = town.assembly()

    for word in (town.approve(proposal), town.veto(proposal), town.withdraw(ADAPTER)):
        with pytest.raises(UnknownManifest):
            assembly.check_word(word.message, NOON)
    assembly.apply(proposal)
    with pytest.raises(UnknownManifest, match="version 2"):
        assembly.check_word(elsewhere.message, NOON)


@pytest.mark.parametrize("kind", ["approve", "veto", "withdraw"])
@pytest.mark.parametrize("author", [ANN, DAN, EVE])
def test_only_the_charters_humans_approve_veto_and_withdraw(author: Identity, kind: str) -> None:
    """Not a voter, not a member, not a stranger."""
    town = Town().with_a_line()
    entries = [town.admit(DAN), proposal := town.propose(ADAPTER)]
    assembly = town.assembly(*entries)
    before = assembly.fingerprint()
    word = town.withdraw(ADAPTER, author) if kind == "withdraw" else getattr(town, kind)(proposal, author)

    with pytest.raises(NotAuthorised, match="no approver"):
        assembly.apply(word)

    assert assembly.fingerprint() == before
