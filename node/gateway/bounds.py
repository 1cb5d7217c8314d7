"""What a client of the gateway may use up, with units and reasons. Tests shorten the times; nothing else changes them."""

from dataclasses import dataclass

from protocol import limits

MESSAGES_MAX = 1_024  # turns of a chat: what one `Work` message carries
PROMPT_BYTES_MAX = limits.PROMPT_BYTES_MAX - 16 * limits.KIB  # leaves room for the envelope and the terms
TURN_BYTES = 32  # what a turn costs on the wire beside its text
STOPS_MAX = 8
STOP_CHARS_MAX = 256
MODEL_CHARS_MAX = 256
COMPLETION_TOKENS_DEFAULT = 16  # the cap of `/v1/completions` when a client names none, as OpenAI has it
COMPLETION_LOGPROBS_MAX = 5  # likeliest tokens that `/v1/completions` tells of, as OpenAI has it
EMBEDDING_INPUTS_MAX = (
    2_048  # texts of one `/v1/embeddings`, as OpenAI has it; more jobs than one where need be
)
SESSION_CHARS_MAX = 256
SESSIONS_MAX = 4_096  # prefixes remembered, 64 bytes each: a conversation longer ago is asked to start again
JOBS_LISTED_MAX = 1_000


@dataclass(frozen=True)
class Bounds:
    """Bounds of one listener.

    Attributes:
        body_s: a whole body has to arrive in this time, so that slow writers hold no slot.
        linger_s: how long a refused body is still read and thrown away, so that the refusal is not lost to a reset.
        keep_alive_s: a waiting stream shows a sign of life this often: proxies and clients give up after a minute or so.
        idle_s: a connection without a request, or with half of its headers, is closed after this.
        stall_s: a client that takes nothing off its socket for this long is cut off.
        requests_per_s: of one key; bursts may be `burst` requests.
        chats: at once; each holds a job, a generator and a socket.
        readers: of the event stream at once; each holds a queue of events.
    """

    body_bytes: int = limits.MIB
    body_s: float = 10.0
    linger_s: float = 2.0
    keep_alive_s: float = 5.0
    idle_s: float = 15.0
    stall_s: float = 20.0
    requests_per_s: float = 50.0
    burst: float = 200.0
    chats: int = 64
    readers: int = 16
    connections: int = 256
