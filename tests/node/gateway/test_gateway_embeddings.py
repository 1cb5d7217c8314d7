"""Embeddings over HTTP: texts in, vectors out, in as many jobs as it takes."""

import base64
import struct
from typing import Any

import httpx
import pytest

from node.chat import BadPrompt, ChatDelta, ChatFinished, ChatStarted
from runtime.engine import FinishReason
from tests.node.gateway.fake_node import BOB, JOB_ID, FakeNode

EMBEDDINGS = "/v1/embeddings"
STARTED = ChatStarted(JOB_ID, 1, BOB, "mini")
# (0.6, -0.8, 0) and (-1, 0, 0), in words
WORDS = (1_600_000, 200_000, 1_000_000, 0, 1_000_000, 1_000_000)
VECTORS = [[0.6, -0.8, 0.0], [-1.0, 0.0, 0.0]]


def finished(words: int, prompt_tokens: int = 5) -> ChatFinished:
    return ChatFinished(JOB_ID, FinishReason.STOP, prompt_tokens=prompt_tokens, completion_tokens=words)


def delta(words: tuple[int, ...]) -> ChatDelta:
    return ChatDelta("", len(words), words=words)


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "mini", "input": ["a", "b"]} | fields


@pytest.fixture
def node() -> FakeNode:
    # in pieces that end within a vector, as frames do
    return FakeNode([STARTED, delta(WORDS[:4]), delta(WORDS[4:]), finished(6)])


async def test_each_text_has_its_vector_in_the_order_of_the_texts(
    client: httpx.AsyncClient, node: FakeNode
) -> None:
    response = await client.post(EMBEDDINGS, json=body(), headers={"x-agora-privacy": "mesh"})

    assert response.status_code == 200
    assert response.headers["x-agora-job"] == JOB_ID
    assert response.json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": VECTORS[0]},
            {"object": "embedding", "index": 1, "embedding": VECTORS[1]},
        ],
        "model": "mini",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }
    (asked,) = node.requests
    assert (asked.task, asked.model, asked.inputs, asked.messages) == ("embedding", "mini", ("a", "b"), ())
    assert (asked.tokens_max, asked.privacy, asked.session) == (6, "mesh", None)


async def test_base64_is_float32_in_little_endian(client: httpx.AsyncClient) -> None:
    """What the stock client asks for by default, and unpacks by itself."""
    response = await client.post(EMBEDDINGS, json=body(encoding_format="base64"))

    packed = [base64.b64decode(each["embedding"]) for each in response.json()["data"]]
    assert packed == [struct.pack("<3f", *vector) for vector in VECTORS]


@pytest.mark.parametrize("model", ["mini", "auto"])
async def test_a_single_text_may_stand_alone_and_auto_is_a_model_that_embeds(
    client: httpx.AsyncClient, node: FakeNode, model: str
) -> None:
    node.script = [STARTED, delta(WORDS[:3]), finished(3)]

    response = await client.post(EMBEDDINGS, json=body(model=model, input="a", dimensions=3))

    assert [each["embedding"] for each in response.json()["data"]] == VECTORS[:1]
    assert (node.requests[0].model, node.requests[0].inputs) == ("mini", ("a",))


async def test_more_texts_than_a_job_carries_are_several_jobs(
    client: httpx.AsyncClient, node: FakeNode
) -> None:
    """One job's prompt travels in one message, and its words in as many as a failover can hand on."""
    texts = [f"{index}" for index in range(300)]
    node.script = [
        [STARTED, delta(WORDS[:3] * 256), finished(768, prompt_tokens=256)],
        [STARTED, delta(WORDS[3:] * 44), finished(132, prompt_tokens=44)],
    ]

    response = await client.post(EMBEDDINGS, json=body(input=texts))

    answer = response.json()
    assert [each["embedding"] for each in answer["data"]] == [VECTORS[0]] * 256 + [VECTORS[1]] * 44
    assert [each["index"] for each in answer["data"]] == list(range(300))
    assert answer["usage"] == {"prompt_tokens": 300, "total_tokens": 300}
    assert response.headers["x-agora-job"] == f"{JOB_ID}, {JOB_ID}"
    assert [asked.inputs for asked in node.requests] == [tuple(texts[:256]), tuple(texts[256:])]
    assert [asked.tokens_max for asked in node.requests] == [768, 132]


async def test_long_texts_are_several_jobs(client: httpx.AsyncClient, node: FakeNode) -> None:
    texts = ["a" * 100_000, "b" * 100_000, "c" * 100_000]
    node.script = [
        [STARTED, delta(WORDS), finished(6)],
        [STARTED, delta(WORDS[:3]), finished(3)],
    ]

    response = await client.post(EMBEDDINGS, json=body(input=texts))

    assert response.status_code == 200
    assert [[text[0] for text in asked.inputs] for asked in node.requests] == [["a", "b"], ["c"]]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"input": None}, "input", "input is null, expected a text or a list of 1 to 2048 texts"),
        ({"input": []}, "input", "input has 0 texts, expected a text or a list of 1 to 2048 texts"),
        ({"input": ["a"] * 2_049}, "input", "input has 2049 texts, expected a text or a list of 1 to 2048 texts"),
        ({"input": [1, 2]}, "input", "input is a list of token ids, which differ from model to model; expected a text or a list of 1 to 2048 texts"),
        ({"input": [[1], [2]]}, "input", "input is a list of token ids, which differ from model to model; expected a text or a list of 1 to 2048 texts"),
        ({"input": ["a", ""]}, "input[1]", "input[1] is empty, expected a text of 1 character or more"),
        ({"input": ["a", {}]}, "input[1]", "input[1] is an object, expected a text"),
        ({"input": "a" * 250_000}, "input", "input has 250000 bytes, expected 245760 at most"),
        ({"encoding_format": "int8"}, "encoding_format", "encoding_format is 'int8', expected 'float' or 'base64'"),
        ({"dimensions": 2}, "dimensions", "dimensions is 2, expected none or the 3 of model 'mini'"),
        ({"dimensions": -1}, "dimensions", "dimensions is -1, expected none or the 3 of model 'mini'"),
        ({"dimensions": "3"}, "dimensions", "dimensions: expected `int | null`, got `str`"),
        ({"model": "tiny"}, "model", "model 'tiny' writes and embeds no texts, expected one of: mini"),
        ({"model": ""}, "model", "model has 0 characters, expected 1 to 256"),
    ],
)  # fmt: skip
async def test_a_wrong_field_is_named_with_what_was_found_and_what_is_allowed(
    client: httpx.AsyncClient, node: FakeNode, fields: dict[str, Any], param: str, message: str
) -> None:
    response = await client.post(EMBEDDINGS, json=body(**fields))

    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["param"], error["message"], error["type"]) == (param, message, "invalid_request_error")
    assert node.requests == []


async def test_a_chat_with_a_model_that_embeds_is_refused(client: httpx.AsyncClient, node: FakeNode) -> None:
    asked = {"model": "mini", "messages": [{"role": "user", "content": "hi"}]}

    response = await client.post("/v1/chat/completions", json=asked)

    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "model")
    assert error["message"] == "model 'mini' embeds texts and writes none, expected one of: tiny"
    assert node.requests == []


async def test_an_unknown_model_is_not_found(client: httpx.AsyncClient, node: FakeNode) -> None:
    response = await client.post(EMBEDDINGS, json=body(model="ada"))

    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    assert node.requests == []


async def test_a_text_that_the_engine_refuses_is_the_clients_fault(
    client: httpx.AsyncClient, node: FakeNode
) -> None:
    node.script = [STARTED, BadPrompt("an input has 600 tokens, expected 512 at most")]

    response = await client.post(EMBEDDINGS, json=body())

    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "input")
    assert error["message"] == "an input has 600 tokens, expected 512 at most"


@pytest.mark.parametrize(
    "words", [(), WORDS[:5], (*WORDS, 0), (*WORDS[:5], 2_000_001)], ids=["none", "few", "many", "above 1"]
)
async def test_a_seller_that_makes_up_numbers_is_not_passed_on(
    client: httpx.AsyncClient, node: FakeNode, words: tuple[int, ...]
) -> None:
    """A vector of the wrong length would break the client's index; it is told to ask again, and nothing crashed."""
    node.script = [STARTED, delta(words), finished(len(words))]

    response = await client.post(EMBEDDINGS, json=body())

    assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
    assert node.journal.recent() == ()


@pytest.mark.parametrize("script", [[], [STARTED], [finished(0)]])
async def test_a_job_that_the_node_left_unfinished_is_no_answer(
    client: httpx.AsyncClient, node: FakeNode, script: list[Any]
) -> None:
    node.script = script

    response = await client.post(EMBEDDINGS, json=body())

    assert response.status_code == 500
    assert [event.fields["error"] for event in node.journal.recent()] == ["LocalProtocolError"]
