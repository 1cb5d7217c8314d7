"""The answer of `/v1/embeddings`: a vector for each text.

It may be of two million numbers. Each job's are written down as they come, so that nothing else waits for all of them.
"""

import base64
import struct
from collections.abc import Sequence

import msgspec

from node.chat import ChatError

_ONE = 1_000_000  # a word is round((x + 1) * 10^6), so that it travels as a token id would


class EmbeddingAnswer:
    """An answer as it grows.

    Args:
        dimensions: of each vector.
        is_base64: written as packed float32, little-endian, which OpenAI's client asks for by default; else as numbers.
    """

    def __init__(self, dimensions: int, *, is_base64: bool) -> None:
        self._dimensions = dimensions
        self._is_base64 = is_base64
        self._entries: list[bytes] = []

    def add(self, words: Sequence[int], count: int) -> None:
        """Add the unit vectors of so many texts, in the words of one job.

        Raises:
            ChatError: they are too few or too many, or one is no coordinate: whoever answered is not to be believed.
        """
        if len(words) != count * self._dimensions:
            raise ChatError(
                f"the answer has {len(words)} numbers, expected {self._dimensions} for each of {count} texts; ask again"
            )
        if max(words) > 2 * _ONE:
            raise ChatError("the answer has a coordinate above 1, expected unit vectors; ask again")
        for start in range(0, len(words), self._dimensions):
            vector = [(word - _ONE) / _ONE for word in words[start : start + self._dimensions]]
            entry = {
                "object": "embedding",
                "index": len(self._entries),
                "embedding": _packed(vector) if self._is_base64 else vector,
            }
            self._entries.append(msgspec.json.encode(entry))

    def whole(self, *, model: str, prompt_tokens: int) -> bytes:
        """Return all of it."""
        usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
        tail = msgspec.json.encode({"model": model, "usage": usage})
        return b'{"object":"list","data":[' + b",".join(self._entries) + b"]," + tail[1:]


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
