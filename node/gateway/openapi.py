"""`/openapi.json`: FastAPI's description of the routes, with the shapes that msgspec checks and writes added to it."""

from typing import Any

import msgspec
from fastapi import FastAPI

from node.gateway.openai.chat_body import ChatBody
from node.gateway.openai.completion_body import CompletionBody
from node.gateway.openai.embedding_body import EmbeddingBody
from node.views import AttemptView, JobView, LedgerView, ModelView, PeerView, StatusView

_REFERENCE = "#/components/schemas/{name}"
_SHAPES = (
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    StatusView,
    PeerView,
    ModelView,
    JobView,
    LedgerView,
    AttemptView,
)


def json_body(shape: type[msgspec.Struct]) -> dict[str, Any]:
    """Return what a route says of the body it takes."""
    return {"requestBody": {"required": True, "content": _content(_reference(shape))}}


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
            description.setdefault("components", {}).setdefault("schemas", {}).update(components)
        return app.openapi_schema or {}

    app.openapi = describe_with_shapes  # type: ignore[method-assign]  # as FastAPI's manual says


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _reference(shape: type[msgspec.Struct]) -> dict[str, Any]:
    return {"$ref": _REFERENCE.format(name=shape.__name__)}
