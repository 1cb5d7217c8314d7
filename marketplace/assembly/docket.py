"""The docket: every ballot as it is shown and acted on, and what would still change one.

What a ballot's own words come to is `ballot.py`'s; here it stands among the others of its line: superseded by them,
withdrawn with its adapter, made for a base that its line has not. What can no more count is refused here by its name,
before it is written.
"""

from marketplace.assembly.ballot import BallotState, BallotView, Tally
from marketplace.assembly.lines import Lines
from protocol import limits
from protocol.envelope import Sealed
from protocol.errors import (
    BallotClosed,
    ExpiredManifest,
    ForeignBase,
    NotAuthorised,
    StaleVersion,
    UnknownManifest,
    VetoTooLate,
)
from protocol.messages import NO_HASH, Approval, Manifest, Veto, Vote, Withdrawal


def ballots(lines: Lines, now_ms: int) -> list[BallotView]:
    """Return every ballot, the oldest first."""
    return [_view(lines, manifest, now_ms) for manifest in lines.manifests()]


def ballot(lines: Lines, manifest: bytes, now_ms: int) -> BallotView | None:
    """Return the ballot of a manifest; None when that is not known."""
    known = lines.manifest(manifest)
    return None if known is None else _view(lines, known, now_ms)


def may_load(lines: Lines, adapter: bytes, now_ms: int) -> str:
    """Return why an adapter may not be loaded; empty: a manifest that proposes it stands ratified.

    Args:
        lines: all of them.
        adapter: its digest.
        now_ms: Unix time in milliseconds.
    """
    reason = "no manifest proposes it"
    if lines.is_withdrawn(adapter):
        return "its adapter was withdrawn by a human"
    for manifest in lines.of_adapter(adapter) if adapter != NO_HASH else ():
        view = _view(lines, manifest, now_ms)
        if view.state is BallotState.RATIFIED:
            return ""
        reason = f"version {manifest.message.version} of {manifest.message.line} is {view.state.value}"
    return reason


def check_proposal(lines: Lines, proposal: Manifest, now_ms: int) -> None:
    """Check a manifest that is about to be written, or voted on.

    Raises:
        NotAuthorised: there is no such line, or it brings back a version that had another adapter.
        ForeignBase: it adapts another base model than the line's.
        ExpiredManifest: its time is over.
        StaleVersion: its version is not above what was ratified, or too far above.
    """
    line = lines.line(proposal.line)
    if line is None:
        raise NotAuthorised(f"there is no line {proposal.line!r}; publish one first")
    if proposal.base != line.base:
        raise ForeignBase(
            f"manifest is for base {proposal.base.hex()[:8]}, expected {line.base.hex()[:8]} of line {proposal.line}"
        )
    if proposal.expires_at <= now_ms:
        raise ExpiredManifest(f"manifest expired {(now_ms - proposal.expires_at) // 1000} s ago")
    high = lines.standing(proposal.line, now_ms).high_water
    if not high < proposal.version <= high + limits.VERSIONS_SKIPPED_MAX:
        raise StaleVersion(
            f"manifest has version {proposal.version}, expected {high + 1} to {high + limits.VERSIONS_SKIPPED_MAX}"
        )
    if proposal.rolls_back_to:
        former = {
            known.manifest.message.version: known.manifest.message.adapter
            for known in lines.standing(proposal.line, now_ms).stand
        }
        if former.get(proposal.rolls_back_to) != proposal.adapter:
            raise NotAuthorised(f"version {proposal.rolls_back_to} was not ratified with that adapter")


def check_word(lines: Lines, word: Vote | Approval | Veto | Withdrawal, at_ms: int) -> None:
    """Check a word that is about to be signed, at its signed time: whether it still changes anything.

    Raises:
        UnknownManifest: on a proposal or an adapter that is not known here.
        ForeignBase: on one that adapts another base than its line's.
        ExpiredManifest: on one whose time is over.
        VetoTooLate: after the veto window.
        BallotClosed: on one that has been decided.
    """
    if isinstance(word, Withdrawal):
        if not lines.of_adapter(word.adapter):
            raise UnknownManifest(f"no manifest proposes adapter {word.adapter.hex()[:8]}")
        return
    view = ballot(lines, word.manifest, at_ms)
    if view is None:
        raise UnknownManifest(f"manifest {word.manifest.hex()[:8]} is not known here")
    proposal, state = view.manifest.message, view.state
    name = f"version {proposal.version} of {proposal.line}"
    if isinstance(word, Vote) and (word.line, word.version) != (proposal.line, proposal.version):
        raise UnknownManifest(f"vote names version {word.version} of {word.line}, its manifest is {name}")
    if isinstance(word, Veto) and at_ms > view.veto_until_ms:
        raise VetoTooLate(
            f"veto window of {name} ended {(at_ms - view.veto_until_ms) // 1000} s ago; withdraw its adapter"
        )
    may_be = {BallotState.VOTING, BallotState.CERTIFIED}
    if isinstance(word, Veto):
        may_be.add(BallotState.RATIFIED)
    if state in may_be:
        return
    if state is BallotState.EXPIRED:
        raise ExpiredManifest(f"{name} has expired: {view.still_needed}")
    line = lines.line(proposal.line)
    if state is BallotState.REJECTED and line is not None and line.base != proposal.base:
        raise ForeignBase(f"{name} is for base {proposal.base.hex()[:8]}, expected {line.base.hex()[:8]}")
    raise BallotClosed(f"{name} is {state.value} already")


def _view(lines: Lines, manifest: Sealed[Manifest], now_ms: int) -> BallotView:
    known = lines.tally(manifest)
    message = known.manifest.message
    standing = lines.standing(message.line, now_ms)
    state, why = known.state(now_ms), ""
    if lines.is_withdrawn(message.adapter):
        state, why = BallotState.WITHDRAWN, lines.why_barred(known)
    elif state is BallotState.VETOED:
        why = f"vetoed by {', '.join(known.vetoed_by)}"
    elif barred := lines.why_barred(known):
        state, why = BallotState.REJECTED, barred
    elif lines.is_barred(manifest.sender) and state is not BallotState.RATIFIED:
        state, why = BallotState.REJECTED, "its author was barred"
    elif all(each.manifest.id != known.manifest.id for each in standing.stand):
        if message.version <= standing.high_water:
            state, why = BallotState.SUPERSEDED, f"version {standing.high_water} was ratified"
        elif state is BallotState.RATIFIED or (
            message.version > standing.high_water + limits.VERSIONS_SKIPPED_MAX
        ):
            state, why = BallotState.REJECTED, "its version leaps too far ahead"
    head = lines.ratified(message.line, now_ms)
    return BallotView(
        id=known.manifest.id,
        manifest=known.manifest,
        state=state,
        yes_weight=known.yes_weight,
        no_weight=known.no_weight,
        roll_weight=known.roll_weight,
        weight_to_pass=known.weight_to_pass,
        votes=known.votes,
        missing=known.missing,
        approved_by=known.approved_by,
        vetoed_by=known.vetoed_by,
        veto_until_ms=known.veto_until_ms,
        expires_ms=_expires_ms(known, state),
        still_needed=why or _still_needed(known, state),
        is_in_force=head is not None and head.id == known.manifest.id,
    )


def _expires_ms(known: Tally, state: BallotState) -> int:
    """Return when what is lacking must have been signed."""
    if state is BallotState.VOTING:
        return known.vote_until_ms
    if state is BallotState.CERTIFIED:
        return known.effective_ms or known.approve_until_ms
    return known.manifest.message.expires_at


def _still_needed(known: Tally, state: BallotState) -> str:
    match state:
        case BallotState.VOTING:
            lacking = known.weight_to_pass - known.yes_weight
            return f"yes of weight {lacking} more, of {known.roll_weight} on the roll"
        case BallotState.CERTIFIED if known.ratified_ms is not None:
            return "the end of the veto window"
        case BallotState.CERTIFIED:
            lacking = max(1, known.approvals_needed) - len(known.approved_by)
            return "approval of a human" if lacking == 1 else f"approval of {lacking} more humans"
        case BallotState.REJECTED:
            return "cannot pass any more"
        case BallotState.EXPIRED if known.certified_ms is None:
            return "too few voters said yes in time"
        case BallotState.EXPIRED:
            return "no human approved in time"
        case _:
            return ""
