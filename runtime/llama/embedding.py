"""The step loop of one embedding model: some texts a step, of each job in turn. Only for the child.

A text is read in one batch, so the longest text is the longest that others wait. Its vector goes out as words (see
`runtime.engine.Generation`): one for each coordinate of the vector of length 1.
"""

import math
import time
from collections import deque
from dataclasses import dataclass, field

from runtime.engine import BadRequest
from runtime.llama import wire
from runtime.llama.batching import TooLong
from runtime.llama.embedding_model import TOGETHER_TEXTS, TOGETHER_TOKENS, EmbeddingModel
from runtime.llama.lowlevel import ModelError
from runtime.llama.model import Aborted

ONE = 1_000_000  # a coordinate of 1, as a word counts it from -1
WORDS_PER_MESSAGE = 4_096
CALIBRATION_TOKENS = 128


@dataclass(eq=False)
class Job:
    """One request under way.

    Attributes:
        texts: the tokens of each.
        first: text to read; a predecessor has said the vectors of those before it.
        done: texts whose vectors were said.
        words: said, or received from a predecessor.
        skip: words of the next vector that were received already.
    """

    call: int
    texts: list[list[int]]
    first: int
    done: int
    words: int
    skip: int
    started: float = field(default_factory=time.perf_counter)

    @property
    def tokens(self) -> int:
        """Of all texts."""
        return sum(map(len, self.texts))


class Embedder:
    """Runs the jobs of one embedding model.

    Args:
        model: owned; `close` closes it.
        slots: jobs at a time.
    """

    def __init__(self, model: EmbeddingModel, slots: int) -> None:
        self.model = model
        self._slots = slots
        self._jobs: deque[Job] = deque()  # the next one's turn first

    def close(self) -> None:
        """Give everything back. Jobs that were running are gone."""
        self._jobs.clear()
        self.model.close()

    @property
    def busy(self) -> bool:
        """Whether there is something to compute."""
        return bool(self._jobs)

    def count_tokens(self, _turns: wire.Turns) -> int:
        """Refuse: a chat is nothing for this model."""
        raise BadRequest("the model embeds texts, expected one that takes chats")

    def admit(self, request: wire.Generate) -> list[wire.FromChild]:
        """Take a request in, and return what is already known of its end (or nothing).

        Raises:
            BadRequest: it is not to embed texts.
            TooLong: one of them does not fit the context.
            ModelError: one cannot be tokenised, or no slot is free.
        """
        if request.task != "embedding":
            raise BadRequest(f"the task is {request.task!r}, expected 'embedding': this model does not write")
        if request.adapter is not None:
            raise BadRequest("an adapter is asked for, expected none: this model embeds")
        if len(self._jobs) >= self._slots:
            raise ModelError("no slot is free")
        texts = [self.model.tokenize(text) for text in request.inputs]
        for place, tokens in enumerate(texts):
            if not tokens:
                raise BadRequest(f"item {place} of inputs has no tokens, expected one at least")
            if len(tokens) > self.model.context_tokens:
                raise TooLong(
                    f"item {place} of inputs has {len(tokens)} tokens, expected at most {self.model.context_tokens}"
                )
        words = len(request.received)
        first = min(len(texts), words // self.model.dimensions)
        job = Job(
            call=request.call,
            texts=texts,
            first=first,
            done=first,
            words=words,
            skip=words % self.model.dimensions,
        )
        self._jobs.append(job)
        return self._end(job)

    def cancel(self, call: int) -> bool:
        """Drop a job; False if it is not here (any more)."""
        for job in self._jobs:
            if job.call == call:
                self._jobs.remove(job)
                return True
        return False

    def progress(self, call: int) -> tuple[int, int]:
        """Return how many of how many tokens have been read."""
        for job in self._jobs:
            if job.call == call:
                return sum(map(len, job.texts[: job.done])), job.tokens
        return 0, 0

    def step(self) -> list[wire.FromChild]:
        """Read the next texts of the job whose turn it is. An aborted step produces nothing and can be repeated."""
        job = self._jobs[0]
        self._jobs.rotate(-1)
        texts = self._next_texts(job)
        try:
            vectors = self.model.embed(texts)
        except Aborted:
            return []
        except ModelError as error:
            self._jobs.remove(job)
            return [wire.Failed(job.call, "engine", str(error)[:512])]
        words = [word for vector in vectors for word in words_of(vector)][job.skip :]
        job.done += len(texts)
        job.words += len(words)
        job.skip = 0
        said: list[wire.FromChild] = [
            wire.NewTokens(job.call, tuple(words[start : start + WORDS_PER_MESSAGE]), "")
            for start in range(0, len(words), WORDS_PER_MESSAGE)
        ]
        return said + self._end(job)

    def calibrate(self) -> float:
        """Return measured tokens per second of one text."""
        size = min(CALIBRATION_TOKENS, self.model.context_tokens)
        text = [token % self.model.vocabulary_size for token in range(size)]
        self.model.embed([text[:1]])  # the first step also touches all weights
        began = time.perf_counter()
        self.model.embed([text])
        return size / (time.perf_counter() - began)

    def _next_texts(self, job: Job) -> list[list[int]]:
        texts: list[list[int]] = []
        room = TOGETHER_TOKENS
        for tokens in job.texts[job.done : job.done + TOGETHER_TEXTS]:
            if texts and len(tokens) > room:
                break
            texts.append(tokens)
            room -= len(tokens)
        return texts

    def _end(self, job: Job) -> list[wire.FromChild]:
        if job.done < len(job.texts):
            return []
        self._jobs.remove(job)
        return [
            wire.Done(
                call=job.call,
                reason="stop",
                text="",
                prompt_tokens=job.tokens,
                completion_tokens=job.words,
                prefill_tokens=sum(map(len, job.texts[job.first :])),
                prefill_s=time.perf_counter() - job.started,
                decode_s=0.0,
            ),
        ]


def words_of(vector: list[float]) -> list[int]:
    """Return the words of the vector of length 1 that points the same way."""
    length = math.sqrt(sum(x * x for x in vector)) or 1.0
    return [round((x / length + 1) * ONE) for x in vector]
