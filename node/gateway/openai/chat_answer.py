"""The answer of `/v1/chat/completions`: a message, and how likely each of its tokens was."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from node.chat import ChatDelta
from runtime.engine import FinishReason, TokenLogprob

_MICRO = 1_000_000


class ChatShape:
    """Tells a chat's answer; see `Shape`."""

    id_prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, *, wants_logprobs: bool) -> None:
        self._wants_logprobs = wants_logprobs
        self.opening = self._choice(b'{"role":"assistant","content":""}', b"null", b"null")

    def piece(self, delta: ChatDelta) -> bytes:
        """Return the choice of a chunk of new text, as JSON."""
        logprobs = b"null"
        if self._wants_logprobs and delta.logprobs:
            logprobs = msgspec.json.encode(_logprobs(delta.logprobs))
        content = b'{"content":' + msgspec.json.encode(delta.text) + b"}"
        return self._choice(content, logprobs, b"null")

    def ending(self, reason: FinishReason) -> bytes:
        """Return the choice of the chunk that says why it ended, as JSON."""
        return self._choice(b"{}", b"null", msgspec.json.encode(reason.value))

    def whole(self, deltas: Sequence[ChatDelta], reason: FinishReason) -> dict[str, Any]:
        """Return the choice of a whole answer."""
        text = "".join(each.text for each in deltas)
        tokens = [token for each in deltas for token in each.logprobs]
        return {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": _logprobs(tokens) if self._wants_logprobs else None,
            "finish_reason": reason.value,
        }

    def _choice(self, delta: bytes, logprobs: bytes, reason: bytes) -> bytes:
        return b'{"index":0,"delta":%b,"logprobs":%b,"finish_reason":%b}' % (delta, logprobs, reason)


def _logprobs(tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
    content = [
        _token(each.text, each.micronats) | {"top_logprobs": [_token(*likely) for likely in each.top]}
        for each in tokens
    ]
    return {"content": content, "refusal": None}


def _token(text: bytes, micronats: int) -> dict[str, Any]:
    """Tell of one token; the bytes are exact where a token ends within a character and the text cannot be."""
    return {
        "token": text.decode(errors="replace"),
        "logprob": -micronats / _MICRO,
        "bytes": list(text),
    }
