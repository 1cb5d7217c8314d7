"""Every failure in OpenAI's error shape, and which status it gets.

`{"error": {"message", "type", "param", "code"}}`. A client's mistake is a 4xx that says what was found and what was
expected; a mesh that cannot answer now is a 503 with its reasons; a 500 is a bug of ours and says nothing of it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from node.chat import BadPrompt, ChatError, StillLoading, UnknownModelName, Unsold
from protocol.errors import AgoraError, LocalProtocolError, MeshError
from runtime.engine import FAULTS_OF_CLIENT, EngineError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
ENGINES_CAP = "max_tokens"  # as engines call it, whatever the client calls it
RETRY_AFTER_S = 1  # of what was refused only because too much is going on


@dataclass(frozen=True)
class Fields:
    """What a client calls the parts of its request that only an engine can find fault with.

    Attributes:
        prompt: the field that is read.
        constraint: the one that says what the answer must be; empty: it is free.
        cap: the one that bounds the answer; empty: none does.
    """

    prompt: str = "messages"
    constraint: str = ""
    cap: str = ""


class HttpError(Exception):
    """A request that gets a status of 400 or more.

    Attributes:
        param: the field of the request that is wrong, or None.
        code: a word that programs may rely on.
        extra: further keys of the error object.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    def to_json(self) -> bytes:
        """Return the body of the answer."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error | self.extra})


_CHAT = Fields()


def bad_request(message: str, *, param: str | None = None, code: str = "invalid_value") -> HttpError:
    """Return the 400 for a request that is wrong in itself."""
    return HttpError(400, message, param=param, code=code)


def too_much(message: str) -> HttpError:
    """Return the 429 for a request that may come again in a moment."""
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return HttpError(429, message, code="rate_limit_exceeded", headers=headers)


def internal_error() -> HttpError:
    """Return the 500 for a bug: what happened is in the journal, not in the answer."""
    return HttpError(500, "internal error; 'agora logs' shows what happened", code="internal_error")


def told(error: Exception, fields: Fields = _CHAT) -> HttpError:
    """Return what an error that was raised on purpose is for the client.

    Args:
        error: as it was raised.
        fields: which of the request's to name when it is at fault.

    Raises:
        Exception: the error itself, since it is a bug.
    """
    match error:
        case HttpError():
            return error
        case UnknownModelName():
            extra = {"models": list(error.known)}
            return HttpError(404, str(error), code="model_not_found", param="model", extra=extra)
        case BadPrompt():
            return _blamed(str(error), fields)
        case EngineError() if isinstance(error, FAULTS_OF_CLIENT):
            return _blamed(str(error), fields)
        case Unsold():
            return _unsold(error)
        case StillLoading():
            return HttpError(
                503,
                str(error),
                code="model_loading",
                headers={"Retry-After": str(max(RETRY_AFTER_S, math.ceil(error.retry_after_s)))},
                extra={"progress": error.done},
            )
        case ChatError() | EngineError() | MeshError():
            return HttpError(503, str(error), code="unavailable", headers={"Retry-After": str(RETRY_AFTER_S)})
        case LocalProtocolError():
            raise error
        case AgoraError():  # a verb that was refused
            return bad_request(str(error), code="refused")
        case _:
            raise error


def _blamed(message: str, fields: Fields) -> HttpError:
    """Return the 400 for what an engine refused; its words say which field, in its own terms."""
    if fields.constraint and re.search(r"\b(schema|grammar)\b", message):
        return bad_request(message, param=fields.constraint)
    if fields.cap and message.startswith(ENGINES_CAP):
        message = fields.cap + message.removeprefix(ENGINES_CAP)
        return bad_request(message, param=fields.cap, code="context_length_exceeded")
    if message.startswith("logit_bias"):
        return bad_request(message, param="logit_bias")
    return bad_request(message, param=fields.prompt, code="invalid_prompt")


def _unsold(error: Unsold) -> HttpError:
    declines = [
        {"peer_id": each.peer_id, "reason": each.reason, "detail": each.detail} for each in error.declines
    ]
    return HttpError(
        503,
        _with_reasons(str(error), declines),
        code="unsold",
        headers={"Retry-After": str(error.retry_after_s)},
        extra={"declines": declines},
    )


def _with_reasons(message: str, declines: Sequence[Mapping[str, str]]) -> str:
    reasons = "; ".join(
        f"{each['peer_id'][-8:]}: {each['reason']}" + (f" ({each['detail']})" if each["detail"] else "")
        for each in declines
    )
    return f"{message}: {reasons}" if reasons and reasons not in message else message
