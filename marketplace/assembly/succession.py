"""From one charter to the next: who must agree before another roll decides.

The rules are those of TUF's root role (The Update Framework, specification 1.0.33, section 5.3). Version N+1 follows
version N and no other. It needs the consent of N's roll at N's threshold *and* of its own roll at its own threshold, so
that nobody is put out by those who come, and nobody comes who does not want to. One key counts once on each side. When
N's roll is lost, the consent of one of N's recovery keys stands for it; the new roll still has to agree.

A charter is in force from the earliest signed time by which enough had agreed, so every member says the same whatever
order the entries came in. A ballot is judged by the charter that was in force when its manifest was signed: a roll that
grows later takes nothing back.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from marketplace.assembly.charter import weight_to_pass
from protocol.envelope import Sealed
from protocol.identity import PeerId, PublicKey, peer_id_of
from protocol.messages import Charter, CharterConsent, RollEntry


@dataclass(frozen=True)
class Reign:
    """A charter, its keys by peer id, and since when it is in force (Unix milliseconds)."""

    id: bytes
    charter: Charter
    roll: Mapping[PeerId, RollEntry]
    approvers: frozenset[PeerId]
    recovery: frozenset[PeerId]
    since_ms: int

    @property
    def roll_weight(self) -> int:
        """What the whole roll weighs: the denominator of every ballot."""
        return sum(entry.weight for entry in self.charter.roll)

    @property
    def weight_to_pass(self) -> int:
        """What of it has to say yes."""
        return weight_to_pass(self.roll_weight, self.charter.pass_percent)


@dataclass(frozen=True)
class Consents:
    """How far a proposed charter is agreed to. Weights of those who have agreed, and what is needed, on each side."""

    old_weight: int
    old_needed: int
    new_weight: int
    new_needed: int
    missing: tuple[PeerId, ...]  # of either roll, who have said nothing yet

    @property
    def is_enough(self) -> bool:
        """Whether it comes into force."""
        return self.old_weight >= self.old_needed and self.new_weight >= self.new_needed


def reign(charter_id: bytes, charter: Charter, since_ms: int) -> Reign:
    """Return a charter as it is in force."""
    roll = {peer_id_of(PublicKey(entry.key)): entry for entry in charter.roll}
    approvers = frozenset(peer_id_of(PublicKey(key)) for key in charter.approvers)
    recovery = frozenset(peer_id_of(PublicKey(key)) for key in charter.recovery)
    return Reign(charter_id, charter, roll, approvers, recovery, since_ms)


def reign_at(reigns: Sequence[Reign], time_ms: int) -> Reign:
    """Return the charter that was in force at an hour; before the founding: the founding one."""
    return next((each for each in reversed(reigns) if each.since_ms <= time_ms), reigns[0])


def may_admit(roll: Mapping[PeerId, RollEntry], owner: str, *, admitted_by: PeerId) -> bool:
    """Whether a voter may admit a device as this owner's: one who stands on the roll admits its devices itself."""
    is_voter = any(entry.owner == owner for entry in roll.values())
    return not is_voter or roll[admitted_by].owner == owner


def consents(now: Reign, proposed: Charter, agreed: Iterable[PeerId]) -> Consents:
    """Return how far `proposed` is agreed to by these keys."""
    after = reign(b"", proposed, 0)
    keys = frozenset(agreed)
    old_needed = now.weight_to_pass
    old_weight = sum(entry.weight for key, entry in now.roll.items() if key in keys)
    if keys & now.recovery:
        old_weight = max(old_weight, old_needed)
    return Consents(
        old_weight=old_weight,
        old_needed=old_needed,
        new_weight=sum(entry.weight for key, entry in after.roll.items() if key in keys),
        new_needed=after.weight_to_pass,
        missing=tuple(key for key in dict.fromkeys((*now.roll, *after.roll)) if key not in keys),
    )


def may_propose(now: Reign, author: PeerId) -> bool:
    """Whether a key may write the next charter: a voter, or a recovery key."""
    return author in now.roll or author in now.recovery


def succession(
    founding: Reign, charters: Iterable[Sealed[Charter]], agreements: Iterable[Sealed[CharterConsent]]
) -> list[Reign]:
    """Return every charter that ever came into force, the founding one first.

    Args:
        founding: the mesh's first.
        charters: proposals of any version, in any order; a proposer agrees to what it proposes.
        agreements: consents to any of them, in any order.
    """
    proposals = sorted(charters, key=lambda entry: entry.id)
    words: dict[bytes, list[tuple[int, PeerId]]] = {
        entry.id: [(entry.time_ms, entry.sender)] for entry in proposals
    }
    for consent in agreements:
        if consent.message.charter in words:
            words[consent.message.charter].append((consent.time_ms, consent.sender))
    reigns = [founding]
    while True:
        now = reigns[-1]
        # Of two that both got enough, which only threshold-many double consents can bring about, the earlier one.
        following = min(
            (
                (since_ms, entry.id, entry.message)
                for entry in proposals
                if entry.message.version == now.charter.version + 1
                and may_propose(now, entry.sender)
                and (since_ms := _since_ms(now, entry.message, words[entry.id])) is not None
            ),
            default=None,
        )
        if following is None:
            return reigns
        since_ms, charter_id, charter = following
        reigns.append(reign(charter_id, charter, max(since_ms, now.since_ms)))


def _since_ms(now: Reign, proposed: Charter, words: list[tuple[int, PeerId]]) -> int | None:
    """Return the signed time of the word that made it enough; None: it is not enough yet."""
    agreed: set[PeerId] = set()
    for time_ms, key in sorted(words):
        agreed.add(key)
        if consents(now, proposed, agreed).is_enough:
            return time_ms
    return None
