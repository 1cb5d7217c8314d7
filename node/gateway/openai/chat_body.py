"""What a client may ask of `/v1/chat/completions`: bytes in, a `ChatRequest` out, or a 400 that names the field."""

import random
from collections.abc import Mapping
from typing import Any

import msgspec

from node.chat import ChatRequest
from node.gateway import bounds
from node.gateway.errors import bad_request
from node.gateway.headers import privacy_of
from node.gateway.json_body import decode
from node.gateway.openai.writing_body import (
    Call,
    WritingBody,
    call_of,
    model_of,
    number,
    refuse_set,
    sampling_of,
    stops_of,
)
from runtime.engine import ChatMessage

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_UNSUPPORTED = ("tools", "functions", "function_call", "audio", "prediction", "web_search_options")


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


class ChatBody(WritingBody, kw_only=True):
    """The body as OpenAI's clients send it; fields that are not named here are ignored."""

    messages: list[Turn]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    modalities: list[str] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None


def parse_chat(body: bytes, headers: Mapping[str, str], rng: random.Random) -> Call:
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
    top_logprobs = int(number(chat, "top_logprobs"))
    if top_logprobs and not chat.logprobs:
        raise bad_request(
            f"top_logprobs is {top_logprobs} without logprobs, expected logprobs to be true",
            param="top_logprobs",
        )
    older = number(chat, "max_tokens")
    newer = number(chat, "max_completion_tokens")
    named = [name for name in ("max_completion_tokens", "max_tokens") if getattr(chat, name) is not None]
    request = ChatRequest(
        model=model_of(chat.model),
        messages=_messages(chat.messages),
        tokens_max=int(older if chat.max_completion_tokens is None else newer),
        sampling=sampling_of(chat, rng, logprobs=bool(chat.logprobs), top_logprobs=top_logprobs),
        stop=stops_of(chat),
        privacy=privacy_of(headers),
    )
    return call_of(chat, request, cap_field=named[0] if named else "", prompt_field="messages")


def _refuse_unsupported(chat: ChatBody) -> None:
    refuse_set(chat, _UNSUPPORTED)
    if chat.tool_choice not in (None, "none", "auto"):
        raise bad_request(
            "tool_choice is not supported, expected none", param="tool_choice", code="unsupported_parameter"
        )
    if chat.modalities not in (None, [], ["text"]):
        raise bad_request("modalities: expected ['text']", param="modalities", code="unsupported_parameter")


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
