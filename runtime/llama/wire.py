"""What the daemon and its llama.cpp child say to each other, in both directions, on one page.

Both speak length-prefixed MessagePack arrays of tagged structs over one socket pair. The child is untrusted: it runs
a stranger's model file, so whatever it says is bounded in size, decoded strictly into these types, and checked again
by `backend.py` against what was asked of it. The child trusts the daemon.

One frame holds a list of messages, since the child writes once per step for all of its sequences: a write for each
token costs 9 % on a 5 M model.
"""

from collections.abc import Iterator
from typing import Annotated

import msgspec

from protocol.limits import CONTRAST_MILLI_MAX, MIB, TOKEN_BYTES_MAX, TOP_LOGPROBS_MAX
from protocol.messages import Task

FRAME_BYTES_MAX = (
    4 * MIB
)  # a prompt (256 KiB, escaped), 32,768 received ids; the child's frames are far smaller
HEADER_BYTES = 4
GIVEN_CHARS_MAX = 8_192

Token = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Contrast = Annotated[int, msgspec.Meta(ge=-CONTRAST_MILLI_MAX, le=CONTRAST_MILLI_MAX)]
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Seconds = Annotated[float, msgspec.Meta(ge=0, lt=1e9)]
PerSecond = Annotated[float, msgspec.Meta(ge=0, lt=1e9)]
CallId = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Line = Annotated[str, msgspec.Meta(max_length=512)]  # one line for a human, shown escaped
DigestBytes = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Turns = tuple[tuple[str, str], ...]  # (role, content)


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """Base of all messages; the class name is the tag."""


# --- daemon to child ---------------------------------------------------------------------------------------------


class Load(Message, frozen=True):
    """Load a model file whose digest the daemon has checked; the answer is `Loaded` or `Failed`."""

    call: CallId
    model: DigestBytes
    path: str
    context_tokens: Count
    slots: Count
    threads: Count
    memory_bytes_max: Annotated[
        int, msgspec.Meta(ge=0, lt=2**53)
    ]  # address space, with all that is loaded by then
    tokens_per_s: PerSecond  # as measured before, to plan with; 0 measures it now, which takes about a second
    for_exams: bool = False  # it takes `Grade` instead of `Generate`; slots and speed mean nothing then
    dimensions: Count = 0  # of an embedding model's vectors; 0: it is one that writes
    cells: Count = 0  # tokens that the caches of all slots hold together; 0: a whole context each


class Unload(Message, frozen=True):
    """Give the model's memory back. Its sequences have ended before."""

    model: DigestBytes


class LoadAdapter(Message, frozen=True):
    """Check an adapter's file strictly, and load it if its model is loaded; the answer is `AdapterLoaded` or `Failed`.

    A model that was loaded for exams also has the adapter answer canary prompts.
    """

    call: CallId
    model: DigestBytes
    adapter: DigestBytes
    path: str
    base_path: str
    memory_bytes_max: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]  # as in `Load`


class UnloadAdapter(Message, frozen=True):
    """Give the adapter's memory back. The sequences that it was used for have ended before."""

    model: DigestBytes
    adapter: DigestBytes


class Inspect(Message, frozen=True):
    """Read a file's header in pure Python, before llama.cpp sees it; the answer is `Header` or `Failed`."""

    call: CallId
    path: str


class SamplingParameters(msgspec.Struct, frozen=True, array_like=True):
    """`runtime.engine.Sampling`, field by field."""

    temperature_ppm: int
    top_p_ppm: int
    top_k: int
    min_p_ppm: int
    repeat_penalty_ppm: int
    frequency_penalty_ppm: int
    presence_penalty_ppm: int
    seed: int
    logit_bias: tuple[tuple[int, int], ...] = ()
    schema: str = ""
    grammar: str = ""
    logprobs: bool = False
    top_logprobs: int = 0


class Generate(Message, frozen=True):
    """Run one request on a loaded model: `Beat`s and `NewTokens`, then `Done`, `Failed` or `Cancelled`.

    See `runtime.engine.Generation`, of which it is the part that the child needs.
    """

    call: CallId
    model: DigestBytes
    turns: Turns
    tokens_max: Count
    sampling: SamplingParameters
    stop: tuple[str, ...]
    received: tuple[Token, ...]
    adapter: DigestBytes | None = None
    task: Task = "chat"
    inputs: tuple[str, ...] = ()
    claimed: tuple[Token, ...] = ()
    tokens_wanted: Count = 0


class CountTokens(Message, frozen=True):
    """Render and tokenise a chat; the answer is `Counted` or `Failed`."""

    call: CallId
    model: DigestBytes
    turns: Turns


class Grade(Message, frozen=True):
    """Hold an exam on a model that was loaded for it; the answer is `Graded` or `Failed`."""

    call: CallId
    model: DigestBytes
    adapter: DigestBytes | None
    questions: tuple[tuple[str, str], ...]  # (what a user says, the expected answer)


class Cancel(Message, frozen=True):
    """Stop a `Generate`, even inside a long decode; the answer is `Cancelled`, unless its end was already said."""

    call: CallId


class SetThreads(Message, frozen=True):
    """Use this many threads from the next step on (28 µs): a busy machine is faster with fewer."""

    threads: Count


ToChild = (
    Load
    | Unload
    | LoadAdapter
    | UnloadAdapter
    | Inspect
    | Generate
    | CountTokens
    | Grade
    | Cancel
    | SetThreads
)

# --- child to daemon ---------------------------------------------------------------------------------------------


class Ready(Message, frozen=True):
    """The first message: the sandbox is closed, no model has been opened."""

    sandbox: Annotated[str, msgspec.Meta(pattern="^S[123]$")]
    gpu: Line  # "" without one


class Header(Message, frozen=True):
    """What a GGUF header says, read with bounds; the texts come from the file's author."""

    call: CallId
    name: Annotated[str, msgspec.Meta(max_length=128)]
    architecture: Annotated[str, msgspec.Meta(max_length=64)]
    quantisation: Annotated[str, msgspec.Meta(max_length=16)]
    parameters: Annotated[int, msgspec.Meta(ge=1, lt=2**53)]
    trained_context_tokens: Count
    kv_bytes_per_token: Count
    dimensions: Count


class Loaded(Message, frozen=True):
    """A model is ready. Speeds are 0 when they were not measured."""

    call: CallId
    context_tokens: Count
    prompt_tokens_per_s: PerSecond
    tokens_per_s: PerSecond


class AdapterLoaded(Message, frozen=True):
    """The adapter's file is in order; if its model is loaded, so is the adapter."""

    call: CallId


class Beat(Message, frozen=True):
    """The child is alive and works on this call; sent when nothing else was for a while."""

    call: CallId
    phase: Annotated[str, msgspec.Meta(pattern="^(queued|loading|template|prefill|decode)$")]
    done: Count
    total: Count


TokenBytes = Annotated[bytes, msgspec.Meta(max_length=TOKEN_BYTES_MAX)]


class Logprob(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`runtime.engine.TokenLogprob`, field by field."""

    text: TokenBytes
    micronats: Count
    top: Annotated[tuple[tuple[TokenBytes, Count], ...], msgspec.Meta(max_length=TOP_LOGPROBS_MAX)] = ()


class NewTokens(Message, frozen=True):
    """New completion tokens of one sequence and the text they made certain; or words, of a task that only reads."""

    call: CallId
    ids: Annotated[tuple[Token, ...], msgspec.Meta(min_length=1, max_length=4_096)]
    text: Annotated[str, msgspec.Meta(max_length=65_536)]
    logprobs: Annotated[tuple[Logprob, ...], msgspec.Meta(max_length=4_096)] = ()  # one for each id, or none
    contrasts: Annotated[
        tuple[Contrast, ...], msgspec.Meta(max_length=4_096)
    ] = ()  # as well; see `contrast.py`


class Done(Message, frozen=True):
    """A generation ended by itself."""

    call: CallId
    reason: Annotated[str, msgspec.Meta(pattern="^(stop|length)$")]
    text: Annotated[str, msgspec.Meta(max_length=65_536)]
    prompt_tokens: Count
    completion_tokens: Count
    prefill_tokens: Count  # prompt tokens that were really computed; the others came from the cache
    prefill_s: Seconds
    decode_s: Seconds


class Cancelled(Message, frozen=True):
    """The call is gone and its slot is free."""

    call: CallId


class Deferred(Message, frozen=True):
    """The cache has no room for the call until another one of its model ends: it is to be sent again then."""

    call: CallId


class Counted(Message, frozen=True):
    """Prompt tokens of a rendered chat."""

    call: CallId
    tokens: Count


class Mark(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How one question was answered.

    Attributes:
        is_right: the greedy answer is the expected one, to the letter.
        loss: sum of the negative log-likelihoods of the expected answer's tokens and its end, in nats.
        tokens: how many those are.
        given: the greedy answer if it is wrong; what is too long for a frame of many is cut.
    """

    is_right: bool
    loss: Annotated[float, msgspec.Meta(ge=0, lt=1e12)]
    tokens: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    given: Annotated[str, msgspec.Meta(max_length=GIVEN_CHARS_MAX)]


class Graded(Message, frozen=True):
    """The marks of all questions, in their order."""

    call: CallId
    marks: Annotated[tuple[Mark, ...], msgspec.Meta(max_length=4_096)]


class Failed(Message, frozen=True):
    """A call ended with an error; the child goes on."""

    call: CallId
    kind: Annotated[str, msgspec.Meta(pattern="^(too_long|template|request|model|adapter|engine)$")]
    text: Line


FromChild = (
    Ready
    | Header
    | Loaded
    | AdapterLoaded
    | Beat
    | NewTokens
    | Done
    | Cancelled
    | Deferred
    | Counted
    | Graded
    | Failed
)


class BadFrame(ValueError):
    """The other side sent something that is not a frame of this protocol."""


_encoder = msgspec.msgpack.Encoder()
_to_child = msgspec.msgpack.Decoder(list[ToChild])
_from_child = msgspec.msgpack.Decoder(list[FromChild])


def encode(messages: list[ToChild] | list[FromChild]) -> bytes:
    """Return one frame with these messages."""
    body = _encoder.encode(messages)
    if len(body) > FRAME_BYTES_MAX:
        raise BadFrame(f"a frame of {len(body)} bytes, expected at most {FRAME_BYTES_MAX}")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


class FrameReader:
    """Cuts a byte stream into frames; holds at most one unfinished frame.

    Args:
        bytes_max: of a frame; other children have other bounds.
    """

    def __init__(self, bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the bodies of the frames that `data` completes.

        Raises:
            BadFrame: a length over the limit; nothing after it can be read.
        """
        self._buffer += data
        while len(self._buffer) >= HEADER_BYTES:
            length = int.from_bytes(self._buffer[:HEADER_BYTES], "big")
            if length > self._bytes_max:
                raise BadFrame(f"a frame of {length} bytes, expected at most {self._bytes_max}")
            end = HEADER_BYTES + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[HEADER_BYTES:end])
            del self._buffer[:end]
            yield body


def decode_to_child(body: bytes) -> list[ToChild]:
    """Return the daemon's messages of one frame."""
    return _to_child.decode(body)


def decode_from_child(body: bytes) -> list[FromChild]:
    """Return the child's messages of one frame.

    Raises:
        BadFrame: not the expected types, lengths or ranges.
    """
    try:
        return _from_child.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadFrame(f"a frame that cannot be read: {error}") from None
