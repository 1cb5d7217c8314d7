"""Lines: what is in force, what may be loaded, and what becomes of it."""

import time
from collections.abc import Sequence
from typing import Any

import pytest
from assembly_town import ANN, BOB, CAT, DAN, GEMMA, HOUR, HUMAN, LLAMA, NOON, Town, person
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.assembly.assembly import Assembly
from marketplace.assembly.ballot import BallotState
from protocol import limits
from protocol.envelope import Sealed
from protocol.errors import AgoraError, NotAuthorised, StaleVersion
from protocol.identity import Identity
from protocol.messages import (
    NO_HASH,
    Charter,
    CharterConsent,
    Contribution,
    Entry,
    LoraShape,
    RollEntry,
    Score,
)

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32
LATER = NOON + HOUR


def begun() -> Town:
    return Town((ANN, "ann"), (BOB, "bob")).with_a_line()


def head(assembly: Assembly, at: int = LATER) -> tuple[int, bytes] | None:
    manifest = assembly.ratified("llama", at)
    return (manifest.message.version, manifest.message.adapter) if manifest else None


# --- lines ------------------------------------------------------------------------------------------------------------
def test_the_newest_line_of_a_name_holds() -> None:
    town = begun()
    newer = town.line(evaluation=b"n" * 32, at=NOON + 2)
    older = town.line(evaluation=b"o" * 32, at=NOON + 1)

    assembly = town.assembly(newer, older)

    line = assembly.line("llama")
    assert line is not None
    assert line.evaluation == b"n" * 32
    assert list(assembly.lines()) == ["llama"]
    assert assembly.line("gemma") is None


def test_only_voters_publish_lines() -> None:
    town = begun()
    assembly = town.assembly(town.admit(DAN))

    with pytest.raises(NotAuthorised, match="not on the roll"):
        assembly.apply(town.line(by=DAN, base=GEMMA))

    assert assembly.lines()["llama"].base == LLAMA


# --- what is in force ---------------------------------------------------------------------------------------------------
def test_a_ratified_patch_is_in_force_until_the_next_one() -> None:
    town = begun()
    assembly = town.assembly()
    assert head(assembly) is None
    assert assembly.may_load(A, LATER) == "no manifest proposes it"

    for entry in town.ratify(A, 1):
        assembly.apply(entry)
    assert head(assembly) == (1, A)

    for entry in town.ratify(B, 2, at=NOON + 9):
        assembly.apply(entry)
    assert head(assembly) == (2, B)
    assert [assembly.may_load(adapter, LATER) for adapter in (A, B)] == ["", ""]
    assert [view.is_in_force for view in assembly.ballots(LATER)] == [False, True]


def test_any_member_may_propose() -> None:
    town = begun()
    admitted = town.admit(DAN)

    assembly = town.assembly(admitted, *town.ratify(A, 1, by=DAN))

    assert head(assembly) == (1, A)


def test_after_a_veto_the_version_before_is_in_force_again() -> None:
    town = begun()
    first, second = town.ratify(A, 1), town.ratify(B, 2, at=NOON + 9)
    veto = town.veto(second[0])
    assembly = town.assembly(*first, *second, veto)

    assert head(assembly) == (1, A)
    assert assembly.may_load(B, LATER) == "version 2 of llama is vetoed"
    # Its number is gone for all that.
    assert assembly.next_version("llama", LATER) == 3


def test_a_withdrawn_adapter_is_barred_in_every_version_and_line_for_ever() -> None:
    town = begun()
    first, second = town.ratify(A, 1), town.ratify(B, 2, at=NOON + 9)
    withdrawal = town.withdraw(B)
    again = town.ratify(B, 3, at=NOON + 99)

    assembly = town.assembly(*first, *second, withdrawal, *again)

    assert head(assembly) == (1, A)
    assert "withdrawn" in assembly.may_load(B, LATER)
    assert [view.state.value for view in assembly.ballots(LATER)] == ["ratified", "withdrawn", "withdrawn"]


def test_a_rollback_is_a_new_version_with_an_old_adapter() -> None:
    town = begun()
    entries = [*town.ratify(C, 1), *town.ratify(A, 2, at=NOON + 1), *town.ratify(B, 3, at=NOON + 2)]
    entries += town.ratify(A, 4, at=NOON + 3, rolls_back_to=2)

    assembly = town.assembly(*entries)

    assert head(assembly) == (4, A)
    # Whoever cannot follow it falls back to what came before version 2, and not to what was rolled back.
    assert [manifest.message.version for manifest in assembly.succession("llama", LATER)] == [4, 1]


def test_a_withdrawn_rollback_does_not_bring_back_what_was_rolled_back() -> None:
    town = begun()
    entries = [*town.ratify(C, 1), *town.ratify(A, 2, at=NOON + 1), *town.ratify(B, 3, at=NOON + 2)]
    entries += town.ratify(A, 4, at=NOON + 3, rolls_back_to=2)

    assembly = town.assembly(*entries, town.withdraw(A))

    assert head(assembly) == (1, C)


def test_a_vetoed_rollback_leaves_in_force_what_it_would_have_rolled_back() -> None:
    town = begun()
    entries = [*town.ratify(A, 1), *town.ratify(B, 2, at=NOON + 1)]
    rollback = town.ratify(A, 3, at=NOON + 2, rolls_back_to=1)

    assembly = town.assembly(*entries, *rollback, town.veto(rollback[0]))

    assert head(assembly) == (2, B)


def test_a_rollback_to_the_bare_base_leaves_no_adapter() -> None:
    town = begun()
    entries = [*town.ratify(A, 1), *town.ratify(NO_HASH, 2, at=NOON + 1)]

    assembly = town.assembly(*entries)

    assert head(assembly) == (2, NO_HASH)
    assert [manifest.message.version for manifest in assembly.succession("llama", LATER)] == [2]
    assert assembly.may_load(NO_HASH, LATER) != ""


def test_a_line_that_moves_to_another_base_leaves_its_patches_behind() -> None:
    town = begun()
    entries = town.ratify(A, 1)

    assembly = town.assembly(*entries, town.line(base=GEMMA, at=NOON + 1))

    assert head(assembly) is None
    assert assembly.may_load(A, LATER) == "version 1 of llama is rejected"


def test_an_adapter_is_named_by_its_version_or_the_first_digits_of_its_digest() -> None:
    town = begun()
    assembly = town.assembly(*town.ratify(A, 1), *town.ratify(B, 2, at=NOON + 1), town.propose(C, 3))

    def found(named: int | str | None) -> int:
        manifest = assembly.adapter_of("llama", named, LATER)
        return manifest.message.version if manifest else 0

    assert [found(named) for named in (None, 1, 2, "61616161", A.hex().upper())] == [2, 1, 2, 1, 1]
    assert [found(named) for named in (3, "63636363", "6161616", "deadbeef")] == [0, 0, 0, 0]


# --- versions -----------------------------------------------------------------------------------------------------------
def test_a_failed_ballot_uses_up_its_version_and_the_line_goes_on() -> None:
    """One yes for each version is all that a voter has."""
    town = begun()
    failed = town.propose(A, 1)
    assembly = town.assembly(failed, town.vote(failed, ANN))
    later = NOON + 2 * HOUR
    assert assembly.next_version("llama", later) == 2

    for entry in town.ratify(B, 2, at=later):
        assembly.apply(entry)

    assert head(assembly, later) == (2, B)
    assert assembly.said_yes(ANN.peer_id, "llama", 1) == failed.id


def test_a_minority_cannot_use_up_versions() -> None:
    """Not even by saying yes to manifests that there are none of."""
    roll = ((ANN, "ann"), (BOB, "bob"), (CAT, "cat"), (DAN, "dan"))
    town = Town(*roll).with_a_line()
    nothing = town.propose(A, 1)
    hostile = [town.vote(nothing, DAN, version=version, manifest=b"x" * 32) for version in range(1, 4)]

    assembly = town.assembly(*hostile)

    assert assembly.next_version("llama", NOON) == 1


def test_a_version_that_leaps_too_far_is_never_in_force() -> None:
    """Else one proposal could use up all numbers of a line."""
    town = begun()
    far = limits.VERSIONS_SKIPPED_MAX + 1
    assembly = town.assembly(*town.ratify(A, far))

    assert head(assembly) is None
    assert assembly.ballots(LATER)[0].state is BallotState.REJECTED
    assert assembly.next_version("llama", LATER) == 1
    with pytest.raises(StaleVersion, match=f"expected 1 to {limits.VERSIONS_SKIPPED_MAX}"):
        assembly.check_proposal(town.propose(A, far).message, LATER)


def test_a_forked_vote_lets_no_two_patches_share_a_version() -> None:
    """A voter that writes its log twice helps two manifests pass, each before other members, until they compare."""
    shares = ((ANN, "ann", 1), (BOB, "bob", 1), (CAT, "cat", 1))
    roll = tuple(
        RollEntry(key=voter.public_key, owner=owner, weight=weight) for voter, owner, weight in shares
    )
    town = Town((ANN, "ann"), roll=roll, pass_percent=51).with_a_line()
    one, other = town.propose(A, 1), town.propose(B, 1)
    words = [town.vote(one, ANN), town.vote(one, BOB), town.approve(one)]
    words += [town.vote(other, CAT), town.approve(other)]
    # BOB's second word is on another branch of its log, which some members heard first.
    second = town.vote(other, BOB, index=0)
    branches = [
        town.assembly(one, other, *words),
        town.assembly(one, other, *(word for word in words if word.sender != BOB.peer_id), second),
    ]
    assert [head(assembly) for assembly in branches] == [(1, A), (1, B)]

    proof = town.evidence(words[1], second, by=ANN)
    for assembly in branches:
        assembly.apply(proof)

    # The branches of a forked log cannot be told apart, so neither counts: what hung on them is loaded nowhere.
    assert [head(assembly) for assembly in branches] == [None, None]


# --- what may be proposed -------------------------------------------------------------------------------------------------
def test_a_rollback_must_name_the_version_that_had_its_adapter() -> None:
    town = begun()
    entries = [*town.ratify(A, 1), *town.ratify(B, 2, at=NOON + 1)]
    assembly = town.assembly(*entries)

    assembly.check_proposal(town.propose(A, 3, rolls_back_to=1).message, LATER)
    with pytest.raises(NotAuthorised, match="version 1 was not ratified with that adapter"):
        assembly.check_proposal(town.propose(C, 3, rolls_back_to=1).message, LATER)


# --- convergence ----------------------------------------------------------------------------------------------------------
VOTERS = (ANN, BOB, CAT)
ADAPTERS = (A, B, NO_HASH)
_times = st.integers(NOON, NOON + 3 * HOUR).map(lambda at: at - at % (HOUR // 4))
_words = st.one_of(
    st.tuples(st.just("propose"), st.sampled_from(ADAPTERS), st.integers(1, 3), st.booleans(), _times),
    st.tuples(st.just("pass"), st.just(ANN), st.integers(0, 3), st.booleans(), _times),
    st.tuples(st.just("pass"), st.just(ANN), st.integers(0, 3), st.booleans(), st.just(NOON)),
    st.tuples(st.just("yes"), st.sampled_from(VOTERS), st.integers(0, 3), st.booleans(), _times),
    st.tuples(st.just("no"), st.sampled_from(VOTERS), st.integers(0, 3), st.booleans(), _times),
    st.tuples(st.just("approve"), st.just(HUMAN), st.integers(0, 3), st.booleans(), _times),
    st.tuples(st.just("veto"), st.just(HUMAN), st.integers(0, 3), st.booleans(), _times),
    st.tuples(st.just("withdraw"), st.sampled_from((A, B)), st.just(0), st.booleans(), _times),
    st.tuples(st.just("line"), st.sampled_from((LLAMA, GEMMA)), st.just(0), st.booleans(), _times),
    st.tuples(st.just("accuse"), st.sampled_from(VOTERS), st.just(0), st.booleans(), _times),
)
_charters = st.tuples(st.just("charter"), st.integers(1, 3), st.integers(2, 3), st.booleans(), _times)


def do(town: Town, proposals: list[Sealed[Any]], deed: tuple[Any, ...]) -> list[Sealed[Any]]:
    kind, who, number, is_approved, at = deed
    match kind:
        case "propose":
            proposals.append(town.propose(who, number, at=at))
            return proposals[-1:]
        case "withdraw":
            return [town.withdraw(who, at=at)]
        case "line":
            return [town.line(base=who, at=at)]
        case "charter":
            return next_charter(town, VOTERS[:who], version=number, at=at, approvals_min=int(is_approved))
        case "accuse":
            return [town.evidence(town.award(who, ANN, at=at), town.award(who, BOB, at=at), by=ANN)]
    if not proposals:
        return []
    on = proposals[number % len(proposals)]
    match kind:
        case "pass":
            votes = [town.vote(on, voter, at=max(at, on.time_ms)) for voter in VOTERS]
            return [*votes, town.approve(on, at=max(at, on.time_ms))] if is_approved else votes
        case "yes" | "no":
            return [town.vote(on, who, kind == "yes", at=at)]
        case "approve":
            return [town.approve(on, at=at)]
        case _:
            return [town.veto(on, at=at)]


def next_charter(
    town: Town, voters: Sequence[Identity], *, version: int, at: int, **changes: Any
) -> list[Sealed[Any]]:
    """A charter with fewer voters or other terms, and everybody's consent."""
    first = town.founding.message
    fields = {name: getattr(first, name) for name in first.__struct_fields__ if name not in ("index", "prev")}
    fields["roll"] = tuple(entry for entry in first.roll if entry.key in [key.public_key for key in voters])
    proposed = town.write(ANN, Charter, at=at, **{**fields, "version": version, **changes})
    consents = [
        town.write(voter, CharterConsent, at=at + 1, charter=proposed.id, version=version)
        for voter in VOTERS[1:]
    ]
    return [proposed, *consents]


def settle(town: Town, entries: Sequence[Sealed[Entry]]) -> Assembly:
    """Offer the entries again and again, as sync does, until nothing more is taken."""
    assembly = town.assembly()
    left, tried = list(entries), len(entries) + 1
    while len(left) < tried:
        tried = len(left)
        still = []
        for entry in left:
            try:
                assembly.apply(entry)
            except AgoraError:
                still.append(entry)
        left = still
    return assembly


def snapshot(assembly: Assembly) -> object:
    hours = [NOON + quarter * HOUR // 4 for quarter in range(20)] + [NOON + 40 * HOUR]
    return (
        assembly.fingerprint(),
        assembly.charter,
        assembly.lines(),
        [assembly.ballots(at) for at in hours],
        [[manifest.id for manifest in assembly.succession("llama", at)] for at in hours],
        [[assembly.may_load(adapter, at) for adapter in ADAPTERS] for at in hours],
        [assembly.next_version("llama", at) for at in hours],
    )


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    deeds=st.lists(st.one_of(_words, _charters), min_size=4, max_size=24),
    approvals_min=st.integers(0, 1),
    data=st.data(),
)
def test_the_same_entries_give_the_same_ballots_in_any_order(
    deeds: list[tuple[Any, ...]], approvals_min: int, data: st.DataObject
) -> None:
    """Second votes, late words, vetoes, other bases, convicts and new charters included; asked at every quarter hour."""
    town = Town(*((voter, str(number)) for number, voter in enumerate(VOTERS)), approvals_min=approvals_min)
    town.with_a_line()
    proposals: list[Sealed[Any]] = []
    entries = [entry for deed in deeds for entry in do(town, proposals, deed)]

    one = settle(town, entries)
    other = settle(town, data.draw(st.permutations(entries)))

    assert snapshot(one) == snapshot(other)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(deeds=st.lists(_words, min_size=4, max_size=24))
def test_nothing_is_in_force_without_its_certificate_and_a_humans_yes(deeds: list[tuple[Any, ...]]) -> None:
    """Counted anew from the logs, by another way than the fold's."""
    town = Town(*((voter, str(number)) for number, voter in enumerate(VOTERS))).with_a_line()
    proposals: list[Sealed[Any]] = []
    entries = [entry for deed in deeds for entry in do(town, proposals, deed)]
    assembly = settle(town, entries)

    for at in (NOON, NOON + HOUR, NOON + 5 * HOUR):
        for manifest in assembly.succession("llama", at):
            ballot = assembly.ballot(manifest.id, at)
            assert ballot is not None
            yes = {
                entry.sender
                for voter in VOTERS
                for entry in assembly.entries_after(voter.peer_id, -1)
                if entry.message.kind == "vote"
                and entry.message.is_yes
                and entry.message.manifest == manifest.id
                and entry.time_ms <= manifest.time_ms + HOUR // 2
            }
            human = [entry.message for entry in assembly.entries_after(HUMAN.peer_id, -1)]
            assert len(yes) == len(VOTERS)
            assert any(word.kind == "approval" and word.manifest == manifest.id for word in human)
            assert not any(
                word.kind == "withdrawal" and word.adapter == manifest.message.adapter for word in human
            )


# --- forks ----------------------------------------------------------------------------------------------------------------
def test_a_fork_goes_its_own_way() -> None:
    town = begun()
    entries = town.ratify(A, 1)
    assembly = town.assembly(*entries[:-1])
    before = snapshot(assembly)

    fork = assembly.fork()
    fork.apply(entries[-1])

    assert head(fork) == (1, A)
    assert snapshot(assembly) == before


def test_an_empty_assembly_is_forked_and_asked_in_no_time() -> None:
    """Worlds of 10,000 devices fork it once for each, and every request asks what is in force."""
    assembly = town = begun().assembly()
    began = time.perf_counter()
    for _ in range(1_000):
        town = assembly.fork()
    fork_s = (time.perf_counter() - began) / 1_000
    began = time.perf_counter()
    for _ in range(1_000):
        town.ratified("llama", NOON)
        town.succession("llama", NOON)
        town.may_load(A, NOON)
    ask_s = (time.perf_counter() - began) / 1_000

    assert fork_s < 0.001
    assert ask_s < 0.001


# --- sizes ----------------------------------------------------------------------------------------------------------------
def test_the_largest_honest_manifest_and_vote_fit_their_kinds() -> None:
    """All domains, the whole cohort, names and reasons of full length: else an honest voter could not speak."""
    big, names = 2**32, [f"{number:064}" for number in range(limits.DOMAINS_MAX)]
    most = limits.EVALUATION_SAMPLES_MAX
    scores = tuple(Score(domain=name, right=most, total=most, loss_milli=big) for name in names)
    cohort = tuple(
        Contribution(peer=person(name).peer_id, samples=big, rounds=limits.ROUNDS_MAX, epsilon_milli=big)
        for name in names[: limits.COHORT_MAX]
    )
    reason = "🜂" * limits.DETAIL_CHARS_MAX
    town = begun()

    manifest = town.propose(
        before=scores,
        after=scores,
        cohort=cohort,
        reason=reason,
        shape=LoraShape(rank=limits.RANK_MAX, alpha=8 * limits.RANK_MAX, targets=tuple(names[:16])),
    )
    vote = town.vote(manifest, ANN, scores=scores, reason=reason)

    evidence = town.evidence(vote, manifest, by=ANN)
    assert len(evidence.raw) <= limits.GOSSIP_BYTES_MAX
