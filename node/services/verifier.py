"""The verifier: has some of the answers that were bought checked against the model that was paid for.

    receipt signed ─▶ lot ─▶ queue ─▶ own engine, when a slot is free ─▶ reading ─▶ verdict ─▶ reputation, journal, job
                       │               else a second seller, for money         │
                       └─ spared       else nobody ─▶ unverified ◀─────────────┘ no engine could say

Nobody waits for it: the client has its answer and the seller its pay before a lot is thrown. The rule is
`marketplace/verification.py`; here is who reads, when, and what is remembered. Prompts are in memory only, so a check that
is waiting when the daemon ends is never made; what was found out about a seller is in the store.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from marketplace.reputation import Reputation
from marketplace.verification import (
    Reading,
    Tolerance,
    Verdict,
    is_drawn,
    is_greedy,
    judge,
    why_unverifiable,
)
from node.clock import Clock
from node.jobs import Attempt, Job, JobBook
from node.journal import Journal
from node.models import has_adapter
from node.store import Record, Store
from protocol.errors import AgoraError
from protocol.identity import PeerId
from protocol.messages import NO_HASH
from runtime.engine import Digest, Engine, EngineError, Generation, Tokens

if TYPE_CHECKING:  # trio-typing's stubs, which libp2p brings, hide trio's own types
    from trio_typing import TaskStatus

CHECKED: Final = "checked"  # the store's record kind: what was found out about a seller's answers
CHECKS_WAITING_MAX: Final = 64  # each holds its prompt; the next one is shown as unverified
SLOT_LOOK_S: Final = 1.0
SLOT_PATIENCE_S: Final = 600.0  # an engine that is never free checks nothing
READING_S_MAX: Final = 300.0  # for one check; it is a prefill


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What the store keeps of a seller; see `marketplace.reputation.Record`."""

    judged: int
    caught: int
    caught_ms: int


@dataclass(frozen=True)
class Check:
    """An answer that was drawn.

    Attributes:
        claimed: the completion up to the end of this attempt, of whichever sellers.
        stated: the contrasts of its seller's own tokens, which are the last ones. No reader is told them.
        is_greedy: whether each token should have been the likeliest.
    """

    job: Job
    attempt: Attempt
    seller: PeerId
    claimed: tuple[int, ...]
    stated: tuple[int, ...]
    is_greedy: bool

    @property
    def model(self) -> bytes:
        """The base that was paid for."""
        assert self.attempt.award is not None
        return self.attempt.award.message.model

    @property
    def adapter(self) -> bytes:
        """The adapter that was paid for; `NO_HASH`: none."""
        assert self.attempt.award is not None
        return self.attempt.award.message.adapter

    def own(self, reading: Reading) -> Reading:
        """Return what a reading says of its seller's own tokens."""
        return reading.last(len(self.stated))

    def judge(self, reading: Reading, tolerance: Tolerance) -> Verdict:
        """Return what a reading of all claimed tokens says of its seller."""
        return judge(self.own(reading), self.stated, tolerance, is_greedy=self.is_greedy)


class NotVerified(AgoraError):
    """Nobody can or may check it; one line for the user."""


# Has a check made by others and judged with this tolerance; raises `NotVerified`.
AskOthers = Callable[[Check, Tolerance], Awaitable[Verdict]]


class Verifier:
    """Throws the lots and makes the checks, one at a time.

    Args:
        tolerance: of a model's digest: how far honest engines are apart.
        ask_others: for models that this device does not hold; None: its owner pays for no checks.
    """

    def __init__(
        self,
        *,
        me: PeerId,
        engine: Engine,
        jobs: JobBook,
        reputation: Reputation,
        store: Store,
        clock: Clock,
        journal: Journal,
        rng: Random,
        tolerance: Callable[[bytes], Tolerance],
        ask_others: AskOthers | None,
    ) -> None:
        self._me = me
        self._engine = engine
        self._jobs = jobs
        self._reputation = reputation
        self._store = store
        self._clock = clock
        self._journal = journal
        self._rng = rng
        self._tolerance = tolerance
        self._ask_others = ask_others
        self._send, self._waiting = trio.open_memory_channel[Check](CHECKS_WAITING_MAX)

    def load(self, records: Sequence[Record]) -> None:
        """Take in what earlier runs found out about sellers."""
        for record in records:
            if record.kind == CHECKED and record.body is not None:
                known = msgspec.msgpack.decode(record.body, type=Known)
                self._reputation.remember(
                    PeerId(record.key.decode()),
                    judged=known.judged,
                    caught=known.caught,
                    caught_ms=known.caught_ms,
                )

    def signed(self, job: Job, attempt: Attempt) -> None:
        """A receipt has just been countersigned: throw the lot for its answer."""
        assert attempt.seller is not None
        assert attempt.work is not None
        if attempt.work.task == "check":
            return  # a second opinion; nobody checks the checkers
        sampling = attempt.work.sampling
        if reason := why_unverifiable(attempt.work.task, sampling, len(attempt.ids)):
            self._give_up(job, attempt, reason)
            return
        judged = self._reputation.of(attempt.seller).judged
        is_checked = is_drawn(judged, self._rng.random())
        self._journal.write(
            "answer_drawn" if is_checked else "answer_spared",
            job=job.job_id.hex(),
            attempt=attempt.number,
            seller=attempt.seller,
            receipt=attempt.receipt_id,
            judged=judged,
        )
        if not is_checked:
            return
        before = [token for each in job.attempts if each.number < attempt.number for token in each.ids]
        check = Check(
            job,
            attempt,
            attempt.seller,
            claimed=(*before, *attempt.ids),
            stated=tuple(attempt.contrasts),
            is_greedy=is_greedy(sampling),
        )
        try:
            self._send.send_nowait(check)
        except trio.WouldBlock:
            self._give_up(job, attempt, f"{CHECKS_WAITING_MAX} answers were waiting for their check")
        else:
            attempt.verification = "waiting"

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Make the checks, the oldest first."""
        task_status.started()
        async for check in self._waiting:
            tolerance = self._tolerance(check.model)
            try:
                if self._is_held(check):
                    verdict = check.judge(await self._read(check), tolerance)
                else:
                    verdict = await self._look_twice(check, tolerance)
            except NotVerified as error:
                self._give_up(check.job, check.attempt, str(error))
            else:
                await self._conclude(check, verdict)
            if check.job.finished_s is not None:  # else the story is stored when it ends
                await self._jobs.store(check.job)

    # --- reading ------------------------------------------------------------------------------------------------
    def _is_held(self, check: Check) -> bool:
        is_here = Digest(check.model) in self._engine.models
        return is_here and has_adapter(self._engine, check.model, check.adapter)

    async def _read(self, check: Check) -> Reading:
        """Return what the own engine says of each claimed token.

        Raises:
            NotVerified: it is never free, fails, or says nonsense.
        """
        request, model = check.job.request, Digest(check.model)
        generation = Generation(
            model=model,
            adapter=None if check.adapter == NO_HASH else Digest(check.adapter),
            messages=request.messages,
            inputs=request.inputs,
            task="check",
            claimed=check.claimed,
            tokens_max=len(check.claimed),
            payer=self._me,  # it may wait for a model to be loaded, as a buyer's request does
        )
        gaps: list[int] = []
        contrasts: list[int] = []
        try:
            with trio.move_on_after(SLOT_PATIENCE_S) as patience:
                while not self._engine.status(model).slots_free:  # noqa: ASYNC110  # an engine tells nobody
                    await trio.sleep(SLOT_LOOK_S)
            if patience.cancelled_caught:
                raise NotVerified(f"the own engine had no free slot for {SLOT_PATIENCE_S:.0f} s")
            with trio.move_on_after(READING_S_MAX) as patience:
                async with aclosing(self._engine.generate(generation)) as frames:
                    async for frame in frames:
                        if isinstance(frame, Tokens):
                            gaps.extend(frame.ids)
                            contrasts.extend(frame.contrasts)
        except EngineError as error:
            raise NotVerified(f"the own engine could not check it: {error}") from error
        if patience.cancelled_caught:
            raise NotVerified(f"the own engine took over {READING_S_MAX:.0f} s")
        if {len(gaps), len(contrasts)} != {len(check.claimed)}:
            raise NotVerified(
                f"the own engine said {len(gaps)} gaps and {len(contrasts)} contrasts, expected {len(check.claimed)}"
            )
        return Reading(gaps, contrasts)

    async def _look_twice(self, check: Check, tolerance: Tolerance) -> Verdict:
        """Return what others find.

        Raises:
            NotVerified: none of them may, or can.
        """
        if self._ask_others is None:
            raise NotVerified("this device does not hold the model, and its owner pays for no checks")
        if check.job.request.privacy != "mesh":
            raise NotVerified(
                f"this device does not hold the model, and privacy {check.job.request.privacy!r} lets no second seller read "
                "the prompt"
            )
        return await self._ask_others(check, tolerance)

    # --- what came of it ----------------------------------------------------------------------------------------
    async def _conclude(self, check: Check, verdict: Verdict) -> None:
        seller, attempt = check.seller, check.attempt
        attempt.verification = "passed" if verdict.is_passed else "caught"
        attempt.verification_detail = verdict.to_text()
        record = self._reputation.judged(seller, is_passed=verdict.is_passed, utc_ms=self._clock.utc_ms())
        self._journal.write(
            "job_verified",
            job=check.job.job_id.hex(),
            attempt=attempt.number,
            seller=seller,
            passed=verdict.is_passed,
            tokens=verdict.tokens,
            worst_milli=verdict.worst_milli,
            drift_milli=verdict.drift_milli,
        )
        if not verdict.is_passed:
            self._journal.write("seller_caught", seller=seller, job=check.job.job_id.hex())
        known = Known(judged=record.judged, caught=record.caught, caught_ms=record.caught_ms)
        try:
            await self._store.append([Record(CHECKED, seller.encode(), msgspec.msgpack.encode(known))])
        except AgoraError as error:  # a full disk: it is known until this daemon ends
            self._journal.write("verdict_not_stored", seller=seller, reason=str(error))

    def _give_up(self, job: Job, attempt: Attempt, reason: str) -> None:
        attempt.verification, attempt.verification_detail = "unverified", reason
        self._journal.write("job_unverified", job=job.job_id.hex(), attempt=attempt.number, reason=reason)
