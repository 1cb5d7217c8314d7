"""How likely each token was, over HTTP: in chats and completions, whole and streamed."""

from typing import Any

import httpx
import pytest

from node.chat import ChatDelta
from runtime.engine import TokenLogprob
from tests.node.gateway.fake_node import FINISHED, HELLO, STARTED, FakeNode
from tests.node.gateway.raw_http import events

USER = [{"role": "user", "content": "hi"}]
# a character of three bytes comes in two tokens: its text is certain only with the second
HALF = TokenLogprob(b"\xe2\x80", 250_000, ((b"\xe2\x80", 250_000), (b"\xe2", 2_000_000)))
REST = TokenLogprob(b"\x9c", 0, ((b"\x9c", 0), (b"\x9d", 9_000_000)))
WORD = TokenLogprob(b"Hi", 1_500_000, ((b"Oh", 400_000), (b"Hi", 1_500_000)))
LAST = TokenLogprob(b" you", 693_147, ())
SCRIPT = [STARTED, ChatDelta("", 1, (HALF,)), ChatDelta("“Hi", 2, (REST, WORD)), ChatDelta(" you", 1, (LAST,)), FINISHED]  # fmt: skip
TOKENS = [
    {
        "token": "�", "logprob": -0.25, "bytes": [0xE2, 0x80],
        "top_logprobs": [
            {"token": "�", "logprob": -0.25, "bytes": [0xE2, 0x80]},
            {"token": "�", "logprob": -2.0, "bytes": [0xE2]},
        ],
    },
    {
        "token": "�", "logprob": 0.0, "bytes": [0x9C],
        "top_logprobs": [
            {"token": "�", "logprob": 0.0, "bytes": [0x9C]},
            {"token": "�", "logprob": -9.0, "bytes": [0x9D]},
        ],
    },
    {
        "token": "Hi", "logprob": -1.5, "bytes": [72, 105],
        "top_logprobs": [
            {"token": "Oh", "logprob": -0.4, "bytes": [79, 104]},
            {"token": "Hi", "logprob": -1.5, "bytes": [72, 105]},
        ],
    },
    {"token": " you", "logprob": -0.693147, "bytes": [32, 121, 111, 117], "top_logprobs": []},
]  # fmt: skip


@pytest.fixture
def node() -> FakeNode:
    return FakeNode(list(SCRIPT))


async def chat(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json={"model": "tiny", "messages": USER} | fields)


async def complete(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/completions", json={"model": "tiny", "prompt": "hi"} | fields)


async def test_a_whole_chat_tells_of_every_token_and_its_rivals(
    client: httpx.AsyncClient, node: FakeNode
) -> None:
    response = await chat(client, logprobs=True, top_logprobs=2)

    (choice,) = response.json()["choices"]
    assert choice["message"]["content"] == "“Hi you"
    assert choice["logprobs"] == {"content": TOKENS, "refusal": None}
    assert (node.requests[0].sampling.logprobs, node.requests[0].sampling.top_logprobs) == (True, 2)


async def test_a_streamed_chat_tells_of_each_token_with_its_chunk(client: httpx.AsyncClient) -> None:
    response = await chat(client, logprobs=True, top_logprobs=2, stream=True)

    told = [each["choices"][0]["logprobs"] for each in events(response.text)[:-1]]
    assert told == [
        None,
        {"content": TOKENS[:1], "refusal": None},
        {"content": TOKENS[1:3], "refusal": None},
        {"content": TOKENS[3:], "refusal": None},
        None,
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_was_not_asked_for_is_not_told(
    client: httpx.AsyncClient, node: FakeNode, stream: bool
) -> None:
    responses = [await chat(client, stream=stream), await complete(client, stream=stream)]

    for response in responses:
        told = events(response.text)[:-1] if stream else [response.json()]
        assert {str(each["choices"][0]["logprobs"]) for each in told} == {"None"}
    assert [asked.sampling.logprobs for asked in node.requests] == [False, False]


async def test_a_completion_tells_in_four_lists_of_one_length(
    client: httpx.AsyncClient, node: FakeNode
) -> None:
    """Tokens that are no text are written as their bytes, so that no two of them share a key."""
    response = await complete(client, logprobs=2)

    (choice,) = response.json()["choices"]
    assert choice["text"] == "“Hi you"
    assert choice["logprobs"] == {
        "tokens": ["bytes:\\xe2\\x80", "bytes:\\x9c", "Hi", " you"],
        "token_logprobs": [-0.25, 0.0, -1.5, -0.693147],
        "top_logprobs": [
            {"bytes:\\xe2\\x80": -0.25, "bytes:\\xe2": -2.0},
            {"bytes:\\x9c": 0.0, "bytes:\\x9d": -9.0},
            {"Oh": -0.4, "Hi": -1.5},
            {" you": -0.693147},
        ],
        "text_offset": [0, 0, 1, 3],
    }
    assert (node.requests[0].sampling.logprobs, node.requests[0].sampling.top_logprobs) == (True, 2)


async def test_the_offsets_of_a_streamed_completion_go_on_from_chunk_to_chunk(
    client: httpx.AsyncClient,
) -> None:
    response = await complete(client, logprobs=0, stream=True)

    told = [each["choices"][0]["logprobs"] for each in events(response.text)[:-1]]
    assert [each and each["text_offset"] for each in told] == [[0], [0, 1], [3], None]


async def test_an_answer_without_a_token_has_empty_lists(client: httpx.AsyncClient, node: FakeNode) -> None:
    node.script = [STARTED, FINISHED]

    chatted, completed = await chat(client, logprobs=True), await complete(client, logprobs=0)

    assert chatted.json()["choices"][0]["logprobs"] == {"content": [], "refusal": None}
    assert completed.json()["choices"][0]["logprobs"] == {
        "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"logprobs": 2}, "logprobs", "logprobs: expected `bool | null`, got `int`"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "top_logprobs is 21, expected 0 to 20"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", "top_logprobs is -1, expected 0 to 20"),
        ({"top_logprobs": 3}, "top_logprobs", "top_logprobs is 3 without logprobs, expected logprobs to be true"),
    ],
)  # fmt: skip
async def test_a_wrong_number_of_rivals_is_refused(
    client: httpx.AsyncClient, node: FakeNode, fields: dict[str, Any], param: str, message: str
) -> None:
    node.script = list(HELLO)

    response = await chat(client, **fields)

    error = response.json()["error"]
    assert (response.status_code, error["param"], error["message"]) == (400, param, message)
    assert node.requests == []
