"""A request that no engine can take is refused in the daemon, by the name of its field."""

from dataclasses import replace

import pytest

from runtime.echo import echo_card
from runtime.engine import BadRequest, ChatMessage, Digest, Generation, ModelCard, Sampling
from runtime.llama.request import check

WRITER = echo_card(name="writer")
EMBEDDER = echo_card(name="embedder", dimensions=384)
FINE = Generation(Digest(bytes(32)), (ChatMessage("user", "Hi"),), 16, Sampling(), ("END",), (1, 2))


COMPLETION = replace(FINE, task="completion", messages=(), inputs=("Once",))
EMBEDDING = replace(
    FINE, task="embedding", messages=(), inputs=("a", "b"), tokens_max=768, stop=(), sampling=Sampling()
)
CHECK = replace(FINE, task="check", claimed=(3, 4), tokens_max=2)


@pytest.mark.parametrize(
    ("request_", "card"),
    [
        (FINE, WRITER),
        (COMPLETION, WRITER),
        (CHECK, WRITER),
        (replace(CHECK, messages=(), inputs=("Once",)), WRITER),
        (EMBEDDING, EMBEDDER),
    ],
)
def test_an_ordinary_request_is_taken(request_: Generation, card: ModelCard) -> None:
    check(request_, card)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": ()}, "messages has 0 items and inputs 0, expected only messages for task 'chat'"),
        ({"messages": (ChatMessage("x" * 33, "Hi"),)}, "a role of more than 32 characters"),
        (
            {"messages": (ChatMessage("user", "é" * 200_000),)},
            "messages of 400004 bytes, expected at most 262144",
        ),
        ({"messages": (ChatMessage("user", "\ud83d"),)}, "not Unicode"),
        ({"stop": ("\ud83d",)}, "not Unicode"),
        ({"stop": ("x",) * 17}, "stop is over"),
        ({"stop": ("x" * 257,)}, "stop is over"),
        ({"tokens_max": -1}, "tokens_max is -1"),
        ({"tokens_max": 2**31}, "tokens_max is 2147483648"),
        ({"received": (2**31,)}, "no token id"),
        ({"received": (-1,)}, "no token id"),
        ({"received": (1,) * 32_769}, "32769 received tokens"),
        ({"sampling": Sampling(temperature_ppm=-1)}, "temperature_ppm is -1"),
        ({"sampling": Sampling(repeat_penalty_ppm=0)}, "repeat_penalty_ppm is 0"),
        ({"sampling": Sampling(top_p_ppm=1_000_001)}, "top_p_ppm is 1000001"),
        ({"sampling": Sampling(seed=2**64)}, "seed is 18446744073709551616"),
        ({"task": "summary"}, "task is 'summary', expected one of chat, completion, embedding, check"),
        (
            {"task": "embedding"},
            "task is 'embedding', expected 'chat' or 'completion': model 'writer' writes",
        ),
        (
            {"task": "completion"},
            "messages has 1 items and inputs 0, expected only inputs for task 'completion'",
        ),
        ({"inputs": ("Once",)}, "messages has 1 items and inputs 1, expected only messages for task 'chat'"),
        ({"tokens_wanted": -1}, "tokens_wanted is -1, expected 0 to 2147483647"),
        ({"tokens_wanted": 2**31}, "tokens_wanted is 2147483648, expected 0 to 2147483647"),
        ({"claimed": (1,)}, "claimed has 1 tokens, expected none for task 'chat'"),
        ({"task": "check"}, "claimed has 0 tokens, expected one at least for task 'check'"),
        ({"task": "check", "claimed": (2**31,)}, "a claimed token is no token id"),
        ({"task": "check", "claimed": (1,) * 32_769}, "32769 claimed tokens, expected at most 32768"),
        (
            {"sampling": Sampling(top_logprobs=2)},
            "top_logprobs is 2, expected 0 where logprobs are not asked for",
        ),
        ({"sampling": Sampling(logprobs=True, top_logprobs=21)}, "top_logprobs is 21, expected 0 to 20"),
        (
            {"sampling": Sampling(logit_bias=((1, 1),) * 301)},
            "logit_bias has 301 items, expected at most 300",
        ),
        ({"sampling": Sampling(logit_bias=((-1, 1),))}, "logit_bias has 1 for token -1"),
        ({"sampling": Sampling(logit_bias=((1, 100_001),))}, "logit_bias has 100001 for token 1"),
        ({"sampling": Sampling(schema="{}", grammar="x")}, "schema and grammar are both given"),
        ({"sampling": Sampling(schema="{" * 16_385)}, "schema has 16385 characters, expected at most 16384"),
        ({"sampling": Sampling(grammar="\ud83d")}, "not Unicode"),
    ],
)
def test_a_field_out_of_bounds_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        check(replace(FINE, **change), WRITER)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": ("a",) * 257}, "inputs has 257 items, expected at most 85 with 384 dimensions"),
        ({"inputs": ("a", "")}, "item 1 of inputs is empty"),
        ({"inputs": ()}, "inputs 0"),
        ({"inputs": ("é" * 200_000, "b")}, "inputs of 400001 bytes, expected at most 262144"),
        ({"inputs": ("\ud83d", "b")}, "not Unicode"),
        ({"tokens_max": 767}, "tokens_max is 767, expected 768, the words of all vectors"),
        ({"tokens_max": 0}, "tokens_max is 0, expected 768"),
        ({"sampling": Sampling(logprobs=True)}, "sampling is given, expected none for task 'embedding'"),
        (
            {"task": "chat"},
            "task is 'chat', expected 'embedding': model 'embedder' embeds, in 384 dimensions",
        ),
    ],
)
def test_a_text_that_cannot_be_embedded_is_named(change: dict[str, object], message: str) -> None:
    request = replace(EMBEDDING, **change)
    if "tokens_max" not in change:
        request = replace(request, tokens_max=384 * len(request.inputs))

    with pytest.raises(BadRequest, match=message):
        check(request, EMBEDDER)


def test_more_inputs_than_a_job_may_have_are_refused() -> None:
    request = replace(EMBEDDING, inputs=("a",) * 257, tokens_max=257)

    with pytest.raises(BadRequest, match="inputs has 257 items, expected 1 to 256 for task 'embedding'"):
        check(request, echo_card(dimensions=1))


def test_a_completion_has_one_text() -> None:
    with pytest.raises(BadRequest, match="inputs has 2 items, expected 1 to 1 for task 'completion'"):
        check(replace(COMPLETION, inputs=("a", "b")), WRITER)
