"""The answer of `/v1/embeddings`: a vector for each text."""

import base64
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from node.chat import ChatError

_ONE = 1_000_000  # a word is round((x + 1) * 10^6), so that it travels as a token id would


def vectors_of(words: Sequence[int], count: int, dimensions: int) -> list[list[float]]:
    """Return the unit vectors that the words of a job say.

    Raises:
        ChatError: they are too few or too many, or one is no coordinate: whoever answered is not to be believed.
    """
    if len(words) != count * dimensions:
        raise ChatError(
            f"the answer has {len(words)} numbers, expected {dimensions} for each of {count} texts; ask again"
        )
    if max(words) > 2 * _ONE:
        raise ChatError("the answer has a coordinate above 1, expected unit vectors; ask again")
    coordinates = [(word - _ONE) / _ONE for word in words]
    return [coordinates[start : start + dimensions] for start in range(0, len(words), dimensions)]


def whole(vectors: Sequence[Sequence[float]], *, is_base64: bool, model: str, prompt_tokens: int) -> bytes:
    """Return the whole answer."""
    data: list[dict[str, Any]] = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if is_base64 else vector}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage})


def _base64(vector: Sequence[float]) -> str:
    """Pack it as OpenAI's client asks for it by default: float32, little-endian."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
