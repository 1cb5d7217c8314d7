"""What a client may ask of `/v1/chat/completions`: bytes in, a `ChatRequest` out, or a 400 that names the field.

OpenAI's clients send far more than is used here. What would change the answer and is not supported (tools, images,
log-probabilities, several choices) is refused unless it is empty; what would not (`user`, `store`, `metadata` …) is ignored.
Numbers become integer parts per million, since signed messages carry no floats. No temperature means greedy: such an
answer survives a change of sellers unchanged, and can be checked.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast, get_args

import msgspec

from node.chat import ChatRequest
from node.gateway import bounds
from node.gateway.errors import HttpError, bad_request
from protocol import limits
from protocol.messages import Privacy
from runtime.engine import ChatMessage, Sampling

_MILLION = 1_000_000
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class Part(msgspec.Struct):
    """One part of a message's content."""

    type: str
    text: str | None = None


class Turn(msgspec.Struct):
    """One message of the chat."""

    role: str
    content: str | list[Part] | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None


class StreamOptions(msgspec.Struct):
    """How to stream."""

    include_usage: bool | None = None


class ResponseFormat(msgspec.Struct):
    """The shape of the answer."""

    type: str


class ChatBody(msgspec.Struct):
    """The body as OpenAI's clients send it; fields that are not named here are ignored."""

    model: str
    messages: list[Turn]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
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
    response_format: ResponseFormat | None = None
    modalities: list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None


@dataclass(frozen=True)
class ChatCall:
    """A checked call: what to ask the node for, and how the client wants it told."""

    request: ChatRequest
    is_stream: bool
    wants_usage: bool


@dataclass(frozen=True)
class _Range:
    least: float
    most: float
    default: float


_RANGES = {
    "max_tokens": _Range(1, limits.TOKENS_PER_REQUEST_MAX, limits.TOKENS_PER_REQUEST_DEFAULT),
    "max_completion_tokens": _Range(1, limits.TOKENS_PER_REQUEST_MAX, limits.TOKENS_PER_REQUEST_DEFAULT),
    "temperature": _Range(0, 2, 0),
    "top_p": _Range(0, 1, 1),
    "top_k": _Range(0, 1_000_000, 0),
    "min_p": _Range(0, 1, 0),
    "repeat_penalty": _Range(0, 2, 1),
    "frequency_penalty": _Range(-2, 2, 0),
    "presence_penalty": _Range(-2, 2, 0),
    "seed": _Range(0, 2**32 - 1, 0),
    "n": _Range(1, 1, 1),
}
_UNSUPPORTED = (
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "tools",
    "functions",
    "function_call",
    "audio",
    "prediction",
    "web_search_options",
)

_T = TypeVar("_T")


def decode(body: bytes, kind: type[_T]) -> _T:
    """Return the JSON of a request's body as a value of this type.

    Raises:
        HttpError: 400: no JSON, or not of this shape.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at ")
        param = path.strip("`").removeprefix("$").removeprefix(".") or None
        raise bad_request(f"{param or 'body'}: {_lowered(text)}", param=param, code="invalid_type") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"the body is not JSON: {_lowered(str(error))}", code="invalid_json") from None


def parse_chat(body: bytes, headers: Mapping[str, str], rng: random.Random) -> ChatCall:
    """Return what a body and its `X-Agora-Privacy` ask for; the session is left open.

    Args:
        body: what was sent.
        headers: by lower-case name.
        rng: draws the seed where sampling is wanted and none is given.

    Raises:
        HttpError: 400, naming the field, what was found, and what is allowed.
    """
    chat = decode(body, ChatBody)
    _refuse_unsupported(chat)
    if not 1 <= len(chat.model) <= bounds.MODEL_CHARS_MAX:
        raise bad_request(
            f"model has {len(chat.model)} characters, expected 1 to {bounds.MODEL_CHARS_MAX}", param="model"
        )
    temperature_ppm = _ppm(chat, "temperature")
    drawn = rng.getrandbits(32) if chat.seed is None and temperature_ppm else 0
    request = ChatRequest(
        model=chat.model,
        messages=_messages(chat.messages),
        tokens_max=_tokens_max(chat),
        sampling=Sampling(
            temperature_ppm=temperature_ppm,
            top_p_ppm=_ppm(chat, "top_p"),
            top_k=int(_number(chat, "top_k")),
            min_p_ppm=_ppm(chat, "min_p"),
            repeat_penalty_ppm=_ppm(chat, "repeat_penalty"),
            frequency_penalty_ppm=_ppm(chat, "frequency_penalty"),
            presence_penalty_ppm=_ppm(chat, "presence_penalty"),
            seed=int(_number(chat, "seed")) or drawn,
        ),
        stop=_stops(chat.stop),
        privacy=_privacy(headers.get("x-agora-privacy")),
    )
    wants_usage = chat.stream_options is not None and bool(chat.stream_options.include_usage)
    return ChatCall(request, is_stream=bool(chat.stream), wants_usage=wants_usage)


def _refuse_unsupported(chat: ChatBody) -> None:
    for name in _UNSUPPORTED:
        if getattr(chat, name) not in (None, False, 0, [], {}, "none", "auto"):
            raise bad_request(
                f"{name} is not supported, expected none", param=name, code="unsupported_parameter"
            )
    if chat.tool_choice not in (None, "none", "auto"):
        raise bad_request(
            "tool_choice is not supported, expected none", param="tool_choice", code="unsupported_parameter"
        )
    if chat.response_format is not None and chat.response_format.type != "text":
        found = chat.response_format.type[:32]
        raise bad_request(
            f"response_format is {found!r}, expected 'text'",
            param="response_format",
            code="unsupported_parameter",
        )
    if chat.modalities not in (None, [], ["text"]):
        raise bad_request("modalities: expected ['text']", param="modalities", code="unsupported_parameter")
    _number(chat, "n")


def _number(chat: ChatBody, name: str) -> float:
    allowed = _RANGES[name]
    found = getattr(chat, name)
    if found is None:
        return allowed.default
    if not allowed.least <= found <= allowed.most:
        expected = (
            f"{allowed.least} to {allowed.most}" if allowed.least < allowed.most else f"{allowed.least}"
        )
        raise bad_request(f"{name} is {_shown(found)}, expected {expected}", param=name)
    return cast("float", found)


def _ppm(chat: ChatBody, name: str) -> int:
    return round(_number(chat, name) * _MILLION)


def _tokens_max(chat: ChatBody) -> int:
    older = _number(chat, "max_tokens")
    return int(older if chat.max_completion_tokens is None else _number(chat, "max_completion_tokens"))


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > bounds.STOPS_MAX:
        raise bad_request(f"stop has {len(stops)} texts, expected {bounds.STOPS_MAX} at most", param="stop")
    for text in stops:
        if not 1 <= len(text) <= bounds.STOP_CHARS_MAX:
            raise bad_request(
                f"stop has a text of {len(text)} characters, expected 1 to {bounds.STOP_CHARS_MAX}",
                param="stop",
            )
    return stops


def _privacy(header: str | None) -> Privacy:
    if header is None:
        return ChatRequest.privacy
    if header not in get_args(Privacy):
        raise bad_request(
            f"X-Agora-Privacy is {header[:32]!r}, expected local, owner or mesh", param="X-Agora-Privacy"
        )
    return cast("Privacy", header)


def _messages(turns: list[Turn]) -> tuple[ChatMessage, ...]:
    if not 1 <= len(turns) <= bounds.MESSAGES_MAX:
        raise bad_request(
            f"messages has {len(turns)} messages, expected 1 to {bounds.MESSAGES_MAX}", param="messages"
        )
    messages = tuple(_message(turn, f"messages[{index}]") for index, turn in enumerate(turns))
    size_bytes = sum(len(each.content.encode()) + bounds.TURN_BYTES for each in messages)
    if size_bytes > bounds.PROMPT_BYTES_MAX:
        raise bad_request(
            f"messages have {size_bytes} bytes, expected {bounds.PROMPT_BYTES_MAX} at most",
            param="messages",
            code="context_length_exceeded",
        )
    return messages


def _message(turn: Turn, param: str) -> ChatMessage:
    if turn.tool_calls or turn.function_call:
        raise bad_request(
            f"{param} calls a tool; tools are not supported", param=param, code="unsupported_parameter"
        )
    role = _ROLES.get(turn.role)
    if role is None:
        raise bad_request(
            f"{param}.role is {turn.role[:32]!r}, expected system, user or assistant", param=f"{param}.role"
        )
    return ChatMessage(role, _text(turn.content, f"{param}.content"))


def _text(content: str | list[Part] | None, param: str) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        raise bad_request(f"{param} is missing, expected a text or a list of text parts", param=param)
    texts = []
    for index, part in enumerate(content):
        if part.type != "text" or part.text is None:
            raise bad_request(
                f"{param}[{index}] is of type {part.type[:32]!r}, expected 'text' with a text",
                param=param,
                code="unsupported_content",
            )
        texts.append(part.text)
    return "".join(texts)


def _shown(number: float) -> str:
    text = str(number)  # an integer in JSON may have thousands of digits
    return text if len(text) <= 32 else f"{text[:32]}…"


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]


def unsupported_media_type(found: str) -> HttpError:
    """Return the 415 for a body that is not declared as JSON: a foreign page's form could send that unasked."""
    return HttpError(
        415,
        f"content-type is {found[:64]!r}, expected 'application/json'",
        code="unsupported_media_type",
    )
