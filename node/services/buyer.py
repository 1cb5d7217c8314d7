"""The buyer: one client's job from the first word to the last receipt, whoever answers it.

    local engine with a free slot ─┐
    session's lease ───────────────┼─▶ work ─▶ tokens ─▶ receipt, countersigned
    auction ─▶ award (durable) ────┘              │
        ▲                                         │ stream broken, silent for 2 s, engine failed
        └──── next attempt, received token ids ◀──┘

A chat, a raw text to go on from, texts to embed, tokens to check: all travel the same way, and those that only read bring
words instead of tokens. The client sees one unbroken stream. Attempts are numbered and fenced: a stream that was given up is closed before the
next award is written, so nothing late can come in on it. A job outlives its client just long enough to be settled.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from enum import Enum
from random import Random
from typing import TYPE_CHECKING

import trio

from marketplace.prompt import unfit
from node.chat import (
    BadPrompt,
    ChatDelta,
    ChatError,
    ChatEvent,
    ChatFinished,
    ChatRequest,
    ChatStarted,
    StillLoading,
    Unsold,
)
from node.clock import Clock
from node.jobs import Attempt, Job, JobBook, prompt_of
from node.journal import Journal
from node.logbook import Logbook
from node.models import ModelNames, has_adapter
from node.services.purchasing import Purchase, Purchasing, declines_of
from node.services.reception import End, Ending, receive_tokens
from node.services.settlement import Settlement
from node.wire import Wire
from protocol import limits
from protocol.errors import AgoraError, RemoteProtocolError
from protocol.identity import PeerId
from protocol.mesh import Mesh
from protocol.messages import NO_HASH
from runtime.engine import (
    FAULTS_OF_CLIENT,
    Digest,
    Engine,
    EngineDied,
    EngineError,
    Finished,
    FinishReason,
    Frame,
    Generation,
    ModelLoading,
    Tokens,
    UnknownAdapter,
)

if TYPE_CHECKING:  # trio-typing's stubs, which libp2p brings, hide trio's own types
    from trio_typing import TaskStatus

PRICE_SHOWN_S = (
    0.25  # a stream's end waits this long for the receipt, so that whoever has read it sees the price
)
# Sellers whose word is taken that the prompt is bad. One alone could end any chat so, and the client would ask nobody else.
BLAMES_BELIEVED = 2
EVENTS_WAITING_MAX = 256  # a client slower than its seller fills this, and then slows the seller down


class Here(Enum):
    """Instead of a purchase: this device's own engine answers."""

    HERE = "here"


class Buyer:
    """Answers chats with this device's own engine, or buys the answers."""

    def __init__(
        self,
        *,
        mesh: Mesh,
        wire: Wire,
        clock: Clock,
        logbook: Logbook,
        names: ModelNames,
        engine: Engine,
        settlement: Settlement,
        jobs: JobBook,
        open_purchasing: Callable[[trio.Nursery], Purchasing],
        journal: Journal,
        rng: Random,
        is_of_a_run: Callable[[bytes], bool] = lambda _award_id: False,
        on_engine_died: Callable[[], None] = lambda: None,
    ) -> None:
        self._is_of_a_run = is_of_a_run
        self._mesh = mesh
        self._wire = wire
        self._clock = clock
        self._logbook = logbook
        self._names = names
        self._engine = engine
        self._settlement = settlement
        self._jobs = jobs
        self._journal = journal
        self._rng = rng
        self._open_purchasing = open_purchasing
        self._on_engine_died = on_engine_died

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the jobs: they outlive the client that asked by as long as it takes to settle them."""
        for award in self._logbook.ledger.open_awards(self._logbook.me):
            if not self._is_of_a_run(award.id):  # a training run goes on where it was
                # its lease, and whoever waited for it, ended with the last run of this daemon
                self._logbook.ledger.void(award.id)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._purchasing = self._open_purchasing(nursery)
            task_status.started()
            await trio.sleep_forever()

    def seller_restarted(self, seller: PeerId) -> None:
        """See `Purchasing.restarted`."""
        self._purchasing.restarted(seller)

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Yield the events of one chat, or another task; closing the generator cancels the job.

        Raises:
            ChatError: one of its kinds, before or between events.
        """
        assert self._nursery is not None, "run() comes first"
        wanted = self._names.wanted(request.model, request.task)
        dimensions = self._names.dimensions(wanted.base, request.task)
        name = self._names.name(wanted.base)
        if unable := unfit(request.task, dimensions):
            raise BadPrompt(f"model {name} cannot do it: {unable}")
        if fault := prompt_of(request).fault:
            raise BadPrompt(fault)
        job_id = self._rng.randbytes(16)
        job = self._jobs.open(request, job_id, name, wanted, dimensions)
        self._journal.write(
            "job_opened", job=job_id.hex(), task=request.task, model=job.name, privacy=request.privacy
        )
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
        wanted = self._names.wanted(model)
        return await self._purchasing.quote(
            (wanted.base, wanted.adapters[0]),
            (prompt_tokens, completion_tokens),
            self._names.dimensions(wanted.base, "chat"),
        )

    # --- a job --------------------------------------------------------------------------------------------------
    async def _run_job(
        self, job: Job, send: trio.MemorySendChannel[ChatEvent], failure: list[ChatError]
    ) -> None:
        state = "failed"
        try:
            async with send:
                state = await self._attempt_until_done(job, send)
        except ChatError as error:
            # Waiting for this device's own engine helps more than asking again for others.
            failure.append(job.loading if job.loading and isinstance(error, Unsold) else error)
            state = "unsold" if isinstance(error, Unsold) else "failed"
        except (AgoraError, OSError) as error:  # one job's trouble is not the daemon's end
            failure.append(Unsold(f"the job broke off: {error}", ()))
        finally:
            if failure and job.attempt.outcome == "running":
                job.attempt.outcome, job.attempt.reason = state, str(failure[0])
            with trio.CancelScope(shield=True):
                await self._jobs.close(job, state)
        self._journal.write("job_closed", job=job.job_id.hex(), state=state, tokens=job.tokens)

    async def _attempt_until_done(self, job: Job, send: trio.MemorySendChannel[ChatEvent]) -> str:
        failed: set[PeerId] = set()
        blaming: dict[PeerId, str] = {}  # sellers that say it is the prompt, and what they say
        for _ in range(limits.ATTEMPTS_MAX):
            if job.client_left.is_set():
                return "cancelled"
            attempt = job.begin_attempt()
            purchase = await self._choose(job, attempt, frozenset(failed), blaming)
            if purchase is None:
                failed.update([attempt.seller] if attempt.seller else [])
                continue
            if purchase is Here.HERE:
                ending = await self._run_here(job, attempt, send)
            else:
                ending = await self._run_there(job, attempt, purchase, send)
            attempt.outcome, attempt.reason = "failed", ending.reason
            if ending.end is End.FINISHED:
                attempt.outcome = "cancelled" if ending.reason == "cancelled" else "settled"
                if attempt.outcome == "settled":
                    self._purchasing.disproved(blaming)
                return attempt.outcome
            if ending.end is End.PROMPT:
                assert attempt.seller is not None
                blaming[attempt.seller] = ending.reason
                if attempt.seller == self._logbook.me or len(blaming) >= BLAMES_BELIEVED:
                    raise BadPrompt(ending.reason)
            self._journal.write(
                "attempt_failed",
                job=job.job_id.hex(),
                attempt=attempt.number,
                seller=attempt.seller,
                tokens=len(attempt.ids),
                end=ending.end.value,  # not the reason: that is the seller's text, and it has read the prompt
            )
            is_own = attempt.seller == self._logbook.me
            if attempt.seller and not (ending.is_lease_over and (attempt.is_lease or is_own)):
                failed.add(attempt.seller)
            if job.tokens >= job.tokens_max:  # it failed behind its last token: nothing is missing
                reason = FinishReason.STOP if job.is_reading else FinishReason.LENGTH
                await self._finish(job, send, reason, attempt.prompt_tokens)
                return "settled"
        raise Unsold(f"{limits.ATTEMPTS_MAX} attempts failed", declines_of(job))

    async def _choose(
        self, job: Job, attempt: Attempt, failed: frozenset[PeerId], blaming: Mapping[PeerId, str]
    ) -> Purchase | Here | None:
        """Find who answers, with the best of the wanted adapters that somebody can serve; None: that one let us down.

        For a moment after a patch came into force nobody may have loaded it: the job then goes to who serves the version
        before, rather than to nobody.

        Raises:
            ChatError: nobody will do it.
        """
        *better, last = job.adapters
        for adapter in (*better, last):
            job.adapter, job.name = adapter, self._names.name(job.digest, adapter)
            heard = len(attempt.answers)
            try:
                if self._can_run_here(job, failed):
                    return Here.HERE
                return await self._purchase(job, attempt, failed, blaming)
            except Unsold:
                answers = attempt.answers[heard:]
                is_missing = not answers or any(answer.reason == "model_missing" for answer in answers)
                if self._may_wait_here(job, failed):
                    attempt.outcome = "running"
                    return Here.HERE
                if adapter == last or not is_missing:
                    raise
                attempt.outcome = "running"
        raise AssertionError("the last adapter ends the loop")

    async def _purchase(
        self, job: Job, attempt: Attempt, failed: frozenset[PeerId], blaming: Mapping[PeerId, str]
    ) -> Purchase | None:
        """Buy one attempt; when nobody is left to ask, a single seller that blames the prompt has the last word.

        Raises:
            ChatError: nobody will do it.
        """
        try:
            return await self._purchasing.purchase(job, attempt, failed)
        except Unsold as error:
            if not blaming:
                raise
            if not attempt.asked:
                raise BadPrompt(next(iter(blaming.values()))) from None
            raise Unsold(f"{error}; the one seller that took it blames the prompt", error.declines) from None

    # --- here ---------------------------------------------------------------------------------------------------
    def _can_run_here(self, job: Job, failed: frozenset[PeerId]) -> bool:
        has_failed = self._logbook.me in failed
        if has_failed or not self._is_held_here(job):
            if job.request.privacy == "local":
                what = "failed" if has_failed else "is not"
                raise Unsold(
                    f"model {job.name} {what} on this device, and privacy 'local' lets nobody else answer", ()
                )
            return False
        return job.request.privacy == "local" or self._engine.status(Digest(job.digest)).slots_free > 0

    def _may_wait_here(self, job: Job, failed: frozenset[PeerId]) -> bool:
        """Whether the own engine, which is full, has a place in its queue: better than no answer, when nobody else has one."""
        if self._logbook.me in failed or not self._is_held_here(job):
            return False
        return self._engine.status(Digest(job.digest)).queue_free > 0

    def _is_held_here(self, job: Job) -> bool:
        """Whether this device holds the model with its adapter, and may answer with it."""
        if self._logbook.me in job.request.not_by or Digest(job.digest) not in self._engine.models:
            return False
        return has_adapter(self._engine, job.digest, job.adapter)

    async def _run_here(self, job: Job, attempt: Attempt, send: trio.MemorySendChannel[ChatEvent]) -> Ending:
        """Answer with our own engine: no auction, no receipt, nothing on any log."""
        job.state = "running"
        attempt.seller = self._logbook.me
        await self._tell(send, ChatStarted(job.job_id.hex(), attempt.number, attempt.seller, job.name))
        request = job.request
        prompt, received = job.still_to_do()
        generation = Generation(
            model=Digest(job.digest),
            adapter=None if job.adapter == NO_HASH else Digest(job.adapter),
            messages=request.messages,
            tokens_max=len(received) + job.tokens_max - job.tokens,
            sampling=request.sampling,
            stop=request.stop,
            received=received,
            task=request.task,
            inputs=prompt.inputs,
            claimed=request.claimed,
            tokens_wanted=request.tokens_wanted,
        )
        finished: Finished | None = None
        failure: EngineError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_set, job.client_left, nursery.cancel_scope)
            try:
                async with (
                    aclosing(self._engine.generate(generation)) as promised,
                    aclosing(_unless_still(promised)) as frames,
                ):
                    async for frame in frames:
                        if isinstance(frame, Tokens):
                            attempt.ids.extend(frame.ids)
                            job.first_token_s = job.first_token_s or self._clock.now()
                            delta = ChatDelta(frame.text, len(frame.ids), frame.logprobs)
                            if job.is_reading:
                                delta = ChatDelta("", 0, words=frame.ids, contrasts=frame.contrasts)
                            await self._tell(send, delta)
                        elif isinstance(frame, Finished):
                            finished = frame
            except EngineError as error:
                failure = error
            nursery.cancel_scope.cancel()
        if isinstance(failure, ModelLoading):
            job.loading = StillLoading(str(failure), done=failure.done, retry_after_s=failure.retry_after_s)
        if isinstance(failure, EngineDied):
            self._on_engine_died()
        if failure is not None:
            is_clients = isinstance(failure, FAULTS_OF_CLIENT)
            is_gone = isinstance(failure, UnknownAdapter)  # a human has just barred it: we go on with another
            return Ending(End.PROMPT if is_clients else End.FAILED, str(failure), is_lease_over=is_gone)
        if finished is None:
            return Ending(End.FINISHED, "cancelled")
        if job.is_reading and job.tokens < job.tokens_max:
            return Ending(End.FAILED, f"finished after {job.tokens} of {job.tokens_max} words")
        attempt.prompt_tokens = finished.prompt_tokens
        if finished.text:
            await self._tell(send, ChatDelta(finished.text, 0))
        await self._finish(job, send, finished.reason, finished.prompt_tokens)
        return Ending(End.FINISHED, finished.reason.value)

    # --- there --------------------------------------------------------------------------------------------------
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
            is_sellers_fault = ending.end is End.FAILED and not (attempt.is_lease and ending.is_lease_over)
            self._purchasing.failed(job, attempt, is_sellers_fault=is_sellers_fault)
            return ending
        if ending.reason != "cancelled":
            await self._finish(job, send, FinishReason(ending.reason), ending.frame.prompt_tokens)
        settled = trio.Event()
        assert self._nursery is not None
        self._nursery.start_soon(self._settle, job, attempt, purchase, settled)
        with trio.move_on_after(PRICE_SHOWN_S):
            await settled.wait()
        await send.aclose()  # the client has everything
        await settled.wait()
        return ending

    async def _settle(self, job: Job, attempt: Attempt, purchase: Purchase, settled: trio.Event) -> None:
        """Countersign what was delivered, and remember how the seller kept its word.

        A stream on which nothing is signed is dropped: its seller has to come for what it is owed, and would else leave
        one behind with each job, for as long as the connection lasts.
        """
        try:
            is_settled = await self._settlement.countersign_on(purchase.stream, job, attempt)
        except RemoteProtocolError as error:
            purchase.stream.abort()
            self._mesh.charge(purchase.seller, error.offence)
            self._journal.write(
                "receipt_refused", job=job.job_id.hex(), seller=purchase.seller, reason=str(error)
            )
            self._purchasing.failed(job, attempt, is_sellers_fault=True)
        else:
            if is_settled:
                self._purchasing.settled(job, attempt, purchase.seller)
            else:
                purchase.stream.abort()
                self._purchasing.unsettled(job, attempt)
        finally:
            settled.set()

    async def _finish(
        self, job: Job, send: trio.MemorySendChannel[ChatEvent], reason: FinishReason, prompt_tokens: int
    ) -> None:
        await self._tell(send, ChatFinished(job.job_id.hex(), reason, prompt_tokens, job.tokens))

    async def _tell(self, send: trio.MemorySendChannel[ChatEvent], event: ChatEvent) -> None:
        """Pass an event to the client; one that has left hears nothing more."""
        with suppress(trio.BrokenResourceError):
            await send.send(event)


async def _unless_still(frames: AsyncGenerator[Frame, None]) -> AsyncGenerator[Frame, None]:
    """Pass on what our own engine yields; a child that hangs must not hold the client and the slot for ever.

    Raises:
        EngineDied: it has promised a frame every half second, and none came for far longer.
    """
    while True:
        with trio.move_on_after(limits.STANDSTILL_S) as patience:
            frame = await anext(frames, None)
        if patience.cancelled_caught:
            raise EngineDied(f"the engine said nothing for {limits.STANDSTILL_S:.0f} s")
        if frame is None:
            return
        yield frame


async def _cancel_when_set(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
