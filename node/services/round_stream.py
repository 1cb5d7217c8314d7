"""A member's end of `/agora/round/1`: how a run opens, what a round sends back, and how it is paid.

The accept is on disk before it is sent, as a seller's is, and the receipt before it is sent. A round goes on when its
stream breaks; its result waits until the coordinator asks again.
"""

import hashlib
from typing import cast

import trio

from marketplace.batch import RoundWork, check_award, run_job_id
from node.chunks import receive_bytes, send_bytes
from node.enlisted import EnlistedRun, Result
from node.journal import Journal
from node.logbook import Logbook, NotConfirmed
from node.services.fitting import Round, Task
from node.services.participant import Bid, Participant
from node.services.settlement import Settlement
from node.store import StoreFailed
from node.wire import Wire
from protocol import limits
from protocol.envelope import Sealed, encode, narrow, open_sealed
from protocol.errors import (
    MalformedMessage,
    MeshError,
    NotAuthorised,
    RemoteProtocolError,
    StreamBroken,
)
from protocol.mesh import Mesh, Stream
from protocol.messages import (
    Accept,
    Award,
    Cancel,
    Decline,
    DeclineReason,
    Enlistment,
    FailedFrame,
    FinishedFrame,
    Message,
    ProgressFrame,
    RoundTask,
    RoundUpdate,
    RunOpening,
)
from protocol.topics import ROUND

AWARD_TIMEOUT_S = 10.0  # it follows the opening at once
# After a restart, until members have confirmed the own log; a coordinator bears 30 s of silence.
CONFIRMATION_S = 20.0


class RoundStream:
    """Answers coordinators on behalf of the participant."""

    def __init__(
        self,
        *,
        mesh: Mesh,
        wire: Wire,
        logbook: Logbook,
        settlement: Settlement,
        participant: Participant,
        journal: Journal,
    ) -> None:
        self._mesh = mesh
        self._wire = wire
        self._logbook = logbook
        self._settlement = settlement
        self._participant = participant
        self._journal = journal
        mesh.serve(ROUND, self._serve)

    async def _serve(self, stream: Stream) -> None:
        first: Sealed[Message] = await self._wire.receive(stream, RunOpening, RoundTask, Cancel)
        if not self._logbook.assembly.is_member(stream.peer_id):
            raise NotAuthorised(f"peer {stream.peer_id} is not a member")
        match first.message:
            case RunOpening():
                await self._open(stream, first.message)
            case RoundTask():
                await self._round(stream, cast("Sealed[RoundTask]", first))
            case Cancel():
                await self._end(stream, first.message)

    # --- how a run opens ------------------------------------------------------------------------------------------
    async def _open(self, stream: Stream, opening: RunOpening) -> None:
        announcement = self._participant.open_announcement(opening.announcement)
        if announcement.sender != stream.peer_id or announcement.message.run != opening.run:
            raise NotAuthorised(f"peer {stream.peer_id} opens a run that it did not announce")
        enlistments = [self._enlistment(raw) for raw in opening.enlistments]
        with trio.move_on_after(AWARD_TIMEOUT_S) as waiting:
            award = await self._wire.receive(stream, Award, may_repeat=True)
        if waiting.cancelled_caught:
            raise StreamBroken("no award came")
        if (accept := self._logbook.ledger.accept(award.id)) is not None:
            await stream.send(accept.raw)  # before a crash; this is still our word
            return
        bid = self._participant.bid_for(announcement.id)
        if bid is None:
            await self._decline(
                stream, announcement.id, "policy", "no open bid for this run, or from before a restart"
            )
            return
        fault = check_award(award, announcement, bid.enlistment)
        if fault is not None:
            raise RemoteProtocolError(f"award has {fault.field} {fault.found}, expected {fault.expected}")
        if why_not := self._participant.why_not_join(bid, enlistments):
            await self._decline(stream, announcement.id, "cohort", why_not)
            return
        await self._accept(stream, bid, enlistments, award)

    def _enlistment(self, raw: bytes) -> Sealed[Enlistment]:
        opened = open_sealed(raw, mesh=self._wire.mesh_id, kinds=frozenset({Enlistment.kind}))
        return cast("Sealed[Enlistment]", opened)

    async def _decline(self, stream: Stream, request: bytes, reason: DeclineReason, detail: str) -> None:
        self._journal.write("award_declined", buyer=stream.peer_id, reason=reason, detail=detail)
        detail = detail[: limits.DETAIL_CHARS_MAX]
        await self._wire.send(stream, Decline(request=request, reason=reason, detail=detail))

    async def _accept(
        self, stream: Stream, bid: Bid, enlistments: list[Sealed[Enlistment]], award: Sealed[Award]
    ) -> None:
        ledger, terms, buyer = self._logbook.ledger, award.message, award.sender
        holding = b"accepting" + award.id  # two awards at once must not hold the same credit
        line_micro = self._logbook.assembly.member(buyer).credit_line_micro
        refused = ledger.hold(holding, buyer, terms.hold_micro, credit_line_micro=line_micro)
        if refused is not None:
            await self._decline(stream, bid.announcement.id, "credit", refused.detail)
            return
        try:
            accept = await self._logbook.write(
                Accept,
                lambda index, prev: Accept(
                    index=index,
                    prev=prev,
                    award=award.id,
                    buyer=buyer,
                    job_id=terms.job_id,
                    attempt=terms.attempt,
                ),
                witnessing=award,
            )
            await self._participant.join(bid, enlistments, award)
        except (StoreFailed, NotConfirmed) as error:
            raise StreamBroken(f"nothing can be signed now: {error}") from error
        finally:
            ledger.void(holding)
        await stream.send(accept.raw)

    # --- a round --------------------------------------------------------------------------------------------------
    async def _round(self, stream: Stream, task: Sealed[RoundTask]) -> None:
        wanted = task.message
        payload = await receive_bytes(stream, wanted.payload_bytes)
        if hashlib.sha256(payload).digest() != wanted.payload:
            raise MalformedMessage(f"the payload of round {wanted.round} is another than its task names")
        known = self._participant.book.get(wanted.run)
        if known is not None and known.coordinator != stream.peer_id:
            raise NotAuthorised(f"peer {stream.peer_id} asks for a round of another's run")
        if known is not None and self._award_of(known).id != wanted.award:
            raise NotAuthorised(f"peer {stream.peer_id} names another award than the run's")
        if known is not None and not known.ended:
            await self._wait_confirmed(wanted.left_ms / 1000)
        begun = self._participant.begin(wanted.run, Task(wanted.round, wanted.since, wanted.state, payload))
        outcome = await self._wait(stream, begun) if isinstance(begun, Round) else begun
        if isinstance(outcome, FailedFrame):
            await stream.send(encode(outcome))
            return
        assert known is not None, "only a run that was joined has results"
        await self._deliver(stream, task, known, outcome)

    async def _wait_confirmed(self, left_s: float) -> None:
        """Give a device that was just restarted time to be confirmed: refused at once, it would have missed the round."""
        with trio.move_on_after(min(left_s, CONFIRMATION_S)):
            await self._logbook.wait_confirmed()

    async def _wait(self, stream: Stream, under_way: Round) -> Result | FailedFrame:
        """Tell how far it is until it is done, or nobody listens any more; it goes on either way.

        Raises:
            StreamBroken: nobody listens.
        """
        is_broken = False

        async def tell(scope: trio.CancelScope) -> None:
            nonlocal is_broken
            try:
                while True:
                    await stream.send(encode(_progress(under_way)))
                    await trio.sleep(limits.PROGRESS_INTERVAL_S)
            except MeshError:
                is_broken = True
                scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell, nursery.cancel_scope)
            await under_way.done.wait()
            nursery.cancel_scope.cancel()
        if is_broken:
            raise StreamBroken(f"{stream.peer_id} has gone; the round goes on, its result is kept")
        outcome = under_way.result or under_way.failure
        assert outcome is not None, "a round that is done has ended somehow"
        return outcome

    async def _deliver(
        self, stream: Stream, task: Sealed[RoundTask], known: EnlistedRun, result: Result
    ) -> None:
        recipe = self._participant.open_announcement(known.announcement).message.recipe
        await stream.send(
            encode(FinishedFrame(reason="stop", text="", prompt_tokens=0, completion_tokens=result.steps))
        )
        digest = hashlib.sha256(result.payload).digest()
        await self._wire.send(
            stream,
            RoundUpdate(
                run=known.run,
                round=result.round,
                task=task.id,
                payload=digest,
                payload_bytes=len(result.payload),
                samples=result.samples,
                steps=result.steps,
                epsilon_milli=result.epsilon_milli,
            ),
        )
        work = RoundWork(
            award=self._award_of(known),
            run=known.run,
            round=result.round,
            recipe=recipe,
            state=result.state,
            payload=digest,
            steps=result.steps,
            duration_ms=round(result.seconds * 1000),
        )
        await send_bytes(stream, result.payload)
        try:
            await self._settlement.settle_round(stream, work, lambda: self._void_ended(known))
        except (StoreFailed, NotConfirmed) as error:
            raise StreamBroken(f"nothing can be signed now: {error}") from error
        if result.round == recipe.rounds:
            await self._finish(known, "its last round is done")

    # --- how it ends ----------------------------------------------------------------------------------------------
    async def _end(self, stream: Stream, cancel: Cancel) -> None:
        for known in self._participant.book.runs():
            if (
                known.coordinator == stream.peer_id
                and run_job_id(known.run, self._logbook.me) == cancel.job_id
            ):
                await self._finish(known, "its coordinator has ended it")

    async def _finish(self, known: EnlistedRun, reason: str) -> None:
        await self._participant.end(known.run, reason)
        self._void_ended(known)

    def _void_ended(self, known: EnlistedRun) -> None:
        """When nothing more will be charged, the coordinator's hold weighs on it no longer, as far as we say."""
        if not known.ended:
            return
        award = self._award_of(known)
        claims = self._logbook.ledger.unsettled(self._logbook.me)
        if all(each.message.award != award.id for each in claims):
            self._logbook.ledger.void(award.id)

    def _award_of(self, known: EnlistedRun) -> Sealed[Award]:
        award = narrow(open_sealed(known.award, mesh=self._wire.mesh_id), Award)
        assert award is not None, "a run of another's is joined with its award"
        return award


def _progress(under_way: Round) -> ProgressFrame:
    phase = "training" if under_way.is_training else "loading"
    return ProgressFrame(phase=phase, done=under_way.step, total=under_way.steps)  # type: ignore[arg-type]  # one of its words
