"""Every ballot counted anew from signed entries alone: written apart from the rule that it checks.

It is kinder than the rule in one respect: it does not ask whether a voter was convicted later. What it calls not
ratified therefore never was.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

from protocol.envelope import Sealed
from protocol.identity import PeerId, PublicKey, peer_id_of
from protocol.messages import Approval, Charter, Entry, Manifest, Veto, Vote, Withdrawal


@dataclass
class Count:
    """What the entries say of one manifest.

    Attributes:
        yes: the weight of each voter whose yes counts.
        approvals: humans who said yes in time.
        barred_by: a human's veto in time, or the withdrawal of its adapter; None: nobody's.
    """

    manifest: Sealed[Manifest]
    yes: dict[PeerId, int] = field(default_factory=dict)
    approvals: set[PeerId] = field(default_factory=set)
    barred_by: Sealed[Entry] | None = None

    def why_not(self, charter: Charter, now_ms: int, *, clocks_ms: int) -> str:
        """Return why it is not in force; empty: it is.

        Args:
            charter: whose thresholds hold.
            now_ms: the world's true time.
            clocks_ms: by how much a device's clock may be ahead of it.
        """
        total = sum(entry.weight for entry in charter.roll)
        weight = sum(self.yes.values())
        if 100 * weight < charter.pass_percent * total:
            return f"{weight} of {total} voted for it, {charter.pass_percent} % needed"
        if self.barred_by:
            return f"there is a human's {self.barred_by.message.kind}"
        if len(self.approvals) >= max(1, charter.approvals_min):
            return ""  # a human's yes ends the wait for a human's no
        if charter.approvals_min:
            return f"{len(self.approvals)} of {charter.approvals_min} humans approved it"
        window_over_ms = self.manifest.time_ms + charter.veto_ms
        if now_ms + clocks_ms < window_over_ms:
            return f"its veto window is open for another {(window_over_ms - now_ms) / 1000:.0f} s"
        return ""


def recount(charter: Charter, entries: Iterable[Sealed[Entry]]) -> dict[bytes, Count]:
    """Count what these entries say of every manifest among them, by manifest id."""
    weights = {peer_id_of(PublicKey(entry.key)): entry.weight for entry in charter.roll}
    approvers = {peer_id_of(PublicKey(key)) for key in charter.approvers}
    known = list(entries)
    counts = {
        entry.id: Count(cast("Sealed[Manifest]", entry))
        for entry in known
        if isinstance(entry.message, Manifest)
    }
    withdrawn = {
        entry.message.adapter: entry
        for entry in known
        if isinstance(entry.message, Withdrawal) and entry.sender in approvers
    }
    for count in counts.values():
        count.barred_by = withdrawn.get(count.manifest.message.adapter)
    for vote in _first_yes(known, weights):
        about = counts.get(cast("Vote", vote.message).manifest)
        if about and _is_in_time(vote, about, charter.machine_vote_ms):
            about.yes[vote.sender] = weights[vote.sender]
    for entry in known:
        message = entry.message
        if not isinstance(message, Approval | Veto) or entry.sender not in approvers:
            continue
        about = counts.get(message.manifest)
        if about is None:
            continue
        if isinstance(message, Approval):
            if _is_in_time(entry, about, charter.human_approval_ms):
                about.approvals.add(entry.sender)
        elif entry.time_ms <= about.manifest.time_ms + charter.veto_ms:
            about.barred_by = entry
    return counts


def _is_in_time(word: Sealed[Entry], about: Count, window_ms: int) -> bool:
    """Whether a yes was signed within its window, and before the manifest expired."""
    manifest = about.manifest
    return word.time_ms < manifest.message.expires_at and word.time_ms <= manifest.time_ms + window_ms


def _first_yes(entries: Iterable[Sealed[Entry]], weights: dict[PeerId, int]) -> Iterable[Sealed[Entry]]:
    """The earliest signed yes of each voter for each version of a line: a later one, for another patch, is no vote."""
    first: dict[tuple[PeerId, str, int], Sealed[Entry]] = {}
    for entry in entries:
        message = entry.message
        if isinstance(message, Vote) and message.is_yes and entry.sender in weights:
            key = (entry.sender, message.line, message.version)
            known = first.get(key)
            if known is None or (entry.time_ms, entry.message.index) < (known.time_ms, known.message.index):
                first[key] = entry
    return first.values()
