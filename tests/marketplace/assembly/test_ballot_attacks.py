"""Attacks on patches, each by its name: refused, and nothing has changed."""

from typing import Any

import pytest
from assembly_town import ANN, BOB, CAT, DAN, EVE, GEMMA, HOUR, HUMAN, LLAMA, NOON, Town, person

from marketplace.assembly.assembly import Assembly, open_entry
from marketplace.assembly.ballot import BallotState
from protocol import limits
from protocol.errors import (
    BrokenLog,
    Equivocation,
    ExpiredManifest,
    ForeignBase,
    ForeignMesh,
    MalformedMessage,
    NotAuthorised,
    StaleVersion,
    TooManyProposals,
)
from protocol.messages import NO_HASH, Contribution, Line, Score

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32
DAY = 24 * HOUR
LATER = NOON + HOUR


def four() -> Town:
    """Four voters: three are enough, and one may lie."""
    return Town((ANN, "ann"), (BOB, "bob"), (CAT, "cat"), (DAN, "dan")).with_a_line()


def state(assembly: Assembly, manifest: Any, at: int = LATER) -> BallotState:
    view = assembly.ballot(manifest.id, at)
    assert view is not None
    return view.state


# --- votes ------------------------------------------------------------------------------------------------------------
def test_a_vote_off_the_roll_is_refused() -> None:
    town = Town((ANN, "ann")).with_a_line()
    assembly = town.assembly(town.admit(EVE), proposal := town.propose(A))
    before = assembly.fingerprint()

    with pytest.raises(NotAuthorised, match="not on the roll"):
        assembly.apply(town.vote(proposal, EVE))

    assert assembly.fingerprint() == before
    assert state(assembly, proposal, NOON) is BallotState.VOTING


def test_a_second_yes_for_one_version_is_refused_and_bars_its_voter() -> None:
    town = four()
    one, other = town.propose(A), town.propose(B)
    assembly = town.assembly(one, other, first := town.vote(one, DAN))
    before = assembly.fingerprint()
    second = town.vote(other, DAN)

    with pytest.raises(Equivocation, match="two manifests for version 1") as caught:
        assembly.apply(second)

    assert assembly.fingerprint() == before
    assert (caught.value.first, caught.value.second) == (first.raw, second.raw)
    assembly.apply(town.evidence(first, second, by=ANN))
    assert assembly.is_barred(DAN.peer_id)
    ballots = {view.id: view for view in assembly.ballots(NOON)}
    assert (ballots[one.id].yes_weight, ballots[other.id].yes_weight) == (1, 0)
    assert DAN.peer_id not in ballots[other.id].missing


def test_two_yes_votes_prove_themselves_wherever_they_stand_in_their_log() -> None:
    """The accuser need not hold what lies between them."""
    town = four()
    one, other = town.propose(A), town.propose(B)
    votes = [town.vote(one, DAN), town.card("name", LLAMA, by=DAN), town.vote(other, DAN)]

    assembly = town.assembly(town.evidence(votes[0], votes[2], by=BOB))

    assert assembly.is_barred(DAN.peer_id)


@pytest.mark.parametrize("case", ["said twice", "yes and no", "two versions"])
def test_honest_voters_cannot_be_framed_with_votes_that_contradict_nothing(case: str) -> None:
    town = four()
    one, other, next_one = town.propose(A), town.propose(B), town.propose(C, 2)
    first = town.vote(one, BOB)
    second = {
        "said twice": lambda: town.vote(one, BOB, private="passed"),
        "yes and no": lambda: town.vote(other, BOB, is_yes=False),
        "two versions": lambda: town.vote(next_one, BOB),
    }[case]()
    assembly = town.assembly(one, other, next_one, first, second)

    with pytest.raises(NotAuthorised, match="do not contradict"):
        assembly.apply(town.evidence(first, second, by=DAN))

    assert not assembly.is_barred(BOB.peer_id)


def test_a_convict_does_not_vote_any_more_but_a_certificate_that_it_helped_stays() -> None:
    town = four()
    entries = town.ratify(A, 1, ANN, BOB, DAN)
    next_one = town.propose(B, 2, at=NOON + 20)
    proof = town.evidence(town.award(DAN, ANN, at=NOON + 9), town.award(DAN, BOB, at=NOON + 10), by=ANN)
    late = [town.vote(next_one, voter) for voter in (ANN, BOB, DAN)]

    assembly = town.assembly(*entries, next_one, proof, *late, town.approve(next_one))

    assert state(assembly, entries[0]) is BallotState.RATIFIED
    assert assembly.ratified("llama", NOON + 30) == entries[0]
    assert state(assembly, next_one, NOON + 30) is BallotState.VOTING


def test_of_two_rivals_for_one_version_the_second_is_rejected_once_its_votes_are_given_away() -> None:
    town = four()
    one, other = town.propose(A), town.propose(B)
    assembly = town.assembly(one, other, town.vote(one, ANN))
    rival = assembly.ballot(other.id, NOON)
    assert rival is not None
    assert rival.missing == (BOB.peer_id, CAT.peer_id, DAN.peer_id)

    assembly.apply(town.vote(one, BOB))

    assert state(assembly, other, NOON) is BallotState.REJECTED
    assert state(assembly, one, NOON) is BallotState.VOTING


def test_nobody_waits_for_a_convicts_vote() -> None:
    town = four()
    proof = town.evidence(town.award(DAN, ANN), town.award(DAN, BOB), by=ANN)
    proposal = town.propose(A, at=NOON + 20)
    assembly = town.assembly(proof, proposal)

    view = assembly.ballot(proposal.id, NOON + 20)

    assert view is not None
    assert view.missing == (ANN.peer_id, BOB.peer_id, CAT.peer_id)
    # The roll's weight stays: one no of the three is enough to stop it.
    assembly.apply(town.vote(proposal, CAT, is_yes=False))
    assert state(assembly, proposal, NOON + 20) is BallotState.REJECTED


def test_a_vote_for_another_line_counts_nowhere() -> None:
    """A voter who was shown one line must not be counted for another."""
    town = Town((ANN, "ann")).with_a_line()
    proposal = town.propose(A)

    assembly = town.assembly(proposal, town.vote(proposal, ANN, line="gemma"), town.approve(proposal))

    assert state(assembly, proposal, NOON) is BallotState.VOTING


def test_a_replayed_certificate_of_another_mesh_is_refused() -> None:
    """The same voters, the same line, the same adapter: the founder has two meshes."""
    home = Town((ANN, "ann")).with_a_line()
    work = Town((ANN, "ann"), name="work").with_a_line()
    certificate = work.ratify(A, 1, ANN)
    assembly = home.assembly()
    before = assembly.fingerprint()

    for entry in certificate:
        with pytest.raises(ForeignMesh):
            open_entry(entry.raw, home.mesh)

    assert assembly.fingerprint() == before
    assert assembly.may_load(A, LATER) == "no manifest proposes it"


def test_votes_for_one_manifest_do_not_count_for_another_with_its_adapter() -> None:
    town = Town((ANN, "ann")).with_a_line()
    voted = town.ratify(A, 1, ANN)
    other = town.propose(A, 2, at=NOON + 1)

    assembly = town.assembly(*voted, other)

    assert state(assembly, other, NOON + 1) is BallotState.VOTING


# --- proposals ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ttl", [0, -1, int(limits.MANIFEST_TTL_S_MAX * 1000) + 1])
def test_a_manifest_that_is_born_expired_or_lives_too_long_is_refused(ttl: int) -> None:
    town = Town((ANN, "ann")).with_a_line()
    assembly = town.assembly()

    with pytest.raises(ExpiredManifest):
        assembly.apply(town.propose(A, ttl=ttl))

    assert assembly.ballots(NOON) == []


def test_an_expired_manifest_is_not_thawed_by_a_late_approval() -> None:
    town = Town((ANN, "ann")).with_a_line()
    proposal = town.propose(A, ttl=1_000)
    words = [town.vote(proposal, ANN, at=NOON + 999), town.approve(proposal, at=NOON + 1_000)]

    assembly = town.assembly(proposal, *words)

    assert state(assembly, proposal) is BallotState.EXPIRED
    assert assembly.may_load(A, LATER) == "version 1 of llama is expired"
    with pytest.raises(ExpiredManifest):
        assembly.check_proposal(proposal.message, NOON + 1_000)


def test_a_veto_window_that_outlives_its_manifest_ratifies_nothing() -> None:
    town = Town((ANN, "ann"), approvals_min=0).with_a_line()
    proposal = town.propose(A, ttl=HOUR)

    assembly = town.assembly(proposal, town.vote(proposal, ANN))

    assert assembly.may_load(A, NOON + 2 * HOUR) != ""


def test_a_patch_for_a_foreign_base_is_never_in_force() -> None:
    town = Town((ANN, "ann")).with_a_line()
    entries = town.ratify(A, 1, ANN, base=GEMMA)

    assembly = town.assembly(*entries)

    assert state(assembly, entries[0]) is BallotState.REJECTED
    assert assembly.ratified("llama", LATER) is None
    assert assembly.may_load(A, LATER) != ""
    with pytest.raises(ForeignBase):
        assembly.check_proposal(entries[0].message, LATER)
    with pytest.raises(ForeignBase):
        assembly.check_word(entries[1].message, NOON)


def test_a_patch_for_a_line_that_nobody_published_is_never_in_force() -> None:
    town = Town((ANN, "ann"))
    entries = town.ratify(A, 1, ANN)

    assembly = town.assembly(*entries)

    assert assembly.ratified("llama", LATER) is None
    assert assembly.may_load(A, LATER) != ""
    with pytest.raises(NotAuthorised, match="no line"):
        assembly.check_proposal(entries[0].message, LATER)


def test_a_rollback_to_an_older_version_by_an_old_certificate_changes_nothing() -> None:
    """An old proposal is completed after a newer one: its votes were kept back, or its approval."""
    town = Town((ANN, "ann")).with_a_line()
    old = town.propose(A, 1)
    vote = town.vote(old, ANN)
    new = town.ratify(B, 2, ANN, at=NOON + 1)
    approval = town.approve(old, at=NOON + 2)
    assembly = town.assembly(old, vote, *new)

    assembly.apply(approval)

    assert state(assembly, old) is BallotState.SUPERSEDED
    assert assembly.ratified("llama", LATER) == new[0]
    assert assembly.may_load(A, LATER) == "version 1 of llama is superseded"
    assert assembly.adapter_of("llama", 1, LATER) is None
    with pytest.raises(StaleVersion, match="expected 3 to"):
        assembly.check_proposal(old.message, LATER)


def test_a_version_is_not_given_twice() -> None:
    town = Town((ANN, "ann"), (BOB, "bob")).with_a_line()
    first = town.ratify(A, 1)
    again = town.propose(B, 1, at=NOON + 1)
    assembly = town.assembly(*first, again)

    for voter in (ANN, BOB):
        with pytest.raises(Equivocation):
            assembly.apply(town.vote(again, voter))

    assert state(assembly, again) is BallotState.SUPERSEDED
    assert assembly.ratified("llama", LATER) == first[0]


def test_a_freeze_ends_when_the_word_that_was_kept_back_arrives() -> None:
    """A peer withholds a veto and a withdrawal; both count by the time at which they were signed."""
    town = Town((ANN, "ann")).with_a_line()
    one, two, three = (
        town.ratify(adapter, version, ANN, at=NOON + version) for version, adapter in enumerate((A, B, C), 1)
    )
    veto = town.veto(three[0], at=NOON + HOUR)
    withdrawal = town.withdraw(B, at=NOON + 2 * HOUR)
    assembly = town.assembly(*one, *two, *three)
    much_later = NOON + 30 * DAY

    assert assembly.ratified("llama", much_later) == three[0]
    assembly.apply(veto)
    assert assembly.ratified("llama", much_later) == two[0]
    assembly.apply(withdrawal)
    assert assembly.ratified("llama", much_later) == one[0]


def test_an_authors_fifth_proposal_of_a_day_is_refused_and_ends_its_log() -> None:
    """Each costs every voter an evaluation."""
    town = Town((ANN, "ann")).with_a_line()
    admitted = town.admit(EVE)
    flood = [town.propose(A, version, by=EVE, at=NOON + version) for version in range(1, 6)]
    behind = town.propose(A, 6, by=EVE, at=NOON + 2 * DAY)
    assembly = town.assembly(admitted, *flood[:4])
    before = assembly.fingerprint()

    with pytest.raises(TooManyProposals):
        assembly.apply(flood[4])
    with pytest.raises(BrokenLog):
        assembly.apply(behind)

    assert assembly.fingerprint() == before
    assert len(assembly.ballots(NOON)) == 4


@pytest.mark.parametrize(("gap", "is_taken"), [(DAY, True), (DAY - 1, False)])
def test_four_proposals_a_day_are_counted_by_signed_time_in_any_order(gap: int, is_taken: bool) -> None:
    """Dating one back does not make room."""
    for times in ((0, 1, 2, 3, gap), (gap, 3, 2, 1, 0)):
        town = Town((ANN, "ann"))
        proposals = [town.propose(A, number, at=NOON + at) for number, at in enumerate(times, 1)]
        assembly = town.assembly(*proposals[:4])

        if is_taken:
            assert assembly.apply(proposals[4])
        else:
            with pytest.raises(TooManyProposals):
                assembly.apply(proposals[4])


def test_filling_members_disks_with_proposals_ends_at_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MEMBER_LOG_ENTRIES_MAX", 1)
    town = Town((ANN, "ann"))
    assembly = town.assembly(town.admit(EVE), town.propose(A, by=EVE))

    with pytest.raises(BrokenLog, match="full"):
        assembly.apply(town.propose(B, by=EVE))


def test_a_voter_cannot_fill_members_disks_with_large_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dated long ago, one a day, no rate stops them."""
    town = Town((ANN, "ann"))
    large = [town.propose(A, number, at=NOON - number * DAY, reason="x" * 256) for number in range(1, 9)]
    kept = sum(len(entry.raw) for entry in (town.founding, *large[:5]))
    monkeypatch.setattr(limits, "ASSEMBLY_LOG_BYTES_MAX", kept)
    assembly = town.assembly(*large[:5])

    with pytest.raises(BrokenLog, match="full"):
        assembly.fork().apply(large[5])

    assert len(assembly.ballots(NOON)) == 5


def test_what_a_revoked_device_proposed_is_not_voted_on_but_what_was_ratified_stays() -> None:
    town = Town((ANN, "ann")).with_a_line()
    admitted = town.admit(EVE)
    ratified = town.ratify(A, 1, ANN, by=EVE)
    pending = town.propose(B, 2, by=EVE, at=NOON + 1)
    assembly = town.assembly(admitted, *ratified, pending)
    assert state(assembly, pending, NOON + 1) is BallotState.VOTING

    assembly.apply(town.revoke(EVE))

    assert state(assembly, pending, NOON + 1) is BallotState.REJECTED
    assert assembly.ratified("llama", NOON + 1) == ratified[0]


def test_a_stranger_proposes_nothing() -> None:
    town = Town((ANN, "ann"))
    assembly = town.assembly()

    with pytest.raises(NotAuthorised):
        assembly.apply(town.propose(A, by=EVE))

    assert assembly.ballots(NOON) == []


_SCORE = Score(domain="maths", right=1, total=2, loss_milli=0)
_MEMBER = Contribution(peer=BOB.peer_id, samples=1, rounds=1, epsilon_milli=-1)


@pytest.mark.parametrize(
    "lie",
    [
        {"adapter_bytes": 0},
        {"adapter": NO_HASH, "adapter_bytes": 5},
        {"rolls_back_to": 1},
        {"cohort": (_MEMBER, _MEMBER)},
        {"cohort": (Contribution(peer="12D3KooW" + "z" * 44, samples=1, rounds=1, epsilon_milli=-1),)},
        {"before": (_SCORE, _SCORE)},
        {"after": (Score(domain="maths", right=3, total=2, loss_milli=0),)},
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(lie: dict[str, Any]) -> None:
    town = Town((ANN, "ann"))
    assembly = town.assembly()

    with pytest.raises(MalformedMessage):
        assembly.apply(town.propose(**lie))

    assert assembly.ballots(NOON) == []


def test_a_line_with_half_a_replay_set_and_a_withdrawal_of_the_bare_base_are_refused() -> None:
    town = Town((ANN, "ann"))
    assembly = town.assembly()

    for entry in (town.line(replay=b"r" * 32), town.withdraw(NO_HASH)):
        with pytest.raises(MalformedMessage):
            assembly.apply(entry)

    assert assembly.lines() == {}


# --- humans' keys -----------------------------------------------------------------------------------------------------------
def test_a_human_key_that_contradicts_itself_is_barred_and_approves_nothing_more() -> None:
    """A stolen key, or one that two hurried hands have used."""
    town = Town((ANN, "ann")).with_a_line()
    one, other = town.propose(A, 1), town.propose(B, 2)
    words = [town.approve(one, at=NOON + 1), town.veto(one, at=NOON + 2)]
    fork = town.write(HUMAN, type(words[0].message), at=NOON + 3, index=1, manifest=other.id)
    votes = [town.vote(one, ANN), town.vote(other, ANN)]
    assembly = town.assembly(one, other, *words, *votes)
    assert assembly.may_speak(HUMAN.peer_id)
    with pytest.raises(Equivocation):
        assembly.apply(fork)

    assembly.apply(town.evidence(words[1], fork, by=ANN))

    assert not assembly.may_speak(HUMAN.peer_id)
    # What came before the fork is common to all members and stays; the veto behind it is not, and the approval neither.
    assert state(assembly, one, NOON) is BallotState.RATIFIED
    assert state(assembly, other, NOON) is BallotState.CERTIFIED


def test_who_may_speak_in_the_assembly() -> None:
    town = Town((ANN, "ann"))
    assembly = town.assembly(town.admit(BOB), town.admit(CAT), town.revoke(CAT))

    speakers = [ANN, BOB, CAT, DAN, HUMAN, person("another human")]

    assert [assembly.may_speak(key.peer_id) for key in speakers] == [True, True, False, False, True, False]
    assert not assembly.is_member(HUMAN.peer_id)


def test_a_human_publishes_no_lines() -> None:
    town = Town((ANN, "ann"))
    assembly = town.assembly()

    with pytest.raises(NotAuthorised):
        assembly.apply(
            town.write(
                HUMAN,
                Line,
                name="llama",
                base=LLAMA,
                evaluation=A,
                evaluation_bytes=1,
                replay=NO_HASH,
                replay_bytes=0,
            )
        )

    assert assembly.lines() == {}
