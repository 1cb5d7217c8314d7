"""The Engine port: many requests at once, tokens out, and nothing said about how.

Behind it stand llama.cpp in a sandboxed child (`runtime/llama/`) and `EchoEngine` (`runtime/echo.py`), the honest fake
that tests and the simulator run. `tests/contracts/test_engine.py` is their shared acceptance suite.

A request carries the chat, not a rendered prompt: the model's own template is a program out of a stranger's file, and
only the sandboxed child runs it.
"""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NewType, Protocol

from protocol.errors import AgoraError
from protocol.messages import Task

Digest = NewType("Digest", bytes)  # SHA-256, 32 bytes


class FinishReason(Enum):
    """Why a generation ended, in OpenAI's words."""

    STOP = "stop"  # the model's end-of-turn token, or a stop sequence
    LENGTH = "length"  # the cap, or the context is full


class Phase(Enum):
    """What an engine is doing for a request that has no token yet."""

    QUEUED = "queued"
    LOADING = "loading"
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True)
class ChatMessage:
    """One turn of a chat. `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Integers, since signed messages carry no floats: `_ppm` is parts per million."""

    temperature_ppm: int = 0  # 0 is greedy; 1_000_000 is temperature 1
    top_p_ppm: int = 1_000_000
    top_k: int = 0  # 0: no limit
    min_p_ppm: int = 0
    repeat_penalty_ppm: int = 1_000_000
    frequency_penalty_ppm: int = 0
    presence_penalty_ppm: int = 0
    seed: int = 0
    logit_bias: tuple[tuple[int, int], ...] = ()  # (token id, thousandths added to its logit)
    schema: str = ""  # what the whole text must be: a JSON schema…
    grammar: str = ""  # …or a grammar in GBNF; one of them at most
    logprobs: bool = False
    top_logprobs: int = 0


@dataclass(frozen=True)
class Generation:
    """One request to an engine.

    A task that only reads answers in words: `embedding` with the coordinates of each input's unit vector, as
    `round((x + 1) * 10^6)`; `check` with the gap of each claimed token, in thousandths of a logit: how far below the
    likeliest token it was, given the prompt and the claimed tokens before it. They come as ids of `Tokens` frames.

    Attributes:
        model: SHA-256 of the GGUF.
        messages: the chat so far, oldest first; empty for a completion of a raw text and for embeddings.
        tokens_max: completion tokens at most, those in `received` counted in; for a task that only reads: all its words.
        stop: texts at which the completion ends; they are not part of it.
        received: completion token ids that another engine has already produced and the client has already seen. The
            prompt is prefilled as usual and these are then decoded one by one while that is estimated to take under
            2 s (greedy: exact), else prefilled. Sampler and stop-sequence states are rebuilt by feeding them. No
            frame is sent for them; the text goes on exactly after theirs.
        adapter: a LoRA adapter that was loaded for this model; None: the bare base.
        task: what to do.
        inputs: the raw text to go on from, or the texts to embed. A check has a raw text here or a chat in `messages`.
        claimed: the completion tokens to check.
        payer: for whom: slots are shared fairly between those who wait.
        tokens_wanted: completion tokens that the context has to have room for beside the prompt, or `BadRequest`; 0: as
            many as there is room for will do.
    """

    model: Digest
    messages: tuple[ChatMessage, ...]
    tokens_max: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    received: tuple[int, ...] = ()
    adapter: Digest | None = None
    task: Task = "chat"
    inputs: tuple[str, ...] = ()
    claimed: tuple[int, ...] = ()
    payer: str = ""
    tokens_wanted: int = 0


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was, before temperature and the like: in millionths of a nat below certainty.

    Attributes:
        top: the likeliest ones at its place, as (bytes, micronats), the likeliest first.
    """

    text: bytes
    micronats: int
    top: tuple[tuple[bytes, int], ...] = ()


@dataclass(frozen=True)
class Tokens:
    """New completion tokens and the text that they made certain.

    `text` may lag behind `ids`: bytes of an unfinished character, and text that may yet become a stop sequence, are
    held back. What is held back is a function of all ids so far, so a successor that was given them goes on exactly.

    Attributes:
        logprobs: one for each id, if they were asked for.
        contrasts: one for each id that was written, and for each claimed one that was checked; of an embedding none. How
            many thousandths of a logit it lay above a token that follows from its place: the same number, but for rounding,
            from whoever computes the same model, and from nobody else.
    """

    ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    contrasts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Progress:
    """No token yet (or none for a while): what is being done. `done` of `total` tokens of the prompt are read."""

    phase: Phase
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Finished:
    """The last frame of a generation. Counts are tokens; times are seconds inside the engine."""

    reason: FinishReason
    text: str  # what was still held back
    prompt_tokens: int
    completion_tokens: int  # with the received ones
    prefill_s: float
    decode_s: float


Frame = Tokens | Progress | Finished


@dataclass(frozen=True)
class ModelCard:
    """What a loaded or loadable model is, read from the file's own metadata after its digest was checked."""

    digest: Digest
    name: str  # the file's own name, untrusted text
    architecture: str
    quantisation: str  # "Q8_0", "F16", "Q4_K_M"…
    parameters: int
    size_bytes: int
    context_tokens: int  # what the engine will run it with
    trained_context_tokens: int
    dimensions: int = 0  # of an embedding model's vectors; 0: it is one that writes


@dataclass(frozen=True)
class EngineStatus:
    """What the seller needs for a bid or a decline, as of now.

    Attributes:
        slots: requests it runs at once.
        prompt_tokens_per_s, tokens_per_s: measured, of one more stream beside those that run; 0 when nothing was
            measured yet.
        sandbox: "S3" Landlock + seccomp + rlimits, "S2" without Landlock or seccomp, "S1" rlimits alone.
        wait_s: until a slot is free for one more request, as far as can be told.
        load_s: until the model is in memory; 0 when it is.
        queue_free: how many more may wait.
    """

    slots: int
    slots_free: int
    queued: int
    prompt_tokens_per_s: float
    tokens_per_s: float
    sandbox: str
    wait_s: float = 0.0
    load_s: float = 0.0
    queue_free: int = 0


class EngineError(AgoraError):
    """The engine could not do it; the message is one line for the user."""


class BadRequest(EngineError):
    """A field of the request is outside of what an engine takes; the message names it."""


def no_room(wanted: int, room: int, prompt_tokens: int) -> str:
    """Say that a cap which a client named does not fit, for a `BadRequest`."""
    return (
        f"max_tokens is {wanted}, expected {room} at most: the prompt has {prompt_tokens} tokens of the "
        f"context's {room + prompt_tokens}"
    )


class UnknownModel(EngineError):
    """No such model on this engine."""


class PromptTooLong(EngineError):
    """The rendered prompt does not fit the context; the message says both numbers."""


class BadTemplate(EngineError):
    """The model's chat template failed, ran too long or used too much memory in its sandbox."""


FAULTS_OF_CLIENT = (BadRequest, PromptTooLong, BadTemplate)  # no other engine would do better


class ModelLoading(EngineError):
    """The model is being read into memory, which takes a while; `done` of 1 so far, ready in about `retry_after_s`."""

    def __init__(self, message: str, *, done: float, retry_after_s: float) -> None:
        super().__init__(message)
        self.done = done
        self.retry_after_s = retry_after_s


class EngineBusy(EngineError):
    """Every slot is taken and the queue is full; another engine may be free."""


class EngineDied(EngineError):
    """The child process died under this request (a corrupt model, out of memory, a kill); it is being restarted."""


class ModelSetAside(UnknownModel):
    """The model killed its process again and again, so it is not loaded any more; the message says what was found."""


class UnknownAdapter(EngineError):
    """No such adapter is loaded for this model."""


class AdapterSetAside(UnknownAdapter):
    """The adapter killed its process again and again, so it is not used any more; the message says what was found."""


class AdapterRefused(EngineError):
    """The adapter breaks a rule of the strict checker, or fits another base."""


class Engine(Protocol):
    """Runs generations. Any number may be under way; those over `slots` wait in a bounded queue."""

    @property
    def models(self) -> Mapping[Digest, ModelCard]:
        """The models that can be asked for now."""

    @property
    def adapters(self) -> Mapping[Digest, Digest]:
        """The adapters that can be asked for now, and the model that each is for."""

    async def load_adapter(self, base: Digest, adapter: Digest, path: Path) -> None:
        """Make an adapter ready to serve, beside whatever is running. It is ready when this returns.

        Generations go on with what they began with, also if that is another adapter or none. Loading an adapter that
        is loaded already changes nothing. The engine keeps it through deaths of whatever it runs in.

        Args:
            base: the model that it is for.
            adapter: the SHA-256 of the file.
            path: the GGUF file; it stays there for as long as the adapter is loaded.

        Raises:
            UnknownModel: the base is not on this engine.
            AdapterSetAside: it has killed its process before; `unload_adapter` forgets that.
            AdapterRefused: it breaks a rule of the strict checker, or is none for this base: it will never do.
            EngineError: not now; the file cannot be read or does not have that digest, or the engine is not running.
        """

    def unload_adapter(self, adapter: Digest) -> None:
        """Take no more requests for it, and give its memory back once the accepted ones have ended.

        An adapter that is not loaded is no error.
        """

    def status(self, model: Digest) -> EngineStatus:
        """Return what a bid for this model may promise now.

        Raises:
            UnknownModel: it is not on this engine.
        """

    async def count_tokens(self, model: Digest, messages: tuple[ChatMessage, ...]) -> int:
        """Return the number of prompt tokens of the rendered chat.

        Raises:
            EngineError: as for `generate`.
        """

    def generate(self, request: Generation) -> AsyncGenerator[Frame, None]:
        """Yield `Progress` (at least every 0.5 s without a token) and `Tokens`, then one `Finished`.

        Closing the generator (`aclose`, or leaving the scope that iterates it) cancels the request; its slot is free
        within 100 ms.

        Raises:
            UnknownAdapter: the request's adapter is not loaded for its model; nothing was done.
            EngineError: one of its kinds, before or between frames.
        """
