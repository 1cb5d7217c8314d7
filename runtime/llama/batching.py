"""The step loop of one model: one batch a step, a row for each sequence that decodes, the rest a piece of a prompt.

A job is one completion. It owns a slot, which is a sequence of the KV cache, and a list of tokens: the prompt, then
what was received from a predecessor, then what was drawn here. A step computes what the cache does not hold yet; when
the cache holds all, the next token is drawn. Everything else (replay after a failover, reuse of a session's cache,
recovery from an aborted step) is only a difference between those two lists.

llama.cpp applies an adapter to a whole batch. So a step computes jobs of one adapter only (or of none), and where there
are several, their steps take turns. What is in a slot's cache was computed with one adapter, and serves that one only.

Exactness. A greedy completion can be continued elsewhere, bit for bit, if the cache was filled in the same pieces:
prompts in chunks that start at multiples of `chunk_tokens`, everything after the prompt in single tokens. That holds
for one slot and a cold cache, and for a cache whose reused part was filled so (`exact_tokens`).
"""

import time
from dataclasses import dataclass, field

from runtime.llama import wire
from runtime.llama.model import Aborted, Model, ModelError, NotFinite, Row
from runtime.llama.sampling import Sampler
from runtime.llama.template import TemplateError
from runtime.llama.tokens import CompletionText, State

REPLAY_S_MAX = 2.0  # received tokens are decoded one by one while that is estimated to take less


class TooLong(Exception):
    """The prompt does not fit the context; the message says both numbers."""


@dataclass
class Job:
    """One completion under way.

    Attributes:
        tokens: prompt, received, drawn.
        chunked_end: tokens before this index are computed in chunks, those after it one by one.
        completion: how many of `tokens` are the completion.
        adapter: what it is computed with.
        is_begun_again: what it had in the cache was lost to numbers that were not finite, and computed once more.
    """

    call: int
    tokens: list[int]
    prompt_tokens: int
    chunked_end: int
    text: CompletionText
    sampler: Sampler
    tokens_max: int
    adapter: bytes | None = None
    is_begun_again: bool = False
    started: float = field(default_factory=time.perf_counter)
    decode_started: float = 0.0
    reused_tokens: int = 0

    @property
    def completion_tokens(self) -> int:
        """Received and drawn."""
        return len(self.tokens) - self.prompt_tokens


@dataclass
class Slot:
    """One sequence of the KV cache.

    Attributes:
        cached: the tokens it holds, by position.
        exact_tokens: how many of them, from the first, were computed as a cold run computes a prompt.
        adapter: what they were computed with.
    """

    sequence: int
    cached: list[int] = field(default_factory=list)
    exact_tokens: int = 0
    adapter: bytes | None = None
    job: Job | None = None


class Batcher:
    """Runs the jobs of one model.

    Args:
        model: owned; `close` closes it.
        slots: jobs at a time.
    """

    def __init__(self, model: Model, slots: int) -> None:
        self.model = model
        self.slots = [Slot(sequence) for sequence in range(slots)]
        self.step_s = 0.0  # of the last step that only decoded: what replaying a token costs
        self._steps = 0
        self._stepped: dict[
            bytes | None, int
        ] = {}  # the last step of each adapter's jobs, while there are several

    def close(self) -> None:
        """Give everything back. Jobs that were running are gone."""
        for slot in self.slots:
            self._free(slot)
        self.model.close()

    @property
    def busy(self) -> bool:
        """Whether there is something to compute."""
        return any(slot.job for slot in self.slots)

    def count_tokens(self, turns: wire.Turns) -> int:
        """Return the tokens of the rendered chat."""
        return len(self.model.tokenize(self.model.template.render(turns)))

    def admit(self, request: wire.Generate) -> list[wire.FromChild]:
        """Take a request into a slot, and return what is already known of its end (or nothing).

        Raises:
            TemplateError: the chat cannot be rendered.
            TooLong: it does not fit the context.
            ModelError: it cannot be tokenised, or no slot is free.
        """
        if request.adapter is not None and request.adapter not in self.model.adapters:
            raise ModelError("the adapter is not loaded")
        prompt = self.model.tokenize(self.model.template.render(request.turns))
        if not prompt:
            raise TemplateError("the chat template renders this chat to nothing")
        if any(token >= self.model.vocabulary_size for token in request.received):
            raise ModelError("a received token is not in this model's vocabulary")
        if len(prompt) + len(request.received) >= self.model.context_tokens:
            raise TooLong(
                f"a prompt of {len(prompt)} tokens and {len(request.received)} received ones, "
                f"expected fewer than {self.model.context_tokens} in all",
            )
        tokens = [*prompt, *request.received]
        slot, reusable = self._best_slot(tokens, request.adapter)
        if slot is None:
            raise ModelError("no slot is free")
        job = Job(
            call=request.call,
            tokens=tokens,
            prompt_tokens=len(prompt),
            chunked_end=len(prompt),
            text=CompletionText(request.stop),
            sampler=Sampler(request.sampling, self.model.vocabulary_size, max(1, request.tokens_max)),
            tokens_max=request.tokens_max,
            adapter=request.adapter,
        )
        for token in request.received:
            job.sampler.accept(token)
            job.text.feed(self.model.piece(token))
        self._reuse(slot, job, reusable)
        if (len(tokens) - max(len(prompt), job.reused_tokens)) * self.step_s > REPLAY_S_MAX:
            job.chunked_end = len(tokens)
        slot.job = job
        return self._after_token(slot, job)

    def cancel(self, call: int) -> bool:
        """Drop a job; False if it is not here (any more)."""
        for slot in self.slots:
            if slot.job and slot.job.call == call:
                self._free(slot)
                return True
        return False

    def step(self) -> list[wire.FromChild]:
        """Compute one batch and return what it produced. An aborted step produces nothing and can be repeated."""
        adapter = self._next_adapter()
        rows, shares = self._plan(adapter)
        began = time.perf_counter()
        try:
            self.model.use_adapter(adapter)
            self.model.decode(rows)
        except Aborted:
            self._take_back(shares)
            return []
        except ModelError as error:
            self._take_back(shares)
            return [self._fail(slot, str(error)) for slot, _ in shares]
        ended = time.perf_counter()
        if len(rows) == len(shares):
            self.step_s = ended - began
        said: list[wire.FromChild] = []
        index = -1
        for slot, count in shares:
            index += count
            job = slot.job
            assert job is not None
            slot.cached += job.tokens[len(slot.cached) : len(slot.cached) + count]
            if len(slot.cached) >= job.chunked_end and not job.decode_started:
                job.decode_started = ended
            if len(slot.cached) == len(job.tokens):
                try:
                    said += self._draw(slot, job, index)
                except NotFinite as error:
                    # The rest of the step is as little worth: those jobs come to the same place once more.
                    return said + self._begin_again(slot, job, str(error))
        return said

    def progress(self, call: int) -> tuple[int, int]:
        """Return how many of how many tokens are in the cache before the next one can be drawn."""
        for slot in self.slots:
            if slot.job and slot.job.call == call:
                return min(len(slot.cached), len(slot.job.tokens)), len(slot.job.tokens)
        return 0, 0

    # --- a step --------------------------------------------------------------------------------------------------

    def _next_adapter(self) -> bytes | None:
        """Return the adapter of the jobs that have waited longest for a step."""
        adapters = dict.fromkeys(slot.job.adapter for slot in self.slots if slot.job)
        if len(adapters) <= 1:
            self._stepped.clear()
            return next(iter(adapters), None)
        self._steps += 1
        adapter = min(adapters, key=lambda each: self._stepped.get(each, 0))
        self._stepped[adapter] = self._steps
        return adapter

    def _plan(self, adapter: bytes | None) -> tuple[list[Row], list[tuple[Slot, int]]]:
        """Return the rows of the next batch for this adapter's jobs, and how many of them are whose, in order.

        Decoding sequences come first, one row each; one prompt gets a chunk, so that a long one does not delay the
        others by more than that.
        """
        rows: list[Row] = []
        shares: list[tuple[Slot, int]] = []
        prompt_planned = False
        for slot in sorted(self.slots, key=lambda s: bool(s.job and len(s.cached) < s.job.chunked_end)):
            job = slot.job
            if job is None or job.adapter != adapter:
                continue
            start, count = len(slot.cached), 1
            if start < job.chunked_end:
                if prompt_planned:
                    continue
                prompt_planned = True
                chunk = self.model.chunk_tokens
                count = min(chunk - start % chunk, job.chunked_end - start)
            rows += [
                Row(job.tokens[i], i, slot.sequence, output=i == start + count - 1)
                for i in range(start, start + count)
            ]
            shares.append((slot, count))
        return rows, shares

    def _draw(self, slot: Slot, job: Job, index: int) -> list[wire.FromChild]:
        drawn = job.sampler.draw(self.model, index)
        token = drawn.token
        job.is_begun_again = False
        if self.model.ends_generation(token):
            return [self._finish(slot, job, "stop")]
        job.tokens.append(token)
        text = job.text.feed(self.model.piece(token))
        return [wire.NewTokens(job.call, (token,), text, drawn.logprobs), *self._after_token(slot, job)]

    def _after_token(self, slot: Slot, job: Job) -> list[wire.FromChild]:
        if job.text.state is State.STOPPED:
            return [self._finish(slot, job, "stop")]
        if job.completion_tokens >= job.tokens_max or len(job.tokens) >= self.model.context_tokens:
            return [self._finish(slot, job, "length")]
        return []

    def _finish(self, slot: Slot, job: Job, reason: str) -> wire.Done:
        now = time.perf_counter()
        decode_started = job.decode_started or now
        self._free(slot)
        return wire.Done(
            call=job.call,
            reason=reason,
            text=job.text.finish(),
            prompt_tokens=job.prompt_tokens,
            completion_tokens=job.completion_tokens,
            prefill_tokens=max(0, job.chunked_end - job.reused_tokens),
            prefill_s=decode_started - job.started,
            decode_s=now - decode_started,
        )

    def _fail(self, slot: Slot, text: str) -> wire.Failed:
        assert slot.job is not None
        call = slot.job.call
        self._free(slot)
        self._forget(slot)  # what a failed step left in the cache is unknown
        return wire.Failed(call, "engine", text[:512])

    def _begin_again(self, slot: Slot, job: Job, text: str) -> list[wire.FromChild]:
        """Fail whom the numbers that are not finite come from, and let the others compute all again.

        What one sequence leaves in the cache spoils the others too. An adapter is likelier to be the reason than the
        base under it; who has begun again on a clean cache is it himself.
        """
        failed = [slot]
        if job.adapter is None and not job.is_begun_again:
            failed = [each for each in self.slots if each.job and each.job.adapter is not None]
        said: list[wire.FromChild] = [self._fail(each, text) for each in failed]
        self.model.forget_all()
        for each in self.slots:
            each.cached.clear()
            each.exact_tokens = 0
            if each.job:
                each.job.is_begun_again = True
        return said

    def _free(self, slot: Slot) -> None:
        if slot.job:
            slot.job.sampler.close()
            slot.job = None

    # --- the cache -----------------------------------------------------------------------------------------------

    def _take_back(self, shares: list[tuple[Slot, int]]) -> None:
        """Remove from the cache what a step that did not end may have put there."""
        for slot, _ in shares:
            if not self.model.rewind(slot.sequence, len(slot.cached)):
                slot.cached.clear()
                slot.exact_tokens = 0

    def _forget(self, slot: Slot) -> None:
        self.model.rewind(slot.sequence, 0)
        slot.cached.clear()
        slot.exact_tokens = 0

    def _best_slot(self, tokens: list[int], adapter: bytes | None) -> tuple[Slot | None, int]:
        """Return the free slot whose cache begins most like `tokens`, and how long that beginning is."""
        can_reuse = self.model.can_rewind
        best: Slot | None = None
        longest = -1
        for slot in self.slots:
            if slot.job is None:
                common = _common_length(slot.cached, tokens) if can_reuse and slot.adapter == adapter else 0
                if common > longest:
                    best, longest = slot, common
        return best, longest

    def _reuse(self, slot: Slot, job: Job, reusable: int) -> None:
        """Keep what the slot's cache shares with the job; at least its last token is computed, for its logits."""
        keep = min(reusable, len(job.tokens) - 1)
        if keep <= slot.exact_tokens:
            # All that is kept was computed as a cold run would: go on where a cold run begins a chunk, and stay exact.
            keep -= keep % self.model.chunk_tokens
        if keep < len(slot.cached) and not self.model.rewind(slot.sequence, keep):
            keep = 0
        del slot.cached[keep:]
        if keep <= slot.exact_tokens:
            slot.exact_tokens = job.prompt_tokens
        slot.adapter = job.adapter
        job.reused_tokens = keep


def _common_length(left: list[int], right: list[int]) -> int:
    """Return the length of the longest common beginning."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
