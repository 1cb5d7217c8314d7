"""A chat as the gateway and the buyer speak of it: what a client asks, and what comes back, event by event."""

from dataclasses import dataclass, field

from protocol import limits
from protocol.errors import AgoraError
from protocol.identity import PeerId
from protocol.messages import DeclineReason, Privacy, Task
from runtime.engine import ChatMessage, FinishReason, Sampling, TokenLogprob


@dataclass(frozen=True)
class ChatRequest:
    """One request of a client.

    Attributes:
        model: a name as the client gave it: `NAME`, `NAME@digest8` or `auto`; see `models.py` for `+ADAPTER`.
        messages: the chat; empty for another task.
        task: `embedding` is answered by words (see `runtime.engine.Generation`), in `ChatDelta.words`.
        inputs: the raw text to go on from, or the texts to embed.
        claimed: the completion tokens to check.
        tokens_wanted: `tokens_max` where the client named it: it is refused if the prompt leaves no room for it. What nobody
            named gives way to the context.
        session: 32 bytes that say which conversation this is (warm cache, no new auction); None: no session. A task
            that only reads has none.
        not_by: who may not do it, nor any other device of the same owners: a check is another's business.
    """

    model: str
    messages: tuple[ChatMessage, ...]
    tokens_max: int = limits.TOKENS_PER_REQUEST_DEFAULT
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    privacy: Privacy = "owner"
    session: bytes | None = None
    task: Task = "chat"
    inputs: tuple[str, ...] = ()
    claimed: tuple[int, ...] = ()
    tokens_wanted: int = 0
    not_by: frozenset[PeerId] = frozenset()


@dataclass(frozen=True)
class Wanted:
    """What a model's name stands for.

    Attributes:
        base: the model's digest.
        adapters: digests, `NO_HASH` for the bare base: the first that somebody can serve answers.
    """

    base: bytes
    adapters: tuple[bytes, ...]


@dataclass(frozen=True)
class ChatStarted:
    """A seller (or this device) has the job; no token yet. Sent again when another seller takes over."""

    job_id: str  # 32 hex digits
    attempt: int
    seller: PeerId
    model: str  # the name that is served


@dataclass(frozen=True)
class ChatDelta:
    """New text, or words. `tokens` is how many token ids it came from; none for words.

    Attributes:
        logprobs: one for each of them, if they were asked for.
        words: of a task that only reads.
        contrasts: of a check, one for each word.
    """

    text: str
    tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    words: tuple[int, ...] = ()
    contrasts: tuple[int, ...] = ()


@dataclass(frozen=True)
class ChatFinished:
    """The end of a chat that was answered; counts are tokens."""

    job_id: str
    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int


ChatEvent = ChatStarted | ChatDelta | ChatFinished


@dataclass(frozen=True)
class DeclineView:
    """Who said no, and why; `reason` may also be `silent` or `unreachable`, which nobody signs."""

    peer_id: PeerId
    reason: DeclineReason | str
    detail: str


class ChatError(AgoraError):
    """The chat cannot be answered; one line for the user."""


class UnknownModelName(ChatError):
    """No such model; `known` are the names that the mesh has now."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        listed = ", ".join(known) if known else "none; run 'agora model add FILE.gguf'"
        super().__init__(f"no model {name!r} on this mesh; it has: {listed}")
        self.known = known


class Unsold(ChatError):
    """Nobody took the job; every decline with its reason. `retry_after_s` is a guess."""

    def __init__(self, message: str, declines: tuple[DeclineView, ...], retry_after_s: int = 5) -> None:
        super().__init__(message)
        self.declines = declines
        self.retry_after_s = retry_after_s


class StillLoading(ChatError):
    """The model is being read into memory: `done` of 1 so far, ready in about `retry_after_s`."""

    def __init__(self, message: str, *, done: float, retry_after_s: float) -> None:
        super().__init__(message)
        self.done = done
        self.retry_after_s = retry_after_s


class BadPrompt(ChatError):
    """The client's fault: too long for the context, or the template refuses these turns."""
