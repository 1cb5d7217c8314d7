"""What a generation may ask for. Checked in the daemon, before a queue, a child or llama.cpp's assertions see it."""

from itertools import chain

from protocol.limits import (
    CONSTRAINT_CHARS_MAX,
    INPUTS_MAX,
    LOGIT_BIAS_MILLI_MAX,
    LOGIT_BIASES_MAX,
    PROMPT_BYTES_MAX,
    RECEIVED_TOKENS_MAX,
    TOKENS_PER_REQUEST_MAX,
    TOP_LOGPROBS_MAX,
)
from runtime.engine import BadRequest, Generation, ModelCard, Sampling

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
    "top_logprobs": (0, TOP_LOGPROBS_MAX),
}


READINGS = frozenset({"embedding", "check"})  # answered by words
# What of them each task may have.
_PARTS = {
    "chat": "messages",
    "completion": "inputs",
    "embedding": "inputs",
    "check": "messages or inputs",
}


def check(request: Generation, card: ModelCard) -> None:
    """Return if an engine can take the request.

    Args:
        request: as anybody may have sent it.
        card: of the model that it names.

    Raises:
        BadRequest: it cannot; the message names the field, what it is and what was expected.
    """
    _check_task(request, card)
    _check_parts(request)
    if len(request.stop) > STOP_MAX or any(len(text) > STOP_CHARS_MAX for text in request.stop):
        raise BadRequest(f"stop is over {STOP_MAX} texts of {STOP_CHARS_MAX} characters")
    for text in request.stop:
        _size(text)
    if not 0 <= request.tokens_max <= TOKEN_MAX:
        raise BadRequest(f"tokens_max is {request.tokens_max}, expected 0 to {TOKEN_MAX}")
    if not 0 <= request.tokens_wanted <= TOKEN_MAX:
        raise BadRequest(f"tokens_wanted is {request.tokens_wanted}, expected 0 to {TOKEN_MAX}")
    for name, tokens in (("received", request.received), ("claimed", request.claimed)):
        if len(tokens) > RECEIVED_TOKENS_MAX:
            raise BadRequest(f"{len(tokens)} {name} tokens, expected at most {RECEIVED_TOKENS_MAX}")
        if not all(0 <= token <= TOKEN_MAX for token in tokens):
            raise BadRequest(f"a {name} token is no token id")
    _check_sampling(request.sampling)
    if request.task in READINGS and request.sampling != Sampling():
        raise BadRequest(f"sampling is given, expected none for task {request.task!r}: nothing is drawn")


def _check_task(request: Generation, card: ModelCard) -> None:
    task = request.task
    if task not in _PARTS:
        raise BadRequest(f"task is {task!r:.40}, expected one of {', '.join(_PARTS)}")
    if task == "embedding" and not card.dimensions:
        raise BadRequest(
            f"task is 'embedding', expected 'chat' or 'completion': model {card.name!r} writes, it does not embed"
        )
    if task != "embedding" and card.dimensions:
        raise BadRequest(
            f"task is {task!r}, expected 'embedding': model {card.name!r} embeds, in {card.dimensions} dimensions"
        )
    words = len(request.inputs) * card.dimensions
    if words > TOKENS_PER_REQUEST_MAX:
        most = TOKENS_PER_REQUEST_MAX // card.dimensions
        raise BadRequest(
            f"inputs has {len(request.inputs)} items, expected at most {most} with {card.dimensions} dimensions"
        )
    if task == "embedding" and request.tokens_max != words:
        raise BadRequest(f"tokens_max is {request.tokens_max}, expected {words}, the words of all vectors")


def _check_parts(request: Generation) -> None:
    messages, inputs = request.messages, request.inputs
    if (
        bool(messages) == bool(inputs)
        or (messages and request.task in ("completion", "embedding"))
        or (inputs and request.task == "chat")
    ):
        raise BadRequest(
            f"messages has {len(messages)} items and inputs {len(inputs)}, expected only {_PARTS[request.task]} "
            f"for task {request.task!r}"
        )
    if len(messages) > MESSAGES_MAX:
        raise BadRequest(f"messages has {len(messages)} items, expected 1 to {MESSAGES_MAX}")
    inputs_max = INPUTS_MAX if request.task == "embedding" else 1
    if len(inputs) > inputs_max:
        raise BadRequest(
            f"inputs has {len(inputs)} items, expected 1 to {inputs_max} for task {request.task!r}"
        )
    if any(len(message.role) > ROLE_CHARS_MAX for message in messages):
        raise BadRequest(f"a role of more than {ROLE_CHARS_MAX} characters")
    texts = chain.from_iterable((message.role, message.content) for message in messages)
    size = sum(_size(text) for text in chain(texts, inputs))
    if size > PROMPT_BYTES_MAX:
        name = "messages" if messages else "inputs"
        raise BadRequest(f"{name} of {size} bytes, expected at most {PROMPT_BYTES_MAX}")
    for place, text in enumerate(inputs):
        if not text:
            raise BadRequest(f"item {place} of inputs is empty, expected a text")
    if bool(request.claimed) != (request.task == "check"):
        raise BadRequest(
            f"claimed has {len(request.claimed)} tokens, expected "
            f"{'one at least' if request.task == 'check' else 'none'} for task {request.task!r}"
        )


def _check_sampling(sampling: Sampling) -> None:
    for name, (least, most) in _SAMPLING.items():
        value = getattr(sampling, name)
        if not least <= value <= most:
            raise BadRequest(f"{name} is {value}, expected {least} to {most}")
    if len(sampling.logit_bias) > LOGIT_BIASES_MAX:
        raise BadRequest(
            f"logit_bias has {len(sampling.logit_bias)} items, expected at most {LOGIT_BIASES_MAX}"
        )
    for token, milli in sampling.logit_bias:
        if not 0 <= token <= TOKEN_MAX or abs(milli) > LOGIT_BIAS_MILLI_MAX:
            raise BadRequest(
                f"logit_bias has {milli} for token {token}, expected a token id and at most "
                f"{LOGIT_BIAS_MILLI_MAX} up or down"
            )
    if sampling.schema and sampling.grammar:
        raise BadRequest("schema and grammar are both given, expected one of them at most")
    for name, text in (("schema", sampling.schema), ("grammar", sampling.grammar)):
        if len(text) > CONSTRAINT_CHARS_MAX:
            raise BadRequest(f"{name} has {len(text)} characters, expected at most {CONSTRAINT_CHARS_MAX}")
        _size(text)
    if sampling.top_logprobs and not sampling.logprobs:
        raise BadRequest(
            f"top_logprobs is {sampling.top_logprobs}, expected 0 where logprobs are not asked for"
        )


def _size(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:  # JSON can write half of a surrogate pair
        raise BadRequest("a text that is not Unicode") from None
