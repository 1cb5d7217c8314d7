"""What a generation may ask for. Checked in the daemon, before a queue, a child or llama.cpp's assertions see it."""

from itertools import chain

from protocol.limits import PROMPT_BYTES_MAX, RECEIVED_TOKENS_MAX
from runtime.engine import BadRequest, Generation

MESSAGES_MAX = 4_096
ROLE_CHARS_MAX = 32
STOP_MAX = 16
STOP_CHARS_MAX = 256  # this much of the text may be held back
MILLION = 1_000_000
TOKEN_MAX = 2**31 - 1

# Field of `Sampling`: smallest and largest. A repeat penalty of 0 divides by it, and llama.cpp asserts.
_SAMPLING = {
    "temperature_ppm": (0, 100 * MILLION),
    "top_p_ppm": (0, MILLION),
    "top_k": (0, TOKEN_MAX),
    "min_p_ppm": (0, MILLION),
    "repeat_penalty_ppm": (1, 100 * MILLION),
    "frequency_penalty_ppm": (-100 * MILLION, 100 * MILLION),
    "presence_penalty_ppm": (-100 * MILLION, 100 * MILLION),
    "seed": (-(2**63), 2**63 - 1),
}


def check(request: Generation) -> None:
    """Return if an engine can take the request.

    Raises:
        BadRequest: it cannot; the message names the field, what it is and what was expected.
    """
    if not 1 <= len(request.messages) <= MESSAGES_MAX:
        raise BadRequest(f"messages has {len(request.messages)} items, expected 1 to {MESSAGES_MAX}")
    if any(len(message.role) > ROLE_CHARS_MAX for message in request.messages):
        raise BadRequest(f"a role of more than {ROLE_CHARS_MAX} characters")
    texts = chain.from_iterable((message.role, message.content) for message in request.messages)
    size = sum(_size(text) for text in texts)
    if size > PROMPT_BYTES_MAX:
        raise BadRequest(f"messages of {size} bytes, expected at most {PROMPT_BYTES_MAX}")
    if len(request.stop) > STOP_MAX or any(len(text) > STOP_CHARS_MAX for text in request.stop):
        raise BadRequest(f"stop is over {STOP_MAX} texts of {STOP_CHARS_MAX} characters")
    for text in request.stop:
        _size(text)
    if not 0 <= request.tokens_max <= TOKEN_MAX:
        raise BadRequest(f"tokens_max is {request.tokens_max}, expected 0 to {TOKEN_MAX}")
    if len(request.received) > RECEIVED_TOKENS_MAX:
        raise BadRequest(f"{len(request.received)} received tokens, expected at most {RECEIVED_TOKENS_MAX}")
    if not all(0 <= token <= TOKEN_MAX for token in request.received):
        raise BadRequest("a received token is no token id")
    for name, (least, most) in _SAMPLING.items():
        value = getattr(request.sampling, name)
        if not least <= value <= most:
            raise BadRequest(f"{name} is {value}, expected {least} to {most}")


def _size(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:  # JSON can write half of a surrogate pair
        raise BadRequest("a text that is not Unicode") from None
