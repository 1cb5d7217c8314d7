"""The answer of `/v1/completions`: a text, and how likely each of its tokens was, in the older API's four lists."""

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from node.chat import ChatDelta
from runtime.engine import FinishReason, TokenLogprob

_MICRO = 1_000_000


class CompletionShape:
    """Tells a completion; see `Shape`."""

    id_prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"
    opening = b""

    def __init__(self, *, wants_logprobs: bool) -> None:
        self._wants_logprobs = wants_logprobs
        # where the next token begins in the text, in characters: one that ends within a character does not move it on
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def piece(self, delta: ChatDelta) -> bytes:
        """Return the choice of a chunk of new text, as JSON."""
        return msgspec.json.encode(self._choice(delta.text, delta.logprobs, None))

    def ending(self, reason: FinishReason) -> bytes:
        """Return the choice of the chunk that says why it ended, as JSON."""
        return msgspec.json.encode(self._choice("", (), reason))

    def whole(self, deltas: Sequence[ChatDelta], reason: FinishReason) -> dict[str, Any]:
        """Return the choice of a whole answer."""
        text = "".join(each.text for each in deltas)
        tokens = [token for each in deltas for token in each.logprobs]
        choice = self._choice(text, tokens, reason)
        if self._wants_logprobs and not tokens:
            choice["logprobs"] = self._logprobs(())
        return choice

    def _choice(
        self, text: str, tokens: Sequence[TokenLogprob], reason: FinishReason | None
    ) -> dict[str, Any]:
        return {
            "text": text,
            "index": 0,
            "logprobs": self._logprobs(tokens) if self._wants_logprobs and tokens else None,
            "finish_reason": None if reason is None else reason.value,
        }

    def _logprobs(self, tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
        told: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for each in tokens:
            likely = {_name(text): -micronats / _MICRO for text, micronats in each.top}
            told["tokens"].append(_name(each.text))
            told["token_logprobs"].append(-each.micronats / _MICRO)
            told["top_logprobs"].append(likely | {_name(each.text): -each.micronats / _MICRO})
            told["text_offset"].append(self._offset)
            self._offset += len(self._decoder.decode(each.text))
        return told


def _name(text: bytes) -> str:
    """Write a token as OpenAI does: its bytes where they are no text, so that no two share a key."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text)
