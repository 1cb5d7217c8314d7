"""How a world's mesh begins: its charter, and what the founder signs before anything runs.

Whoever belongs from the founding on is admitted by a signature as in life, but the entries are folded here, once: each
node begins with a fork of the assembly that they lead to, and all of them keep what it has in common once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec

from marketplace.assembly.assembly import Assembly
from marketplace.assembly.charter import (
    APPROVALS_MIN,
    HUMAN_APPROVAL_MS,
    MACHINE_VOTE_MS,
    PASS_PERCENT,
    VETO_MS,
    founding_charter,
)
from node.logbook import ENTRY, MESH
from node.simulation.virtual_clock import NOON_MS
from node.store import Record
from protocol.envelope import Sealed, seal
from protocol.identity import Identity, PeerId, PublicKey
from protocol.messages import NO_HASH, Admitted, Entry, RollEntry

if TYPE_CHECKING:
    from node.simulation.daemon import Daemon

E = TypeVar("E", bound=Entry)


@dataclass(frozen=True)
class Terms:
    """How a world's mesh decides; what is not said is as `agora init` has it.

    Attributes:
        approvals_min: humans who must approve; 0: the end of the veto window is enough.
    """

    approvals_min: int = APPROVALS_MIN
    pass_percent: int = PASS_PERCENT
    machine_vote_s: float = MACHINE_VOTE_MS / 1000
    human_approval_s: float = HUMAN_APPROVAL_MS / 1000
    veto_s: float = VETO_MS / 1000


class Founding:
    """A charter and the founder's log as it grows before the world opens.

    Args:
        name: of the mesh.
        founder: the first on the roll.
        owner: whose device the founder is.
        approver: the human's key.
        terms: how it decides.
        voters: further devices on the roll; each weighs as much as the founder.
    """

    def __init__(
        self,
        name: str,
        founder: Identity,
        owner: str,
        approver: PublicKey,
        terms: Terms | None = None,
        voters: "Sequence[Daemon]" = (),
    ) -> None:
        terms = terms or Terms()
        alone = founding_charter(name, founder=founder.public_key, owner=owner, approver=approver)
        others = tuple(
            RollEntry(key=each.identity.public_key, owner=each.config.owner, weight=1) for each in voters
        )
        message = msgspec.structs.replace(
            alone,
            roll=alone.roll + others,
            approvals_min=terms.approvals_min,
            pass_percent=terms.pass_percent,
            machine_vote_ms=round(terms.machine_vote_s * 1000),
            human_approval_ms=round(terms.human_approval_s * 1000),
            veto_ms=round(terms.veto_s * 1000),
        )
        self.charter = seal(message, founder, mesh=NO_HASH, seq=(0, 1), time_ms=NOON_MS)
        self.assembly = Assembly.found(self.charter)
        self._founder = founder
        self._tail = self.charter.id

    @property
    def mesh_id(self) -> bytes:
        """The charter's hash."""
        return self.charter.id

    def belonging(self) -> Sequence[Record]:
        """What the disk of every member holds: its mesh, and the charter that proves it."""
        return (Record(MESH, b"id", self.mesh_id), Record(ENTRY, self.mesh_id, self.charter.raw))

    def sign(self, place: Callable[[int, bytes], E]) -> Sealed[E]:
        """Sign the founder's next entry.

        Args:
            place: makes it, given its index and the hash of the entry before it.
        """
        index = len(self.assembly.entries_after(self.assembly.founder, -1))
        entry = seal(
            place(index, self._tail), self._founder, mesh=self.mesh_id, seq=(0, index + 1), time_ms=NOON_MS
        )
        self.assembly.apply(entry)
        self._tail = entry.id
        return entry


def admission(peer_id: PeerId, owner: str, credit_micro: int) -> Callable[[int, bytes], Admitted]:
    """Return what makes the entry that admits a device, given its place in a log; no invitation went before it."""
    return lambda index, prev: Admitted(
        index=index,
        prev=prev,
        peer=peer_id,
        owner=owner,
        credit_line_micro=credit_micro,
        invitation_id=bytes(16),
    )
