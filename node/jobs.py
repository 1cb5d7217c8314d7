"""The jobs this device has asked for: each from the client's request to the last receipt, attempt by attempt.

Kept for `agora jobs show`: the newest are in memory and on disk as they are shown. What money depends on is in the
logs, not here.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import trio

from marketplace.prompt import Prompt, only_reads
from node.chat import ChatRequest, StillLoading, Wanted
from node.clock import Clock
from node.store import Record, Store
from node.views import AttemptView, BidView, JobView, VerificationState
from protocol.envelope import Sealed
from protocol.errors import AgoraError
from protocol.identity import PeerId
from protocol.messages import NO_HASH, Award, Bid, Id, TokensFrame, Turn, Work

JOB = "job"  # the store's record kind
JOBS_KEPT = 1_000
CLAIM_WINDOW_S = 240.0  # an attempt's seller may come back for so long: all pauses, four timeouts, and some


@dataclass
class Answer:
    """What one asked seller said, and when."""

    peer_id: PeerId
    after_s: float
    bid: Bid | None = None
    total_micro: int = 0
    reason: str = ""  # of a decline; or silent, unreachable
    detail: str = ""


@dataclass
class Attempt:
    """One attempt at a job."""

    number: int
    asked: tuple[PeerId, ...] = ()
    window_s: float = 0.0
    auction_s: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    seller: PeerId | None = None
    award: Sealed[Award] | None = None
    work: Work | None = None
    is_lease: bool = False
    promised_tokens_per_s: float = 0.0  # by its bid, under a lease by its advert; 0: nothing was
    promised_ttft_ms: int = 0  # by its bid; 0: nothing was
    ids: list[int] = field(default_factory=list)  # accepted in this attempt, in order
    contrasts: list[int] = field(
        default_factory=list
    )  # stated by its seller, one for each; of an embedding none
    began_s: float = 0.0  # monotonic: the seller was given the work
    first_token_s: float | None = None
    last_token_s: float = 0.0
    prompt_tokens: int = 0
    outcome: str = "running"
    reason: str = ""
    receipt_id: str = ""
    amount_micro: int = 0
    verification: VerificationState = ""
    verification_detail: str = ""

    def take(self, frame: TokensFrame, now: float) -> None:
        """Keep what came: a frame in its place, and in order."""
        self.ids.extend(frame.ids)
        self.contrasts.extend(frame.contrasts)
        self.last_token_s = now
        if self.first_token_s is None:
            self.first_token_s = now

    @property
    def ttft_s(self) -> float | None:
        """From the work's going out to its first token; a successor is not to blame for what its predecessor took."""
        return None if self.first_token_s is None else self.first_token_s - self.began_s

    @property
    def tokens_per_s(self) -> float | None:
        """Of what came after the first token; None: too little to tell, or words, which come all at once."""
        if self.first_token_s is None or len(self.ids) < 2 or self.last_token_s <= self.first_token_s:
            return None
        if self.work is not None and only_reads(self.work.task):
            return None
        return (len(self.ids) - 1) / (self.last_token_s - self.first_token_s)


@dataclass
class Job:
    """One request of a client, as it goes.

    Attributes:
        wanted: the base, and the adapters that may answer, the best first.
        dimensions: of the vectors of an embedding.
        adapter: the one that answers, or is being bought; `NO_HASH`: the bare base.
        name: of the base with that adapter.
        loading: this device would have answered, but has yet to load the model.
    """

    job_id: bytes
    request: ChatRequest
    name: str
    wanted: Wanted
    started_s: float  # monotonic
    started_at: float  # Unix
    dimensions: int = 0
    adapter: bytes = NO_HASH
    state: str = "auction"
    attempts: list[Attempt] = field(default_factory=list)
    first_token_s: float | None = None
    finished_s: float | None = None
    client_left: trio.Event = field(default_factory=trio.Event)
    loading: StillLoading | None = None

    @property
    def digest(self) -> bytes:
        """The base model's."""
        return self.wanted.base

    @property
    def adapters(self) -> tuple[bytes, ...]:
        """What may answer now: an answer that has begun goes on with the adapter that it began with."""
        return (self.adapter,) if self.tokens else self.wanted.adapters

    @property
    def ids(self) -> list[int]:
        """Every completion token the client has, from all attempts, in order."""
        return [token for attempt in self.attempts for token in attempt.ids]

    @property
    def tokens(self) -> int:
        """How many tokens the client has; asked for each frame, so nothing is copied."""
        return sum(len(attempt.ids) for attempt in self.attempts)

    @property
    def is_reading(self) -> bool:
        """Whether it is answered by words."""
        return only_reads(self.request.task)

    @property
    def tokens_max(self) -> int:
        """The completion tokens, or the words, that it ends with at most; all words of a reading are known before."""
        match self.request.task:
            case "embedding":
                return self.dimensions * len(self.request.inputs)
            case "check":
                return len(self.request.claimed)
            case _:
                return self.request.tokens_max

    def still_to_do(self) -> tuple[Prompt, tuple[int, ...]]:
        """What the next attempt reads, and what it need not answer again: inputs that are done are not read twice."""
        prompt, ids = prompt_of(self.request), self.ids
        if self.request.task != "embedding":
            return prompt, tuple(ids)
        done = len(ids) // self.dimensions
        return replace(prompt, inputs=prompt.inputs[done:]), tuple(ids[done * self.dimensions :])

    def place_in(self, work: Work) -> int:
        """Where the next token, or word, stands in the completion of a work; inputs that were done are not in it."""
        if self.request.task != "embedding":
            return self.tokens
        return self.tokens - self.dimensions * (len(self.request.inputs) - len(work.inputs))

    @property
    def attempt(self) -> Attempt:
        """The newest attempt."""
        return self.attempts[-1]

    def begin_attempt(self) -> Attempt:
        """Open the next attempt; earlier ones are fenced off from here."""
        self.attempts.append(Attempt(len(self.attempts) + 1))
        return self.attempt


class JobBook:
    """The newest jobs, running ones first-hand and finished ones as they were stored."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._running: dict[bytes, Job] = {}
        self._recent: OrderedDict[bytes, tuple[float, Job]] = OrderedDict()  # ended when; still claimable
        self._views: OrderedDict[str, JobView] = OrderedDict()

    def load(self, records: Sequence[Record]) -> None:
        """Take in the jobs of earlier runs; one that was under way has ended with its daemon."""
        for record in records:
            if record.kind == JOB and record.body is not None:
                view = msgspec.msgpack.decode(record.body, type=JobView)
                self._views[view.job_id] = _after_restart(view)

    def open(self, request: ChatRequest, job_id: Id, name: str, wanted: Wanted, dimensions: int) -> Job:
        """Begin a job."""
        job = Job(job_id, request, name, wanted, self._clock.now(), self._clock.utc_ms() / 1000, dimensions)
        self._running[job_id] = job
        return job

    async def close(self, job: Job, state: str) -> None:
        """End a job and store how it went; a full disk loses the story, not the money."""
        job.state = state
        now = job.finished_s = self._clock.now()
        self._running.pop(job.job_id, None)
        self._recent[job.job_id] = now, job
        while now - next(iter(self._recent.values()))[0] > CLAIM_WINDOW_S:
            self._recent.popitem(last=False)  # and its prompt with it
        await self.store(job)

    async def store(self, job: Job) -> None:
        """Store how a job stands now (again, when a late receipt has come)."""
        view = self._view(job)
        records = [Record(JOB, job.job_id, msgspec.msgpack.encode(view))]
        self._views[view.job_id] = view
        self._views.move_to_end(view.job_id)
        while len(self._views) > JOBS_KEPT:
            old, _ = self._views.popitem(last=False)
            self._recent.pop(bytes.fromhex(old), None)
            records.append(Record(JOB, bytes.fromhex(old), None))
        try:
            await self._store.append(records)
        except AgoraError:
            return

    def find(self, job_id: bytes) -> Job | None:
        """A job of this run, under way or recently ended."""
        _, recent = self._recent.get(job_id, (0.0, None))
        return self._running.get(job_id) or recent

    def views(self, limit: int) -> list[JobView]:
        """The newest jobs, running ones first."""
        running = [self._view(job) for job in self._running.values()]
        ended = list(self._views.values())
        return [*reversed(running), *reversed(ended)][:limit]

    def view(self, prefix: str) -> JobView | None:
        """The job with this id, or the only one whose id begins so."""
        found = (
            [view for view in self.views(2 * JOBS_KEPT) if view.job_id.startswith(prefix)] if prefix else []
        )
        return found[0] if len(found) == 1 else None

    def _view(self, job: Job) -> JobView:
        last = job.attempts[-1] if job.attempts else Attempt(0)
        tokens = job.tokens
        ttft_s = None if job.first_token_s is None else job.first_token_s - job.started_s
        end_s = job.finished_s if job.finished_s is not None else self._clock.now()
        stream_s = 0.0 if job.first_token_s is None else end_s - job.first_token_s
        return JobView(
            job_id=job.job_id.hex(),
            kind=job.request.task,
            state=job.state,
            model=job.name,
            digest=job.digest.hex(),
            adapter="" if job.adapter == NO_HASH else job.adapter.hex(),
            privacy=job.request.privacy,
            seller=last.seller or "",
            attempt=last.number,
            price_micro=sum(attempt.amount_micro for attempt in job.attempts),
            prompt_tokens=max((attempt.prompt_tokens for attempt in job.attempts), default=0),
            completion_tokens=tokens,
            ttft_s=ttft_s,
            tokens_per_s=(tokens - 1) / stream_s
            if tokens > 1 and stream_s > 0 and not job.is_reading
            else None,
            started_at=job.started_at,
            finished_at=None if job.finished_s is None else job.started_at + job.finished_s - job.started_s,
            declines=[decline for attempt in job.attempts for decline in _declines(attempt)],
            attempts=[attempt_view(attempt) for attempt in job.attempts],
            receipts=[attempt.receipt_id for attempt in job.attempts if attempt.receipt_id],
            verification=_worst(attempt.verification for attempt in job.attempts),
            promised_ttft_ms=last.promised_ttft_ms,
            promised_tokens_per_s=last.promised_tokens_per_s,
        )


def prompt_of(request: ChatRequest) -> Prompt:
    """What a client wants read, in the words of the protocol."""
    turns = tuple(
        Turn(role=message.role, content=message.content)  # type: ignore[arg-type]  # the gateway has checked the role
        for message in request.messages
    )
    return Prompt(turns, request.task, request.inputs, request.claimed)


def attempt_view(attempt: Attempt) -> AttemptView:
    """How one attempt is shown."""
    return AttemptView(
        attempt=attempt.number,
        asked=list(attempt.asked),
        window_ms=attempt.window_s * 1000,
        bids=[
            BidView(
                peer_id=answer.peer_id,
                prompt_micro=answer.bid.prompt_micro,
                completion_micro=answer.bid.completion_micro,
                total_micro=answer.total_micro,
                ttft_ms=answer.bid.ttft_ms,
                tokens_per_s=answer.bid.tokens_per_ks / 1000,
                after_ms=answer.after_s * 1000,
                is_winner=answer.peer_id == attempt.seller,
            )
            for answer in attempt.answers
            if answer.bid
        ],
        declines=_declines(attempt),
        seller=attempt.seller or "",
        is_lease=attempt.is_lease,
        outcome=attempt.outcome,
        reason=attempt.reason,
        tokens=len(attempt.ids),
        receipt_id=attempt.receipt_id,
        auction_ms=attempt.auction_s * 1000,
        verification=attempt.verification,
        verification_detail=attempt.verification_detail,
        promised_ttft_ms=attempt.promised_ttft_ms,
        promised_tokens_per_s=attempt.promised_tokens_per_s,
        ttft_ms=None if attempt.ttft_s is None else attempt.ttft_s * 1000,
        tokens_per_s=attempt.tokens_per_s,
    )


def _worst(found: Iterable[VerificationState]) -> VerificationState:
    """Return what a job's answer comes to when sellers of several attempts had a part in it."""
    order: tuple[VerificationState, ...] = ("caught", "unverified", "waiting", "passed")
    states = set(found)
    return next((state for state in order if state in states), "")


def _after_restart(view: JobView) -> JobView:
    """Return a stored job as it stands now: prompts are in memory alone, so no check outlives its daemon."""
    if all(attempt.verification != "waiting" for attempt in view.attempts):
        return view
    attempts = [
        msgspec.structs.replace(
            attempt,
            verification="unverified",
            verification_detail="this device was restarted before the check",
        )
        if attempt.verification == "waiting"
        else attempt
        for attempt in view.attempts
    ]
    return msgspec.structs.replace(
        view, attempts=attempts, verification=_worst(attempt.verification for attempt in attempts)
    )


def _declines(attempt: Attempt) -> list[dict[str, str]]:
    return [
        {"peer_id": answer.peer_id, "reason": answer.reason, "detail": answer.detail}
        for answer in attempt.answers
        if not answer.bid
    ]
