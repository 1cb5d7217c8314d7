"""What `/v1` answers: OpenAI's objects, as bytes.

A chunk of a stream is built from a prefix and a suffix that are encoded once, since one is written for each token.
"""

import msgspec
from starlette.responses import Response

from node.chat import ChatFinished, ChatStarted
from node.views import ModelView

DONE = b"data: [DONE]\n\n"


class Chunks:
    """The chunks of one streamed answer, as server-sent events."""

    def __init__(self, started: ChatStarted, created_s: int, *, wants_usage: bool) -> None:
        head = msgspec.json.encode(
            {
                "id": answer_id(started),
                "object": "chat.completion.chunk",
                "created": created_s,
                "model": started.model,
            }
        )
        self._head = b"data: " + head[:-1] + b',"choices":['
        self._tail = (b'],"usage":null}' if wants_usage else b"]}") + b"\n\n"

    def first(self) -> bytes:
        """Return the chunk that says who speaks."""
        return self._chunk(b'{"role":"assistant","content":""}', b"null")

    def delta(self, text: str) -> bytes:
        """Return a chunk of new text."""
        return self._chunk(b'{"content":' + msgspec.json.encode(text) + b"}", b"null")

    def last(self, finished: ChatFinished) -> bytes:
        """Return the chunk that says why it ended."""
        return self._chunk(b"{}", msgspec.json.encode(finished.reason.value))

    def usage(self, finished: ChatFinished) -> bytes:
        """Return the extra chunk of `include_usage`."""
        return self._head + b'],"usage":' + msgspec.json.encode(_usage(finished)) + b"}\n\n"

    def _chunk(self, delta: bytes, reason: bytes) -> bytes:
        choice = b'{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}' % (delta, reason)
        return self._head + choice + self._tail


def completion(started: ChatStarted, finished: ChatFinished, text: str, created_s: int) -> bytes:
    """Return a whole answer."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finished.reason.value}
    return msgspec.json.encode(
        {
            "id": answer_id(started),
            "object": "chat.completion",
            "created": created_s,
            "model": started.model,
            "choices": [choice],
            "usage": _usage(finished),
        }
    )


def answer_id(started: ChatStarted) -> str:
    """Return the id of an answer: the job's, with OpenAI's prefix."""
    return f"chatcmpl-{started.job_id}"


def model(view: ModelView) -> dict[str, object]:
    """Return a model; a digest has no date, so `created` is 0."""
    return {"id": view.id, "object": "model", "created": 0, "owned_by": "agora"}


def json(value: object) -> Response:
    """Return a value as a response."""
    return Response(msgspec.json.encode(value), media_type="application/json")


def _usage(finished: ChatFinished) -> dict[str, int]:
    return {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "total_tokens": finished.prompt_tokens + finished.completion_tokens,
    }
