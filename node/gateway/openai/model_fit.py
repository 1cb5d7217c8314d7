"""Whether the model that was named does what is asked of it: told before anything is bought."""

from collections.abc import Sequence

from node.gateway.errors import HttpError, bad_request, told
from node.gateway.openai.writing_body import Call
from node.gateway.ports import NodePort
from node.jobs import prompt_of
from node.views import ModelView
from runtime.engine import EngineError


async def check_writer(node: NodePort, call: Call) -> None:
    """Return if the model of a call writes, and its context has room for what the client wants written.

    What nobody named gives way to the context by itself. A cap that somebody named does not: an answer would end early
    and nobody would know why. A prompt is counted only where the cap might not fit beside it.

    Raises:
        UnknownModelName: there is no such model.
        HttpError: 400: it embeds, or has no room.
    """
    model = node.model(call.request.model, call.request.task)
    if model.dimensions:
        raise _wrong_kind(
            f"model {model.id!r} embeds texts and writes none",
            [each for each in node.models() if not each.dimensions],
        )
    cap, context = call.request.tokens_max, model.context_tokens
    if not call.cap_field or cap + prompt_of(call.request).tokens_max <= context:
        return
    prompt_tokens = None
    if cap < context:
        prompt_tokens = await _count(node, call)
    if prompt_tokens is not None and prompt_tokens >= context:
        raise bad_request(
            f"{call.fields.prompt} has {prompt_tokens} tokens, expected fewer than the {context} of model {model.id!r}",
            param=call.fields.prompt,
            code="context_length_exceeded",
        )
    left = context - (prompt_tokens or 1)  # a prompt has a token at least
    if cap > left:
        beside = f" and the prompt {prompt_tokens}" if prompt_tokens else ""
        raise bad_request(
            f"{call.cap_field} is {cap}, expected {left} at most: "
            f"the context of model {model.id!r} has {context} tokens{beside}",
            param=call.cap_field,
            code="context_length_exceeded",
        )


async def _count(node: NodePort, call: Call) -> int | None:
    try:
        return await node.prompt_tokens(call.request)
    except EngineError as error:
        raise told(error, call.fields) from error


def embedder(node: NodePort, name: str, dimensions: int | None) -> ModelView:
    """Return the model that is to embed, if it does, and with as many dimensions as the client expects.

    Raises:
        UnknownModelName: there is no such model.
        HttpError: 400: it writes, or its vectors have other dimensions.
    """
    model = node.model(name, "embedding")
    if not model.dimensions:
        raise _wrong_kind(
            f"model {model.id!r} writes and embeds no texts",
            [each for each in node.models() if each.dimensions],
        )
    if dimensions not in (None, model.dimensions):
        raise bad_request(
            f"dimensions is {str(dimensions)[:32]}, expected none or the {model.dimensions} of model {model.id!r}",
            param="dimensions",
        )
    return model


def _wrong_kind(found: str, allowed: Sequence[ModelView]) -> HttpError:
    names = ", ".join(each.id for each in allowed) or "none; 'agora model add FILE.gguf' adds one"
    return bad_request(f"{found}, expected one of: {names}", param="model", code="model_not_suited")
