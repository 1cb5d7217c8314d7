"""The buyer: one client's chat from the first word to the last receipt, whoever answers it.

    local engine with a free slot ─┐
    session's lease ───────────────┼─▶ work ─▶ tokens ─▶ receipt, countersigned
    auction ─▶ award (durable) ────┘              │
        ▲                                         │ stream broken, silent for 2 s, engine failed
        └──── next attempt, received token ids ◀──┘

The client sees one unbroken stream. Attempts are numbered and fenced: a stream that was given up is closed before the
next award is written, so nothing late can come in on it. A job outlives its client just long enough to be settled.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import trio

from marketplace.auction import NoSale
from marketplace.budget import Budget, check_budget
from marketplace.choosing import Candidate, best
from marketplace.lease import Leases, Session
from marketplace.pricing import Prices, estimated_tokens, lease_hold_micro, reserve_micro
from marketplace.punctuality import Punctuality
from marketplace.reputation import Reputation
from node.chat import (
    BadPrompt,
    ChatDelta,
    ChatError,
    ChatEvent,
    ChatFinished,
    ChatRequest,
    ChatStarted,
    DeclineView,
    Unsold,
)
from node.clock import Clock
from node.directory import Directory
from node.jobs import Attempt, Job, JobBook
from node.journal import Journal
from node.logbook import Logbook
from node.models import ModelNames
from node.services.advertiser import Advertiser
from node.services.auctioneer import Auctioneer, Sale
from node.services.reception import End, Ending, receive_tokens
from node.services.settlement import CLAIM_WINDOW_S, Settlement
from node.wire import Wire
from protocol import limits
from protocol.envelope import Sealed, narrow
from protocol.errors import AgoraError, MeshError, RemoteProtocolError, StreamBroken
from protocol.identity import PeerId
from protocol.mesh import Mesh, Stream
from protocol.messages import NO_HASH, Accept, Award, Decline, Privacy, Request, SamplingTerms, Turn, Work
from protocol.topics import JOB
from runtime.engine import (
    BadTemplate,
    Digest,
    Engine,
    EngineError,
    Finished,
    FinishReason,
    Generation,
    PromptTooLong,
    Tokens,
)

if TYPE_CHECKING:  # trio-typing's stubs, which libp2p brings, hide trio's own types
    from trio_typing import TaskStatus

EVENTS_WAITING_MAX = 256  # a client slower than its seller fills this, and then slows the seller down
ACCEPT_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Purchase:
    """Work paid for by an award, and the stream it is done on."""

    seller: PeerId
    award: Sealed[Award]
    stream: Stream
    is_lease: bool


class Buyer:
    """Answers chats with this device's own engine, or buys the answers."""

    def __init__(
        self,
        *,
        mesh: Mesh,
        wire: Wire,
        clock: Clock,
        logbook: Logbook,
        directory: Directory,
        advertiser: Advertiser,
        names: ModelNames,
        engine: Engine,
        settlement: Settlement,
        jobs: JobBook,
        budget: Budget,
        price_most: Prices,
        journal: Journal,
        rng: Random,
    ) -> None:
        self._mesh = mesh
        self._wire = wire
        self._clock = clock
        self._logbook = logbook
        self._directory = directory
        self._advertiser = advertiser
        self._names = names
        self._engine = engine
        self._settlement = settlement
        self._jobs = jobs
        self._leases = Leases()
        self._reputation = Reputation()
        self._punctuality = Punctuality()
        self._budget = budget
        self._price_most = price_most
        self._journal = journal
        self._rng = rng
        self._nursery: trio.Nursery | None = None
        self._auctioneer: Auctioneer | None = None

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the jobs: they outlive the client that asked by as long as it takes to settle them."""
        for award in self._logbook.ledger.open_awards(self._logbook.me):
            self._logbook.ledger.void(
                award.id
            )  # its lease, and whoever waited for it, ended with the last run
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._auctioneer = Auctioneer(self._mesh, self._wire, self._clock, self._punctuality, nursery)
            task_status.started()
            await trio.sleep_forever()

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Yield the events of one chat; closing the generator cancels the job.

        Raises:
            ChatError: one of its kinds, before or between events.
        """
        assert self._nursery is not None, "run() comes first"
        digest = self._names.resolve(request.model)
        job_id = self._rng.randbytes(16)
        job = self._jobs.open(request, job_id, self._names.name(digest), digest)
        self._journal.write("job_opened", job=job_id.hex(), model=job.name, privacy=request.privacy)
        send, receive = trio.open_memory_channel[ChatEvent](EVENTS_WAITING_MAX)
        failure: list[ChatError] = []
        self._nursery.start_soon(self._run_job, job, send, failure)
        try:
            async with receive:
                async for event in receive:
                    yield event
        finally:
            job.client_left.set()
        if failure:
            raise failure[0]

    async def quotes(self, model: str, prompt_tokens: int, completion_tokens: int) -> Attempt:
        """Ask sellers what a job would cost, and award nothing."""
        digest = self._names.resolve(model)
        attempt = Attempt(1)
        tokens = (prompt_tokens, completion_tokens)
        sellers = self._sellers(digest, "mesh", frozenset(), tokens)
        if sellers:
            request = self._request(self._rng.randbytes(16), 1, digest, tokens, "mesh", None)
            sale = await self._hold_auction(request, sellers, attempt)
            if isinstance(sale, Sale):
                sale.stream.abort()
        attempt.outcome = "quoted"
        return attempt

    # --- a job --------------------------------------------------------------------------------------------------
    async def _run_job(
        self, job: Job, send: trio.MemorySendChannel[ChatEvent], failure: list[ChatError]
    ) -> None:
        state = "failed"
        try:
            async with send:
                state = await self._attempt_until_done(job, send)
        except ChatError as error:
            failure.append(error)
            state = "unsold" if isinstance(error, Unsold) else "failed"
        except (AgoraError, OSError) as error:  # one job's trouble is not the daemon's end
            failure.append(Unsold(f"the job broke off: {error}", ()))
        finally:
            with trio.CancelScope(shield=True):
                await self._jobs.close(job, state)
        self._journal.write("job_closed", job=job.job_id.hex(), state=state, tokens=len(job.ids))

    async def _attempt_until_done(self, job: Job, send: trio.MemorySendChannel[ChatEvent]) -> str:
        failed: set[PeerId] = set()
        for _ in range(limits.ATTEMPTS_MAX):
            attempt = job.begin_attempt()
            if self._can_run_here(job, failed):
                ending = await self._run_here(job, attempt, send)
            else:
                purchase = await self._purchase(job, attempt, frozenset(failed))
                if purchase is None:
                    continue
                ending = await self._run_there(job, attempt, purchase, send)
            attempt.outcome = "settled" if ending.end is End.FINISHED else "failed"
            attempt.reason = ending.reason
            if ending.end is End.FINISHED:
                return "cancelled" if ending.reason == "cancelled" else "settled"
            if ending.end is End.PROMPT:
                raise BadPrompt(ending.reason)
            self._journal.write(
                "attempt_failed",
                job=job.job_id.hex(),
                attempt=attempt.number,
                seller=attempt.seller,
                tokens=len(attempt.ids),
                reason=ending.reason,
            )
            if attempt.seller and not attempt.is_lease:  # a lease's seller may still win an auction
                failed.add(attempt.seller)
            if job.client_left.is_set():
                return "cancelled"
        raise Unsold(f"{limits.ATTEMPTS_MAX} attempts failed", _declines(job))

    # --- here ---------------------------------------------------------------------------------------------------
    def _can_run_here(self, job: Job, failed: set[PeerId]) -> bool:
        if Digest(job.digest) not in self._engine.models or self._logbook.me in failed:
            if job.request.privacy == "local":
                raise Unsold(
                    f"model {job.name} is not on this device, and privacy 'local' lets nobody else answer", ()
                )
            return False
        return job.request.privacy == "local" or self._engine.status(Digest(job.digest)).slots_free > 0

    async def _run_here(self, job: Job, attempt: Attempt, send: trio.MemorySendChannel[ChatEvent]) -> Ending:
        """Answer with our own engine: no auction, no receipt, nothing on any log."""
        job.state = "running"
        attempt.seller = self._logbook.me
        await self._tell(send, ChatStarted(job.job_id.hex(), attempt.number, attempt.seller, job.name))
        request = job.request
        generation = Generation(
            model=Digest(job.digest),
            messages=request.messages,
            tokens_max=request.tokens_max,
            sampling=request.sampling,
            stop=request.stop,
            received=tuple(job.ids),
        )
        finished: Finished | None = None
        failure: EngineError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_set, job.client_left, nursery.cancel_scope)
            try:
                async with aclosing(self._engine.generate(generation)) as frames:
                    async for frame in frames:
                        if isinstance(frame, Tokens):
                            attempt.ids.extend(frame.ids)
                            job.first_token_s = job.first_token_s or self._clock.now()
                            await self._tell(send, ChatDelta(frame.text, len(frame.ids)))
                        elif isinstance(frame, Finished):
                            finished = frame
            except EngineError as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            is_clients = isinstance(failure, (PromptTooLong, BadTemplate))
            return Ending(End.PROMPT if is_clients else End.FAILED, str(failure))
        if finished is None:
            return Ending(End.FINISHED, "cancelled")
        attempt.prompt_tokens = finished.prompt_tokens
        if finished.text:
            await self._tell(send, ChatDelta(finished.text, 0))
        await self._finish(job, send, finished.reason, finished.prompt_tokens)
        return Ending(End.FINISHED, finished.reason.value)

    # --- there --------------------------------------------------------------------------------------------------
    async def _purchase(self, job: Job, attempt: Attempt, failed: frozenset[PeerId]) -> Purchase | None:
        """Find who does it: the session's seller, else the winner of an auction; None: try the next attempt."""
        leased = await self._use_lease(job, attempt, failed)
        if leased is not None:
            return leased
        tokens = (_estimated_tokens(job), self._completion_cap(job))
        sellers = self._sellers(job.digest, job.request.privacy, failed, tokens)
        if len(sellers) < limits.SELLERS_ASKED_MAX:
            await self._look_for_sellers(job.digest, is_urgent=not sellers)
            sellers = self._sellers(job.digest, job.request.privacy, failed, tokens)
        if not sellers:
            raise Unsold(self._why_nobody(job, failed), _declines(job))
        request = self._request(
            job.job_id, attempt.number, job.digest, tokens, job.request.privacy, job.request.session
        )
        sale = await self._hold_auction(request, sellers, attempt)
        if isinstance(sale, NoSale):
            attempt.outcome = "unsold"
            declines = _declines(job)
            if declines and all(decline.reason == "context" for decline in declines):
                raise BadPrompt(f"the prompt does not fit any seller's context: {declines[0].detail}")
            raise Unsold(_summary(declines), declines)
        try:
            return await self._award(job, attempt, request, sale)
        except (MeshError, trio.TooSlowError) as error:
            sale.stream.abort()
            attempt.outcome, attempt.reason = "failed", f"award not accepted: {str(error) or 'silent'}"
            self._reputation.failed(sale.seller)
            if attempt.award is not None:
                self._leases.retire(attempt.award.id)
                self._end_lease_job(job, attempt)
            return None

    async def _hold_auction(
        self, request: Request, sellers: tuple[PeerId, ...], attempt: Attempt
    ) -> Sale | NoSale:
        assert self._auctioneer is not None, "run() comes first"
        sale = await self._auctioneer.hold(request, sellers, attempt)
        self._journal.write(
            "auction_closed",
            job=request.job_id.hex(),
            attempt=attempt.number,
            asked=len(sellers),
            bids=sum(answer.bid is not None for answer in attempt.answers),
            winner=sale.seller if isinstance(sale, Sale) else "",
            total_micro=sale.total_micro if isinstance(sale, Sale) else 0,
            ms=round(attempt.auction_s * 1000, 1),
        )
        return sale

    async def _award(self, job: Job, attempt: Attempt, request: Request, sale: Sale) -> Purchase:
        """Write the award, send it with the work, and wait for the accept.

        Raises:
            NotConfirmed, StoreFailed: nothing durable may or can be written: the job cannot be bought now.
            MeshError, trio.TooSlowError: the winner did not take it.
        """
        attempt.seller = sale.seller
        has_session = job.request.session is not None
        hold = sale.total_micro
        if has_session:
            hold = lease_hold_micro(sale.total_micro, spendable_micro=self._spendable_micro())
        self._check_budget(job, hold)
        held = self._hold(job, attempt, hold)
        bid = sale.bid.message
        award = await self._logbook.write(
            Award,
            lambda index, prev: Award(
                index=index,
                prev=prev,
                request=bid.request,
                bid=sale.bid.id,
                job_id=request.job_id,
                attempt=request.attempt,
                seller=sale.seller,
                model=request.model,
                hold_micro=hold,
                prompt_micro=bid.prompt_micro,
                completion_micro=bid.completion_micro,
                lease_ms=int(limits.LEASE_IDLE_S * 1000) if has_session else 0,
                session=request.session,
            ),
        )
        self._logbook.ledger.void(held)  # the award itself holds from here on
        attempt.award = award
        attempt.work = self._work(job, attempt, award)
        now = self._clock.now()
        self._leases.open(award, now, self._session(job))
        self._leases.begin(award.id, job.job_id, attempt.number, total_micro=sale.total_micro, now=now)
        self._journal.write(
            "award_sent", job=job.job_id.hex(), attempt=attempt.number, seller=sale.seller, hold_micro=hold
        )
        with trio.fail_after(ACCEPT_TIMEOUT_S):
            await sale.stream.send(award.raw)
            await self._wire.send(sale.stream, attempt.work)
            answer = await self._wire.receive(sale.stream, Accept, Decline)
        if isinstance(answer.message, Decline):
            raise StreamBroken(f"declined the award ({answer.message.reason}): {answer.message.detail}")
        accept = narrow(answer, Accept)
        if accept is None or accept.message.award != award.id:
            raise RemoteProtocolError(f"seller {sale.seller} accepts another award")
        return Purchase(sale.seller, award, sale.stream, is_lease=False)

    async def _use_lease(self, job: Job, attempt: Attempt, failed: frozenset[PeerId]) -> Purchase | None:
        session = self._session(job)
        if session is None:
            return None
        prompt_tokens, completion_tokens = _estimated_tokens(job), self._completion_cap(job)
        lease = self._leases.find(
            session,
            prompt_tokens=prompt_tokens,
            completion_tokens_max=completion_tokens,
            remaining_micro=self._logbook.ledger.remaining_micro,
            now=self._clock.now(),
        )
        if lease is None:
            return None
        seller, award = lease.seller, lease.award
        if seller not in self._allowed(job.request.privacy) or seller in failed:
            self._leases.retire(award.id)
            return None
        attempt.seller, attempt.award, attempt.is_lease = seller, award, True
        attempt.work = self._work(job, attempt, award)
        try:
            stream = await self._mesh.open_stream(seller, JOB)
            await self._wire.send(stream, attempt.work)
        except MeshError:
            self._leases.retire(award.id)
            attempt.is_lease = False
            return None
        total = lease.prices.total_micro(prompt_tokens, completion_tokens)
        self._leases.begin(award.id, job.job_id, attempt.number, total_micro=total, now=self._clock.now())
        self._journal.write("lease_used", job=job.job_id.hex(), seller=seller)
        return Purchase(seller, award, stream, is_lease=True)

    async def _run_there(
        self, job: Job, attempt: Attempt, purchase: Purchase, send: trio.MemorySendChannel[ChatEvent]
    ) -> Ending:
        job.state = "running"
        await self._tell(send, ChatStarted(job.job_id.hex(), attempt.number, purchase.seller, job.name))

        async def pass_on(delta: ChatDelta) -> None:
            await self._tell(send, delta)

        try:
            ending = await receive_tokens(
                purchase.stream, self._wire, job, attempt, on_delta=pass_on, now=self._clock.now
            )
        except RemoteProtocolError as error:
            self._mesh.charge(purchase.seller, error.offence)
            ending = Ending(End.FAILED, str(error))
        if ending.end is not End.FINISHED or ending.frame is None:
            purchase.stream.abort()
            self._leases.retire(purchase.award.id)
            if ending.end is End.FAILED:
                self._reputation.failed(purchase.seller)
            assert self._nursery is not None
            self._nursery.start_soon(self._keep_hold_for_claim, job, attempt)
            return ending
        if ending.reason != "cancelled":
            await self._finish(job, send, FinishReason(ending.reason), ending.frame.prompt_tokens)
        await send.aclose()  # the client has everything; what follows is between the seller and us
        await self._settle(job, attempt, purchase)
        return ending

    async def _settle(self, job: Job, attempt: Attempt, purchase: Purchase) -> None:
        """Countersign what was delivered, and remember how the seller kept its word."""
        try:
            is_settled = await self._settlement.countersign_on(purchase.stream, job, attempt)
        except RemoteProtocolError as error:
            self._mesh.charge(purchase.seller, error.offence)
            self._journal.write(
                "receipt_refused", job=job.job_id.hex(), seller=purchase.seller, reason=str(error)
            )
            self._reputation.failed(purchase.seller)
            self._leases.retire(purchase.award.id)
            is_settled = True  # nothing more will be signed for it
        if not is_settled:
            assert self._nursery is not None
            self._nursery.start_soon(self._keep_hold_for_claim, job, attempt)
            return
        self._note_kept_promises(job, attempt, purchase.seller)
        self._end_lease_job(job, attempt)

    def _note_kept_promises(self, job: Job, attempt: Attempt, seller: PeerId) -> None:
        bid = next(
            (answer.bid for answer in attempt.answers if answer.peer_id == seller and answer.bid), None
        )
        now = self._clock.now()
        first_s = job.first_token_s if job.first_token_s is not None else now
        self._reputation.settled(
            seller,
            promised_ttft_ms=bid.ttft_ms if bid else 0,
            ttft_ms=round((first_s - job.started_s) * 1000),
            promised_tokens_per_ks=bid.tokens_per_ks if bid else 0,
            tokens_per_ks=round(1000 * len(attempt.ids) / max(0.001, now - first_s)),
        )

    async def _keep_hold_for_claim(self, job: Job, attempt: Attempt) -> None:
        """A failed attempt is paid for what was accepted: its seller may still come for it."""
        if attempt.ids:
            await trio.sleep(CLAIM_WINDOW_S)
        self._end_lease_job(job, attempt)

    def _end_lease_job(self, job: Job, attempt: Attempt) -> None:
        assert attempt.award is not None
        now = self._clock.now()
        self._leases.finish(attempt.award.id, job.job_id, attempt.number, now=now)
        for award_id in self._leases.expire(now):
            self._logbook.ledger.void(award_id)

    def _session(self, job: Job) -> Session | None:
        request = job.request
        return Session(request.session, job.digest, request.privacy) if request.session else None

    async def _finish(
        self, job: Job, send: trio.MemorySendChannel[ChatEvent], reason: FinishReason, prompt_tokens: int
    ) -> None:
        await self._tell(send, ChatFinished(job.job_id.hex(), reason, prompt_tokens, len(job.ids)))

    async def _tell(self, send: trio.MemorySendChannel[ChatEvent], event: ChatEvent) -> None:
        """Pass an event to the client; one that has left hears nothing more."""
        with suppress(trio.BrokenResourceError):
            await send.send(event)

    # --- who may be asked, and for how much -----------------------------------------------------------------------
    def _allowed(self, privacy: Privacy) -> frozenset[PeerId]:
        assembly, me = self._logbook.assembly, self._logbook.me
        if privacy == "local":
            return frozenset()
        members = assembly.members()
        return frozenset(
            peer for peer in members if peer != me and (privacy == "mesh" or assembly.same_owner(me, peer))
        )

    def _sellers(
        self, digest: bytes, privacy: Privacy, failed: frozenset[PeerId], tokens: tuple[int, int]
    ) -> tuple[PeerId, ...]:
        """The best K sellers of a model that may be asked; `tokens` are those of the prompt and the cap."""
        allowed = self._allowed(privacy) - failed
        candidates = []
        for offer in self._directory.holders(digest, self._clock.now()):
            seller, advert = offer.advert.sender, offer.advert.message
            if seller in allowed:
                total = Prices(advert.prompt_micro, advert.completion_micro).total_micro(*tokens)
                score = self._reputation.of(seller).score
                candidates.append(Candidate(seller, total, advert.slots_free, is_warm=False, score=score))
        return best(candidates, self._rng)

    async def _look_for_sellers(self, digest: bytes, *, is_urgent: bool) -> None:
        """Ask a few peers whom they know; only wait for it when there is nobody to ask yet."""
        members = self._logbook.assembly.members()
        peers = sorted(peer for peer in self._mesh.connected if peer in members)
        asked = self._rng.sample(peers, min(3, len(peers)))
        if not is_urgent:
            assert self._nursery is not None
            for peer in asked:
                self._nursery.start_soon(self._advertiser.ask, peer, digest)
            return
        with trio.move_on_after(limits.BID_WINDOW_MAX_S):
            async with trio.open_nursery() as nursery:
                for peer in asked:
                    nursery.start_soon(self._advertiser.ask, peer, digest)

    def _why_nobody(self, job: Job, failed: frozenset[PeerId]) -> str:
        others = len(self._directory.holders(job.digest, self._clock.now()))
        if failed:
            return f"{len(failed)} seller(s) of {job.name} failed and no other is left"
        if others and job.request.privacy == "owner":
            return (
                f"no device of yours sells {job.name}; {others} of other owners do: "
                "ask with privacy 'mesh' if they may read the prompt"
            )
        return f"nobody who sells {job.name} can be reached"

    def _completion_cap(self, job: Job) -> int:
        """Completion tokens still wanted, within the largest context that is on offer."""
        wanted = job.request.tokens_max - len(job.ids)
        contexts = [
            model.context_tokens
            for offer in self._directory.holders(job.digest, self._clock.now())
            for model in offer.advert.message.models
            if model.digest == job.digest
        ]
        room = max(contexts, default=0) - _estimated_tokens(job)
        return max(1, min(wanted, room) if room > 0 else wanted)

    def _spendable_micro(self) -> int:
        line = self._logbook.assembly.member(self._logbook.me).credit_line_micro
        return self._logbook.ledger.spendable_micro(self._logbook.me, line)

    def _hold(self, job: Job, attempt: Attempt, hold_micro: int) -> bytes:
        """Set the credit aside while the award is being written: two jobs at once must not spend it twice.

        Raises:
            Unsold: it is not there.
        """
        me = self._logbook.me
        key = job.job_id + bytes([attempt.number])
        line = self._logbook.assembly.member(me).credit_line_micro
        refused = self._logbook.ledger.hold(key, me, hold_micro, credit_line_micro=line)
        if refused is not None:
            raise Unsold(f"not enough credit: {refused.detail}", (DeclineView(me, "credit", refused.detail),))
        return key

    def _check_budget(self, job: Job, hold_micro: int) -> None:
        """Keep the owner's own limits.

        Raises:
            Unsold: the hold would break one, with the reason `budget`.
        """
        ledger, me = self._logbook.ledger, self._logbook.me
        over = check_budget(
            self._budget,
            wanted_micro=hold_micro,
            job_spent_micro=ledger.job_spent_micro(me, job.job_id),
            day_spent_micro=ledger.day_spent_micro(me, self._clock.utc_ms()),
            held_micro=ledger.held_micro(me),
        )
        if over is not None:
            detail = f"{over.wanted_micro} micro-credits wanted, {over.left_micro} left of the {over.limit}'s budget"
            raise Unsold(f"over this device's budget: {detail}", (DeclineView(me, "budget", detail),))

    def _request(
        self,
        job_id: bytes,
        attempt: int,
        digest: bytes,
        tokens: tuple[int, int],
        privacy: Privacy,
        session: bytes | None,
    ) -> Request:
        prompt_tokens, completion_tokens = tokens
        return Request(
            job_id=job_id,
            attempt=attempt,
            model=digest,
            prompt_tokens=prompt_tokens,
            completion_tokens_max=completion_tokens,
            total_micro_max=reserve_micro(
                self._price_most,
                prompt_tokens=prompt_tokens,
                completion_tokens_max=completion_tokens,
                spendable_micro=self._spendable_micro(),
            ),
            privacy=privacy,
            session=session or NO_HASH,
            head=self._logbook.head(self._logbook.me, "bilateral"),
        )

    def _work(self, job: Job, attempt: Attempt, award: Sealed[Award]) -> Work:
        request, sampling = job.request, job.request.sampling
        return Work(
            award=award.id,
            job_id=job.job_id,
            attempt=attempt.number,
            turns=turns_of(request),
            completion_tokens_max=len(job.ids) + self._completion_cap(job),
            sampling=SamplingTerms(
                **{name: getattr(sampling, name) for name in SamplingTerms.__struct_fields__}
            ),
            stop=request.stop,
            received=tuple(job.ids),
        )


def turns_of(request: ChatRequest) -> tuple[Turn, ...]:
    """The chat in the words of the protocol."""
    return tuple(
        Turn(role=message.role, content=message.content)  # type: ignore[arg-type]  # the gateway has checked the role
        for message in request.messages
    )


def _estimated_tokens(job: Job) -> int:
    """Prompt tokens, and the received ones that are read again."""
    return estimated_tokens(turns_of(job.request)) + len(job.ids)


def _declines(job: Job) -> tuple[DeclineView, ...]:
    return tuple(
        DeclineView(answer.peer_id, answer.reason, answer.detail)
        for attempt in job.attempts
        for answer in attempt.answers
        if answer.bid is None
    )


def _summary(declines: tuple[DeclineView, ...]) -> str:
    reasons = ", ".join(sorted({decline.reason for decline in declines})) or "no answer"
    return f"no seller took the job: {len(declines)} declined ({reasons})"


async def _cancel_when_set(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
