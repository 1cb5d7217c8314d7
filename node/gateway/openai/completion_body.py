"""What a client may ask of `/v1/completions`: a raw text to go on from, without a chat's template."""

import random
from collections.abc import Mapping

from node.chat import ChatRequest
from node.gateway import bounds
from node.gateway.headers import privacy_of
from node.gateway.json_body import decode
from node.gateway.openai.texts import Texts, texts_of
from node.gateway.openai.writing_body import (
    Call,
    WritingBody,
    call_of,
    model_of,
    number,
    refuse_set,
    sampling_of,
    stops_of,
)


class CompletionBody(WritingBody, kw_only=True):
    """The body as OpenAI's clients send it; fields that are not named here are ignored."""

    prompt: Texts
    logprobs: int | None = None
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = None


def parse_completion(body: bytes, headers: Mapping[str, str], rng: random.Random) -> Call:
    """Return what a body and its `X-Agora-Privacy` ask for; the session is left open.

    Args:
        body: what was sent.
        headers: by lower-case name.
        rng: draws the seed where sampling is wanted and none is given.

    Raises:
        HttpError: 400, naming the field, what was found, and what is allowed.
    """
    completion = decode(body, CompletionBody)
    refuse_set(completion, ("suffix", "echo"))
    number(completion, "best_of")
    is_capped = completion.max_tokens is not None
    cap = int(number(completion, "max_tokens"))
    request = ChatRequest(
        task="completion",
        model=model_of(completion.model),
        messages=(),
        inputs=texts_of(completion.prompt, "prompt", most=1),
        tokens_max=cap if is_capped else bounds.COMPLETION_TOKENS_DEFAULT,
        sampling=sampling_of(
            completion,
            rng,
            logprobs=completion.logprobs is not None,
            top_logprobs=int(number(completion, "logprobs")),
        ),
        stop=stops_of(completion),
        privacy=privacy_of(headers),
    )
    return call_of(completion, request, cap_field="max_tokens" if is_capped else "", prompt_field="prompt")
