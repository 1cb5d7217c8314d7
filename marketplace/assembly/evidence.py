"""Evidence: two envelopes of one key that cannot both be honest.

Two contradictions count, both between *durable* entries, which an honest device commits before it sends:

- a fork: the same log and index, different content;
- a double word: two different awards for one (job, attempt), two accepts or receipts of one for the same award, or two
  yes votes for different manifests of one (line, version).

Job ids and attempts are the buyer's to choose, so a seller contradicts itself only under one *award*: otherwise a buyer
that awards an attempt twice, or two that name their jobs alike, could have an honest seller barred. Bids are no
evidence: an honest crash may bid again.

Evidence proves itself: it holds whoever brings it, and for ever.
"""

from dataclasses import dataclass

from marketplace.assembly.charter import open_entry
from protocol.errors import NotAuthorised
from protocol.identity import PeerId
from protocol.messages import Accept, Award, Entry, Evidence, Receipt, Vote


@dataclass(frozen=True)
class Contradiction:
    """What a piece of evidence proves.

    Attributes:
        accused: the key that signed both.
        fork_index: where its assembly log forks; None when the contradiction is another one.
        at_ms: when the later of the two was signed, by the clock of the accused.
    """

    accused: PeerId
    fork_index: int | None
    at_ms: int


def contradiction(evidence: Evidence, mesh: bytes) -> Contradiction:
    """Verify both envelopes and say what they prove.

    Raises:
        NotAuthorised: they contradict each other in nothing.
        RemoteProtocolError: one of them is no entry of this mesh, or its signature does not hold.
    """
    first, second = open_entry(evidence.first, mesh), open_entry(evidence.second, mesh)
    if first.sender != second.sender:
        raise NotAuthorised(f"evidence shows two keys, {first.sender} and {second.sender}, expected one")
    if first.id == second.id:
        raise NotAuthorised(f"evidence against {first.sender} shows the same entry twice")
    at_ms = max(first.time_ms, second.time_ms)
    one, other = first.message, second.message
    if (one.log, one.index) == (other.log, other.index):
        return Contradiction(first.sender, one.index if one.log == "assembly" else None, at_ms)
    word = _word(one)
    if word is None or word != _word(other) or _said_alike(one, other):
        raise NotAuthorised(
            f"evidence against {first.sender} shows two entries that do not contradict each other"
        )
    return Contradiction(first.sender, None, at_ms)


def _word(entry: Entry) -> tuple[str, bytes, bytes, int] | None:
    """Return what an entry may say only once: its kind, under which award, for which job and attempt."""
    match entry:
        case Award():
            return entry.kind, b"", entry.job_id, entry.attempt
        case Accept() | Receipt():
            return entry.kind, entry.award, entry.job_id, entry.attempt
        case Vote(is_yes=True):
            return entry.kind, b"", entry.line.encode(), entry.version
        case _:
            return None


def _said_alike(one: Entry, other: Entry) -> bool:
    """Whether two yes votes mean the same manifest: said twice, it is still one word."""
    return isinstance(one, Vote) and isinstance(other, Vote) and one.manifest == other.manifest
