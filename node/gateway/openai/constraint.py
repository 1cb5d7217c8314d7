"""What the whole answer has to be: JSON, JSON of a schema, or a text of a grammar.

Only what can be told from the request alone is checked here; whether a schema or a grammar compiles is for the sandboxed
child to say, whose compiler is the weakest surface there is.
"""

from typing import Any

import msgspec

from node.gateway.errors import bad_request
from protocol import limits

_ANY_OBJECT = '{"type":"object"}'
_TYPES = "'text', 'json_object' or 'json_schema'"


class JsonSchema(msgspec.Struct):
    """A schema by OpenAI's words; every answer keeps to it, be it `strict` or not."""

    schema: dict[str, Any] | None = None
    name: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    """The shape of the answer."""

    type: str
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | None = None  # of a `json_object`, as llama.cpp's own server takes it


def constraint(wanted: ResponseFormat | None, grammar: str | None) -> tuple[str, str]:
    """Return the JSON schema and the grammar that an answer is held to; one of them at most, the other is empty.

    Raises:
        HttpError: 400: an unknown kind, one without its schema, both at once, or over the bound of size.
    """
    schema = "" if wanted is None else _schema(wanted)
    if schema and grammar:
        raise bad_request("grammar is given beside response_format, expected one of them", param="grammar")
    for text, param in ((schema, "response_format"), (grammar or "", "grammar")):
        if len(text) > limits.CONSTRAINT_CHARS_MAX:
            what = "grammar" if param == "grammar" else "response_format.json_schema"
            raise bad_request(
                f"{what} has {len(text)} characters, expected {limits.CONSTRAINT_CHARS_MAX} at most",
                param=param,
            )
    return schema, grammar or ""


def _schema(wanted: ResponseFormat) -> str:
    match wanted.type:
        case "text":
            return ""
        case "json_object":
            return _ANY_OBJECT if wanted.schema is None else _text(wanted.schema)
        case "json_schema":
            if wanted.json_schema is None or wanted.json_schema.schema is None:
                raise bad_request(
                    "response_format has no json_schema.schema, expected a JSON schema",
                    param="response_format.json_schema",
                )
            return _text(wanted.json_schema.schema)
        case other:
            raise bad_request(
                f"response_format is {other[:32]!r}, expected {_TYPES}",
                param="response_format",
                code="unsupported_parameter",
            )


def _text(schema: dict[str, Any]) -> str:
    """Write it in the client's order of keys, which is the order of the answer's."""
    try:
        return msgspec.json.encode(schema).decode()
    except RecursionError:
        raise bad_request("response_format is nested too deep", param="response_format") from None
