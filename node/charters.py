"""The charter in force, what may follow it, and this device's word on that: the daemon's half of `agora charter`.

A voter proposes the next version; whoever stands on the old roll or on the new one agrees with its own device. Nothing is
in force before enough of both have (`marketplace/assembly/succession.py`).
"""

from collections.abc import Sequence
from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta, Struct

from marketplace.assembly.assembly import Assembly
from marketplace.assembly.charter import check_charter, explain
from marketplace.assembly.succession import Consents
from node.errors import StartError
from node.journal import Journal
from node.logbook import Logbook
from node.services.sync import Sync
from node.short_id import begins, the_only
from protocol import limits
from protocol.envelope import Sealed
from protocol.errors import MalformedMessage
from protocol.identity import PeerId, public_key_of
from protocol.messages import Charter, CharterConsent, Peer, RollEntry

_KeyHex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Voter(Struct, forbid_unknown_fields=True, frozen=True):
    """A member that shall vote."""

    peer_id: Peer
    weight: Annotated[int, Meta(ge=1, le=1_000_000)] = 1


class CharterChange(Struct, forbid_unknown_fields=True, frozen=True):
    """What the next charter has otherwise than the one in force. None: as it is.

    Attributes:
        voters: members that are put on the roll, or whose weight changes.
        leaving: voters that are taken off it.
        approvers, former_approvers: human keys, in hex, that may approve from then on, or not any more.
    """

    voters: Annotated[tuple[Voter, ...], Meta(max_length=limits.ROLL_MAX)] = ()
    leaving: Annotated[tuple[Peer, ...], Meta(max_length=limits.ROLL_MAX)] = ()
    approvers: Annotated[tuple[_KeyHex, ...], Meta(max_length=limits.ROLL_MAX)] = ()
    former_approvers: Annotated[tuple[_KeyHex, ...], Meta(max_length=limits.ROLL_MAX)] = ()
    pass_percent: Annotated[int, Meta(ge=51, le=100)] | None = None
    approvals_min: Annotated[int, Meta(ge=0, le=limits.ROLL_MAX)] | None = None
    machine_vote_ms: Annotated[int, Meta(ge=1_000, le=2**40)] | None = None
    human_approval_ms: Annotated[int, Meta(ge=1_000, le=2**40)] | None = None
    veto_ms: Annotated[int, Meta(ge=0, le=2**40)] | None = None


class Charters:
    """The charter as the owner of this device sees and changes it."""

    def __init__(self, logbook: Logbook, sync: Sync, journal: Journal) -> None:
        self._logbook = logbook
        self._sync = sync
        self._journal = journal

    def shown(self) -> dict[str, Any]:
        """The charter in force, what it means in practice, and what is proposed to follow it."""
        assembly = self._logbook.assembly
        return {
            **_hex(assembly.charter),
            "mesh_id": assembly.mesh.hex(),
            "facts": msgspec.to_builtins(explain(assembly.charter)),
            "proposed": [self._proposed(entry, agreed) for entry, agreed in assembly.proposed_charters()],
        }

    async def propose(self, change: CharterChange) -> dict[str, Any]:
        """Propose the next version; in a mesh of one voter who takes nobody in, it is in force at once.

        Raises:
            StartError: this device may not, or the change makes no charter.
        """
        assembly, me = self._logbook.assembly, self._logbook.me
        if not assembly.weight(me):
            raise StartError(
                "only devices on the charter's roll propose the next one; run this on one of them"
            )
        fields = changed(assembly, change)
        entry = await self._logbook.write(
            Charter, lambda index, prev: Charter(**{**fields, "index": index, "prev": prev})
        )
        await self._sync.announce(entry)
        self._journal.write("charter_proposed", charter=entry.id, version=entry.message.version)
        return self._outcome(entry)

    async def sign(self, prefix: str) -> dict[str, Any]:
        """Agree to a proposed charter with this device.

        Raises:
            StartError: no such proposal, or this device stands on neither roll, or it has agreed before.
        """
        assembly, me = self._logbook.assembly, self._logbook.me
        proposed = [each for each in assembly.proposed_charters() if begins(each[0].id, prefix)]
        entry, agreed = the_only(proposed, prefix, what="proposed charters", see="agora charter show")
        if me not in agreed.missing:
            raise StartError("this device has agreed to it already, or stands on neither roll")
        return await self._agree(entry)

    async def agree(self, charter: bytes) -> dict[str, Any]:
        """Agree to a charter that a recovery key has signed, if this device stands on a roll; say how far it is then.

        Raises:
            StartError: another charter of its version is in force.
        """
        for entry, agreed in self._logbook.assembly.proposed_charters():
            if entry.id == charter:
                return (
                    await self._agree(entry) if self._logbook.me in agreed.missing else self._outcome(entry)
                )
        raise StartError("another charter of that version is in force; run 'agora charter show'")

    async def _agree(self, entry: Sealed[Charter]) -> dict[str, Any]:
        consent = await self._logbook.write(
            CharterConsent,
            lambda index, prev: CharterConsent(
                index=index, prev=prev, charter=entry.id, version=entry.message.version
            ),
        )
        await self._sync.announce(consent)
        self._journal.write("charter_signed", charter=entry.id, version=entry.message.version)
        return self._outcome(entry)

    def _outcome(self, entry: Sealed[Charter]) -> dict[str, Any]:
        assembly = self._logbook.assembly
        for proposed, agreed in assembly.proposed_charters():
            if proposed.id == entry.id:
                return {**self._proposed(entry, agreed), "in_force": False}
        shown = {"id": entry.id.hex(), "version": entry.message.version, "missing": []}
        return {**shown, "in_force": assembly.charter == entry.message}

    def _proposed(self, entry: Sealed[Charter], agreed: Consents) -> dict[str, Any]:
        return {
            **_hex(entry.message),
            "id": entry.id.hex(),
            "proposed_by": entry.sender,
            "facts": msgspec.to_builtins(explain(entry.message)),
            "old_weight": agreed.old_weight,
            "old_needed": agreed.old_needed,
            "new_weight": agreed.new_weight,
            "new_needed": agreed.new_needed,
            "missing": list(agreed.missing),
            "is_mine_to_sign": self._logbook.me in agreed.missing,
        }


def changed(assembly: Assembly, change: CharterChange) -> dict[str, Any]:
    """Return the fields of the next charter, but for its place in its author's log.

    Raises:
        StartError: it names who is no member or no voter, leaves nobody to decide, or changes nothing.
    """
    now = assembly.charter
    roll = {entry.key: entry for entry in now.roll}
    for voter in change.voters:
        peer_id = PeerId(voter.peer_id)
        if not assembly.is_member(peer_id):
            raise StartError(f"{peer_id} is no member, expected one; run 'agora peers'")
        key = public_key_of(peer_id)
        roll[key] = RollEntry(key=key, owner=assembly.member(peer_id).owner, weight=voter.weight)
    for leaver in change.leaving:
        if roll.pop(public_key_of(PeerId(leaver)), None) is None:
            raise StartError(f"{leaver} is not on the roll; run 'agora charter show'")
    approvers = _without(
        dict.fromkeys((*now.approvers, *map(bytes.fromhex, change.approvers))), change.former_approvers
    )
    terms = ("pass_percent", "approvals_min", "machine_vote_ms", "human_approval_ms", "veto_ms")
    fields = {
        **{name: getattr(now, name) for name in now.__struct_fields__},
        **{name: value for name in terms if (value := getattr(change, name)) is not None},
        "roll": tuple(roll.values()),
        "approvers": approvers,
    }
    if not roll or not approvers:
        raise StartError(
            "nobody would be left to vote or to approve, expected one voter and one human at least"
        )
    if fields["approvals_min"] > len(approvers):
        raise StartError(
            f"{fields['approvals_min']} humans must approve and there are {len(approvers)}, expected fewer or as many"
        )
    if Charter(**fields) == now:
        raise StartError("the change leaves the charter as it is; run 'agora charter propose --help'")
    fields["version"] = now.version + 1
    try:
        check_charter(msgspec.convert(msgspec.to_builtins(Charter(**fields)), Charter))
    except (MalformedMessage, msgspec.ValidationError) as error:
        raise StartError(f"this makes no charter: {error}") from error
    return fields


def _without(keys: dict[bytes, None], leaving: Sequence[str]) -> tuple[bytes, ...]:
    for key in leaving:
        if bytes.fromhex(key) not in keys:
            raise StartError(f"human key {key[:16]} is no approver; run 'agora charter show --json'")
        del keys[bytes.fromhex(key)]
    return tuple(keys)


def _hex(charter: Charter) -> dict[str, Any]:
    """The charter as a user reads it: keys in hex."""
    shown = msgspec.to_builtins(charter, builtin_types=(bytes,))
    shown["roll"] = [{**entry, "key": entry["key"].hex()} for entry in shown["roll"]]
    shown["approvers"] = [key.hex() for key in shown["approvers"]]
    shown["recovery"] = [key.hex() for key in shown["recovery"]]
    shown.pop("prev")
    shown.pop("index")
    return cast("dict[str, Any]", shown)
