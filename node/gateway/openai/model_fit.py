"""Whether the model that was named does what is asked of it: told before anything is bought."""

from collections.abc import Sequence

from node.gateway.errors import HttpError, bad_request
from node.gateway.openai.writing_body import Call
from node.gateway.ports import NodePort
from node.views import ModelView


def check_writer(node: NodePort, call: Call) -> None:
    """Return if the model of a call writes, and its context is longer than the cap that the client named.

    Whether the prompt leaves room for it, only the engine can tell, which counts its tokens.

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
    most = model.context_tokens - 1  # a prompt has a token at least
    if call.request.tokens_wanted > most:
        raise bad_request(
            f"{call.fields.cap} is {call.request.tokens_wanted}, expected {most} at most: "
            f"the context of model {model.id!r} has {model.context_tokens} tokens",
            param=call.fields.cap,
            code="context_length_exceeded",
        )


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
