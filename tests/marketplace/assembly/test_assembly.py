from collections.abc import Callable
from typing import Any

import pytest
from assembly_town import ANN, BOB, CAT, DAN, EVE, GEMMA, HOUR, LLAMA, NOON, Town, person
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.assembly.assembly import Assembly, Member
from protocol import limits
from protocol.envelope import Sealed, seal
from protocol.errors import BrokenLog, Equivocation, MalformedMessage, NotAuthorised, RemoteProtocolError
from protocol.identity import Identity
from protocol.messages import Admitted, Card, Entry

Write = Callable[[Town, Identity], Sealed[Entry]]
Deed = tuple[str, Identity, Any, int]


def snapshot(assembly: Assembly) -> tuple[object, ...]:
    """Everything an assembly answers."""
    keys = [key.peer_id for key in (ANN, BOB, CAT, DAN, EVE)]
    return (
        assembly.members(),
        [assembly.is_barred(key) for key in keys],
        [assembly.weight(key) for key in keys],
        [assembly.admission_of(key) for key in keys],
        assembly.names(),
        [assembly.name_of(digest) for digest in (LLAMA, GEMMA)],
        assembly.heads(),
    )


def settle(town: Town, entries: list[Sealed[Entry]]) -> Assembly:
    """Offer entries again and again, as sync does, until nothing new is taken."""
    assembly = town.assembly()
    waiting = list(entries)
    taken = True
    while taken and waiting:
        refused = []
        for entry in waiting:
            try:
                assembly.apply(entry)
            except RemoteProtocolError:
                refused.append(entry)
        taken = len(refused) < len(waiting)
        waiting = refused
    return assembly


# --- who belongs ---------------------------------------------------------------------------------------------------
def test_voters_are_members_from_the_charter_on() -> None:
    assembly = Town().assembly()

    line = limits.CREDIT_LINE_MICRO_DEFAULT
    assert assembly.members() == {
        ANN.peer_id: Member("ann", line, is_roll=True, admitted_by=ANN.peer_id),
        BOB.peer_id: Member("bob", line, is_roll=True, admitted_by=ANN.peer_id),
    }


def test_an_admitted_device_is_a_member_with_an_owner_and_a_credit_line() -> None:
    town = Town()

    assembly = town.assembly(town.admit(CAT, by=BOB, owner="cat", credit=9))

    assert assembly.member(CAT.peer_id) == Member("cat", 9, is_roll=False, admitted_by=BOB.peer_id)
    assert assembly.weight(CAT.peer_id) == 0


def test_a_stranger_is_no_member() -> None:
    assembly = Town().assembly()

    assert not assembly.is_member(EVE.peer_id)
    with pytest.raises(NotAuthorised, match="not a member"):
        assembly.member(EVE.peer_id)


def test_the_newest_admission_sets_the_credit_line() -> None:
    town = Town()
    first = town.admit(CAT, credit=1, at=NOON)
    second = town.admit(CAT, by=BOB, credit=2, at=NOON + 1)

    assert town.assembly(second, first).member(CAT.peer_id).credit_line_micro == 2


def test_devices_of_one_owner_know_each_other() -> None:
    town = Town()
    assembly = town.assembly(town.admit(CAT, owner="ann"), town.admit(DAN), town.admit(EVE, owner="ann"))

    assert assembly.same_owner(ANN.peer_id, CAT.peer_id)
    assert not assembly.same_owner(CAT.peer_id, DAN.peer_id)
    assert not assembly.same_owner(CAT.peer_id, person("nobody").peer_id)

    assembly.apply(town.revoke(EVE))
    assert not assembly.same_owner(ANN.peer_id, EVE.peer_id)


def test_a_voter_cannot_slip_a_device_among_another_voters_own() -> None:
    """`owner` is the default privacy of a prompt: bob's spy must not be sent what ann asks her own devices."""
    town = Town()
    assembly = town.assembly(town.admit(EVE, by=BOB, owner="ann"))

    assert not assembly.is_member(EVE.peer_id)
    with pytest.raises(NotAuthorised, match="may do so alone"):
        assembly.check_owner("ann", admitted_by=BOB.peer_id)


def test_an_admission_does_not_change_a_voter() -> None:
    town = Town()

    assembly = town.assembly(town.admit(BOB, by=ANN, owner="somebody"))

    assert assembly.member(BOB.peer_id).owner == "bob"


# --- who may say what ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "write",
    [
        lambda town, by: town.admit(DAN, by=by),
        lambda town, by: town.card("llama", LLAMA, by=by),
        lambda town, by: town.revoke(DAN, by=by),
    ],
)
@pytest.mark.parametrize("is_member", [True, False])
def test_what_is_signed_off_the_roll_is_refused(write: Write, is_member: bool) -> None:
    town = Town()
    assembly = town.assembly(*([town.admit(EVE)] if is_member else []))
    before = snapshot(assembly)

    with pytest.raises(NotAuthorised, match="not on the roll"):
        assembly.apply(write(town, EVE))

    assert snapshot(assembly) == before


def test_check_changes_nothing() -> None:
    town = Town()
    assembly = town.assembly()
    before = snapshot(assembly)

    assembly.check(town.admit(CAT))

    assert snapshot(assembly) == before


def test_an_entry_is_taken_once() -> None:
    town = Town()
    entry = town.admit(CAT)
    assembly = town.assembly(entry)

    assert not assembly.apply(entry)


def test_a_gap_in_a_log_is_named() -> None:
    town = Town()
    town.admit(CAT)
    later = town.admit(DAN)

    with pytest.raises(BrokenLog, match="expected 1"):
        town.assembly().apply(later)


def test_an_entry_of_the_bilateral_log_has_no_place_here() -> None:
    town = Town()

    with pytest.raises(BrokenLog, match="bilateral"):
        town.assembly().apply(town.award(ANN, BOB))


def test_an_entry_that_expires_is_refused() -> None:
    """A fold has no clock: it would hold for some members and not for others."""
    town = Town()
    card = Card(index=1, prev=town.mesh, name="llama", model=LLAMA)

    with pytest.raises(MalformedMessage, match="expires"):
        town.assembly().apply(seal(card, ANN, mesh=town.mesh, seq=(1, 1), time_ms=NOON, ttl_ms=1))


def test_an_admission_of_what_is_no_key_is_refused() -> None:
    town = Town()
    entry = town.write(
        ANN, Admitted, peer="12D3KooW" + "z" * 44, owner="x", credit_line_micro=0, invitation_id=bytes(16)
    )

    with pytest.raises(MalformedMessage, match="peer id"):
        town.assembly().apply(entry)


def test_flooding_members_with_accusations_ends_at_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are free, so a member can make any number of liars to accuse."""
    monkeypatch.setattr(limits, "MEMBER_LOG_ENTRIES_MAX", 1)
    town = Town()
    assembly = town.assembly(town.admit(EVE))
    liars = [person("liar 1"), person("liar 2")]
    proofs = [(town.award(liar, ANN), town.award(liar, BOB)) for liar in liars]
    assembly.apply(town.evidence(*proofs[0], by=EVE))

    with pytest.raises(BrokenLog, match="full"):
        assembly.apply(town.evidence(*proofs[1], by=EVE))

    assert not assembly.is_barred(liars[1].peer_id)


# --- revocation -------------------------------------------------------------------------------------------------------
def test_a_revoked_device_is_barred() -> None:
    town = Town()

    assembly = town.assembly(town.admit(CAT), town.revoke(CAT, by=BOB))

    assert assembly.is_barred(CAT.peer_id)
    assert not assembly.is_member(CAT.peer_id)
    assert assembly.admission_of(CAT.peer_id) is None


def test_readmission_of_a_revoked_device_does_nothing() -> None:
    """It is taken, since the author's log goes on behind it, but revoked stays revoked: also against a later date."""
    town = Town()
    entries = [town.revoke(CAT, by=BOB, at=NOON), town.admit(CAT, at=NOON + HOUR), town.admit(DAN)]

    assembly = town.assembly(*entries)

    assert not assembly.is_member(CAT.peer_id)
    assert assembly.is_member(DAN.peer_id)


def test_a_revocation_takes_effect_before_the_admission_it_undoes_is_heard() -> None:
    town = Town()
    admission, revocation = town.admit(CAT, by=ANN), town.revoke(CAT, by=BOB)

    assembly = town.assembly(revocation, admission)

    assert not assembly.is_member(CAT.peer_id)


def test_one_voter_cannot_revoke_another() -> None:
    """Only a new charter takes a voter off the roll."""
    town = Town()

    assembly = town.assembly(town.revoke(BOB, by=ANN))

    assert assembly.is_member(BOB.peer_id)


# --- names ------------------------------------------------------------------------------------------------------------
def test_the_newest_card_of_a_name_holds_whichever_came_last() -> None:
    town = Town()
    old, new = town.card("llama", LLAMA, at=NOON), town.card("llama", GEMMA, by=BOB, at=NOON + 1)

    for order in ((old, new), (new, old)):
        assembly = town.assembly(*order)
        assert assembly.digest_of("llama") == GEMMA
        assert assembly.name_of(LLAMA) is None
        assert assembly.names() == {"llama": GEMMA}


def test_a_digest_of_two_names_is_shown_under_the_newer() -> None:
    town = Town()

    assembly = town.assembly(town.card("b", LLAMA, at=NOON), town.card("a", LLAMA, at=NOON + 1))

    assert assembly.name_of(LLAMA) == "a"
    assert assembly.digest_of("c") is None


# --- evidence ---------------------------------------------------------------------------------------------------------
def test_a_fork_in_a_log_bars_its_author() -> None:
    town = Town()
    one, other = town.card("a", LLAMA, by=BOB), town.card("a", GEMMA, by=BOB, index=0)

    assembly = town.assembly(town.admit(EVE), town.evidence(one, other, by=EVE))

    assert assembly.is_barred(BOB.peer_id)
    assert assembly.weight(BOB.peer_id) == 0


def test_a_fork_is_found_when_its_second_branch_comes() -> None:
    town = Town()
    one, other = town.card("a", LLAMA, by=BOB), town.card("a", GEMMA, by=BOB, index=0)
    assembly = town.assembly(one)
    before = snapshot(assembly)

    with pytest.raises(Equivocation) as found:
        assembly.apply(other)

    assert (found.value.first, found.value.second) == (one.raw, other.raw)
    assert snapshot(assembly) == before


def test_two_awards_of_one_attempt_bar_the_buyer() -> None:
    town = Town()
    awards = town.award(CAT, ANN), town.award(CAT, BOB)

    assembly = town.assembly(town.admit(CAT), town.evidence(*awards, by=ANN))

    assert not assembly.is_member(CAT.peer_id)


def test_two_receipts_of_one_attempt_bar_the_seller() -> None:
    town = Town()
    receipts = town.receipt(CAT, payer=ANN, amount=1), town.receipt(CAT, payer=ANN, amount=2)

    assembly = town.assembly(town.admit(CAT), town.evidence(*receipts, by=ANN))

    assert assembly.is_barred(CAT.peer_id)


def test_a_buyer_cannot_frame_a_seller_by_awarding_an_attempt_twice() -> None:
    """Job ids and attempts are the buyer's choice; the seller keeps its word under each award."""
    town = Town()
    awards = town.award(ANN, CAT), town.award(ANN, CAT)
    receipts = [town.receipt(CAT, payer=ANN, amount=1, award=award.id) for award in awards]
    assembly = town.assembly(town.admit(CAT))

    with pytest.raises(NotAuthorised, match="do not contradict"):
        assembly.apply(town.evidence(*receipts, by=ANN))

    assert assembly.is_member(CAT.peer_id)


def test_evidence_that_shows_one_entry_twice_is_refused() -> None:
    town = Town()
    award = town.award(ANN, BOB)

    with pytest.raises(NotAuthorised, match="same entry"):
        town.assembly().apply(town.evidence(award, award, by=BOB))


def test_evidence_against_two_keys_is_refused() -> None:
    town = Town()

    with pytest.raises(NotAuthorised, match="two keys"):
        town.assembly().apply(town.evidence(town.award(ANN, BOB), town.award(BOB, ANN), by=BOB))


def test_forged_evidence_bars_nobody() -> None:
    town = Town()
    award, other = town.award(ANN, BOB), town.award(ANN, CAT)
    forged = Sealed(other.message, other.sender, other.id, bytes(64) + other.raw[64:], 7, 1, NOON, None)
    assembly = town.assembly()

    with pytest.raises(RemoteProtocolError):
        assembly.apply(town.evidence(award, forged, by=BOB))

    assert assembly.is_member(ANN.peer_id)


def test_awards_of_another_mesh_are_no_evidence() -> None:
    """One key may belong to two meshes, with a log of its own in each."""
    town, elsewhere = Town(), Town((ANN, "ann"))
    ours, theirs = town.award(ANN, BOB), elsewhere.award(ANN, CAT)

    with pytest.raises(RemoteProtocolError):
        town.assembly().apply(town.evidence(ours, theirs, by=BOB))


def test_founding_a_second_mesh_is_no_evidence() -> None:
    town, elsewhere = Town(), Town((ANN, "ann"))

    with pytest.raises(RemoteProtocolError):
        town.assembly().apply(town.evidence(town.founding, elsewhere.founding, by=BOB))


def test_a_forked_log_is_closed_at_the_fork() -> None:
    """Members hold one branch or the other, so nothing from the fork on may count; what stands before it does."""
    town = Town()
    before = town.admit(CAT, by=BOB)
    branch = town.admit(DAN, by=BOB)
    other = town.card("a", LLAMA, by=BOB, index=1)
    after = town.card("b", LLAMA, by=BOB)

    assembly = town.assembly(before, branch, after, town.evidence(branch, other, by=ANN))

    assert assembly.is_member(CAT.peer_id)
    assert not assembly.is_member(DAN.peer_id)
    assert assembly.names() == {}


def test_members_on_either_branch_of_a_fork_agree_once_it_is_proven() -> None:
    town = Town()
    before = town.admit(CAT, by=BOB)
    branch, other = town.admit(DAN, by=BOB), town.admit(EVE, by=BOB, index=1, at=NOON - HOUR)
    proof = town.evidence(branch, other, by=ANN)

    here, there = town.assembly(before, branch, proof), town.assembly(before, other, proof)

    *state_here, _ = snapshot(here)
    *state_there, _ = snapshot(there)
    assert state_here == state_there
    assert set(here.members()) == {ANN.peer_id, CAT.peer_id}


def test_members_on_either_branch_of_a_proven_fork_have_nothing_more_to_tell_each_other() -> None:
    """Each keeps the branch that it heard first: with two fingerprints they would greet each other for ever."""
    town = Town()
    before = town.admit(CAT, by=BOB)
    branch = town.admit(DAN, by=BOB)
    other = town.card("a", LLAMA, by=BOB, index=1)
    longer = town.card("b", LLAMA, by=BOB)
    proof = town.evidence(branch, other, by=ANN)

    sides = [
        town.assembly(before, branch, longer, proof),
        town.assembly(before, branch, proof),
        town.assembly(before, other, proof),
        town.assembly(proof, before),
    ]

    assert len({side.fingerprint() for side in sides}) == 1
    assert town.assembly(before, branch).fingerprint() != sides[0].fingerprint()
    assert town.assembly(proof).fingerprint() != sides[0].fingerprint()


def test_a_convicted_voter_admits_nobody_any_more() -> None:
    town = Town()
    early = town.admit(CAT, by=BOB, at=NOON)
    awards = town.award(BOB, CAT, at=NOON + 1), town.award(BOB, DAN, at=NOON + 2)
    late = town.admit(DAN, by=BOB, at=NOON + 3)

    assembly = town.assembly(early, town.evidence(*awards, by=ANN), late)

    assert assembly.is_member(CAT.peer_id)
    assert not assembly.is_member(DAN.peer_id)


def test_two_convicts_who_accuse_each_other_are_both_barred() -> None:
    """Evidence proves itself, so it does not matter who was barred first."""
    town = Town()
    admissions = [town.admit(CAT), town.admit(DAN)]
    against_cat = town.evidence(town.award(CAT, ANN), town.award(CAT, BOB), by=DAN)
    against_dan = town.evidence(town.award(DAN, ANN), town.award(DAN, BOB), by=CAT)

    states = [
        town.assembly(*admissions, *order)
        for order in ((against_cat, against_dan), (against_dan, against_cat))
    ]

    assert snapshot(states[0]) == snapshot(states[1])
    assert states[0].is_barred(CAT.peer_id)
    assert states[0].is_barred(DAN.peer_id)


# --- the logs ---------------------------------------------------------------------------------------------------------
def test_heads_name_voters_first_and_entries_can_be_asked_for_from_there() -> None:
    town = Town()
    entries = [town.admit(EVE), town.card("a", LLAMA, by=BOB)]
    accusation = town.evidence(town.award(CAT, ANN), town.award(CAT, BOB), by=EVE)

    assembly = town.assembly(*entries, accusation)

    assert [head.author for head in assembly.heads()] == [ANN.peer_id, BOB.peer_id, EVE.peer_id]
    assert list(assembly.entries_after(ANN.peer_id, -1)) == [town.founding, entries[0]]
    assert list(assembly.entries_after(ANN.peer_id, 0)) == [entries[0]]
    assert list(assembly.entries_after(DAN.peer_id, -1)) == []
    assert assembly.head(DAN.peer_id) is None


def test_uses_of_an_invitation_are_counted_from_its_issuers_log() -> None:
    town = Town()
    entries = [
        town.admit(CAT, invitation_id=b"i" * 16),
        town.admit(DAN, invitation_id=b"i" * 16),
        town.admit(EVE, by=BOB, invitation_id=b"i" * 16),
        town.revoke(DAN),
    ]

    assembly = town.assembly(*entries)

    assert assembly.uses_of(ANN.peer_id, b"i" * 16) == 2


# --- convergence ------------------------------------------------------------------------------------------------------
VOTERS, GUESTS = (ANN, BOB), (CAT, DAN, EVE)
_times = st.integers(NOON, NOON + 5)
_deeds = st.one_of(
    st.tuples(st.just("admit"), st.sampled_from(VOTERS), st.sampled_from(GUESTS), _times),
    st.tuples(st.just("revoke"), st.sampled_from(VOTERS), st.sampled_from(GUESTS), _times),
    st.tuples(st.just("card"), st.sampled_from(VOTERS), st.sampled_from((LLAMA, GEMMA)), _times),
    st.tuples(st.just("accuse"), st.sampled_from(VOTERS + GUESTS), st.sampled_from(VOTERS + GUESTS), _times),
)


def do(town: Town, deed: str, author: Identity, what: Any, at: int) -> Sealed[Entry]:
    match deed:
        case "admit":
            return town.admit(what, by=author, at=at, credit=at - NOON)
        case "revoke":
            return town.revoke(what, by=author, at=at)
        case "card":
            return town.card("name", what, by=author, at=at)
        case _:
            return town.evidence(town.award(what, ANN, at=at), town.award(what, BOB, at=at), by=author)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(deeds=st.lists(_deeds, max_size=10), data=st.data())
def test_the_same_entries_give_the_same_state_in_any_order(deeds: list[Deed], data: st.DataObject) -> None:
    """Convicts, revocations and dates that contradict the order of arrival included."""
    town = Town()
    entries = [do(town, *deed) for deed in deeds]

    one = settle(town, entries)
    other = settle(town, data.draw(st.permutations(entries)))

    assert snapshot(one) == snapshot(other)
