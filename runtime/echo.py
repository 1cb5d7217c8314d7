"""`EchoEngine`: an engine without a model, for tests and the simulator. It says the user's words again and again.

It is honest: it takes time (a virtual clock's too), has slots that slow each other as in a batch and a bounded queue,
reads its prompt before it answers, and its tokens are reversible: id and word can be computed from each other, so a
successor that is given the ids goes on exactly. It is not clever. With an adapter it puts the adapter's name before each
round of the words. Under a grammar or schema it says the words once, if they fit, and else refuses.
"""

from collections.abc import AsyncGenerator, Iterator, Mapping
from itertools import islice
from pathlib import Path

import trio

from protocol.limits import PROGRESS_INTERVAL_S
from runtime.echo_words import contrasts, gap_words, vector_words
from runtime.engine import (
    BadRequest,
    ChatMessage,
    Digest,
    EngineError,
    EngineStatus,
    Finished,
    FinishReason,
    Frame,
    Generation,
    ModelCard,
    ModelLoading,
    Phase,
    Progress,
    PromptTooLong,
    TokenLogprob,
    Tokens,
    UnknownAdapter,
    UnknownModel,
    no_room,
)
from runtime.llama.constraint import Constraint, compiled
from runtime.llama.request import READINGS, check
from runtime.llama.tokens import CompletionText, State
from runtime.slots import Slots

ECHO_MODEL = Digest(bytes(31) + b"e")
QUEUE_MAX = 8
LOAD_WAITED_FOR_S = 5.0  # by this device's own user
# Of UTF-8 in a token: its id is those bytes read as a number, and characters are cut as in life.
PIECE_BYTES = 3


class EchoEngine:
    """Answers with the last user message, repeated.

    Args:
        cards: the models that it says it has; all behave the same.
        seconds_per_token: of a completion, by a stream that is alone.
        prompt_seconds_per_token: of prefill, as well.
        load_seconds: until a model is in memory; the first request for it begins to load it.
        slots: requests at a time.
        queue_max: requests that may wait.
        repetitions: of the user's words, after which it stops by itself; None goes on to `tokens_max`.
        tokens_per_frame: how many it says at a time after the first; a large world has no patience for one by one.
    """

    def __init__(
        self,
        cards: tuple[ModelCard, ...] = (),
        *,
        seconds_per_token: float = 0.02,
        prompt_seconds_per_token: float = 0.001,
        load_seconds: float = 0.0,
        slots: int = 1,
        queue_max: int = QUEUE_MAX,
        repetitions: int | None = 1,
        tokens_per_frame: int = 1,
    ) -> None:
        self._cards = {card.digest: card for card in cards or (echo_card(),)}
        self._seconds_per_token = seconds_per_token
        self._prompt_seconds_per_token = prompt_seconds_per_token
        self._load_seconds = load_seconds
        self._loaded_at: dict[Digest, float] = {}  # models that are in memory, or will be then
        self._slots = Slots(slots, queue_max)
        self._repetitions = repetitions
        self._tokens_per_frame = tokens_per_frame
        self._adapters: dict[Digest, Digest] = {}

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
        """Return slots, queue, and the speeds that one more stream would have."""
        self._card(model)
        slots = self._slots
        return EngineStatus(
            slots=slots.count,
            slots_free=slots.free,
            queued=slots.queued,
            prompt_tokens_per_s=_rate(self._prompt_seconds_per_token) * slots.next_share,
            tokens_per_s=_rate(self._seconds_per_token) * slots.next_share,
            sandbox="S1",
            wait_s=slots.wait_s,
            load_s=self._load_left_s(model),
            queue_free=slots.queue_free,
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
        check(request, card)
        _check_sampling(request)
        prompt_tokens = await self._count_prompt(request, card)
        self._begin_to_load(request)
        is_reading = request.task in READINGS
        pace_s = 0.0 if is_reading else self._seconds_per_token
        room = request.tokens_max if is_reading else card.context_tokens - prompt_tokens
        tokens_max = min(request.tokens_max, room)
        completion = len(request.received)
        prefill_s = prompt_tokens * self._prompt_seconds_per_token
        turn = self._slots.take(prefill_s + (tokens_max - completion) * pace_s)
        try:
            while not turn.is_ours.is_set():
                with trio.move_on_after(PROGRESS_INTERVAL_S):
                    await turn.is_ours.wait()
                    continue
                yield Progress(Phase.QUEUED)

            while (left_s := self._load_left_s(request.model)) > 0:
                yield Progress(Phase.LOADING, round(100 * (1 - left_s / self._load_seconds)), 100)
                await trio.sleep(min(left_s, PROGRESS_INTERVAL_S))

            started = trio.current_time()
            whole_s = turn.left_s
            for wait_s in self._slots.pieces(turn, prefill_s):
                done = int(prompt_tokens * (whole_s - turn.left_s) / prefill_s) if prefill_s else 0
                yield Progress(Phase.PREFILL, done, prompt_tokens)
                await trio.sleep(wait_s)
            prefilled = trio.current_time()

            text = CompletionText(request.stop)
            for id_ in () if is_reading else request.received:
                text.feed(token_bytes(id_))
            rest = self._words(request, card) if is_reading else self._answer(request, skip=completion)
            at_once = 1  # whoever waits for a first word waits for no second one
            while text.state is State.OPEN and completion < tokens_max:
                ids = tuple(islice(rest, min(at_once, tokens_max - completion)))
                if not ids:
                    break
                at_once = 1 if request.sampling.logprobs else self._tokens_per_frame
                for wait_s in self._slots.pieces(turn, pace_s * len(ids)):
                    await trio.sleep(wait_s)
                    if wait_s == PROGRESS_INTERVAL_S:
                        yield Progress(Phase.DECODE, completion, tokens_max)
                await self.before_tokens(completion - len(request.received))
                completion += len(ids)
                yield _said(request, text, ids, completion - len(ids))
            is_cut = text.state is State.OPEN and completion >= tokens_max and not is_reading
            yield Finished(
                reason=FinishReason.LENGTH if is_cut else FinishReason.STOP,
                text=text.finish(),
                prompt_tokens=prompt_tokens,
                completion_tokens=completion,
                prefill_s=prefilled - started,
                decode_s=trio.current_time() - prefilled,
            )
        finally:
            self._slots.end(turn)

    def unload(self, model: Digest) -> None:
        """Give a model's memory back; the next request loads it again."""
        self._loaded_at.pop(model, None)

    async def before_tokens(self, said: int) -> None:
        """Be overridden by an engine that something befalls, once it has said so many tokens of a generation."""

    def _load_left_s(self, model: Digest) -> float:
        if not self._load_seconds:
            return 0.0
        now = trio.current_time()
        return max(0.0, self._loaded_at.get(model, now + self._load_seconds) - now)

    def _begin_to_load(self, request: Generation) -> None:
        """Load a model that is not in memory, beside whatever runs; this device's own user need not wait for a long one."""
        left_s = self._load_left_s(request.model)
        if left_s > 0:
            self._loaded_at.setdefault(request.model, trio.current_time() + self._load_seconds)
        if left_s > LOAD_WAITED_FOR_S and not request.payer:
            raise ModelLoading(
                f"model {request.model.hex()[:8]} is being loaded, ready in about {left_s:.0f} s",
                done=1 - left_s / self._load_seconds,
                retry_after_s=left_s,
            )

    async def _count_prompt(self, request: Generation, card: ModelCard) -> int:
        """Return the tokens that are read.

        Raises:
            PromptTooLong: they do not fit the context.
            BadRequest: they leave no room for what is wanted.
        """
        await trio.lowlevel.checkpoint()
        counts = [sum(1 for _ in _pieces(text)) for text in request.inputs]
        if not counts:
            counts = [await self.count_tokens(request.model, request.messages)]
        claimed = len(request.claimed)
        if max(counts) + claimed >= card.context_tokens:
            raise PromptTooLong(
                f"a prompt of {max(counts)} tokens and {claimed} claimed ones, expected fewer than {card.context_tokens}"
            )
        if request.tokens_wanted > (room := card.context_tokens - max(counts)):
            raise BadRequest(no_room(request.tokens_wanted, room, max(counts)))
        return sum(counts) + claimed

    def _words(self, request: Generation, card: ModelCard) -> Iterator[int]:
        """Yield the words of a task that only reads, without those received before."""
        if request.task == "embedding":
            words = [word for text in request.inputs for word in vector_words(text, card.dimensions)]
        else:
            words = [*gap_words(request.claimed, self._answer(request, skip=0))]
        return iter(words[len(request.received) :])

    def _answer(self, request: Generation, skip: int) -> Iterator[int]:
        words, repetitions = _own_words(request), self._repetitions
        if _is_constrained(request):
            repetitions = 1  # what must be one text is said once, to the letter
        else:
            words += " "
        round_ = [int.from_bytes(b"\1" + piece, "big") for piece in _pieces(words)]
        position = skip
        while repetitions is None or position < repetitions * len(round_):
            yield round_[position % len(round_)]
            position += 1

    def _card(self, model: Digest) -> ModelCard:
        if model not in self._cards:
            raise UnknownModel(f"no model {model.hex()[:8]} on this engine")
        return self._cards[model]


def echo_card(
    digest: Digest = ECHO_MODEL, name: str = "echo", context_tokens: int = 4_096, dimensions: int = 0
) -> ModelCard:
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
        dimensions=dimensions,
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


def _own_words(request: Generation) -> str:
    words = next(
        (message.content for message in reversed(request.messages) if message.role == "user"),
        "".join(request.inputs),
    )
    return words if request.adapter is None else f"{request.adapter.hex()[:8]}: {words}"


def _is_constrained(request: Generation) -> bool:
    return bool(request.sampling.schema or request.sampling.grammar)


def _check_sampling(request: Generation) -> None:
    """Refuse what an echo cannot do. A bias changes nothing: every other token is impossible, by how much does not matter.

    Raises:
        BadRequest: the constraint is none or does not allow the user's words, or a bias is for what is no token.
    """
    for token, _ in request.sampling.logit_bias:
        try:
            token_bytes(token)
        except EngineError:
            raise BadRequest(f"logit_bias names token {token}, which is no echo token") from None
    if _is_constrained(request):
        constraint = Constraint(compiled(request.sampling.schema, request.sampling.grammar))
        if not (constraint.accept(_own_words(request).encode()) and constraint.is_complete):
            raise BadRequest(
                "the grammar or schema does not allow the user's own words, and an echo has no others"
            )


def _said(request: Generation, text: CompletionText, ids: tuple[int, ...], place: int) -> Tokens:
    """It never hesitates: each token was certain, and the likeliest one at its place."""
    if request.task == "embedding":
        return Tokens(ids, "")
    weights = request.model + (request.adapter or b"")
    if request.task == "check":
        claimed = request.claimed[place : place + len(ids)]
        return Tokens(ids, "", contrasts=contrasts(weights, place, claimed))
    pieces = [token_bytes(id_) for id_ in ids]
    top = 1 if request.sampling.top_logprobs else 0
    logprobs = tuple(TokenLogprob(piece, 0, ((piece, 0),) * top) for piece in pieces)
    return Tokens(
        ids,
        text.feed(b"".join(pieces)),
        logprobs if request.sampling.logprobs else (),
        contrasts(weights, place, ids),
    )


def _pieces(text: str) -> Iterator[bytes]:
    data = text.encode()
    return (data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES))


def _rate(seconds: float) -> float:
    return 1 / seconds if seconds > 0 else 1e6
