"""What the daemon and its trainer child say to each other, in both directions, on one page.

Length-prefixed MessagePack arrays of tagged structs over one socket pair, as with the llama.cpp child. The child is
untrusted, since it computes on bytes of strangers: what it says is bounded in size and decoded strictly into these types.
"""

from typing import Annotated

import msgspec

from protocol.limits import BLOB_BYTES_MAX, KIB, STEPS_PER_ROUND_MAX
from protocol.messages import Recipe
from runtime.llama.wire import HEADER_BYTES, BadFrame, FrameReader
from runtime.trainer import NoisePlan

FRAME_BYTES_MAX = 2 * BLOB_BYTES_MAX + 64 * KIB  # a state and its change, and little beside

CallId = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Steps = Annotated[int, msgspec.Meta(ge=0, le=STEPS_PER_ROUND_MAX)]
Seconds = Annotated[float, msgspec.Meta(ge=0, lt=1e9)]
Line = Annotated[str, msgspec.Meta(max_length=512)]  # one line for a human, shown escaped
Payload = Annotated[bytes, msgspec.Meta(max_length=BLOB_BYTES_MAX)]
DigestBytes = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """Base of all messages; the class name is the tag."""


# --- daemon to child ---------------------------------------------------------------------------------------------


class Fit(Message, frozen=True):
    """`runtime.trainer.Fit`, with paths for what it names; the answer is `Fitted`, `Failed` or `Cancelled`.

    Attributes:
        base: the GGUF; the daemon has checked its digest.
        data: the private data set's records.
        replay: the public ones, or None.
        since: the state that `payload` changes, or None for the seed's.
    """

    call: CallId
    base: str
    data: str
    replay: str | None
    since: str | None
    recipe: Recipe
    round: int
    payload: bytes
    state: bytes
    noise: NoisePlan | None
    seed: int


class Cancel(Message, frozen=True):
    """Stop a fit within a step; the answer is `Cancelled`, unless its end was already said."""

    call: CallId


class Begin(Message, frozen=True):
    """Make the first step: the answer to `Prepared`."""

    call: CallId


ToChild = Fit | Begin | Cancel

# --- child to daemon ---------------------------------------------------------------------------------------------


class Ready(Message, frozen=True):
    """The first message: everything is imported and the sandbox is closed; nothing of a stranger has been opened."""

    sandbox: Annotated[str, msgspec.Meta(pattern="^S[123]$")]
    device: Line


class Beat(Message, frozen=True):
    """The child is alive and works on this call: steps done, of all."""

    call: CallId
    step: Steps
    steps: Steps


class Prepared(Message, frozen=True):
    """All that the fit names was read and fits; the child waits for `Begin`, and beats."""

    call: CallId


class Fitted(Message, frozen=True):
    """A fit has ended well; see `runtime.trainer.Fitted`."""

    call: CallId
    payload: Payload
    state: Payload
    steps: Steps
    samples: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
    seconds: Seconds


class Cancelled(Message, frozen=True):
    """The call is gone, and nothing of it was kept."""

    call: CallId


class Failed(Message, frozen=True):
    """A call ended with an error; the child goes on. `payload`: the coordinator's bytes are to blame."""

    call: CallId
    kind: Annotated[str, msgspec.Meta(pattern="^(payload|trainer)$")]
    text: Line


FromChild = Ready | Beat | Prepared | Fitted | Cancelled | Failed


_encoder = msgspec.msgpack.Encoder()
_to_child: msgspec.msgpack.Decoder[ToChild] = msgspec.msgpack.Decoder(ToChild)
_from_child: msgspec.msgpack.Decoder[FromChild] = msgspec.msgpack.Decoder(FromChild)


def encode(message: ToChild | FromChild) -> bytes:
    """Return the frame of a message."""
    body = _encoder.encode(message)
    if len(body) > FRAME_BYTES_MAX:
        raise BadFrame(f"a frame of {len(body)} bytes, expected at most {FRAME_BYTES_MAX}")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def frame_reader() -> FrameReader:
    """Return what cuts a stream of these frames."""
    return FrameReader(FRAME_BYTES_MAX)


def decode_to_child(body: bytes) -> ToChild:
    """Return the daemon's message of a frame."""
    return _to_child.decode(body)


def decode_from_child(body: bytes) -> FromChild:
    """Return the child's message of a frame.

    Raises:
        BadFrame: not the expected types, lengths or ranges.
    """
    try:
        return _from_child.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadFrame(f"a frame that cannot be read: {error}") from None
