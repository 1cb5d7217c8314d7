"""What a client may ask of `/v1/embeddings`: texts in, and in which encoding it wants their vectors."""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from node.gateway import bounds
from node.gateway.errors import bad_request
from node.gateway.headers import privacy_of
from node.gateway.json_body import decode
from node.gateway.openai.texts import Texts, texts_of
from node.gateway.openai.writing_body import model_of
from protocol.messages import Privacy

_ENCODINGS = ("float", "base64")


class EmbeddingBody(msgspec.Struct, kw_only=True):
    """The body as OpenAI's clients send it; fields that are not named here are ignored."""

    model: str
    input: Texts
    encoding_format: str | None = None
    dimensions: int | None = None


@dataclass(frozen=True)
class EmbeddingCall:
    """A checked call.

    Attributes:
        dimensions: that the client expects of the vectors; None: whatever the model has.
    """

    model: str
    inputs: tuple[str, ...]
    is_base64: bool
    dimensions: int | None
    privacy: Privacy


def parse_embedding(body: bytes, headers: Mapping[str, str]) -> EmbeddingCall:
    """Return what a body and its `X-Agora-Privacy` ask for.

    Args:
        body: what was sent.
        headers: by lower-case name.

    Raises:
        HttpError: 400, naming the field, what was found, and what is allowed.
    """
    embedding = decode(body, EmbeddingBody)
    encoding = embedding.encoding_format or "float"
    if encoding not in _ENCODINGS:
        raise bad_request(
            f"encoding_format is {encoding[:32]!r}, expected {' or '.join(map(repr, _ENCODINGS))}",
            param="encoding_format",
        )
    return EmbeddingCall(
        model=model_of(embedding.model),
        inputs=texts_of(embedding.input, "input", most=bounds.EMBEDDING_INPUTS_MAX),
        is_base64=encoding == "base64",
        dimensions=embedding.dimensions,
        privacy=privacy_of(headers),
    )
