"""Purchasing: buy one attempt at a job: by the session's lease if there is one, else by an auction and an award.

Whom it may ask, and what it may spend, `eligibility.py` says; what is noted here is how sellers kept their word, and
which holds are still needed. The award is durable before it is sent; the credit it needs is set aside before it is
written, so that two jobs at once cannot spend it twice.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

import trio

from marketplace.auction import NoSale
from marketplace.budget import Budget
from marketplace.lease import Leases, Session
from marketplace.prefix import prefix_digest
from marketplace.pricing import Prices, lease_hold_micro, reserve_micro
from marketplace.prompt import only_reads
from marketplace.punctuality import Punctuality
from marketplace.reputation import Reputation
from node.chat import BadPrompt, DeclineView, Unsold
from node.clock import Clock
from node.directory import Directory
from node.jobs import CLAIM_WINDOW_S, Answer, Attempt, Job, prompt_of
from node.journal import Journal
from node.logbook import Logbook
from node.services.advertiser import Advertiser
from node.services.auctioneer import Auctioneer, Sale
from node.services.eligibility import Eligibility
from node.wire import Wire
from protocol import limits
from protocol.envelope import Sealed, encode, narrow
from protocol.errors import MeshError, RemoteProtocolError, StreamBroken
from protocol.identity import PeerId
from protocol.mesh import Mesh, Stream
from protocol.messages import (
    NO_HASH,
    Accept,
    Award,
    Decline,
    Privacy,
    Request,
    SamplingTerms,
    Task,
    Work,
)
from protocol.topics import JOB

ACCEPT_TIMEOUT_S = 2.0
AUCTIONS_MAX = 3  # for one attempt: of those an advert names, any may be gone by now
ENVELOPE_BYTES = 512  # what is around a message: signature, mesh, sender, time


class AwardDeclined(StreamBroken):
    """The winner has changed its mind, and said so: its last slot went to somebody else meanwhile."""


@dataclass(frozen=True)
class Purchase:
    """Work paid for by an award, and the stream it is done on."""

    seller: PeerId
    award: Sealed[Award]
    stream: Stream
    is_lease: bool


class Purchasing:
    """Buys jobs for the buyer, in whose nursery its questions run."""

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        mesh: Mesh,
        wire: Wire,
        clock: Clock,
        logbook: Logbook,
        directory: Directory,
        advertiser: Advertiser,
        budget: Budget,
        price_most: Prices,
        reputation: Reputation,
        journal: Journal,
        rng: Random,
    ) -> None:
        self._mesh = mesh
        self._wire = wire
        self._clock = clock
        self._logbook = logbook
        self._leases = Leases()
        self._reputation = reputation
        self._price_most = price_most
        self._journal = journal
        self._rng = rng
        self._nursery = nursery
        self._eligibility = Eligibility(
            nursery,
            mesh=mesh,
            clock=clock,
            logbook=logbook,
            directory=directory,
            advertiser=advertiser,
            reputation=self._reputation,
            budget=budget,
            rng=rng,
        )
        self._auctioneer = Auctioneer(mesh, wire, clock, directory, Punctuality(), nursery)

    # --- buying -------------------------------------------------------------------------------------------------
    async def purchase(self, job: Job, attempt: Attempt, failed: frozenset[PeerId]) -> Purchase | None:
        """Return who does it: the session's seller, else the winner of an auction; None: that one let us down.

        Raises:
            ChatError: nobody will do it.
        """
        tokens = (_estimated_tokens(job), self._completion_cap(job))
        _check_size(_work(job, attempt, NO_HASH, tokens[1]))
        self._void_ended()
        leased = await self._use_lease(job, attempt, failed)
        if leased is not None:
            return leased
        request, sale = await self._find_sale(job, attempt, failed, tokens)
        try:
            award = await self._award(job, attempt, request, sale)
        except BaseException:
            sale.stream.abort()  # the winner need not wait for an award that will not come
            raise
        try:
            await self._hand_over(sale, award, attempt)
        except (MeshError, RemoteProtocolError, trio.TooSlowError) as error:
            sale.stream.abort()
            if isinstance(error, RemoteProtocolError):
                self._mesh.charge(sale.seller, error.offence)
            attempt.outcome, attempt.reason = "failed", f"award not accepted: {str(error) or 'silent'}"
            if isinstance(error, AwardDeclined):
                self._reputation.declined(sale.seller)
            self.failed(job, attempt, is_sellers_fault=not isinstance(error, AwardDeclined))
            return None
        except BaseException:
            sale.stream.abort()
            self.failed(job, attempt, is_sellers_fault=False)  # nothing came of it: its hold goes back
            raise
        return Purchase(sale.seller, award, sale.stream, is_lease=False)

    async def _find_sale(
        self, job: Job, attempt: Attempt, failed: frozenset[PeerId], tokens: tuple[int, int]
    ) -> tuple[Request, Sale]:
        """Hold an auction, and another among those not asked yet when nobody of the first would or was there.

        Raises:
            Unsold, BadPrompt: nobody will.
        """
        asked: frozenset[PeerId] = frozenset()
        prefix = prefix_digest(job.digest, job.adapter, prompt_of(job.request).turns)
        for _ in range(AUCTIONS_MAX):
            sellers = await self._eligibility.find_sellers(
                job.digest,
                job.request.privacy,
                failed,
                (tokens[0], 0 if job.is_reading else tokens[1]),
                adapter=job.adapter,
                asked=asked,
                dimensions=job.dimensions,
                not_by=job.request.not_by,
                is_by_lot=job.request.task == "check",
                prefix=prefix,
            )
            if not sellers:
                break
            asked |= frozenset(sellers)
            request = self._request(
                job.job_id,
                attempt.number,
                (job.digest, job.adapter),
                tokens,
                job.request.privacy,
                None if job.is_reading else job.request.session,
                job.request.task,
                prefix,
            )
            sale = await self._hold_auction(request, sellers, attempt)
            if isinstance(sale, Sale):
                return request, sale
        if not asked:
            raise Unsold(self._eligibility.why_nobody(job, failed), declines_of(job))
        attempt.outcome = "unsold"
        declines = declines_of(job)
        if declines and all(decline.reason == "context" for decline in declines):
            raise BadPrompt(f"the prompt does not fit any seller's context: {declines[0].detail}")
        raise Unsold(_summary(declines), declines)

    async def quote(
        self, model: tuple[bytes, bytes], tokens: tuple[int, int], dimensions: int = 0
    ) -> Attempt:
        """Ask sellers what a job would cost, and award nothing.

        Args:
            model: the digests of the base and of the adapter.
            tokens: those of the prompt and the cap.
            dimensions: of the model's vectors; 0: it writes, and a chat is asked for.
        """
        attempt = Attempt(1)
        digest, adapter = model
        sellers = self._eligibility.sellers(
            digest, "mesh", frozenset(), tokens, adapter=adapter, dimensions=dimensions
        )
        if sellers:
            task: Task = "embedding" if dimensions else "chat"
            request = self._request(self._rng.randbytes(16), 1, model, tokens, "mesh", None, task)
            sale = await self._hold_auction(request, sellers, attempt)
            if isinstance(sale, Sale):
                sale.stream.abort()
        attempt.outcome = "quoted"
        return attempt

    async def _hold_auction(
        self, request: Request, sellers: tuple[PeerId, ...], attempt: Attempt
    ) -> Sale | NoSale:
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

    async def _award(self, job: Job, attempt: Attempt, request: Request, sale: Sale) -> Sealed[Award]:
        """Write the award.

        Raises:
            Unsold: over the budget or the credit line.
            NotConfirmed, StoreFailed: nothing durable may or can be written: the job cannot be bought now.
        """
        has_session = self._session(job) is not None
        hold = sale.total_micro
        if has_session:
            hold = lease_hold_micro(
                sale.total_micro, spendable_micro=self._eligibility.affordable_micro(job.job_id)
            )
        self._check_budget(job, attempt, hold)
        held = self._hold(job, attempt, hold)
        attempt.seller = sale.seller
        bid = sale.bid.message
        attempt.promised_ttft_ms, attempt.promised_tokens_per_s = bid.ttft_ms, bid.tokens_per_ks / 1000
        try:
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
                    adapter=request.adapter,
                    hold_micro=hold,
                    prompt_micro=bid.prompt_micro,
                    completion_micro=bid.completion_micro,
                    lease_ms=int(limits.LEASE_IDLE_S * 1000) if has_session else 0,
                    session=request.session,
                ),
            )
        finally:
            self._logbook.ledger.void(held)  # once it is written, the award itself holds
        attempt.award = award
        attempt.work = _work(job, attempt, award.id, request.completion_tokens_max)
        now = self._clock.now()
        self._leases.open(award, now, self._session(job))
        self._leases.begin(award.id, job.job_id, attempt.number, total_micro=sale.total_micro, now=now)
        self._journal.write(
            "award_sent", job=job.job_id.hex(), attempt=attempt.number, seller=sale.seller, hold_micro=hold
        )
        return award

    async def _hand_over(self, sale: Sale, award: Sealed[Award], attempt: Attempt) -> None:
        """Send the award and the work, and wait for the accept.

        Raises:
            AwardDeclined: the winner says why it cannot take it any more.
            MeshError, trio.TooSlowError: the winner did not take it.
            RemoteProtocolError: its answer is none to this award.
        """
        assert attempt.work is not None
        with trio.fail_after(ACCEPT_TIMEOUT_S):
            await sale.stream.send(award.raw)
            await self._wire.send(sale.stream, attempt.work)
            answer = await self._wire.receive(sale.stream, Accept, Decline)
        if isinstance(answer.message, Decline):
            raise AwardDeclined(f"declined the award ({answer.message.reason}): {answer.message.detail}")
        accept = narrow(answer, Accept)
        if accept is None or accept.message.award != award.id:
            raise RemoteProtocolError(f"seller {sale.seller} accepts another award")

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
        if seller in failed or not self._eligibility.is_allowed(seller, job.request.privacy):
            self._leases.retire(award.id)
            return None
        attempt.seller, attempt.award, attempt.is_lease = seller, award, True
        attempt.promised_tokens_per_s = self._eligibility.advertised_tokens_per_s(seller, job.digest)
        attempt.work = _work(job, attempt, award.id, completion_tokens)
        # Before anything is waited for: another request of the session may find the lease, or end it, meanwhile.
        total = lease.prices.total_micro(prompt_tokens, completion_tokens)
        self._leases.begin(award.id, job.job_id, attempt.number, total_micro=total, now=self._clock.now())
        try:
            with trio.fail_after(limits.STALL_TIMEOUT_S):  # a stopped process keeps its connection for longer
                stream = await self._mesh.open_stream(seller, JOB)
            await self._wire.send(stream, attempt.work)
        except BaseException as error:
            self._leases.retire(award.id)
            self._end_job(job, attempt)
            attempt.seller, attempt.award, attempt.is_lease = None, None, False
            if isinstance(error, MeshError | trio.TooSlowError):
                return None
            raise
        self._journal.write("lease_used", job=job.job_id.hex(), seller=seller)
        return Purchase(seller, award, stream, is_lease=True)

    # --- how it went --------------------------------------------------------------------------------------------
    def settled(self, job: Job, attempt: Attempt, seller: PeerId) -> None:
        """A job was paid: its hold is free, and what was delivered stands against what was promised."""
        # By its bid alone: an advert's speed, as under a lease, is that of a minute ago.
        rate, ttft_s = None if attempt.is_lease else attempt.tokens_per_s, attempt.ttft_s
        self._reputation.settled(
            seller,
            promised_ttft_ms=0 if ttft_s is None else attempt.promised_ttft_ms,
            ttft_ms=0 if ttft_s is None else round(1000 * ttft_s),
            promised_tokens_per_ks=0 if rate is None else round(1000 * attempt.promised_tokens_per_s),
            tokens_per_ks=0 if rate is None else round(1000 * rate),
        )
        self._end_job(job, attempt)

    def failed(self, job: Job, attempt: Attempt, *, is_sellers_fault: bool) -> None:
        """An attempt broke off. What was accepted is paid for: its hold stays while the seller may still claim it."""
        if attempt.award is None or attempt.seller is None:
            return
        self._leases.retire(attempt.award.id)
        if is_sellers_fault:
            self._reputation.failed(attempt.seller)
        self._nursery.start_soon(self._keep_hold_for_claim, job, attempt)

    def disproved(self, sellers: Iterable[PeerId]) -> None:
        """These blamed the prompt that another has answered since: they lied, or took on what they could not do."""
        for seller in sellers:
            self._reputation.failed(seller)

    def restarted(self, seller: PeerId) -> None:
        """A seller's daemon is another one now: it serves no lease of before, so the next request goes to auction at once."""
        self._leases.retire_of(seller)

    def unsettled(self, job: Job, attempt: Attempt) -> None:
        """The receipt of a delivered job has not come: its seller may still claim it."""
        self._nursery.start_soon(self._keep_hold_for_claim, job, attempt)

    async def _keep_hold_for_claim(self, job: Job, attempt: Attempt) -> None:
        if attempt.ids:
            await trio.sleep(CLAIM_WINDOW_S)
        self._end_job(job, attempt)

    def _end_job(self, job: Job, attempt: Attempt) -> None:
        assert attempt.award is not None
        self._leases.finish(attempt.award.id, job.job_id, attempt.number, now=self._clock.now())
        self._void_ended()

    def _void_ended(self) -> None:
        """Give back the holds of leases that are over: after a job, and before credit is needed for the next."""
        for award_id in self._leases.expire(self._clock.now()):
            self._logbook.ledger.void(award_id)

    def _session(self, job: Job) -> Session | None:
        request = job.request
        if request.session is None or job.is_reading:
            return None  # a lease's price is one for text, and a reading leaves nothing warm behind
        return Session(request.session, job.digest, request.privacy, job.adapter)

    # --- what it may cost, and what is sent ---------------------------------------------------------------------
    def _completion_cap(self, job: Job) -> int:
        if job.is_reading:
            return job.tokens_max - job.tokens
        return self._eligibility.completion_cap(
            job.digest,
            prompt_tokens=_estimated_tokens(job),
            wanted_tokens=job.tokens_max - job.tokens,
        )

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
            attempt.answers.append(Answer(me, attempt.auction_s, reason="credit", detail=refused.detail))
            raise Unsold(f"not enough credit: {refused.detail}", declines_of(job))
        return key

    def _check_budget(self, job: Job, attempt: Attempt, hold_micro: int) -> None:
        """Keep the owner's own limits.

        Raises:
            Unsold: the hold would break one, with the reason `budget`.
        """
        if detail := self._eligibility.over_budget(job.job_id, hold_micro):
            answer = Answer(self._logbook.me, attempt.auction_s, reason="budget", detail=detail)
            attempt.answers.append(answer)
            raise Unsold(f"over this device's budget: {detail}", declines_of(job))

    def _request(
        self,
        job_id: bytes,
        attempt: int,
        model: tuple[bytes, bytes],
        tokens: tuple[int, int],
        privacy: Privacy,
        session: bytes | None,
        task: Task = "chat",
        prefix: bytes = b"",
    ) -> Request:
        prompt_tokens, completion_tokens = tokens
        return Request(
            job_id=job_id,
            attempt=attempt,
            model=model[0],
            adapter=model[1],
            prompt_tokens=prompt_tokens,
            completion_tokens_max=completion_tokens,
            total_micro_max=reserve_micro(
                self._price_most,
                prompt_tokens=prompt_tokens,
                completion_tokens_max=0 if only_reads(task) else completion_tokens,
                spendable_micro=self._eligibility.spendable_micro(),
            ),
            privacy=privacy,
            session=session or NO_HASH,
            head=self._logbook.head(self._logbook.me, "bilateral"),
            task=task,
            prefix=prefix,
        )


def _work(job: Job, attempt: Attempt, award_id: bytes, completion_tokens: int) -> Work:
    """What is still to be done; so many tokens, or words, more than were received."""
    request, sampling = job.request, job.request.sampling
    prompt, received = job.still_to_do()
    return Work(
        award=award_id,
        job_id=job.job_id,
        attempt=attempt.number,
        turns=prompt.turns,
        completion_tokens_max=len(received) + completion_tokens,
        sampling=SamplingTerms(**{name: getattr(sampling, name) for name in SamplingTerms.__struct_fields__}),
        stop=request.stop,
        received=received,
        task=prompt.task,
        inputs=prompt.inputs,
        claimed=prompt.claimed,
        tokens_wanted=request.tokens_wanted,
    )


def _estimated_tokens(job: Job) -> int:
    """Prompt tokens, and the received ones that are read again."""
    prompt, received = job.still_to_do()
    return prompt.estimated_tokens + (0 if job.is_reading else len(received))


def declines_of(job: Job) -> tuple[DeclineView, ...]:
    """Everybody who was asked, at any attempt, and did not bid."""
    return tuple(
        DeclineView(answer.peer_id, answer.reason, answer.detail)
        for attempt in job.attempts
        for answer in attempt.answers
        if answer.bid is None
    )


def _summary(declines: tuple[DeclineView, ...]) -> str:
    reasons = ", ".join(sorted({decline.reason for decline in declines})) or "no answer"
    return f"no seller took the job: {len(declines)} declined ({reasons})"


def _check_size(work: Work) -> None:
    """Refuse a job that no job stream carries.

    Raises:
        BadPrompt: it is too large.
    """
    size, most = len(encode(work)), limits.PROMPT_BYTES_MAX - ENVELOPE_BYTES
    if size > most:
        raise BadPrompt(f"the {work.task} has {size} bytes, at most {most} travel to a seller")
