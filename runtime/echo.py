"""`EchoEngine`: an engine without a model, for tests and the simulator. It says the user's words again and again.

It is honest: it takes time (a virtual clock's too), has slots and a bounded queue, reads its prompt before it
answers, and its tokens are reversible: id and word can be computed from each other, so a successor that is given the
ids goes on exactly. It is not clever. With an adapter it puts the adapter's name before each round of the words.
"""

from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping
from itertools import islice
from pathlib import Path

import trio

from protocol.limits import PROGRESS_INTERVAL_S
from runtime.engine import (
    ChatMessage,
    Digest,
    EngineBusy,
    EngineError,
    EngineStatus,
    Finished,
    FinishReason,
    Frame,
    Generation,
    ModelCard,
    Phase,
    Progress,
    PromptTooLong,
    Tokens,
    UnknownAdapter,
    UnknownModel,
)
from runtime.llama.tokens import CompletionText, State

ECHO_MODEL = Digest(bytes(31) + b"e")
QUEUE_MAX = 8
# Of UTF-8 in a token: its id is those bytes read as a number, and characters are cut as in life.
PIECE_BYTES = 3


class EchoEngine:
    """Answers with the last user message, repeated.

    Args:
        cards: the models that it says it has; all behave the same.
        seconds_per_token: of a completion.
        prompt_seconds_per_token: of prefill.
        slots: requests at a time.
        queue_max: requests that may wait.
        repetitions: of the user's words, after which it stops by itself; None goes on to `tokens_max`.
        tokens_per_frame: how many it says at a time; a large world has no patience for one by one.
    """

    def __init__(
        self,
        cards: tuple[ModelCard, ...] = (),
        *,
        seconds_per_token: float = 0.02,
        prompt_seconds_per_token: float = 0.001,
        slots: int = 1,
        queue_max: int = QUEUE_MAX,
        repetitions: int | None = 1,
        tokens_per_frame: int = 1,
    ) -> None:
        self._cards = {card.digest: card for card in cards or (echo_card(),)}
        self._seconds_per_token = seconds_per_token
        self._prompt_seconds_per_token = prompt_seconds_per_token
        self._slots = slots
        self._queue_max = queue_max
        self._repetitions = repetitions
        self._tokens_per_frame = tokens_per_frame
        self._adapters: dict[Digest, Digest] = {}
        self._running = 0
        self._waiting: deque[trio.Event] = deque()

    @property
    def models(self) -> Mapping[Digest, ModelCard]:
        """The models that can be asked for."""
        return self._cards

    @property
    def adapters(self) -> Mapping[Digest, Digest]:
        """The adapters that can be asked for, and the model that each is for."""
        return {adapter: base for adapter, base in self._adapters.items() if base in self._cards}

    async def load_adapter(self, base: Digest, adapter: Digest, path: Path) -> None:  # noqa: ARG002  (no file is read)
        """Take an adapter; any file will do, or none, since a world has no disk."""
        self._card(base)
        await trio.lowlevel.checkpoint()
        self._adapters[adapter] = base

    def unload_adapter(self, adapter: Digest) -> None:
        """Take no more requests for it. Those under way do not look it up again."""
        self._adapters.pop(adapter, None)

    def status(self, model: Digest) -> EngineStatus:
        """Return slots, queue, and the speeds it was made with."""
        self._card(model)
        return EngineStatus(
            slots=self._slots,
            slots_free=self._slots - self._running,
            queued=len(self._waiting),
            prompt_tokens_per_s=_rate(self._prompt_seconds_per_token),
            tokens_per_s=_rate(self._seconds_per_token),
            sandbox="S1",
        )

    async def count_tokens(self, model: Digest, messages: tuple[ChatMessage, ...]) -> int:
        """Return the tokens of the roles and contents, in lines."""
        card = self._card(model)
        await trio.lowlevel.checkpoint()
        count = sum(
            1 for _ in _pieces("".join(f"{message.role}: {message.content}\n" for message in messages))
        )
        if count >= card.context_tokens:
            raise PromptTooLong(f"a prompt of {count} tokens, expected fewer than {card.context_tokens}")
        return count

    async def generate(self, request: Generation) -> AsyncGenerator[Frame, None]:
        """Yield the frames of one generation. See the port."""
        card = self._card(request.model)
        if request.adapter is not None and self.adapters.get(request.adapter) != request.model:
            raise UnknownAdapter(
                f"no adapter {request.adapter.hex()[:8]} for model {request.model.hex()[:8]}"
            )
        prompt_tokens = await self.count_tokens(request.model, request.messages)
        turn = self._take_turn()
        try:
            while not turn.is_set():
                with trio.move_on_after(PROGRESS_INTERVAL_S):
                    await turn.wait()
                    continue
                yield Progress(Phase.QUEUED)

            started = trio.current_time()
            for done, wait_s in self._prefill_steps(prompt_tokens):
                yield Progress(Phase.PREFILL, done, prompt_tokens)
                await trio.sleep(wait_s)
            prefilled = trio.current_time()

            text = CompletionText(request.stop)
            for id_ in request.received:
                text.feed(token_bytes(id_))
            tokens_max = min(request.tokens_max, card.context_tokens - prompt_tokens)
            completion = len(request.received)
            rest = self._answer(request, skip=completion)
            while text.state is State.OPEN and completion < tokens_max:
                ids = tuple(islice(rest, min(self._tokens_per_frame, tokens_max - completion)))
                if not ids:
                    break
                for wait_s in _intervals(self._seconds_per_token * len(ids)):
                    await trio.sleep(wait_s)
                    if wait_s == PROGRESS_INTERVAL_S:
                        yield Progress(Phase.DECODE, completion, tokens_max)
                await self.before_tokens(completion - len(request.received))
                completion += len(ids)
                yield Tokens(ids, text.feed(b"".join(map(token_bytes, ids))))
            is_cut = text.state is State.OPEN and completion >= tokens_max
            yield Finished(
                reason=FinishReason.LENGTH if is_cut else FinishReason.STOP,
                text=text.finish(),
                prompt_tokens=prompt_tokens,
                completion_tokens=completion,
                prefill_s=prefilled - started,
                decode_s=trio.current_time() - prefilled,
            )
        finally:
            self._end_turn(turn)

    async def before_tokens(self, said: int) -> None:
        """Be overridden by an engine that something befalls, once it has said so many tokens of a generation."""

    def _take_turn(self) -> trio.Event:
        """Return an event that is set when the slot is ours."""
        turn = trio.Event()
        if self._running < self._slots:
            self._running += 1
            turn.set()
        elif len(self._waiting) < self._queue_max:
            self._waiting.append(turn)
        else:
            raise EngineBusy(
                f"{len(self._waiting)} requests wait already, expected fewer than {self._queue_max}"
            )
        return turn

    def _end_turn(self, turn: trio.Event) -> None:
        """The first in the queue inherits the slot; without one it is free."""
        if turn in self._waiting:
            self._waiting.remove(turn)
        elif self._waiting:
            self._waiting.popleft().set()
        else:
            self._running -= 1

    def _prefill_steps(self, prompt_tokens: int) -> Iterator[tuple[int, float]]:
        """Yield how many prompt tokens are read, and how long the next ones take."""
        total_s = prompt_tokens * self._prompt_seconds_per_token
        passed_s = 0.0
        for wait_s in _intervals(total_s):
            yield (int(prompt_tokens * passed_s / total_s) if total_s else 0), wait_s
            passed_s += wait_s

    def _answer(self, request: Generation, skip: int) -> Iterator[int]:
        words = next(
            (message.content for message in reversed(request.messages) if message.role == "user"), ""
        )
        if request.adapter is not None:
            words = f"{request.adapter.hex()[:8]}: {words}"
        round_ = [int.from_bytes(b"\1" + piece, "big") for piece in _pieces(words + " ")]
        position = skip
        while self._repetitions is None or position < self._repetitions * len(round_):
            yield round_[position % len(round_)]
            position += 1

    def _card(self, model: Digest) -> ModelCard:
        if model not in self._cards:
            raise UnknownModel(f"no model {model.hex()[:8]} on this engine")
        return self._cards[model]


def echo_card(digest: Digest = ECHO_MODEL, name: str = "echo", context_tokens: int = 4_096) -> ModelCard:
    """A card for a model that only `EchoEngine` runs."""
    return ModelCard(
        digest=digest,
        name=name,
        architecture="echo",
        quantisation="none",
        parameters=0,
        size_bytes=0,
        context_tokens=context_tokens,
        trained_context_tokens=context_tokens,
    )


def token_bytes(token: int) -> bytes:
    """Return the bytes that an echo token writes. A leading 1 marks where they begin, so that zero bytes count.

    Raises:
        EngineError: it is no token of this engine.
    """
    data = token.to_bytes(max(1, (token.bit_length() + 7) // 8), "big")
    if data[:1] != b"\1" or len(data) > PIECE_BYTES + 1:
        raise EngineError(f"token {token} is not an echo token")
    return data[1:]


def _pieces(text: str) -> Iterator[bytes]:
    data = text.encode()
    return (data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES))


def _intervals(seconds: float) -> Iterator[float]:
    """Cut a time into pieces after which something can be said; at least one, be it of no length."""
    while seconds > PROGRESS_INTERVAL_S:
        yield PROGRESS_INTERVAL_S
        seconds -= PROGRESS_INTERVAL_S
    yield seconds


def _rate(seconds: float) -> float:
    return 1 / seconds if seconds > 0 else 1e6
