"""`/openapi.json`: FastAPI's description of the routes, with the shapes that msgspec checks and writes added to it."""

from typing import Any, get_args

import msgspec
from fastapi import FastAPI

from node.gateway.bounds import SESSION_CHARS_MAX
from node.gateway.openai.chat_body import ChatBody
from node.gateway.openai.completion_body import CompletionBody
from node.gateway.openai.embedding_body import EmbeddingBody
from node.gateway.openai.writing_body import RANGES
from node.runs import RunView
from node.views import (
    AttemptView,
    JobView,
    LedgerView,
    ModelView,
    PatchView,
    PeerView,
    ProposalView,
    StatusView,
)
from protocol.messages import Privacy

_REFERENCE = "#/components/schemas/{name}"


class ErrorFound(msgspec.Struct):
    """What went wrong: what was found, what is allowed; some kinds say more."""

    message: str
    type: str
    param: str | None  # the field that is at fault
    code: str | None  # a word that programs may rely on


class ErrorAnswer(msgspec.Struct):
    """Every answer with a status of 400 or more."""

    error: ErrorFound


_SHAPES = (
    ErrorAnswer,
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    StatusView,
    PeerView,
    ModelView,
    JobView,
    LedgerView,
    AttemptView,
    RunView,
    PatchView,
    ProposalView,
)


def json_body(shape: type[msgspec.Struct], *, has_session: bool = True) -> dict[str, Any]:
    """Return what a route says of the body and the headers that it takes, and of its refusals."""
    privacy = _header(
        "X-Agora-Privacy", {"type": "string", "enum": list(get_args(Privacy)), "default": "owner"}
    )
    session = _header("X-Agora-Session", {"type": "string", "maxLength": SESSION_CHARS_MAX})
    return {
        "requestBody": {"required": True, "content": _content(_reference(shape))},
        "parameters": [privacy, *([session] if has_session else [])],
        "responses": {"default": {"description": "Refused", "content": _content(_reference(ErrorAnswer))}},
    }


def json_answer(shape: type[msgspec.Struct], *, is_list: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return what a route says of its answer."""
    schema = _reference(shape)
    return {200: {"content": _content({"type": "array", "items": schema} if is_list else schema)}}


def describe_shapes(app: FastAPI) -> None:
    """Add the shapes to the application's description, once somebody asks for it."""
    describe = app.openapi

    def describe_with_shapes() -> dict[str, Any]:
        if app.openapi_schema is None:
            description = describe()
            _, components = msgspec.json.schema_components(_SHAPES, ref_template=_REFERENCE)
            for body in (ChatBody, CompletionBody):
                _add_ranges(components[body.__name__]["properties"])
            description.setdefault("components", {}).setdefault("schemas", {}).update(components)
        return app.openapi_schema or {}

    app.openapi = describe_with_shapes  # type: ignore[method-assign]  # as FastAPI's manual says


def _add_ranges(properties: dict[str, Any]) -> None:
    for name, allowed in RANGES.items():
        if name in properties and {"type": "boolean"} not in properties[name]["anyOf"]:
            properties[name] |= {"minimum": allowed.least, "maximum": allowed.most}


def _header(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": schema}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _reference(shape: type[msgspec.Struct]) -> dict[str, Any]:
    return {"$ref": _REFERENCE.format(name=shape.__name__)}
