"""The routes of `/v1`."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from node.chat import UnknownModelName
from node.gateway.answers import json
from node.gateway.bounds import Bounds
from node.gateway.live import Places
from node.gateway.openai.chat_answer import ChatShape
from node.gateway.openai.chat_body import ChatBody, parse_chat
from node.gateway.openai.completion_answer import CompletionShape
from node.gateway.openai.completion_body import CompletionBody, parse_completion
from node.gateway.openai.embedding import Embedding
from node.gateway.openai.embedding_body import EmbeddingBody
from node.gateway.openai.writing import Kind, Writing
from node.gateway.openapi import json_body
from node.gateway.ports import NodePort
from node.gateway.sessions import Sessions
from node.views import ModelView

_CHAT = Kind(parse_chat, ChatShape)
_COMPLETION = Kind(parse_completion, CompletionShape)


def router(node: NodePort, bounds: Bounds) -> APIRouter:
    """Return the routes."""
    places = Places(bounds.chats, "requests to models")
    writing = Writing(node, bounds, places, Sessions())
    embedding = Embedding(node, places)
    routes = APIRouter(prefix="/v1", tags=["openai"])

    @routes.get("/models")
    async def list_models() -> Response:
        """List the models that can be asked for."""
        return json({"object": "list", "data": [_model(each) for each in node.models()]})

    @routes.get("/models/{model}")
    async def get_model(model: str) -> Response:
        """Describe one model."""
        models = node.models()
        for each in models:
            if each.id == model:
                return json(_model(each))
        raise UnknownModelName(model, tuple(each.id for each in models))

    @routes.post("/chat/completions", openapi_extra=json_body(ChatBody))
    async def complete_chat(request: Request) -> Response:
        """Answer a chat, streamed or whole."""
        return await writing.respond(request, _CHAT)

    @routes.post("/completions", openapi_extra=json_body(CompletionBody))
    async def complete(request: Request) -> Response:
        """Go on from a raw text, streamed or whole."""
        return await writing.respond(request, _COMPLETION)

    @routes.post("/embeddings", openapi_extra=json_body(EmbeddingBody, has_session=False))
    async def embed(request: Request) -> Response:
        """Return the vector of each text."""
        return await embedding.respond(request)

    return routes


def _model(view: ModelView) -> dict[str, object]:
    """Return a model; a digest has no date, so `created` is 0."""
    return {"id": view.id, "object": "model", "created": 0, "owned_by": "agora"}
