"""What every request for text has in common: how it is written, when it ends, and how the client wants it told.

OpenAI's clients send far more than is used here. What would change the answer and is not supported (tools, images, several
choices) is refused unless it is empty; what would not (`user`, `store`, `metadata` …) is ignored. Numbers become integers,
since signed messages carry no floats. No temperature means greedy: such an answer survives a change of sellers unchanged,
and can be checked.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import msgspec

from node.chat import ChatRequest
from node.gateway import bounds
from node.gateway.errors import Fields, bad_request
from node.gateway.openai.constraint import ResponseFormat, constraint
from protocol import limits
from runtime.engine import Sampling

_MILLION = 1_000_000
_TOKEN_ID_MAX = 2**31 - 1


class StreamOptions(msgspec.Struct):
    """How to stream."""

    include_usage: bool | None = None


class WritingBody(msgspec.Struct, kw_only=True):
    """The fields that every body has which asks for text; those that no body names are ignored."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None
    grammar: str | None = None  # GBNF, as llama.cpp's own server takes it


@dataclass(frozen=True)
class Call:
    """A checked call: what to ask the node for, and how the client wants it told.

    Attributes:
        fields: to name when an engine finds fault with one.
    """

    request: ChatRequest
    is_stream: bool
    wants_usage: bool
    fields: Fields


@dataclass(frozen=True)
class Range:
    """What a number may be, and what it is when it is left out."""

    least: float
    most: float
    default: float


RANGES = {
    "max_tokens": Range(1, limits.TOKENS_PER_REQUEST_MAX, limits.TOKENS_PER_REQUEST_DEFAULT),
    "max_completion_tokens": Range(1, limits.TOKENS_PER_REQUEST_MAX, limits.TOKENS_PER_REQUEST_DEFAULT),
    "temperature": Range(0, 2, 0),
    "top_p": Range(0, 1, 1),
    "top_k": Range(0, 1_000_000, 0),
    "min_p": Range(0, 1, 0),
    "repeat_penalty": Range(0.01, 2, 1),  # logits are divided by it
    "frequency_penalty": Range(-2, 2, 0),
    "presence_penalty": Range(-2, 2, 0),
    "seed": Range(0, 2**32 - 1, 0),
    "n": Range(1, 1, 1),
    "best_of": Range(1, 1, 1),
    "logprobs": Range(0, bounds.COMPLETION_LOGPROBS_MAX, 0),
    "top_logprobs": Range(0, limits.TOP_LOGPROBS_MAX, 0),
}


def sampling_of(body: WritingBody, rng: random.Random, *, logprobs: bool, top_logprobs: int) -> Sampling:
    """Return how the tokens are to be drawn; `rng` draws the seed where one is wanted and none is given.

    Raises:
        HttpError: 400, naming the field, what was found, and what is allowed.
    """
    number(body, "n")
    temperature_ppm = _ppm(body, "temperature")
    drawn = rng.getrandbits(32) if body.seed is None and temperature_ppm else 0
    schema, grammar = constraint(body.response_format, body.grammar)
    return Sampling(
        temperature_ppm=temperature_ppm,
        top_p_ppm=_ppm(body, "top_p"),
        top_k=int(number(body, "top_k")),
        min_p_ppm=_ppm(body, "min_p"),
        repeat_penalty_ppm=_ppm(body, "repeat_penalty"),
        frequency_penalty_ppm=_ppm(body, "frequency_penalty"),
        presence_penalty_ppm=_ppm(body, "presence_penalty"),
        seed=int(number(body, "seed")) or drawn,
        logit_bias=_biases(body.logit_bias or {}),
        schema=schema,
        grammar=grammar,
        logprobs=logprobs,
        top_logprobs=top_logprobs,
    )


def call_of(body: WritingBody, request: ChatRequest, *, cap_field: str, prompt_field: str) -> Call:
    """Return the call that a body and the request made of it come to.

    Args:
        body: as it was sent.
        request: what it asks for.
        cap_field: by which the client bounds the answer; empty: it leaves that to us, and the context may do so.
        prompt_field: what is read.
    """
    wants_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    constraint_field = "grammar" if body.grammar else "response_format" if body.response_format else ""
    fields = Fields(prompt_field, constraint_field, cap_field)
    if cap_field:
        request = replace(request, tokens_wanted=request.tokens_max)
    return Call(request, bool(body.stream), wants_usage, fields)


def number(body: msgspec.Struct, name: str) -> float:
    """Return a number of the body, or what it is when it is left out.

    Raises:
        HttpError: 400: out of its range.
    """
    allowed = RANGES[name]
    found = getattr(body, name)
    if found is None:
        return allowed.default
    if not allowed.least <= found <= allowed.most:
        expected = (
            f"{allowed.least} to {allowed.most}" if allowed.least < allowed.most else f"{allowed.least}"
        )
        raise bad_request(f"{name} is {_shown(found)}, expected {expected}", param=name)
    return cast("float", found)


def stops_of(body: WritingBody) -> tuple[str, ...]:
    """Return the texts at which the answer is to end.

    Raises:
        HttpError: 400: too many, too long or empty.
    """
    stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if len(stops) > bounds.STOPS_MAX:
        raise bad_request(f"stop has {len(stops)} texts, expected {bounds.STOPS_MAX} at most", param="stop")
    for text in stops:
        if not 1 <= len(text) <= bounds.STOP_CHARS_MAX:
            raise bad_request(
                f"stop has a text of {len(text)} characters, expected 1 to {bounds.STOP_CHARS_MAX}",
                param="stop",
            )
    return stops


def model_of(name: str) -> str:
    """Return the name of a model.

    Raises:
        HttpError: 400: empty, or longer than any name.
    """
    if not 1 <= len(name) <= bounds.MODEL_CHARS_MAX:
        raise bad_request(
            f"model has {len(name)} characters, expected 1 to {bounds.MODEL_CHARS_MAX}", param="model"
        )
    return name


def refuse_set(body: msgspec.Struct, names: Iterable[str]) -> None:
    """Refuse fields that would change the answer and are not supported, unless they are empty.

    Raises:
        HttpError: 400.
    """
    for name in names:
        if getattr(body, name) not in (None, False, 0, "", [], {}, "none", "auto"):
            raise bad_request(
                f"{name} is not supported, expected none", param=name, code="unsupported_parameter"
            )


def _biases(found: dict[str, float]) -> tuple[tuple[int, int], ...]:
    if len(found) > limits.LOGIT_BIASES_MAX:
        raise bad_request(
            f"logit_bias has {len(found)} tokens, expected {limits.LOGIT_BIASES_MAX} at most",
            param="logit_bias",
        )
    most = limits.LOGIT_BIAS_MILLI_MAX // 1_000
    biases: dict[int, int] = {}
    for key, bias in found.items():
        token = int(key) if key.isascii() and key.isdigit() and len(key) <= 10 else -1
        if not 0 <= token <= _TOKEN_ID_MAX or token in biases:
            raise bad_request(
                f"logit_bias names token {key[:32]!r}, expected ids 0 to {_TOKEN_ID_MAX}, each once",
                param="logit_bias",
            )
        if not -most <= bias <= most:
            raise bad_request(
                f"logit_bias of token {token} is {_shown(bias)}, expected -{most} to {most}",
                param="logit_bias",
            )
        biases[token] = round(bias * 1_000)
    return tuple(sorted(biases.items()))


def _ppm(body: WritingBody, name: str) -> int:
    return round(number(body, name) * _MILLION)


def _shown(found: Any) -> str:
    text = str(found)  # an integer in JSON may have thousands of digits
    return text if len(text) <= 32 else f"{text[:32]}…"
