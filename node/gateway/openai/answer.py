"""What the answers that a model writes have in common: the envelope around one choice, whole or chunk by chunk.

A chunk of a stream is built from a prefix and a suffix that are encoded once, since one is written for each token.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from node.chat import ChatDelta, ChatFinished, ChatStarted
from runtime.engine import FinishReason

DONE = b"data: [DONE]\n\n"


class Shape(Protocol):
    """How one kind of answer tells its only choice. Made anew for each answer: it may count on from piece to piece."""

    id_prefix: str
    whole_object: str
    chunk_object: str
    opening: bytes  # the choice of a chunk before the first piece; empty: there is none

    def piece(self, delta: ChatDelta) -> bytes:
        """Return the choice of a chunk of new text, as JSON."""

    def ending(self, reason: FinishReason) -> bytes:
        """Return the choice of the chunk that says why it ended, as JSON."""

    def whole(self, deltas: Sequence[ChatDelta], reason: FinishReason) -> dict[str, Any]:
        """Return the choice of a whole answer."""


class Chunks:
    """The chunks of one streamed answer, as server-sent events."""

    def __init__(self, shape: Shape, started: ChatStarted, created_s: int, *, wants_usage: bool) -> None:
        self._shape = shape
        head = msgspec.json.encode(_envelope(shape, shape.chunk_object, started, created_s))
        self._head = b"data: " + head[:-1] + b',"choices":['
        self._tail = (b'],"usage":null}' if wants_usage else b"]}") + b"\n\n"
        self._wants_usage = wants_usage

    def opening(self) -> bytes:
        """Return what comes before the first piece."""
        return self._chunk(self._shape.opening) if self._shape.opening else b""

    def piece(self, delta: ChatDelta) -> bytes:
        """Return a chunk of new text."""
        return self._chunk(self._shape.piece(delta))

    def ending(self, finished: ChatFinished) -> bytes:
        """Return what comes after the last piece: why it ended, the usage if it was asked for, and the end."""
        usage = b""
        if self._wants_usage:
            usage = self._head + b'],"usage":' + msgspec.json.encode(_usage(finished)) + b"}\n\n"
        return self._chunk(self._shape.ending(finished.reason)) + usage + DONE

    def _chunk(self, choice: bytes) -> bytes:
        return self._head + choice + self._tail


def whole(
    shape: Shape, started: ChatStarted, finished: ChatFinished, deltas: Sequence[ChatDelta], created_s: int
) -> bytes:
    """Return a whole answer."""
    envelope = _envelope(shape, shape.whole_object, started, created_s)
    choice = shape.whole(deltas, finished.reason)
    return msgspec.json.encode(envelope | {"choices": [choice], "usage": _usage(finished)})


def _envelope(shape: Shape, kind: str, started: ChatStarted, created_s: int) -> dict[str, Any]:
    """Return what each chunk says; the id is the job's, with OpenAI's prefix."""
    return {
        "id": f"{shape.id_prefix}-{started.job_id}",
        "object": kind,
        "created": created_s,
        "model": started.model,
    }


def _usage(finished: ChatFinished) -> dict[str, int]:
    return {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "total_tokens": finished.prompt_tokens + finished.completion_tokens,
    }
