"""The body of a request: bytes in, a value of a declared shape out, or a 4xx that says where and why not."""

from typing import TypeVar

import msgspec

from node.gateway.errors import HttpError, bad_request

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


def unsupported_media_type(found: str) -> HttpError:
    """Return the 415 for a body that is not declared as JSON: a foreign page's form could send that unasked."""
    return HttpError(
        415,
        f"content-type is {found[:64]!r}, expected 'application/json'",
        code="unsupported_media_type",
    )


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
