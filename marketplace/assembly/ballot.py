"""A ballot: what was said on one manifest, and what that comes to.

The words are votes of the roll, and approvals and vetoes of humans. A word counts by the time it was *signed* at, within the
charter's terms from the manifest's own signed time on, whenever it arrives; so everybody who holds the same words says
the same. A certificate is the yes votes themselves, and nothing that is said later takes it back: a yes stands, a no may
still become one. Only a veto, signed within its window, ends what has passed.

    voting -> certified -> ratified          a word fails to come in time -> expired
       |          |            |
       +-> rejected            |             a human's no, at any of them -> vetoed | withdrawn
       +----------+------------+             another of that version or a later one is ratified -> superseded
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from marketplace.assembly.charter import passes, weight_to_pass
from marketplace.assembly.succession import Reign
from protocol.envelope import Sealed
from protocol.identity import PeerId
from protocol.messages import Approval, Entry, Manifest, Veto, Vote

E = TypeVar("E", bound=Entry)


class BallotState(Enum):
    """How far a ballot is."""

    VOTING = "voting"  # votes may come, and it may still pass
    CERTIFIED = "certified"  # it passes; an approval or the end of the veto window is awaited
    RATIFIED = "ratified"  # its adapter may be loaded
    REJECTED = "rejected"  # it cannot pass any more, or its line cannot take it
    EXPIRED = "expired"  # what it needed was not signed in time
    VETOED = "vetoed"
    WITHDRAWN = "withdrawn"
    SUPERSEDED = "superseded"  # another was ratified for its version or a later one


@dataclass
class Words:
    """All that was said on one manifest, in any order; what does not count is left out by `tally`."""

    votes: list[Sealed[Vote]] = field(default_factory=list)
    approvals: list[Sealed[Approval]] = field(default_factory=list)
    vetoes: list[Sealed[Veto]] = field(default_factory=list)

    def fork(self) -> "Words":
        """Return the same words, to grow on their own."""
        return Words(list(self.votes), list(self.approvals), list(self.vetoes))


@dataclass(frozen=True)
class Tally:
    """What the words on a manifest come to, whatever the hour and whatever became of other manifests.

    Attributes:
        votes: those that count, one of each voter.
        missing: voters who have said nothing and still may say yes.
        certified_ms: the signed time of the yes that made it pass; None: it does not (yet).
        ratified_ms: the signed time of the last word that it took, or the end of the veto window; None: words are lacking.
        effective_ms: it is ratified from this hour on; 0 when a human has approved, since no window is waited for then.
        vote_until_ms, approve_until_ms, veto_until_ms: the last signed times that count.
    """

    manifest: Sealed[Manifest]
    votes: Mapping[PeerId, Sealed[Vote]]
    yes_weight: int
    no_weight: int
    roll_weight: int
    weight_to_pass: int
    can_pass: bool
    missing: tuple[PeerId, ...]
    approved_by: tuple[PeerId, ...]
    approvals_needed: int
    vetoed_by: tuple[PeerId, ...]
    certified_ms: int | None
    ratified_ms: int | None
    effective_ms: int
    vote_until_ms: int
    approve_until_ms: int
    veto_until_ms: int

    def is_ratified(self, now_ms: int) -> bool:
        """Whether nothing is lacking at this hour. A veto is another matter."""
        return self.ratified_ms is not None and self.effective_ms <= now_ms

    def state(self, now_ms: int) -> BallotState:
        """Return how far it is, as far as its own words tell."""
        if self.vetoed_by:
            return BallotState.VETOED
        if self.is_ratified(now_ms):
            return BallotState.RATIFIED
        if self.certified_ms is not None:
            is_waiting = self.ratified_ms is not None or now_ms <= self.approve_until_ms
            return BallotState.CERTIFIED if is_waiting else BallotState.EXPIRED
        if not self.can_pass:
            return BallotState.REJECTED
        return BallotState.VOTING if now_ms <= self.vote_until_ms else BallotState.EXPIRED


@dataclass(frozen=True)
class BallotView:
    """A ballot as it is shown, and as the steward acts on it.

    Attributes:
        id: the manifest's.
        missing: voters who have said nothing and still may.
        expires_ms: until when what is lacking has to be signed; of a decided ballot, when it was or would have been.
        still_needed: what is lacking, or why it is over, for a human.
        is_in_force: it is what the line's plain name follows.
    """

    id: bytes
    manifest: Sealed[Manifest]
    state: BallotState
    yes_weight: int
    no_weight: int
    roll_weight: int
    weight_to_pass: int
    votes: Mapping[PeerId, Sealed[Vote]]
    missing: tuple[PeerId, ...]
    approved_by: tuple[PeerId, ...]
    vetoed_by: tuple[PeerId, ...]
    veto_until_ms: int
    expires_ms: int
    still_needed: str
    is_in_force: bool


def tally(manifest: Sealed[Manifest], words: Words, reign: Reign, silenced: Collection[PeerId] = ()) -> Tally:
    """Count.

    Args:
        manifest: the proposal.
        words: whatever was said on it, by whomever and whenever.
        reign: the charter that was in force when it was signed.
        silenced: voters who cannot say yes any more: barred, or their yes for this version is another manifest's.
    """
    charter, proposal = reign.charter, manifest.message
    total = reign.roll_weight
    last_ms = proposal.expires_at - 1
    vote_until = min(manifest.time_ms + charter.machine_vote_ms, last_ms)
    approve_until = min(manifest.time_ms + charter.human_approval_ms, last_ms)
    veto_until = manifest.time_ms + charter.veto_ms

    votes = _votes(manifest, words.votes, reign, vote_until)
    yes = {voter: vote for voter, vote in votes.items() if vote.message.is_yes}
    yes_weight = sum(reign.roll[voter].weight for voter in yes)
    missing = tuple(voter for voter in reign.roll if voter not in votes and voter not in silenced)
    hoped_for = yes_weight + sum(reign.roll[voter].weight for voter in missing)
    certified = _certified_ms(yes, reign)

    approvals = _first_words(words.approvals, reign.approvers, approve_until)
    needed = max(1, charter.approvals_min)
    ratified, effective = None, 0
    if certified is not None and len(approvals) >= needed:
        ratified = max(certified, approvals[needed - 1].time_ms)
    if certified is not None and not charter.approvals_min and veto_until <= last_ms:
        unopposed = max(certified, veto_until)
        effective = 0 if ratified is not None else unopposed
        ratified = unopposed if ratified is None else min(ratified, unopposed)
    return Tally(
        manifest=manifest,
        votes=votes,
        yes_weight=yes_weight,
        no_weight=sum(reign.roll[voter].weight for voter in votes) - yes_weight,
        roll_weight=total,
        weight_to_pass=weight_to_pass(total, charter.pass_percent),
        can_pass=passes(hoped_for, total, charter.pass_percent),
        missing=missing,
        approved_by=tuple(approval.sender for approval in approvals),
        approvals_needed=charter.approvals_min,
        vetoed_by=tuple(veto.sender for veto in _first_words(words.vetoes, reign.approvers, veto_until)),
        certified_ms=certified,
        ratified_ms=ratified,
        effective_ms=effective,
        vote_until_ms=vote_until,
        approve_until_ms=approve_until,
        veto_until_ms=veto_until,
    )


def _votes(
    manifest: Sealed[Manifest], votes: Iterable[Sealed[Vote]], reign: Reign, until_ms: int
) -> dict[PeerId, Sealed[Vote]]:
    """Return the vote of each voter that counts: its first yes, else its last no."""
    counted: dict[PeerId, Sealed[Vote]] = {}
    named = (manifest.message.line, manifest.message.version)
    for vote in sorted(votes, key=lambda vote: (vote.time_ms, vote.message.index)):
        is_valid = vote.sender in reign.roll and vote.time_ms <= until_ms
        if not is_valid or (vote.message.line, vote.message.version) != named:
            continue
        earlier = counted.get(vote.sender)
        if earlier is None or not earlier.message.is_yes:
            counted[vote.sender] = vote
    return counted


def _certified_ms(yes: Mapping[PeerId, Sealed[Vote]], reign: Reign) -> int | None:
    """Return the signed time of the vote that made it enough."""
    weight = 0
    for vote in sorted(yes.values(), key=lambda vote: vote.time_ms):
        weight += reign.roll[vote.sender].weight
        if passes(weight, reign.roll_weight, reign.charter.pass_percent):
            return vote.time_ms
    return None


def _first_words(
    words: Iterable[Sealed[E]], approvers: Collection[PeerId], until_ms: int
) -> Sequence[Sealed[E]]:
    """Return the first word of each approver that counts, in the order of their signed times."""
    first: dict[PeerId, Sealed[E]] = {}
    for word in sorted(words, key=lambda word: (word.time_ms, word.sender)):
        if word.sender in approvers and word.time_ms <= until_ms:
            first.setdefault(word.sender, word)
    return list(first.values())
