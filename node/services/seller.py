"""The seller: answers requests with a bid or a signed no, takes awards, generates, and makes out the receipt.

One job stream, from this end:

    Request ─▶ quote ─▶ Bid ─▶ (Award ─▶ Accept) ─▶ Work ─▶ tokens and progress ─▶ Receipt ─▶ Countersignature
                     └▶ Decline          └── under a lease the stream begins with Work

The award is kept and the accept written before the accept is sent; the receipt is written before it is sent. When the
stream breaks, what was delivered is claimed later (`settlement.py`).
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import cast

import trio

from marketplace.auction import total_micro
from marketplace.exposure import Exposure
from marketplace.fence import Fence
from marketplace.lease import Leases, may_work
from marketplace.pricing import Prices
from marketplace.prompt import Prompt, only_reads, work_fault
from node.clock import Clock
from node.journal import Journal
from node.logbook import Logbook, NotConfirmed
from node.services.offer import OwnOffer
from node.services.settlement import Delivery, Settlement
from node.services.token_frames import frames_of
from node.store import StoreFailed
from node.wire import Wire
from protocol import limits
from protocol.envelope import Sealed, encode, narrow
from protocol.errors import (
    AgoraError,
    MalformedMessage,
    MeshError,
    NotAuthorised,
    RemoteProtocolError,
    StreamBroken,
)
from protocol.identity import PeerId
from protocol.mesh import Mesh, Stream
from protocol.messages import (
    NO_HASH,
    Accept,
    Award,
    Bid,
    Cancel,
    Decline,
    FailedFrame,
    FinishedFrame,
    Privacy,
    ProgressFrame,
    Request,
    Task,
    TokensFrame,
    Work,
)
from protocol.topics import JOB
from runtime.engine import (
    FAULTS_OF_CLIENT,
    ChatMessage,
    Digest,
    Engine,
    EngineDied,
    EngineError,
    Finished,
    Generation,
    Phase,
    Progress,
    Sampling,
    Tokens,
)

AWARD_TIMEOUT_S = 5.0  # from a bid to its award; a longer auction has forgotten us
SETTLE_TIMEOUT_S = 10.0  # for the buyer to check, write and countersign


@dataclass
class _Run:
    """How a generation under way ends: set by whichever side ends it first."""

    delivery: Delivery
    sent_at: float  # when the buyer last took a frame
    finish: FinishedFrame | None = None
    failure: FailedFrame | None = None
    is_cancelled: bool = False
    is_broken: bool = False


class Seller:
    """Sells this device's engine."""

    def __init__(
        self,
        *,
        mesh: Mesh,
        wire: Wire,
        clock: Clock,
        logbook: Logbook,
        engine: Engine,
        settlement: Settlement,
        exposure: Exposure,
        offer: OwnOffer,
        journal: Journal,
    ) -> None:
        self._mesh = mesh
        self._wire = wire
        self._clock = clock
        self._logbook = logbook
        self._engine = engine
        self._settlement = settlement
        self._leases = Leases()
        self._fence = Fence()
        self._exposure = exposure
        self._offer = offer
        self._journal = journal
        mesh.serve(JOB, self._serve)

    # --- one job stream -----------------------------------------------------------------------------------------
    async def _serve(self, stream: Stream) -> None:
        try:
            await self._serve_one(stream)
        finally:
            self._offer.arrived(stream)

    async def _serve_one(self, stream: Stream) -> None:
        opening = await self._wire.receive(stream, Request, Work)
        request = narrow(opening, Request)
        if request is not None:
            taken = await self._negotiate(stream, request)
            if taken is not None:
                award, work = taken
                await self._work(stream, award, work.message, sold_for=request.message.privacy)
        else:
            work = cast("Sealed[Work]", opening)
            if not self._logbook.assembly.is_member(stream.peer_id):
                raise NotAuthorised(f"peer {stream.peer_id} is not a member")
            found = self._logbook.ledger.award(work.message.award)
            if found is None or found.sender != stream.peer_id or found.message.seller != self._logbook.me:
                raise NotAuthorised(f"peer {stream.peer_id} names an award that is not its own with us")
            if only_reads(work.message.task):
                raise RemoteProtocolError(
                    f"a {work.message.task} of {stream.peer_id} under no award of its own"
                )
            self._check_work(work.message, work.message.task, found.message.model)
            if refusal := self._offer.closed_to_lease(stream.peer_id):
                await stream.send(encode(FailedFrame(reason="lease", detail=refusal)))
                return
            await self._work(stream, found, work.message, sold_for=None)

    async def _negotiate(
        self, stream: Stream, request: Sealed[Request]
    ) -> tuple[Sealed[Award], Sealed[Work]] | None:
        self._void_ended()
        answer = self._offer.quote(request)
        buyer = stream.peer_id
        job = request.message.job_id.hex()
        if isinstance(answer, Decline):
            await self._wire.send(stream, answer)
            self._journal.write("declined", job=job, buyer=buyer, reason=answer.reason)
            return None
        bid = await self._wire.send(stream, answer)
        self._journal.write(
            "bid_sent",
            job=job,
            buyer=buyer,
            request=request.id,
            total_micro=total_micro(request.message, answer),
        )
        head = request.message.head
        if head is not None and head.author == buyer:
            self._settlement.note_head(head)
        try:
            with trio.move_on_after(AWARD_TIMEOUT_S):
                award = await self._wire.receive(stream, Award)
                self._check_award(award, request, bid)
                work = await self._wire.receive(stream, Work)
                self._check_work(work.message, request.message.task, award.message.model)
                if refusal := self._second_thoughts(award, request):
                    await self._wire.send(stream, refusal)
                    self._journal.write("award_declined", job=job, buyer=buyer, reason=refusal.reason)
                    return None
                self._offer.expect(stream, award.message, work.message)
                await self._accept(stream, award)
                return award, work
        except MeshError:
            return None  # another seller has won, or the buyer is gone
        return None

    def _check_award(self, award: Sealed[Award], request: Sealed[Request], bid: Sealed[Bid]) -> None:
        terms, wanted = award.message, request.message
        agreed = (
            terms.request == request.id
            and terms.bid == bid.id
            and terms.seller == self._logbook.me
            and (terms.job_id, terms.attempt) == (wanted.job_id, wanted.attempt)
            and (terms.model, terms.adapter, terms.session) == (wanted.model, wanted.adapter, wanted.session)
            and terms.prompt_micro == bid.message.prompt_micro
            and terms.completion_micro == bid.message.completion_micro
            # Nothing beyond the hold is ever charged: too small a one would buy the whole answer.
            and terms.hold_micro >= total_micro(wanted, bid.message)
            # What reads costs nothing per token of an answer: a lease at that price would buy texts with it.
            and terms.lease_ms <= (0 if only_reads(wanted.task) else limits.LEASE_IDLE_S * 1000)
        )
        if not agreed:
            raise RemoteProtocolError(f"award of {award.sender} is not what was asked and bid")

    def _check_work(self, work: Work, task: Task, model: bytes) -> None:
        card = self._engine.models.get(Digest(model))
        if work.task != task:
            raise RemoteProtocolError(f"work for the task {work.task!r}, and {task!r} was sold")
        if fault := work_fault(work, card.dimensions if card else 0):
            raise MalformedMessage(f"work: {fault}")

    def _second_thoughts(self, award: Sealed[Award], request: Sealed[Request]) -> Decline | None:
        """What has changed since the bid: it promised a price, not a slot, and a lease holds more than was asked.

        None: it may be accepted, and its credit is set aside until that is written.
        """
        again = self._offer.quote(request)
        if isinstance(again, Decline) and again.reason != "price":  # the price is agreed, whatever it is now
            return again
        if self._logbook.ledger.accept(award.id) is not None:
            # Replayed past a restart: a second accept of one award would be evidence against ourselves.
            return Decline(request=request.id, reason="busy", detail="the award was accepted before")
        # Two awards at once must not hold the same credit, and the award itself holds only once it is written.
        buyer, hold = award.sender, award.message.hold_micro
        line = self._logbook.assembly.member(buyer).credit_line_micro
        refused = self._logbook.ledger.hold(_accepting(award), buyer, hold, credit_line_micro=line)
        return Decline(request=request.id, reason="credit", detail=refused.detail) if refused else None

    async def _accept(self, stream: Stream, award: Sealed[Award]) -> None:
        terms = award.message
        try:
            accept = await self._logbook.write(
                Accept,
                lambda index, prev: Accept(
                    index=index,
                    prev=prev,
                    award=award.id,
                    buyer=award.sender,
                    job_id=terms.job_id,
                    attempt=terms.attempt,
                ),
                witnessing=award,
            )
        except (StoreFailed, NotConfirmed) as error:
            raise StreamBroken(f"nothing can be signed now: {error}") from error  # since the bid
        finally:
            self._logbook.ledger.void(_accepting(award))
        try:
            await stream.send(accept.raw)
        except BaseException:
            self._logbook.ledger.void(award.id)  # nothing will be done under it
            raise
        self._journal.write(
            "award_accepted", job=terms.job_id.hex(), buyer=award.sender, hold=terms.hold_micro
        )

    async def _work(
        self, stream: Stream, award: Sealed[Award], work: Work, *, sold_for: Privacy | None
    ) -> None:
        """Do the work; `sold_for` is the privacy class of the request that was just sold, None: it comes under a lease."""
        now, ledger = self._clock.now(), self._logbook.ledger
        if sold_for is not None:  # only now: a lease of one job would be over by the time it had travelled
            self._leases.open(award, now, privacy=sold_for)
        prices = Prices(award.message.prompt_micro, award.message.completion_micro)
        new_tokens = max(0, work.completion_tokens_max - len(work.received))
        total = prices.total_micro(Prompt.of(work).estimated_tokens, new_tokens)
        refused = may_work(
            work,
            stream.peer_id,
            leases=self._leases,
            fence=self._fence,
            total_micro=total,
            chargeable_micro=ledger.chargeable_micro(award.id),
            now=now,
        )
        detail = refused.detail if refused else ""
        if work.award != award.id:
            detail = "the work names another award"
        if not detail and sold_for is None:
            detail = self._offer.busy(Digest(award.message.model), award.message.adapter)
        if detail:
            await stream.send(encode(FailedFrame(reason="lease", detail=detail)))
            return
        self._offer.expect(stream, award.message, work)
        self._fence.begin(stream.peer_id, work.job_id, work.attempt)
        self._leases.begin(award.id, work.job_id, work.attempt, total_micro=total, now=now)
        run = _Run(Delivery(award=award, work=work, started_s=now), sent_at=now)
        is_settled = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, stream, work, run, nursery.cancel_scope)
                nursery.start_soon(self._watch, stream, run, nursery.cancel_scope)
                await self._generate(stream, run)
                nursery.cancel_scope.cancel()
            self._note_warm(run)
            is_settled = await self._conclude(stream, run)
        finally:  # whatever ended it, a restart of the host too: what was delivered is claimed
            end_job = partial(self._end_job, run.delivery)
            if is_settled:
                end_job()
            else:
                self._settlement.claim_later(run.delivery, end_job)

    def _note_warm(self, run: _Run) -> None:
        """Whoever got a token had the prompt read."""
        delivery, lease = run.delivery, self._leases.get(run.delivery.work.award)
        if run.failure is None and delivery.ids and lease is not None:
            self._offer.note_served(
                delivery.award.message,
                PeerId(delivery.award.sender),
                delivery.work,
                privacy=lease.privacy,
                written=len(delivery.ids),
            )

    def _end_job(self, delivery: Delivery) -> None:
        """Nothing more will be charged for a job: when its lease is over too, the buyer's hold weighs on it no longer."""
        work = delivery.work
        self._leases.finish(work.award, work.job_id, work.attempt, now=self._clock.now())
        self._void_ended()

    def _void_ended(self) -> None:
        for award_id in self._leases.expire(self._clock.now()):
            self._logbook.ledger.void(award_id)

    async def _listen(self, stream: Stream, work: Work, run: _Run, scope: trio.CancelScope) -> None:
        """Hear a cancel, or the buyer's end, while tokens go out."""
        try:
            cancel = await self._wire.receive(stream, Cancel)
            if (cancel.message.job_id, cancel.message.attempt) != (work.job_id, work.attempt):
                raise RemoteProtocolError("the cancel names another job")
            run.is_cancelled = True
        except RemoteProtocolError as error:
            self._mesh.charge(stream.peer_id, error.offence)
            run.is_broken = True
        except MeshError:
            run.is_broken = True
        scope.cancel()

    async def _watch(self, stream: Stream, run: _Run, scope: trio.CancelScope) -> None:
        """Give up a buyer that takes nothing: it would hold the slot for as long as it likes."""
        while (due := run.sent_at + limits.UNREAD_S) > self._clock.now():  # noqa: ASYNC110  # no polling
            await trio.sleep_until(due)
        run.is_broken = True
        stream.abort()
        scope.cancel()

    async def _send(self, stream: Stream, run: _Run, frame: TokensFrame | ProgressFrame) -> None:
        raw = encode(frame)
        if len(raw) > limits.TOKEN_FRAME_BYTES_MAX:
            raise EngineError(f"the model has a token of {len(raw)} bytes, more than a frame takes")
        await stream.send(raw)
        run.sent_at = self._clock.now()

    async def _generate(self, stream: Stream, run: _Run) -> None:
        """Pass frames from the engine to the buyer, counting what went out."""
        work, delivery = run.delivery.work, run.delivery
        terms = delivery.award.message
        generation = Generation(
            model=Digest(terms.model),
            adapter=None if terms.adapter == NO_HASH else Digest(terms.adapter),
            messages=tuple(ChatMessage(turn.role, turn.content) for turn in work.turns),
            tokens_max=work.completion_tokens_max,
            sampling=Sampling(
                **{name: getattr(work.sampling, name) for name in work.sampling.__struct_fields__}
            ),
            stop=work.stop,
            received=work.received,
            task=work.task,
            inputs=work.inputs,
            claimed=work.claimed,
            tokens_wanted=work.tokens_wanted,
            payer=stream.peer_id,
        )
        frames = self._engine.generate(generation)
        self._offer.arrived(stream)
        try:
            async for frame in frames:
                match frame:
                    case Tokens():
                        first = len(work.received) + len(delivery.ids)
                        for sent in frames_of(first, frame, top_max=work.sampling.top_logprobs):
                            await self._send(stream, run, sent)
                            delivery.add(sent.ids, self._clock.now())
                            # noted as it goes out: many streams of one buyer must not pass the cap together
                            self._exposure.owe(
                                stream.peer_id, work.job_id, work.attempt, delivery.amount_micro
                            )
                    case Progress(phase, done, total):
                        if phase in (Phase.PREFILL, Phase.DECODE):  # else it counts no tokens
                            delivery.prompt_tokens = total
                        await self._send(
                            stream, run, ProgressFrame(phase=phase.value, done=done, total=total)
                        )
                    case Finished():
                        delivery.prompt_tokens = frame.prompt_tokens
                        run.finish = FinishedFrame(
                            reason=frame.reason.value,
                            text=frame.text,
                            prompt_tokens=frame.prompt_tokens,
                            completion_tokens=frame.completion_tokens,
                        )
        except StreamBroken:
            run.is_broken = True
        except EngineError as error:
            detail = str(error)[: limits.DETAIL_CHARS_MAX]
            if isinstance(error, EngineDied):
                self._offer.forget_warm()
            is_clients = isinstance(error, FAULTS_OF_CLIENT)
            run.failure = FailedFrame(reason="prompt" if is_clients else "engine", detail=detail)
        finally:
            with trio.CancelScope(shield=True):
                await frames.aclose()
            delivery.ended_s = self._clock.now()

    async def _conclude(self, stream: Stream, run: _Run) -> bool:
        """Say how it ended, and settle it; whether that was done."""
        delivery, work = run.delivery, run.delivery.work
        ids = {"job": work.job_id.hex(), "attempt": work.attempt, "buyer": stream.peer_id}
        if run.is_broken:
            self._journal.write("delivery_broken", **ids, tokens=len(delivery.ids))
            return False
        if run.failure is not None:
            self._journal.write("delivery_failed", **ids, reason=run.failure.reason)
            with suppress(StreamBroken):
                await stream.send(encode(run.failure))
            return False
        finish = run.finish or FinishedFrame(
            reason="cancelled",
            text="",
            prompt_tokens=delivery.prompt_tokens,
            completion_tokens=len(work.received) + len(delivery.ids),
        )
        try:
            await stream.send(encode(finish))
            self._journal.write("delivered", **ids, tokens=len(delivery.ids), reason=finish.reason)
            with trio.fail_after(SETTLE_TIMEOUT_S):
                await self._settlement.settle(stream, delivery)
        except RemoteProtocolError:
            raise
        except (AgoraError, trio.TooSlowError):
            return False
        return True


def _accepting(award: Sealed[Award]) -> bytes:
    """The name of the hold that stands while an award is being written."""
    return b"accepting" + award.id
