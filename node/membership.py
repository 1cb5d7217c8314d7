"""Who this device lets in, and whom it bars: the daemon's half of `agora invite` and `agora revoke`."""

from random import Random
from typing import Any

from marketplace.assembly import invitation
from node.clock import Clock
from node.errors import StartError
from node.journal import Journal
from node.logbook import Logbook
from node.services.sync import Sync
from node.wire import Wire
from protocol import limits
from protocol.identity import PeerId
from protocol.mesh import Mesh
from protocol.messages import Revocation


class Membership:
    """A voter's say in who belongs."""

    def __init__(
        self,
        *,
        mesh: Mesh,
        wire: Wire,
        clock: Clock,
        logbook: Logbook,
        sync: Sync,
        journal: Journal,
        rng: Random,
    ) -> None:
        self._mesh = mesh
        self._wire = wire
        self._clock = clock
        self._logbook = logbook
        self._sync = sync
        self._journal = journal
        self._rng = rng

    def invite(self, *, expires_s: float, uses: int, owner: str, credit_line_micro: int) -> dict[str, Any]:
        """Make an invitation: `{invitation, expires_at, uses}`.

        Raises:
            StartError: this device admits nobody, or not now.
        """
        if not self._logbook.assembly.weight(self._logbook.me):
            raise StartError(
                "only devices on the charter's roll invite; run 'agora invite' on the founder's device"
            )
        if not self._logbook.is_confirmed:
            raise StartError(
                "no member has confirmed this device's log since its start, so it can admit nobody yet; "
                "bring another member up first"
            )
        if not self._mesh.addresses:
            raise StartError("this daemon listens nowhere, so nobody could join; start it with --listen")
        made = invitation.make(
            self._wire.identity,
            mesh=self._wire.mesh_id,
            seq=self._wire.next_seq(),
            time_ms=self._clock.utc_ms(),
            ttl_ms=int(expires_s * 1000),
            uses=uses,
            owner=owner,
            credit_line_micro=credit_line_micro,
            addresses=self._mesh.addresses[: limits.ADDRESSES_MAX],
            rng=self._rng,
        )
        self._journal.write("invitation_made", uses=uses, owner=made.sealed.message.owner)
        return {
            "invitation": made.text,
            "expires_at": made.sealed.message.expires_at / 1000,
            "uses": uses,
        }

    async def revoke(self, peer_id: str, reason: str) -> dict[str, Any]:
        """Bar a device from the mesh; every member hears of it.

        Raises:
            StartError: this device may not, or that one is no member, or on the roll.
        """
        if not self._logbook.assembly.weight(self._logbook.me):
            raise StartError("only devices on the charter's roll revoke; run this on the founder's device")
        if peer_id not in self._logbook.assembly.members():
            raise StartError(f"{peer_id} is no member; run 'agora peers' to see who is")
        if PeerId(peer_id) in self._logbook.assembly.roll:
            raise StartError(f"{peer_id} is on the charter's roll; only a new charter takes it off")
        entry = await self._logbook.write(
            Revocation,
            lambda index, prev: Revocation(
                index=index, prev=prev, peer=peer_id, reason=reason[: limits.DETAIL_CHARS_MAX]
            ),
        )
        await self._sync.announce(entry)
        await self._sync.drop_barred()
        self._journal.write("peer_revoked", peer=peer_id)
        return {"peer_id": peer_id, "revoked": True}
