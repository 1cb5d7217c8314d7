"""The charter: who votes, what it takes to pass, and how long each vote may last.

Version 1 is founded by one device and its SHA-256 is the mesh id, so its own envelope cannot name the mesh: it is the
one entry sealed under `NO_HASH`, and what proves it is that its content hashes to the mesh id.

A ballot passes iff `100 * yes_weight >= pass_percent * total_roll_weight`. The denominator is the roll, never the
turnout: silence is never consent.
"""

from dataclasses import dataclass
from typing import cast

from protocol.envelope import Sealed, open_sealed
from protocol.errors import ForeignMesh, MalformedMessage, NotAuthorised
from protocol.identity import PublicKey, public_key_of
from protocol.messages import BY_KIND, NO_HASH, Charter, Entry, RollEntry

PASS_PERCENT = 67
MACHINE_VOTE_MS = 30 * 60 * 1000  # devices evaluate and vote without asking anybody
HUMAN_APPROVAL_MS = 24 * 3600 * 1000  # a human sleeps
APPROVALS_MIN = 1  # a patch changes what everybody is told: a human reads the scores first
VETO_MS = 3600 * 1000  # when no approval is asked for, time enough to see a proposal and say no

BYZANTINE_VOTERS_MIN = 4  # n >= 3 f + 1 with f = 1
BYZANTINE_OWNERS_MIN = 3  # else one owner's devices are a blocking third by themselves

ENTRY_KINDS = frozenset(kind for kind, form in BY_KIND.items() if issubclass(form, Entry))
_CHARTER_KIND = frozenset({Charter.kind})


@dataclass(frozen=True)
class CharterFacts:
    """What a charter means in practice.

    Attributes:
        voters: keys on the roll.
        owners: different owners among them.
        weight_total: of the whole roll.
        weight_to_pass: the least yes weight that passes a ballot.
        absent_to_block: the fewest voters, the heaviest first, whose absence keeps every ballot from passing.
        is_byzantine_safe: whether one lying voter can neither pass nor block anything by itself, as far as the number
            of voters and owners tells.
    """

    voters: int
    owners: int
    weight_total: int
    weight_to_pass: int
    absent_to_block: int
    is_byzantine_safe: bool


def founding_charter(
    name: str, *, founder: PublicKey, owner: str, approver: PublicKey, recovery: tuple[PublicKey, ...] = ()
) -> Charter:
    """Return the first charter of a new mesh: the founder votes alone, with weight 1, and a human approves.

    It is to be sealed by the founder under mesh `NO_HASH`.

    Args:
        name: of the mesh, for humans.
        founder: the founding device's key.
        owner: whose device it is.
        approver: the human's own key, which no daemon loads.
        recovery: keys kept encrypted and offline for the day the others are lost.
    """
    return Charter(
        index=0,
        prev=NO_HASH,
        version=1,
        name=name,
        roll=(RollEntry(key=founder, owner=owner, weight=1),),
        approvers=(approver,),
        recovery=recovery,
        pass_percent=PASS_PERCENT,
        machine_vote_ms=MACHINE_VOTE_MS,
        human_approval_ms=HUMAN_APPROVAL_MS,
        veto_ms=VETO_MS,
        approvals_min=APPROVALS_MIN,
    )


def check_founding(charter: Sealed[Charter]) -> None:
    """Check that a charter founds a mesh.

    Raises:
        ForeignMesh: it was sealed under a mesh's id, so it founds none.
        MalformedMessage: not version 1 at the start of a log, it expires, or a key stands on it twice.
        NotAuthorised: its founder does not stand on its own roll.
    """
    open_sealed(charter.raw, mesh=NO_HASH, kinds=_CHARTER_KIND)
    message = charter.message
    if (message.version, message.index, message.prev) != (1, 0, NO_HASH):
        raise MalformedMessage(
            f"charter has version {message.version} at index {message.index}, expected version 1 at index 0"
        )
    if charter.expires_ms is not None:
        raise MalformedMessage("charter expires, expected one without an end")
    check_charter(message)
    if public_key_of(charter.sender) not in [entry.key for entry in message.roll]:
        raise NotAuthorised(f"charter is signed by {charter.sender}, who is not on its roll")


def check_charter(message: Charter) -> None:
    """Check what must hold of any charter, the first and those that follow.

    Raises:
        MalformedMessage: a key stands on it twice in one role.
    """
    for listed, role in (
        ([entry.key for entry in message.roll], "roll"),
        (message.approvers, "approvers"),
        (message.recovery, "recovery keys"),
    ):
        if len(set(listed)) != len(listed):
            raise MalformedMessage(f"charter names a key twice among its {role}")


def open_entry(raw: bytes, mesh: bytes, kinds: frozenset[str] = ENTRY_KINDS) -> Sealed[Entry]:
    """Verify form, mesh and signature of a log entry, the founding charter of this mesh among them.

    Args:
        raw: untrusted.
        mesh: the mesh id.
        kinds: which kinds of entries may come.

    Raises:
        RemoteProtocolError: one of its kinds; nothing else, whatever the bytes.
    """
    try:
        return cast("Sealed[Entry]", open_sealed(raw, mesh=mesh, kinds=kinds & ENTRY_KINDS))
    except ForeignMesh as foreign:
        try:
            founding = open_sealed(raw, mesh=NO_HASH, kinds=kinds & _CHARTER_KIND)
        except ForeignMesh:
            raise foreign from None
        if founding.id != mesh:
            raise ForeignMesh(
                f"charter founds mesh {founding.id.hex()[:12]}, expected {mesh.hex()[:12]}"
            ) from None
        return cast("Sealed[Entry]", founding)


def weight_to_pass(weight_total: int, pass_percent: int = PASS_PERCENT) -> int:
    """Return the least yes weight that passes."""
    return -(-pass_percent * weight_total // 100)


def passes(yes_weight: int, weight_total: int, pass_percent: int = PASS_PERCENT) -> bool:
    """Whether a yes weight is enough, in integers: 67 % of three voters is all three of them."""
    return 100 * yes_weight >= pass_percent * weight_total


def explain(charter: Charter) -> CharterFacts:
    """Return what the command line says about a charter."""
    weights = sorted((entry.weight for entry in charter.roll), reverse=True)
    owners = {entry.owner for entry in charter.roll}
    total = sum(weights)
    remaining = total
    absent = 0
    while passes(remaining, total, charter.pass_percent):
        remaining -= weights[absent]
        absent += 1
    return CharterFacts(
        voters=len(weights),
        owners=len(owners),
        weight_total=total,
        weight_to_pass=weight_to_pass(total, charter.pass_percent),
        absent_to_block=absent,
        is_byzantine_safe=len(weights) >= BYZANTINE_VOTERS_MIN and len(owners) >= BYZANTINE_OWNERS_MIN,
    )
