"""The step loop of one model: one batch a step, a row for each sequence that decodes, the rest pieces of prompts.

A job is one completion. It has a sequence of the KV cache (`prefix_cache.py`) and a list of tokens: the prompt, then
what was received from a predecessor, then what was drawn here. A step computes what the cache does not hold yet; when
the cache holds all, the next token is drawn. Everything else (replay after a failover, reuse of what others computed,
recovery from an aborted step) is only a difference between those two lists.

Of the prompts that wait, the one with the fewest tokens left comes first, so that a short one is not stuck behind a
long one; the oldest is passed over a few times at most, so that a long one comes to its end. A batch has a chunk of
rows, those that decode included, and that is the longest that a decoding sequence waits. A job whose prompt begins as
an earlier one's that is still being read waits for that, and copies it.

llama.cpp applies an adapter to a whole batch. So a step computes jobs of one adapter only (or of none), and where there
are several, they take turns (`adapter_turns.py`).

Exactness. A greedy completion can be continued elsewhere, bit for bit, if the cache was filled in the same pieces: the
template's opening, the rest of the prompt in chunks of `chunk_tokens`, everything after the prompt in single tokens,
nothing else in the batch but rows that mean nothing, which follow from the piece and its place. That holds for one job
at a time and a cold cache, and for a cache whose reused part was filled so (`exact_tokens`). Beside other jobs pieces
are cut, and a batch of another shape is rounded otherwise.
"""

import time
from functools import cached_property

from runtime.engine import BadRequest, no_room
from runtime.llama import wire
from runtime.llama.adapter_turns import AdapterTurns
from runtime.llama.checking import Check
from runtime.llama.contrast import contrast
from runtime.llama.job import Job
from runtime.llama.lowlevel import ModelError
from runtime.llama.model import NOT_FINITE, Aborted, Model, NotFinite, Row
from runtime.llama.padding import Padding, to_add_to_piece
from runtime.llama.prefix_cache import PrefixCache, common_length
from runtime.llama.sampling import Drawn, Sampler
from runtime.llama.template import TemplateError
from runtime.llama.tokens import CompletionText, State
from runtime.llama.vocabulary import Vocabulary

REPLAY_S_MAX = 2.0  # received tokens are decoded one by one while that is estimated to take less
# Sequences that only hold what was computed before. Each costs a row of logits: 0.5 MB with a vocabulary of 128k.
SPARE_SEQUENCES = 8
# Of short prompts, a chunk each at most, that are waited for by streams that have one token so far. 16 streams that come
# together write 10 % more tokens a second so. A stream that is further never waits, and for a long prompt nobody does.
BURST_CHUNKS = 10
PASSED_OVER_MAX = 3  # batches in a row whose prompt rows went to others than the oldest prompt


class TooLong(Exception):
    """The prompt does not fit the context; the message says both numbers."""


class NoCells(Exception):
    """The cache has no room for all that a job may become, beside those that run."""


class Batcher:
    """Runs the jobs of one model.

    Args:
        model: owned; `close` closes it.
        slots: jobs at a time.
    """

    def __init__(self, model: Model, slots: int) -> None:
        self.model = model
        self.slots = slots
        self.jobs: list[Job] = []  # in the order in which they came
        self.cache = PrefixCache(
            model,
            sequences=model.sequences,
            cells=model.cells,
            chunk_tokens=model.chunk_tokens,
            opening=_opening(model),
            can_share=model.can_rewind,
        )
        self.step_s = 0.0  # of the last step that only decoded: what replaying a token costs
        self._padding = Padding()
        self._turns = AdapterTurns()

    def close(self) -> None:
        """Give everything back. Jobs that were running are gone."""
        for job in list(self.jobs):
            self._free(job)
        self.model.close()

    @property
    def busy(self) -> bool:
        """Whether there is something to compute."""
        return bool(self.jobs)

    def count_tokens(self, turns: wire.Turns) -> int:
        """Return the tokens of the rendered chat."""
        return len(self.model.tokenize(self.model.template.render(turns)))

    def admit(self, request: wire.Generate) -> list[wire.FromChild]:
        """Take a request into a slot, and return what is already known of its end (or nothing).

        Raises:
            TemplateError: the chat cannot be rendered.
            TooLong: it does not fit the context.
            BadRequest: the context has no room for what is wanted, or the request names what the model has not.
            ModelError: it cannot be tokenised, or no slot is free.
            NoCells: it can be taken in when another job has ended.
        """
        if request.adapter is not None and request.adapter not in self.model.adapters:
            raise ModelError("the adapter is not loaded")
        prompt = self._prompt(request)
        is_check = request.task == "check"
        following, what = (request.claimed, "claimed") if is_check else (request.received, "received")
        for token in following:
            if token >= self.model.vocabulary_size:
                raise BadRequest(
                    f"a {what} token is {token}, expected 0 to {self.model.vocabulary_size - 1}, this model's vocabulary"
                )
        if len(prompt) + len(following) >= self.model.context_tokens:
            raise TooLong(
                f"a prompt of {len(prompt)} tokens and {len(following)} {what} ones, "
                f"expected fewer than {self.model.context_tokens} in all",
            )
        if request.tokens_wanted > (room := self.model.context_tokens - len(prompt)):
            raise BadRequest(no_room(request.tokens_wanted, room, len(prompt)))
        tokens = [*prompt, *(following[: request.tokens_max][:-1] if is_check else following)]
        if len(self.jobs) >= self.slots:
            raise ModelError("no slot is free")
        self._check_cells(max(len(prompt) + request.tokens_max, len(tokens)))
        text = CompletionText(request.stop)
        sampler = self._sampler(request, text)
        job = Job(
            call=request.call,
            tokens=tokens,
            prompt_tokens=len(prompt),
            chunked_end=len(tokens) if is_check else len(prompt),
            text=text,
            sampler=sampler,
            tokens_max=request.tokens_max,
            # The claimed tokens of a check are computed anew, for their logits.
            sequence=self.cache.take(prompt if is_check else tokens, len(prompt), request.adapter),
            adapter=request.adapter,
        )
        if is_check:
            job.check = Check(len(prompt), request.claimed[: request.tokens_max], len(request.received))
        job.reused_tokens = len(job.sequence.cached)
        if (len(tokens) - max(len(prompt), job.reused_tokens)) * self.step_s > REPLAY_S_MAX:
            job.chunked_end = len(tokens)
        self._follow(job)
        self.jobs.append(job)
        return self._after_token(job)

    def _prompt(self, request: wire.Generate) -> list[int]:
        """Return the tokens of the rendered chat, or of the raw text."""
        if request.task == "embedding":
            raise BadRequest(
                "the task is 'embedding', expected 'chat', 'completion' or 'check': this model writes"
            )
        if request.inputs:
            prompt = self.model.tokenize(request.inputs[0])
            if not prompt:
                raise BadRequest("the prompt has no tokens, expected one at least")
            return prompt
        prompt = self.model.tokenize(self.model.template.render(request.turns))
        if not prompt:
            raise TemplateError("the chat template renders this chat to nothing")
        return prompt

    def _sampler(self, request: wire.Generate, text: CompletionText) -> Sampler:
        """Make a request's sampler, and bring it and the text to where the received tokens end."""
        sampler = Sampler(
            request.sampling, self.model.vocabulary_size, max(1, request.tokens_max), lambda: self.vocabulary
        )
        try:
            for token in request.received if request.task != "check" else ():
                sampler.accept(token)
                text.feed(self.model.piece(token))
        except BadRequest:
            sampler.close()
            raise
        return sampler

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The model's tokens as bytes: 0.2 s and 10 MB with 128k of them, for those requests that need it."""
        return Vocabulary(self.model.vocabulary_size, self.model.piece, self.model.ends_generation)

    def _check_cells(self, tokens: int) -> None:
        """Every running job must be able to grow to its end: a cache that is full in mid-step would fail them all."""
        most = self.model.context_tokens
        if (
            sum(min(most, each) for each in (tokens, *(job.tokens_ever for job in self.jobs)))
            > self.model.cells
        ):
            raise NoCells

    def cancel(self, call: int) -> bool:
        """Drop a job; False if it is not here (any more)."""
        for job in self.jobs:
            if job.call == call:
                self._free(job)
                return True
        return False

    def step(self) -> list[wire.FromChild]:
        """Compute one batch and return what it produced. An aborted step produces nothing and can be repeated."""
        adapter = self._turns.next([job.adapter for job in self.jobs])
        shares = self._plan([job for job in self.jobs if job.adapter == adapter])
        rows = [
            Row(job.tokens[i], i, job.sequence.number, job.wants_logits(i))
            for job, count in shares
            for start in (len(job.sequence.cached),)
            for i in range(start, start + count)
        ]
        decodes_only = len(rows) == len(shares)
        self._turns.took_step(decodes_only=decodes_only)
        extra = self._to_add(shares, rows) if self.model.scratch_cells else 0
        began = time.perf_counter()
        try:
            self._decode(rows, extra, adapter)
        except Aborted:
            self._take_back(shares)
            return []
        except ModelError as error:
            self._take_back(shares)
            return [self._fail(job, str(error)) for job, _ in shares]
        ended = time.perf_counter()
        if decodes_only:
            self.step_s = ended - began
            self._padding.learn(len(rows), extra, self.step_s)
        return self._harvest(shares, ended)

    def read_opening(self) -> None:
        """Compute what every chat begins with, for all that will come; who finds it undone does it himself."""
        opening = self.cache.opening
        if not opening:
            return
        sequence = self.cache.take(opening, len(opening), None)
        rows = [Row(token, i, sequence.number, output=False) for i, token in enumerate(opening)]
        try:
            self._decode(rows, to_add_to_piece(len(rows), 0) if self.model.fills_tiles else 0, None)
            self.cache.computed(sequence, opening, is_exact=True)
        except (Aborted, ModelError):
            self.cache.take_back(sequence)
        self.cache.release(sequence)

    def progress(self, call: int) -> tuple[int, int]:
        """Return how many of a job's prompt tokens are in the cache, and how many it has."""
        for job in self.jobs:
            if job.call == call:
                return min(len(job.sequence.cached), job.prompt_tokens), job.prompt_tokens
        return 0, 0

    # --- a step --------------------------------------------------------------------------------------------------

    def _decode(self, rows: list[Row], extra: int, adapter: bytes | None) -> None:
        """Run one batch, and beside it so many rows that mean nothing."""
        self.cache.make_room(len(rows))
        try:
            self.model.use_adapter(adapter)
            self.model.decode(rows + [Row(0, i, self.model.scratch, output=False) for i in range(extra)])
        finally:
            if extra:
                self.model.rewind(self.model.scratch, 0)

    def _to_add(self, shares: list[tuple[Job, int]], rows: list[Row]) -> int:
        """Return how many rows that mean nothing to add. Who is alone is exact, so there nothing measured counts."""
        if len(shares) == 1:
            return to_add_to_piece(len(rows), rows[0].position) if self.model.fills_tiles else 0
        return self._padding.to_add(len(rows)) if len(rows) == len(shares) else 0

    def _plan(self, jobs: list[Job]) -> list[tuple[Job, int]]:
        """Return which of an adapter's jobs have how many rows in the next batch, in their order."""
        prompts = [job for job in jobs if job.tokens_left > 0 and not self._waits_for_leader(job)]
        # Who has just begun waits for prompts that are soon read, so that they go on in step: full rows are cheapest.
        chunk = self.model.chunk_tokens
        left = [job.tokens_left for job in prompts]
        is_burst = 0 < sum(left) <= BURST_CHUNKS * chunk and max(left) <= chunk
        shares = [(job, 1) for job in jobs if job.tokens_left <= 0 and not (is_burst and job.drawn == 1)]
        oldest = prompts[0] if prompts else None
        prompts.sort(
            key=lambda job: (job is not oldest or job.passed_over < PASSED_OVER_MAX, job.tokens_left)
        )
        # The whole batch is a chunk: on a CPU 64 rows, 4 of them decoding, take 10 % less than 68. While nobody decodes
        # it is two: the rows of several prompts are computed 5 % faster so.
        room = max(chunk // 2, chunk - len(shares)) if shares else 2 * chunk
        for job in prompts:
            # A job that runs alone gets whole chunks. Beside others a piece is cut to fill the batch.
            piece = min(self.cache.piece_left(job.sequence, job.tokens), job.tokens_left)
            count = min(piece, room)
            job.passed_over = 0 if count == piece else job.passed_over + 1
            if count:
                shares.append((job, count))
                room -= count
        return shares

    def _follow(self, job: Job) -> None:
        """Let a job wait for the earlier one that is computing most of what is still missing of its beginning."""
        longest = len(job.sequence.cached)
        for other in self.jobs:
            if other.adapter == job.adapter and other.tokens_left > 0:
                shareable = self.cache.shareable(job.tokens, other.tokens[: other.chunked_end], job.adapter)
                if shareable > longest:
                    job.leader, job.shared_tokens = other, shareable
                    longest = shareable

    def _waits_for_leader(self, job: Job) -> bool:
        """Whether a job has to wait; if not, it has what its leader computed."""
        leader = job.leader
        if leader is None:
            return False
        if leader in self.jobs and len(leader.sequence.cached) < job.shared_tokens:
            return True
        job.leader = None
        self.cache.refill(
            job.sequence, job.tokens[: job.prompt_tokens] if job.check else job.tokens, job.prompt_tokens
        )
        job.reused_tokens = len(job.sequence.cached)
        return False

    def _harvest(self, shares: list[tuple[Job, int]], ended: float) -> list[wire.FromChild]:
        """Note what a step has put into the cache, and draw where a job has all of its tokens there."""
        drawing: list[tuple[Job, int]] = []
        reading: list[tuple[Job, int, int, int]] = []
        index = -1
        for job, count in shares:
            index += count
            start = len(job.sequence.cached)
            self.cache.computed(job.sequence, job.tokens[start : start + count], is_exact=len(shares) == 1)
            if job.tokens_left <= 0 and not job.decode_started:
                job.decode_started = ended
            if job.check:
                reading.append((job, index - count + 1, start, count))
            elif len(job.sequence.cached) == len(job.tokens):
                drawing.append((job, index))
        finite = self.model.are_finite([index for _, index in drawing])
        if not all(finite):
            # The rest of the step is as little worth: those jobs come to the same place once more.
            return self._begin_again(drawing[finite.index(False)][0])
        said: list[wire.FromChild] = []
        for job, row, start, count in reading:
            try:
                said += self._read(job, row, start, count)
            except NotFinite:
                return said + self._begin_again(job)
        plain = [(job, index) for job, index in drawing if job.sampler.is_plain]
        drawn = self.model.sample_all([(job.sampler.chain, index) for job, index in plain])
        for (job, index), token in zip(plain, drawn, strict=True):
            job.sampler.drawn()
            said += self._add(job, index, Drawn(token))
        for job, index in drawing:
            if not job.sampler.is_plain:
                try:
                    said += self._add(job, index, job.sampler.draw(self.model, index))
                except BadRequest as error:
                    self._free(job)
                    said.append(wire.Failed(job.call, "request", str(error)[:512]))
        return said

    def _read(self, job: Job, row: int, start: int, count: int) -> list[wire.FromChild]:
        """Take the words of a check from the rows of a step."""
        assert job.check is not None
        words, contrasts = job.check.words(self.model, row, start, count)
        job.is_begun_again = False
        said: list[wire.FromChild] = (
            [wire.NewTokens(job.call, words, "", contrasts=contrasts)] if words else []
        )
        return [*said, self._finish(job, "stop")] if job.check.is_finished else said

    def _add(self, job: Job, index: int, drawn: Drawn) -> list[wire.FromChild]:
        """Take a token that was drawn for a job from row `index`: samplers leave the row as it was computed."""
        token = drawn.token
        job.is_begun_again = False
        job.drawn += 1
        if self.model.ends_generation(token):
            return [self._finish(job, "stop")]
        row = self.model.finite_row(index)
        stated = contrast(row, self.model.vocabulary_size, len(job.tokens), token)
        job.tokens.append(token)
        text = job.text.feed(self.model.piece(token))
        new = wire.NewTokens(job.call, (token,), text, drawn.logprobs, (stated,))
        return [new, *self._after_token(job)]

    def _after_token(self, job: Job) -> list[wire.FromChild]:
        if job.check and job.check.is_finished:
            return [self._finish(job, "stop")]
        if job.text.state is State.STOPPED or job.sampler.is_finished:
            return [self._finish(job, "stop")]
        if job.completion_tokens >= job.tokens_max or len(job.tokens) >= self.model.context_tokens:
            return [self._finish(job, "length")]
        return []

    def _finish(self, job: Job, reason: str) -> wire.Done:
        now = time.perf_counter()
        decode_started = job.decode_started or now
        self._free(job)
        return wire.Done(
            call=job.call,
            reason=reason,
            text=job.text.finish(),
            prompt_tokens=job.prompt_tokens,
            completion_tokens=job.completion_tokens,
            prefill_tokens=max(0, job.chunked_end - job.reused_tokens),
            prefill_s=decode_started - job.started,
            decode_s=0.0 if job.check else now - decode_started,
        )

    def _fail(self, job: Job, text: str) -> wire.Failed:
        self._free(job)
        self.cache.forget(job.sequence)  # what a failed step left in the cache is unknown
        return wire.Failed(job.call, "engine", text[:512])

    def _begin_again(self, job: Job) -> list[wire.FromChild]:
        """Fail whom the numbers that are not finite come from, and let the others compute all again.

        What one sequence leaves in the cache spoils the others too. An adapter is likelier to be the reason than the
        base under it; who has begun again on a clean cache is it himself.
        """
        failed = [job]
        if job.adapter is None and not job.is_begun_again:
            failed = [each for each in self.jobs if each.adapter is not None]
        said: list[wire.FromChild] = [self._fail(each, NOT_FINITE) for each in failed]
        self.cache.forget_all()
        for each in self.jobs:
            each.is_begun_again = True
        return said

    def _take_back(self, shares: list[tuple[Job, int]]) -> None:
        for job, _ in shares:
            self.cache.take_back(job.sequence)

    def _free(self, job: Job) -> None:
        """End a job; what it has computed stays in the cache for others."""
        job.sampler.close()
        self.jobs.remove(job)
        self.cache.release(job.sequence)


def _opening(model: Model) -> tuple[int, ...]:
    """Return the tokens that the template puts before whatever a user says, a chunk of them at most."""
    try:
        one, other = (model.tokenize(model.template.render((("user", text),))) for text in ("a", "1"))
    except (TemplateError, ModelError):
        return ()  # requests will hear of it
    return tuple(one[: min(common_length(one, other), model.chunk_tokens)])
