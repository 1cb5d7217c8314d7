"""The registrar: admits devices that hold one of our invitations, and says no, with the reason, to all others.

Only the invitation's issuer counts its uses (docs/adr/0001), so the joiner dials the issuer. The yes is an assembly
entry, so every member knows the newcomer within a gossip.
"""

import trio

from marketplace.assembly.invitation import Admission, AlreadyAdmitted, answer, check_join, history
from node.clock import Clock
from node.journal import Journal
from node.logbook import Logbook
from node.services.meeting import Meeting
from node.services.sync import Sync, pages
from node.wire import Wire
from protocol import limits
from protocol.envelope import Sealed, open_sealed
from protocol.errors import AgoraError, RemoteProtocolError
from protocol.mesh import Mesh, Stream
from protocol.messages import Admitted, Entry, Invitation, JoinRequest, Refusal
from protocol.topics import ADMISSION


class Registrar:
    """Answers `/agora/admission/1`."""

    def __init__(
        self,
        *,
        mesh: Mesh,
        wire: Wire,
        clock: Clock,
        logbook: Logbook,
        meeting: Meeting,
        sync: Sync,
        journal: Journal,
    ) -> None:
        self._wire = wire
        self._clock = clock
        self._logbook = logbook
        self._meeting = meeting
        self._sync = sync
        self._journal = journal
        self._deciding = trio.Lock()
        mesh.serve(ADMISSION, self._admit)

    async def _admit(self, stream: Stream) -> None:
        request = await self._wire.receive(stream, JoinRequest)
        assembly = self._logbook.assembly
        async with self._deciding:  # two joiners must not share an invitation's last use
            invitation_id = _invitation_id(request.message.invitation, self._wire.mesh_id)
            decision = check_join(
                request,
                issuer=self._logbook.me,
                uses_so_far=assembly.uses_of(self._logbook.me, invitation_id),
                assembly=assembly,
                utc_ms=self._clock.utc_ms(),
            )
            if isinstance(decision, Refusal):
                self._journal.write("join_refused", peer=request.sender, reason=decision.reason)
                await self._wire.send(stream, decision)
                return  # and without a hello it is disconnected in 3 s: time enough to read why
            self._meeting.expect(stream.peer_id)
            entry: Sealed[Entry]
            if isinstance(decision, AlreadyAdmitted):
                entry = decision.entry
            else:
                try:
                    entry = await self._write(decision)
                except (
                    AgoraError
                ) as error:  # not confirmed yet, or the disk is full: it is not the joiner's fault
                    self._journal.write("join_refused", peer=request.sender, reason="not_now")
                    await self._wire.send(
                        stream, Refusal(reason="not_now", detail=str(error)[: limits.DETAIL_CHARS_MAX])
                    )
                    return
        if isinstance(decision, Admission):
            self._journal.write("peer_admitted", peer=decision.peer, owner=decision.owner)
            await self._sync.announce(entry)
        await self._wire.send(stream, answer(assembly, entry))
        for page in pages(history(assembly)):
            await self._wire.send(stream, page)

    async def _write(self, decision: Admission) -> Sealed[Admitted]:
        return await self._logbook.write(
            Admitted,
            lambda index, prev: Admitted(
                index=index,
                prev=prev,
                peer=decision.peer,
                owner=decision.owner,
                credit_line_micro=decision.credit_line_micro,
                invitation_id=decision.invitation_id,
            ),
        )


def _invitation_id(raw: bytes, mesh_id: bytes) -> bytes:
    """The id inside a sealed invitation; one that does not open is refused by `check_join` and has none."""
    try:
        message = open_sealed(raw, mesh=mesh_id, kinds=frozenset({Invitation.kind})).message
    except RemoteProtocolError:
        return b""
    return message.invitation_id if isinstance(message, Invitation) else b""
