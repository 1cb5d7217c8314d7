"""Every failure in OpenAI's error shape, and which status it gets.

`{"error": {"message", "type", "param", "code"}}`. A client's mistake is a 4xx that says what was found and what was
expected; a mesh that cannot answer now is a 503 with its reasons; a 500 is a bug of ours and says nothing of it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from node.chat import BadPrompt, ChatError, StillLoading, UnknownModelName, Unsold
from protocol.errors import AgoraError, LocalProtocolError, MeshError
from runtime.engine import BadRequest, BadTemplate, EngineError, PromptTooLong

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
RETRY_AFTER_S = 1  # of what was refused only because too much is going on
# where an engine's refusal begins with one of its own fields: what the client calls that field
_FIELDS = {"schema": "response_format", "grammar": "grammar", "logit_bias": "logit_bias", "stop": "stop"}


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


def told(error: Exception, prompt_field: str = "messages") -> HttpError:
    """Return what an error that was raised on purpose is for the client.

    Args:
        error: as it was raised.
        prompt_field: to name when the prompt is at fault.

    Raises:
        Exception: the error itself, since it is a bug.
    """
    match error:
        case HttpError():
            return error
        case UnknownModelName():
            extra = {"models": list(error.known)}
            return HttpError(404, str(error), code="model_not_found", param="model", extra=extra)
        case BadPrompt() | BadRequest() | PromptTooLong() | BadTemplate():
            return _blamed(str(error), prompt_field)
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


def _blamed(message: str, prompt_field: str) -> HttpError:
    """Return the 400 for what an engine or a seller refused; its first word may say which field is meant."""
    field = _FIELDS.get(message.partition(" ")[0].rstrip(":"), prompt_field)
    code = "invalid_prompt" if field == prompt_field else "invalid_value"
    return bad_request(message, param=field, code=code)


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
