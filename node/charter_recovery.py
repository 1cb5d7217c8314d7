"""A lost roll: the next charter by the key of the recovery file, which stands for all who voted before.

That key lies on paper or a stick, and no daemon ever loads it. So the daemon says what the next charter would be and where
that key's log stands (`place`), the command line shows it and signs (`sign`), and the daemon takes it like a stranger's:
verified, checked by every rule of the assembly, and told to all (`take`). The new roll still has to agree with its own
devices (`charters.py`).
"""

import secrets
from typing import Any

import msgspec

from marketplace.assembly.charter import explain, open_entry
from node.charters import CharterChange, changed
from node.errors import StartError
from node.journal import Journal
from node.logbook import Logbook
from node.services.sync import Sync
from protocol.envelope import Sealed, decode, encode, narrow, seal
from protocol.errors import BrokenLog, Equivocation
from protocol.identity import Identity, PeerId
from protocol.messages import NO_HASH, Charter


def sign(recovery: Identity, place: dict[str, Any], *, utc_ms: int) -> bytes:
    """Sign the next charter with a recovery key; return the sealed bytes.

    Args:
        recovery: the key that stands in the charter's `recovery`.
        place: as `CharterRecovery.place` gave it.
        utc_ms: Unix time in milliseconds.
    """
    charter: Charter = decode(bytes.fromhex(place["charter"]), Charter)
    mesh = bytes.fromhex(place["mesh_id"])
    return seal(charter, recovery, mesh=mesh, seq=(secrets.randbits(62), 1), time_ms=utc_ms).raw


class CharterRecovery:
    """The daemon's half."""

    def __init__(self, logbook: Logbook, sync: Sync, journal: Journal) -> None:
        self._logbook = logbook
        self._sync = sync
        self._journal = journal

    def place(self, author: PeerId, change: CharterChange) -> dict[str, Any]:
        """Return the charter that is to be signed, and what there is to be read before.

        Args:
            author: the peer id of the recovery key.
            change: what the next charter has otherwise.

        Raises:
            StartError: that key is none of this mesh's recovery keys, or the change makes no charter.
        """
        assembly = self._logbook.assembly
        if author not in assembly.recovery_keys or assembly.is_barred(author):
            raise StartError(
                "the recovery file's key is not in this mesh's charter; use the file that its founder wrote"
            )
        if not self._logbook.is_confirmed:
            raise StartError(
                "no member has confirmed since its start what this device knows; bring another member up first, or, "
                "when all others are lost, start it with 'agora up --trust-own-log'"
            )
        head = assembly.head(author)
        index, prev = (head.index + 1, head.entry) if head else (0, NO_HASH)
        charter = Charter(**{**changed(assembly, change), "index": index, "prev": prev})
        return {
            "mesh_id": assembly.mesh.hex(),
            "charter": encode(charter).hex(),
            "version": charter.version,
            "roll": [{"owner": entry.owner, "key": entry.key.hex()} for entry in charter.roll],
            "facts": msgspec.to_builtins(explain(charter)),
        }

    async def take(self, raw: bytes) -> bytes:
        """Take the signed charter in and tell everybody; return its id.

        Raises:
            RemoteProtocolError: it is no charter of this mesh, or its author may not write one.
            StartError: another word of that key came first.
        """
        assembly = self._logbook.assembly
        entry = open_entry(raw, assembly.mesh, frozenset({Charter.kind}))
        try:
            assembly.check(entry)
        except (Equivocation, BrokenLog) as error:
            raise StartError("this recovery key has signed something else meanwhile; try again") from error
        await self._sync.bring(entry)
        charter: Sealed[Charter] | None = narrow(entry, Charter)
        assert charter is not None, "no other kind was allowed"
        self._journal.write("charter_recovered", charter=entry.id, version=charter.message.version)
        return entry.id
