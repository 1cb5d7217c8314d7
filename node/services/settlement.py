"""Settlement: from what was delivered to a receipt that both have signed.

On the job stream the seller sends the receipt and the buyer countersigns it. When that stream has broken, the seller
comes back on `/agora/settle/1`: the buyer says how many tokens it accepted, the receipt is made out for just those, and
money moves as usual. So a failed attempt is paid for what the client really got, once, and a receipt that was written
but never countersigned (a crash between the two) is presented again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, cast

import trio

from marketplace.batch import RoundWork, check_round_receipt, draft_round_receipt
from marketplace.exposure import Exposure
from marketplace.prompt import tokens_charged
from marketplace.receipt import (
    Mismatch,
    accepted_ids,
    amount_micro,
    check_countersignature,
    check_receipt,
    draft_receipt,
    output_digest,
)
from node.clock import Clock
from node.jobs import Attempt, Job, JobBook
from node.journal import Journal
from node.logbook import Logbook, NotConfirmed
from node.services.sync import Sync
from node.store import StoreFailed
from node.wire import Wire
from protocol.envelope import Sealed, narrow
from protocol.errors import AgoraError, MeshError, NotAuthorised, RemoteProtocolError, StreamBroken
from protocol.identity import PeerId
from protocol.mesh import Mesh, Stream
from protocol.messages import (
    Accepted,
    Award,
    Cancel,
    Countersignature,
    Head,
    Income,
    Receipt,
    SettlementWanted,
    Work,
)
from protocol.topics import SETTLE

if TYPE_CHECKING:  # trio-typing's stubs, which libp2p brings, hide trio's own types
    from trio_typing import TaskStatus

CLAIMS_MAX = 256  # broken deliveries followed up at a time; a further one is written off at once
CLAIM_PAUSES_S = (1.0, 5.0, 30.0, 120.0)  # then it is written off: the exposure cap limits such losses
CLAIM_TIMEOUT_S = 10.0
RECEIPT_TIMEOUT_S = 10.0
VOID_IDLE_INTERVAL_S = 600.0


@dataclass
class Delivery:
    """What a seller has delivered in one attempt; times are monotonic seconds."""

    award: Sealed[Award]
    work: Work
    started_s: float
    ids: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    first_token_s: float | None = None
    ended_s: float = 0.0

    def add(self, ids: tuple[int, ...], now: float) -> None:
        """Count tokens that have gone out."""
        self.ids.extend(ids)
        if self.first_token_s is None:
            self.first_token_s = now

    @property
    def amount_micro(self) -> int:
        """What it comes to at the price that was bid."""
        prompt_tokens = tokens_charged(self.work, self.prompt_tokens, len(self.ids))
        return amount_micro(self.award.message, prompt_tokens, len(self.ids))


@dataclass
class _Claim:
    """What a buyer still has to countersign: of a delivery, or of a receipt that an earlier run wrote."""

    buyer: PeerId
    wanted: SettlementWanted
    delivery: Delivery | None = None
    receipt: Sealed[Receipt] | None = None
    on_end: Callable[[], None] = lambda: None


class Settlement:
    """Both sides of it: receipts made out and claimed as a seller, checked and countersigned as a buyer."""

    def __init__(
        self,
        *,
        mesh: Mesh,
        wire: Wire,
        clock: Clock,
        logbook: Logbook,
        sync: Sync,
        jobs: JobBook,
        exposure: Exposure,
        journal: Journal,
        on_signed: Callable[[Job, Attempt], None] = lambda _job, _attempt: None,
    ) -> None:
        self._on_signed = on_signed
        self._mesh = mesh
        self._wire = wire
        self._clock = clock
        self._logbook = logbook
        self._sync = sync
        self._jobs = jobs
        self._exposure = exposure
        self._journal = journal
        self._nursery: trio.Nursery | None = None
        self._claims = 0
        self._countersigning: set[tuple[bytes, int]] = set()
        self.rounds: dict[bytes, RoundWork] = {}  # that this device has bought, by job id; still claimable
        mesh.serve(SETTLE, self._answer)

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Follow claims up, those of earlier runs first."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await self._logbook.wait_confirmed()
                for receipt in self._logbook.ledger.unsettled(self._logbook.me):
                    terms = receipt.message
                    wanted = SettlementWanted(award=terms.award, job_id=terms.job_id, attempt=terms.attempt)
                    self._follow_up(_Claim(PeerId(terms.payer), wanted, receipt=receipt))
                while True:
                    self._logbook.ledger.void_idle(self._clock.utc_ms())
                    await trio.sleep(VOID_IDLE_INTERVAL_S)
            finally:
                self._nursery = None

    def note_head(self, head: Head) -> None:
        """A buyer's log goes on behind what we know of it: ask for the rest, since we are about to extend it credit."""
        author = PeerId(head.author)
        if self._sync.lacks(head) and not self._logbook.why_full(author):
            self._sync.want(author, author, "bilateral")

    # --- as a seller --------------------------------------------------------------------------------------------
    async def settle(self, stream: Stream, delivery: Delivery) -> None:
        """Make out the receipt on the job's own stream and wait for the countersignature.

        Raises:
            MeshError: the stream broke; claim it later.
            RemoteProtocolError: what came is no countersignature of this receipt.
        """
        if delivery.ids:
            receipt = await self._write_receipt(delivery, tuple(delivery.ids))
            await stream.send(receipt.raw)
            await self._take_countersignature(stream, receipt)

    def claim_later(self, delivery: Delivery, on_end: Callable[[], None]) -> None:
        """The stream broke before it was settled: ask the buyer what it accepted, some time soon; then call `on_end`."""
        if not delivery.ids:
            on_end()
            return
        work, buyer = delivery.work, delivery.award.sender
        wanted = SettlementWanted(award=work.award, job_id=work.job_id, attempt=work.attempt)
        written = self._written(work.job_id, work.attempt)
        self._follow_up(_Claim(buyer, wanted, delivery, written, on_end))

    async def settle_round(self, stream: Stream, work: RoundWork, on_end: Callable[[], None]) -> None:
        """Send the receipt of a round behind its update and wait for the countersignature; claim it later if none comes.

        When it is settled or given up, now or later, `on_end` is called. The round may come again after a crash of the coordinator: it has one receipt all the same.

        Raises:
            RemoteProtocolError: what came is no countersignature of this receipt.
            StoreFailed, NotConfirmed: no receipt can be signed now.
        """
        payment = self._logbook.ledger.payment(work.buyer, work.job_id, work.attempt)
        receipt = payment.receipt if payment else self._written(work.job_id, work.attempt)
        if receipt is None:
            place = partial(_place_round_receipt, work, self._logbook.ledger.chargeable_micro(work.award.id))
            receipt = await self._logbook.write(Receipt, place)
            self._exposure.owe(work.buyer, work.job_id, work.attempt, receipt.message.amount_micro)
        try:
            with trio.fail_after(RECEIPT_TIMEOUT_S):
                await stream.send(receipt.raw)
                if payment is None:
                    await self._take_countersignature(stream, receipt)
                # else the payer has only lost what it signed before
        except (MeshError, StoreFailed, trio.TooSlowError):  # a full disk holds no payer's word either
            wanted = SettlementWanted(award=work.award.id, job_id=work.job_id, attempt=work.attempt)
            self._follow_up(_Claim(work.buyer, wanted, receipt=receipt, on_end=on_end))
        else:
            on_end()

    def _written(self, job_id: bytes, attempt: int) -> Sealed[Receipt] | None:
        """The receipt that an attempt has already, and that nobody has countersigned."""
        unsettled = self._logbook.ledger.unsettled(self._logbook.me)
        mine = [
            each for each in unsettled if (each.message.job_id, each.message.attempt) == (job_id, attempt)
        ]
        return mine[0] if mine else None

    def _follow_up(self, claim: _Claim) -> None:
        if self._nursery is None:
            claim.on_end()  # this node is stopping; a receipt that it has written is presented after the next start
        elif self._claims < CLAIMS_MAX:
            self._claims += 1
            self._nursery.start_soon(self._claim_until_settled, claim)
        else:
            self._write_off(claim, "too many claims")
            claim.on_end()

    async def _claim_until_settled(self, claim: _Claim) -> None:
        reason = ""
        try:
            for pause_s in CLAIM_PAUSES_S:
                await trio.sleep(pause_s)
                try:
                    with trio.fail_after(CLAIM_TIMEOUT_S):
                        await self._claim(claim)
                    return
                except RemoteProtocolError as error:
                    self._mesh.charge(claim.buyer, error.offence)
                    reason = str(error)
                    break
                except (AgoraError, trio.TooSlowError) as error:
                    reason = str(error) or "no answer in time"
        finally:
            self._claims -= 1
            claim.on_end()
        self._write_off(claim, reason)

    def _write_off(self, claim: _Claim, reason: str) -> None:
        # It stays in the exposure: the next request of this buyer may be declined for it.
        self._journal.write(
            "claim_written_off", job=claim.wanted.job_id.hex(), buyer=claim.buyer, reason=reason
        )

    async def _claim(self, claim: _Claim) -> None:
        stream = await self._mesh.open_stream(claim.buyer, SETTLE)
        try:
            await self._wire.send(stream, claim.wanted)
            answer = await self._wire.receive(stream, Accepted, Countersignature, may_repeat=True)
            countersignature = narrow(answer, Countersignature)
            if countersignature is not None:
                if claim.receipt is None:
                    raise RemoteProtocolError(
                        f"buyer {claim.buyer} countersigned a receipt that nobody wrote"
                    )
                await self._keep_countersignature(countersignature, claim.receipt)
                return
            accepted = cast("Accepted", answer.message)
            if claim.receipt is None:
                assert claim.delivery is not None
                ids = accepted_ids(claim.delivery.ids, accepted)
                if isinstance(ids, Mismatch):
                    raise RemoteProtocolError(
                        f"buyer {claim.buyer} accepted {ids.found}, expected {ids.expected}"
                    )
                if not ids:
                    self._exposure.settle(claim.buyer, claim.wanted.job_id, claim.wanted.attempt, 0)
                    return
                claim.receipt = await self._write_receipt(claim.delivery, ids)
            await stream.send(claim.receipt.raw)
            await self._take_countersignature(stream, claim.receipt)
        finally:
            stream.abort()

    async def _write_receipt(self, delivery: Delivery, ids: tuple[int, ...]) -> Sealed[Receipt]:
        first_s = delivery.first_token_s if delivery.first_token_s is not None else delivery.ended_s
        return await self._logbook.write(
            Receipt,
            partial(
                _place_receipt,
                delivery,
                ids,
                ttft_ms=round((first_s - delivery.started_s) * 1000),
                duration_ms=round((delivery.ended_s - delivery.started_s) * 1000),
                chargeable_micro=self._logbook.ledger.chargeable_micro(delivery.award.id),
            ),
        )

    async def _take_countersignature(self, stream: Stream, receipt: Sealed[Receipt]) -> None:
        answer = await self._wire.receive(stream, Countersignature, Cancel, may_repeat=True)
        if isinstance(answer.message, Cancel):  # its client left as we finished: the two passed on the way
            answer = await self._wire.receive(stream, Countersignature, may_repeat=True)
        await self._keep_countersignature(cast("Sealed[Countersignature]", answer), receipt)

    async def _keep_countersignature(
        self, countersignature: Sealed[Countersignature], receipt: Sealed[Receipt]
    ) -> None:
        fault = check_countersignature(countersignature, receipt)
        if fault is not None:
            raise RemoteProtocolError(
                f"countersignature has {fault.field} {fault.found}, expected {fault.expected}"
            )
        award = self._logbook.ledger.award(receipt.message.award)
        assert award is not None, "a receipt is only written under an award that is held"
        await self._logbook.write(
            Income,
            lambda index, prev: Income(
                index=index, prev=prev, award=award.raw, countersignature=countersignature.raw
            ),
            witnessing=countersignature,
        )
        terms = receipt.message
        self._exposure.settle(PeerId(terms.payer), terms.job_id, terms.attempt, terms.amount_micro)
        self._journal.write(
            "receipt_settled",
            job=terms.job_id.hex(),
            receipt=receipt.id,
            payer=terms.payer,
            amount_micro=terms.amount_micro,
        )

    # --- as a buyer ---------------------------------------------------------------------------------------------
    async def countersign_on(self, stream: Stream, job: Job, attempt: Attempt) -> bool:
        """Receive the receipt of an attempt that has just ended and countersign it; False when none came in time.

        The seller then has to come for it.

        Raises:
            RemoteProtocolError: the receipt does not say what happened; nothing is signed.
        """
        if not attempt.ids:
            return True
        try:
            with trio.fail_after(RECEIPT_TIMEOUT_S):
                receipt = await self._wire.receive(stream, Receipt)
                await self._pay(stream, receipt, job, attempt)
                await stream.end()
        except RemoteProtocolError:
            raise
        except (AgoraError, trio.TooSlowError) as error:
            self._journal.write(
                "receipt_missing", job=job.job_id.hex(), reason=str(error) or "no receipt in time"
            )
            return False
        return True

    async def pay_round(self, stream: Stream, work: RoundWork) -> bool:
        """Receive the receipt of a round whose update was taken and countersign it; False when none came in time.

        The member then has to come for it.

        Raises:
            RemoteProtocolError: the receipt does not say what happened; nothing is signed.
        """
        self.rounds[work.job_id] = work
        try:
            with trio.fail_after(RECEIPT_TIMEOUT_S):
                await self._pay_round(stream, work)
        except RemoteProtocolError:
            raise
        except (AgoraError, trio.TooSlowError) as error:
            reason = str(error) or "no receipt in time"
            self._journal.write("receipt_missing", job=work.job_id.hex(), reason=reason)
            return False
        return True

    async def _pay_round(self, stream: Stream, work: RoundWork) -> None:
        receipt = await self._wire.receive(stream, Receipt, may_repeat=True)
        payment = self._logbook.ledger.payment(self._logbook.me, work.job_id, work.attempt)
        if payment is not None:  # before a crash; its seller may have lost the countersignature
            await stream.send(payment.countersignature.raw)
            return
        await self._countersign(stream, receipt, check_round_receipt(receipt, work))

    async def _pay(self, stream: Stream, receipt: Sealed[Receipt], job: Job, attempt: Attempt) -> None:
        assert attempt.award is not None
        assert attempt.work is not None
        fault = check_receipt(receipt, attempt.award, attempt.work, attempt.ids)
        await self._countersign(stream, receipt, fault, (job, attempt))

    async def _countersign(
        self,
        stream: Stream,
        receipt: Sealed[Receipt],
        fault: Mismatch | None,
        bought: tuple[Job, Attempt] | None = None,
    ) -> None:
        if fault is not None:
            raise RemoteProtocolError(f"receipt has {fault.field} {fault.found}, expected {fault.expected}")
        refused = self._logbook.ledger.may_post(receipt)
        if refused is not None:
            raise RemoteProtocolError(f"receipt may not be paid: {refused.detail}")
        key = (receipt.message.job_id, receipt.message.attempt)
        if key in self._countersigning:  # the ledger will only know of the first when it is on disk
            raise RemoteProtocolError("another receipt of this attempt is being countersigned")
        self._countersigning.add(key)
        try:
            countersignature = await self._logbook.write(
                Countersignature,
                lambda index, prev: Countersignature(index=index, prev=prev, receipt=receipt.raw),
            )
        finally:
            self._countersigning.remove(key)
        if bought is not None:
            job, attempt = bought
            attempt.receipt_id = receipt.id.hex()
            attempt.amount_micro = receipt.message.amount_micro
            # Here and not behind the sending: a seller that hangs up now would never be looked at.
            self._on_signed(job, attempt)
        await stream.send(countersignature.raw)
        self._journal.write(
            "receipt_countersigned",
            job=receipt.message.job_id.hex(),
            attempt=receipt.message.attempt,
            receipt=receipt.id,
            payee=receipt.message.payee,
            amount_micro=receipt.message.amount_micro,
        )

    async def _answer(self, stream: Stream) -> None:
        wanted = (await self._wire.receive(stream, SettlementWanted)).message
        award = self._logbook.ledger.award(wanted.award)
        if award is None or award.sender != self._logbook.me or award.message.seller != stream.peer_id:
            raise NotAuthorised(f"peer {stream.peer_id} claims for an award that we did not give it")
        payment = self._logbook.ledger.payment(self._logbook.me, wanted.job_id, wanted.attempt)
        if payment is not None:
            await stream.send(payment.countersignature.raw)
            return
        if (bought := self.rounds.get(wanted.job_id)) is not None and bought.award.id == wanted.award:
            await self._wire.send(stream, bought.accepted)
            with trio.move_on_after(CLAIM_TIMEOUT_S):
                try:
                    await self._pay_round(stream, bought)
                except (StoreFailed, NotConfirmed) as error:
                    raise StreamBroken(f"nothing can be signed now: {error}") from error
            return
        job = self._jobs.find(wanted.job_id)
        attempt = job.attempts[wanted.attempt - 1] if job and wanted.attempt <= len(job.attempts) else None
        is_ours = attempt is not None and attempt.award is not None and attempt.award.id == wanted.award
        if attempt is not None and is_ours and attempt.outcome == "running":
            # Saying "nothing" now would be final: a slow client has yet to hear of the break.
            raise StreamBroken("the attempt still runs here; its seller may come again")
        ids = attempt.ids if attempt is not None and is_ours else []
        await self._wire.send(
            stream,
            Accepted(
                job_id=wanted.job_id,
                attempt=wanted.attempt,
                completion_tokens=len(ids),
                output=output_digest(ids),
            ),
        )
        if job is None or attempt is None or not ids:
            return
        with trio.move_on_after(CLAIM_TIMEOUT_S):
            # Perhaps the one that came on the job's stream, when we could not answer.
            receipt = await self._wire.receive(stream, Receipt, may_repeat=True)
            if receipt.message.completion_tokens > len(ids):
                # Made out before its seller knew that the last tokens were lost, and an honest one signs no other. It is
                # not paid, and no offence either.
                self._journal.write(
                    "receipt_disputed",
                    job=job.job_id.hex(),
                    attempt=attempt.number,
                    claimed=receipt.message.completion_tokens,
                    accepted=len(ids),
                )
                return
            try:
                await self._pay(stream, receipt, job, attempt)
            except (StoreFailed, NotConfirmed) as error:
                raise StreamBroken(f"nothing can be signed now: {error}") from error  # its seller comes again
            await self._jobs.store(job)


def _place_receipt(
    delivery: Delivery,
    ids: tuple[int, ...],
    index: int,
    prev: bytes,
    *,
    ttft_ms: int,
    duration_ms: int,
    chargeable_micro: int,
) -> Receipt:
    return draft_receipt(
        delivery.award,
        delivery.work,
        ids=ids,
        prompt_tokens=delivery.prompt_tokens,
        ttft_ms=ttft_ms,
        duration_ms=duration_ms,
        chargeable_micro=chargeable_micro,
        index=index,
        prev=prev,
    )


def _place_round_receipt(work: RoundWork, chargeable_micro: int, index: int, prev: bytes) -> Receipt:
    return draft_round_receipt(work, chargeable_micro=chargeable_micro, index=index, prev=prev)
