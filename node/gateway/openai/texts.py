"""A field that is a text or a list of texts, as `prompt` and `input` are.

OpenAI's own API takes lists of token ids there too. A mesh serves many models, each with its own vocabulary, so that ids
which a client made for another one would silently mean another text: they are refused.
"""

from typing import Annotated, Any

from msgspec import Meta

from node.gateway import bounds
from node.gateway.errors import bad_request

Texts = Annotated[
    Any,
    Meta(extra_json_schema={"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


def texts_of(found: Any, param: str, *, most: int) -> tuple[str, ...]:
    """Return the texts of a field, each with a character at least, and together no larger than what travels.

    Args:
        found: what the body has there, of any JSON type.
        param: the field's name.
        most: so many texts.

    Raises:
        HttpError: 400, naming the field, what was found, and what is allowed.
    """
    allowed = "a text or a list of one text" if most == 1 else f"a text or a list of 1 to {most} texts"
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list):
        raise bad_request(f"{param} is {_kind(found)}, expected {allowed}", param=param, code="invalid_type")
    if any(isinstance(each, int | list) and not isinstance(each, bool) for each in texts):
        raise bad_request(
            f"{param} is a list of token ids, which differ from model to model; expected {allowed}",
            param=param,
            code="unsupported_content",
        )
    if not 1 <= len(texts) <= most:
        raise bad_request(f"{param} has {len(texts)} texts, expected {allowed}", param=param)
    for index, text in enumerate(texts):
        where = param if isinstance(found, str) else f"{param}[{index}]"
        if not isinstance(text, str):
            raise bad_request(f"{where} is {_kind(text)}, expected a text", param=where, code="invalid_type")
        if not text:
            raise bad_request(f"{where} is empty, expected a text of 1 character or more", param=where)
        size_bytes = len(text.encode())
        if size_bytes > bounds.PROMPT_BYTES_MAX:
            raise bad_request(
                f"{where} has {size_bytes} bytes, expected {bounds.PROMPT_BYTES_MAX} at most",
                param=where,
                code="context_length_exceeded",
            )
    return tuple(texts)


def _kind(found: Any) -> str:
    return {dict: "an object", bool: "a boolean", type(None): "null", list: "a list"}.get(
        type(found), "a number"
    )
