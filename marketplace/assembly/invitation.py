"""Invitations: how a device that knows nothing of a mesh becomes a member of it.

An invite text travels out of band (a paste, a QR code). It holds the mesh id, the invitation signed by a member of the
roll, and a one-use key. The joiner signs its peer id with that key, so whoever overhears the join request learns nothing
that admits another device. The issuer answers with the founding charter and an `Admitted` entry, and the joiner verifies
by itself that the charter hashes to the mesh id of the text, that the inviter stands on its roll or on a later one's, and
that the entry names the joiner. Whether it does shows in what the assembly has written since, which comes with the answer.

The issuer alone counts an invitation's uses (docs/adr/0001): each is an `Admitted` entry of its own log that names the
invitation, so nothing else has to be stored.
"""

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Annotated, cast

from msgspec import Meta

from marketplace.assembly.assembly import Assembly
from marketplace.assembly.charter import open_entry
from protocol import limits
from protocol.envelope import Sealed, decode, encode, open_sealed, seal
from protocol.errors import (
    AgoraError,
    BadSignature,
    ForeignMesh,
    LocalProtocolError,
    MalformedMessage,
    NotAuthorised,
    RemoteProtocolError,
)
from protocol.identity import SEED_BYTES, Identity, PeerId, PublicKey, public_key_of, verify
from protocol.messages import Admitted, Charter, Entries, Entry, Hash, Invitation, JoinRequest, Part, Refusal

PREFIX = "agora1"
CHECKSUM_BYTES = 4  # against a lost or mistyped character; tampering is what the signature is for
FOLDS_MAX = 8  # times that entries which came too early are tried again; they come in an order that needs two
_KINDS = frozenset({Invitation.kind})


class BadInvitation(AgoraError):
    """An invite text that cannot be used; the message is the one line that the user reads."""


class _Text(Part, frozen=True, kw_only=True):
    """What stands behind the prefix of an invite text."""

    mesh: Hash
    seed: Annotated[bytes, Meta(min_length=SEED_BYTES, max_length=SEED_BYTES)]
    invitation: Annotated[bytes, Meta(max_length=limits.MARKET_BYTES_MAX)]


@dataclass(frozen=True)
class Invite:
    """An invitation together with its one-use key: whoever holds it may join.

    Attributes:
        sealed: the invitation, signed by its issuer.
        one_use: the key that signs the joiner's peer id.
        mesh: the mesh id.
    """

    sealed: Sealed[Invitation]
    one_use: Identity
    mesh: bytes

    @property
    def issuer(self) -> PeerId:
        """Who invites, and who alone can admit."""
        return self.sealed.sender

    @property
    def text(self) -> str:
        """The form to paste. It is a secret until it is used up."""
        packed = encode(_Text(mesh=self.mesh, seed=self.one_use.seed, invitation=self.sealed.raw))
        return PREFIX + base64.urlsafe_b64encode(packed + _checksum(packed)).decode("ascii").rstrip("=")


@dataclass(frozen=True)
class Admission:
    """Yes: what the `Admitted` entry is to say."""

    peer: PeerId
    owner: str
    credit_line_micro: int
    invitation_id: bytes


@dataclass(frozen=True)
class AlreadyAdmitted:
    """Yes again: the joiner's earlier answer was lost. No use is counted."""

    entry: Sealed[Entry]


def make(
    identity: Identity,
    *,
    mesh: bytes,
    seq: tuple[int, int],
    time_ms: int,
    ttl_ms: int,
    uses: int,
    owner: str,
    credit_line_micro: int,
    addresses: tuple[str, ...],
    rng: Random,
) -> Invite:
    """Return a new invitation of a roll member's device.

    Args:
        identity: the issuer's key.
        mesh: the mesh id.
        seq: from the issuer's `Sequence`.
        time_ms: Unix time in milliseconds.
        ttl_ms: how long it may be used.
        uses: how many devices it admits.
        owner: whose devices they are.
        credit_line_micro: what each may owe.
        addresses: where the issuer can be dialled.
        rng: where the one-use key comes from: `SystemRandom`, or the simulated world's.

    Raises:
        LocalProtocolError: it would last longer than an invitation may, or not at all.
    """
    ttl_ms_max = int(limits.INVITATION_TTL_S_MAX * 1000)
    if not 0 < ttl_ms <= ttl_ms_max:
        raise LocalProtocolError(
            f"invitation lasts {ttl_ms} ms, expected more than 0 and at most {ttl_ms_max}"
        )
    one_use = Identity(rng.randbytes(SEED_BYTES))
    invitation = Invitation(
        invitation_id=rng.randbytes(16),
        key=one_use.public_key,
        uses=uses,
        owner=owner,
        credit_line_micro=credit_line_micro,
        expires_at=time_ms + ttl_ms,
        addresses=addresses,
    )
    return Invite(
        seal(invitation, identity, mesh=mesh, seq=seq, time_ms=time_ms, ttl_ms=ttl_ms), one_use, mesh
    )


def parse(text: str, *, utc_ms: int, mesh: bytes | None = None) -> Invite:
    """Read an invite text; line breaks that a terminal put in are no harm.

    Args:
        text: what the user pasted.
        utc_ms: Unix time in milliseconds.
        mesh: the mesh this device belongs to already; None for none.

    Raises:
        BadInvitation: not an invitation, damaged, tampered with, expired, or of another mesh; the message says which.
    """
    # Bounded before anything looks at it whole: a paste may be anything.
    compact = "".join(text[: 2 * limits.INVITATION_CHARS_MAX].split())
    if not compact.startswith(PREFIX):
        raise BadInvitation(f"this is not an invitation, expected a text that starts with {PREFIX!r}")
    if len(compact) > limits.INVITATION_CHARS_MAX:
        raise BadInvitation(
            f"the invitation is longer than {limits.INVITATION_CHARS_MAX} characters; copy it alone"
        )
    try:
        packed = _unpacked(compact.removeprefix(PREFIX))
    except ValueError:
        raise BadInvitation(
            "the invitation is damaged: characters are missing or changed; copy it again"
        ) from None
    try:
        parts = decode(packed, _Text)
        sealed = cast("Sealed[Invitation]", open_sealed(parts.invitation, mesh=parts.mesh, kinds=_KINDS))
        one_use = Identity(parts.seed)
        if one_use.public_key != sealed.message.key:
            raise MalformedMessage("one-use key is not the invitation's")
    except RemoteProtocolError as error:
        raise BadInvitation(f"the invitation does not verify ({error}); ask for a new one") from error
    if mesh is not None and parts.mesh != mesh:
        raise BadInvitation(
            f"the invitation is for mesh {parts.mesh.hex()[:12]}, this device belongs to {mesh.hex()[:12]}; "
            "join with another home directory"
        )
    if sealed.message.expires_at <= utc_ms:
        late_s = (utc_ms - sealed.message.expires_at) // 1000
        raise BadInvitation(f"the invitation expired {late_s} s ago; ask {sealed.sender} for a new one")
    return Invite(sealed, one_use, parts.mesh)


def proof(one_use: Identity, peer_id: PeerId, mesh: bytes) -> bytes:
    """Return the one-use key's signature over the joiner's peer id."""
    return one_use.sign(_proven(peer_id, mesh))


def join_request(invite: Invite, peer_id: PeerId) -> JoinRequest:
    """Return what a joiner sends to the issuer, sealed with its own key."""
    return JoinRequest(invitation=invite.sealed.raw, proof=proof(invite.one_use, peer_id, invite.mesh))


def check_join(
    request: Sealed[JoinRequest], *, issuer: PeerId, uses_so_far: int, assembly: Assembly, utc_ms: int
) -> Admission | AlreadyAdmitted | Refusal:
    """Decide about a joiner, at the issuer.

    Args:
        request: verified; its sender is the joiner.
        issuer: who decides, we.
        uses_so_far: from `assembly.uses_of`, in the same step that then writes the entry.
        assembly: as we know it.
        utc_ms: Unix time in milliseconds.
    """
    joiner = request.sender
    invitation = _verified(request, issuer, assembly)
    if isinstance(invitation, Refusal):
        return invitation
    if assembly.is_barred(joiner):
        return _no("revoked", f"peer {joiner} was barred; join with a new key")
    if (earlier := assembly.admission_of(joiner)) is not None:
        return AlreadyAdmitted(earlier)
    if joiner in assembly.roll:
        return _no("member", f"peer {joiner} is on the roll already")
    if invitation.expires_at <= utc_ms:
        return _no("expired", f"invitation expired {(utc_ms - invitation.expires_at) // 1000} s ago")
    if uses_so_far >= invitation.uses:
        return _no("used_up", f"invitation was used {uses_so_far} times, at most {invitation.uses} allowed")
    if not assembly.weight(issuer):
        return _no("authority", f"{issuer} does not vote on this mesh and admits nobody")
    try:
        assembly.check_owner(invitation.owner, admitted_by=issuer)
    except NotAuthorised as error:
        return _no("authority", str(error))
    return Admission(joiner, invitation.owner, invitation.credit_line_micro, invitation.invitation_id)


def _verified(request: Sealed[JoinRequest], issuer: PeerId, assembly: Assembly) -> Invitation | Refusal:
    """Return the invitation if it is the issuer's own and its holder has signed the joiner's peer id."""
    try:
        sealed = open_sealed(request.message.invitation, mesh=assembly.mesh, kinds=_KINDS)
    except ForeignMesh as error:
        return _no("foreign", str(error))
    except RemoteProtocolError as error:
        return _no("tampered", str(error))
    if sealed.sender != issuer:
        return _no("foreign", f"invitation of {sealed.sender} came to {issuer}; join through its issuer")
    invitation = cast("Sealed[Invitation]", sealed).message
    try:
        verify(PublicKey(invitation.key), request.message.proof, _proven(request.sender, assembly.mesh))
    except BadSignature:
        return _no("proof", f"the one-use key has not signed the peer id {request.sender}")
    return invitation


@dataclass(frozen=True)
class Welcome:
    """A verified yes.

    Attributes:
        assembly: the mesh's, as far as the issuer has told it.
        admitted: the entry that admits us.
        entries: all of the assembly's, the founding charter first, in an order in which they can be folded.
    """

    assembly: Assembly
    admitted: Sealed[Admitted]
    entries: tuple[Sealed[Entry], ...]


def answer(assembly: Assembly, admitted: Sealed[Entry]) -> Entries:
    """Return the issuer's yes. What the assembly has written since its founding follows it; see `history`."""
    return Entries(entries=(assembly.entries_after(assembly.founder, -1)[0].raw, admitted.raw))


def history(assembly: Assembly) -> Iterator[Sealed[Entry]]:
    """Yield every entry of the assembly, author by author: whoever joins has to see how the issuer came onto the roll."""
    for head in assembly.heads():
        yield from assembly.entries_after(PeerId(head.author), -1)


def open_answer(entries: Entries, invite: Invite, peer_id: PeerId, history: Iterable[bytes] = ()) -> Welcome:
    """Verify the issuer's yes, at the joiner.

    Args:
        entries: the yes itself.
        invite: what we asked with.
        peer_id: our own.
        history: the sealed entries that came after it, untrusted; their number has been bounded.

    Raises:
        RemoteProtocolError: the charter is not this mesh's, the inviter is not on the roll of the newest one, or the
            entry does not admit us on this invitation.
    """
    if len(entries.entries) != 2:
        raise MalformedMessage(
            f"answer has {len(entries.entries)} entries, expected the charter and the admission"
        )
    charter, admitted = (open_entry(raw, invite.mesh) for raw in entries.entries)
    if not isinstance(charter.message, Charter) or not isinstance(admitted.message, Admitted):
        raise MalformedMessage("answer holds other entries than a charter and an admission")
    assembly = Assembly.found(cast("Sealed[Charter]", charter))
    since = _folded(assembly, [open_entry(raw, invite.mesh) for raw in history])
    if invite.issuer not in assembly.roll or admitted.sender not in assembly.roll:
        raise NotAuthorised(f"{invite.issuer} invites to a mesh and is not on its roll")
    if PeerId(admitted.message.peer) != peer_id:
        raise NotAuthorised(f"answer admits {admitted.message.peer}, expected {peer_id}")
    return Welcome(assembly, cast("Sealed[Admitted]", admitted), (charter, *since))


def _folded(assembly: Assembly, entries: Sequence[Sealed[Entry]]) -> list[Sealed[Entry]]:
    """Fold what can be folded; return it in that order. One author's right may stand in another's log: what is too early waits."""
    folded = []
    for _ in range(FOLDS_MAX):
        waiting = []
        for entry in entries:
            try:
                if assembly.apply(entry):
                    folded.append(entry)
            except (
                RemoteProtocolError
            ):  # too early, or nothing that the newcomer needs: sync will ask for it again
                waiting.append(entry)
        if len(waiting) in (0, len(entries)):
            break
        entries = waiting
    return folded


def _unpacked(text: str) -> bytes:
    """Return what stands in an invite text.

    Raises:
        ValueError: it was damaged on its way.
    """
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    packed, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if _checksum(packed) != checksum:
        raise ValueError("checksum does not hold")
    return packed


def _checksum(packed: bytes) -> bytes:
    return hashlib.sha256(packed).digest()[:CHECKSUM_BYTES]


def _proven(peer_id: PeerId, mesh: bytes) -> bytes:
    return b"agora/join_proof/1\0" + mesh + public_key_of(peer_id)


def _no(reason: str, detail: str) -> Refusal:
    return Refusal(reason=reason, detail=detail[: limits.DETAIL_CHARS_MAX])
