"""A raw text to go on from, over HTTP: what is asked of the node, and what the client is told."""

from typing import Any

import httpx
import pytest

from node.chat import BadPrompt, ChatDelta, StillLoading
from node.gateway.bounds import Bounds
from runtime.engine import Sampling, no_room
from tests.node.gateway.fake_node import FINISHED, HELLO, JOB_ID, STARTED, FakeNode
from tests.node.gateway.raw_http import connect, events

COMPLETION = "/v1/completions"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "Once upon"} | fields


async def test_a_whole_completion_has_the_shape_that_openai_clients_read(client: httpx.AsyncClient) -> None:
    response = await client.post(COMPLETION, json=body())

    answer = response.json()
    assert response.status_code == 200
    assert response.headers["x-agora-job"] == JOB_ID
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "id": f"cmpl-{JOB_ID}",
        "object": "text_completion",
        "model": "tiny",
        "choices": [{"text": "Hello “you”", "index": 0, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }


async def test_a_streamed_completion_is_one_chunk_for_each_delta(client: httpx.AsyncClient) -> None:
    asked = body(stream=True, stream_options={"include_usage": True})

    response = await client.post(COMPLETION, json=asked)

    *chunks, usage, done = events(response.text)
    assert response.headers["x-agora-job"] == JOB_ID
    assert done == "[DONE]"
    assert {(each["id"], each["object"]) for each in chunks} == {(f"cmpl-{JOB_ID}", "text_completion")}
    assert [each["choices"] for each in chunks] == [
        [{"text": "Hel", "index": 0, "logprobs": None, "finish_reason": None}],
        [{"text": "lo ", "index": 0, "logprobs": None, "finish_reason": None}],
        [{"text": "“you”", "index": 0, "logprobs": None, "finish_reason": None}],
        [{"text": "", "index": 0, "logprobs": None, "finish_reason": "stop"}],
    ]
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 10)


async def test_an_empty_completion_still_says_why_it_ended(client: httpx.AsyncClient, node: FakeNode) -> None:
    node.script = [STARTED, FINISHED]

    told = events((await client.post(COMPLETION, json=body(stream=True))).text)

    assert [each["choices"][0]["finish_reason"] for each in told[:-1]] == ["stop"]


@pytest.mark.parametrize("prompt", ["Once upon", ["Once upon"]])
async def test_what_is_asked_reaches_the_node_as_a_text_without_a_chat(
    client: httpx.AsyncClient, node: FakeNode, prompt: Any
) -> None:
    await client.post(
        COMPLETION,
        json=body(
            prompt=prompt, max_tokens=9, temperature=0.5, seed=3, stop="x", best_of=1, echo=False, suffix=""
        ),
        headers={"x-agora-privacy": "mesh"},
    )

    (asked,) = node.requests
    assert (asked.task, asked.inputs, asked.messages) == ("completion", ("Once upon",), ())
    assert (asked.tokens_max, asked.stop, asked.privacy) == (9, ("x",), "mesh")
    assert asked.sampling == Sampling(temperature_ppm=500_000, seed=3)


async def test_a_cap_that_nobody_named_is_that_of_the_older_api(
    client: httpx.AsyncClient, node: FakeNode
) -> None:
    """Programs written for it rely on short answers."""
    await client.post(COMPLETION, json=body())

    assert node.requests[0].tokens_max == 16


async def test_a_text_is_no_conversation_unless_the_client_says_so(
    client: httpx.AsyncClient, node: FakeNode
) -> None:
    """A lease for each raw text would keep sellers waiting for a second one that never comes."""
    await client.post(COMPLETION, json=body())
    await client.post(COMPLETION, json=body(), headers={"x-agora-session": "s"})
    await client.post(COMPLETION, json=body(prompt="other"), headers={"x-agora-session": "s"})

    first, second, third = (asked.session for asked in node.requests)
    assert first is None
    assert second == third is not None


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": None}, "prompt", "prompt is null, expected a text or a list of one text"),
        ({"prompt": 5}, "prompt", "prompt is a number, expected a text or a list of one text"),
        ({"prompt": True}, "prompt", "prompt is a boolean, expected a text or a list of one text"),
        ({"prompt": {}}, "prompt", "prompt is an object, expected a text or a list of one text"),
        ({"prompt": []}, "prompt", "prompt has 0 texts, expected a text or a list of one text"),
        ({"prompt": ["a", "b"]}, "prompt", "prompt has 2 texts, expected a text or a list of one text"),
        ({"prompt": ""}, "prompt", "prompt is empty, expected a text of 1 character or more"),
        ({"prompt": [""]}, "prompt[0]", "prompt[0] is empty, expected a text of 1 character or more"),
        ({"prompt": [None]}, "prompt[0]", "prompt[0] is null, expected a text"),
        ({"prompt": [[1, 2]]}, "prompt", "prompt is a list of token ids, which differ from model to model; expected a text or a list of one text"),
        ({"prompt": [7]}, "prompt", "prompt is a list of token ids, which differ from model to model; expected a text or a list of one text"),
        ({"prompt": "é" * 150_000}, "prompt", "prompt has 300000 bytes, expected 245760 at most"),
        ({"suffix": "x"}, "suffix", "suffix is not supported, expected none"),
        ({"echo": True}, "echo", "echo is not supported, expected none"),
        ({"best_of": 2}, "best_of", "best_of is 2, expected 1"),
        ({"n": 2}, "n", "n is 2, expected 1"),
        ({"logprobs": 6}, "logprobs", "logprobs is 6, expected 0 to 5"),
        ({"logprobs": -1}, "logprobs", "logprobs is -1, expected 0 to 5"),
        ({"logprobs": True}, "logprobs", "logprobs: expected `int | null`, got `bool`"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens is 0, expected 1 to 32768"),
        ({"temperature": 1e300}, "temperature", "temperature is 1e+300, expected 0 to 2"),
        ({"model": "mini"}, "model", "model 'mini' embeds texts and writes none, expected one of: tiny"),
    ],
)  # fmt: skip
async def test_a_wrong_field_is_named_with_what_was_found_and_what_is_allowed(
    client: httpx.AsyncClient, node: FakeNode, fields: dict[str, Any], param: str, message: str
) -> None:
    response = await client.post(COMPLETION, json=body(**fields))

    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["param"], error["message"], error["type"]) == (param, message, "invalid_request_error")
    assert node.requests == []


async def test_a_list_of_token_ids_is_refused_as_such(client: httpx.AsyncClient, node: FakeNode) -> None:
    """Ids of another model's vocabulary would silently be another text."""
    response = await client.post(COMPLETION, json=body(prompt=[1, 2, 3]))

    assert response.status_code == 400
    assert "token ids" in response.json()["error"]["message"]
    assert node.requests == []


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (COMPLETION, "max_tokens"),
        ("/v1/chat/completions", "max_tokens"),
        ("/v1/chat/completions", "max_completion_tokens"),
    ],
)
async def test_more_tokens_than_the_context_has_are_refused(
    client: httpx.AsyncClient, node: FakeNode, path: str, field: str
) -> None:
    """But only those that the client names: our own cap gives way to the context."""
    node.context_tokens = 512
    asked = {"model": "tiny", "prompt": "Once", "messages": [{"role": "user", "content": "hi"}]}

    refused = await client.post(path, json=asked | {field: 512})
    answered = [await client.post(path, json=asked), await client.post(path, json=asked | {field: 511})]

    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["code"]) == (400, field, "context_length_exceeded")
    assert (
        error["message"]
        == f"{field} is 512, expected 511 at most: the context of model 'tiny' has 512 tokens"
    )
    assert [each.status_code for each in answered] == [200, 200]
    assert len(node.requests) == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_more_tokens_than_the_prompt_leaves_are_refused_by_the_clients_own_field(
    client: httpx.AsyncClient, node: FakeNode, field: str, stream: bool
) -> None:
    node.script = [STARTED, BadPrompt(no_room(200, 112, 400))]
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": stream}

    refused = await client.post("/v1/chat/completions", json=asked | {field: 200})

    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["code"]) == (400, field, "context_length_exceeded")
    assert (
        error["message"]
        == f"{field} is 200, expected 112 at most: the prompt has 400 tokens of the context's 512"
    )


async def test_only_a_cap_that_the_client_named_must_fit(client: httpx.AsyncClient, node: FakeNode) -> None:
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
    for path, asked in (
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", chat | {"max_tokens": 7}),
        ("/v1/chat/completions", chat | {"max_tokens": 7, "max_completion_tokens": 8}),
        (COMPLETION, body()),
        (COMPLETION, body(max_tokens=9)),
    ):
        assert (await client.post(path, json=asked)).status_code == 200

    found = [(asked.tokens_max, asked.tokens_wanted) for asked in node.requests]
    assert found == [(1_024, 0), (7, 7), (8, 8), (16, 0), (9, 9)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_is_refused_is_named_by_its_own_field(
    client: httpx.AsyncClient, node: FakeNode, stream: bool
) -> None:
    node.script = [STARTED, BadPrompt("the prompt has 600 tokens, expected 512 at most")]

    response = await client.post(COMPLETION, json=body(stream=stream))

    assert response.status_code == 400
    assert (response.json()["error"]["param"], response.json()["error"]["code"]) == (
        "prompt",
        "invalid_prompt",
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("retry_after_s", "header"), [(0.2, "1"), (11.2, "12")], ids=["nearly there", "a while"]
)
async def test_a_model_that_is_still_loading_says_how_far_it_is(
    client: httpx.AsyncClient, node: FakeNode, stream: bool, retry_after_s: float, header: str
) -> None:
    node.script = [StillLoading("model tiny is being loaded", done=0.4, retry_after_s=retry_after_s)]

    response = await client.post(COMPLETION, json=body(stream=stream))

    assert (response.status_code, response.headers["retry-after"]) == (503, header)
    assert response.json()["error"] == {
        "message": "model tiny is being loaded",
        "type": "server_error",
        "param": None,
        "code": "model_loading",
        "progress": 0.4,
    }


class TestPlaces:
    """Chats, completions and embeddings share the places."""

    @pytest.fixture
    def bounds(self) -> Bounds:
        return Bounds(chats=1)

    async def test_more_requests_than_there_are_places_are_told_to_come_again(
        self, url: str, client: httpx.AsyncClient, node: FakeNode
    ) -> None:
        node.script = [STARTED, ChatDelta("a", 1), node.gate]

        async with connect(url) as raw:
            await raw.post(COMPLETION, body(stream=True))
            await raw.until(b'"text":"a"')
            others = [
                await client.post(COMPLETION, json=body()),
                await client.post("/v1/embeddings", json={"model": "mini", "input": "a"}),
                await client.post(
                    "/v1/chat/completions",
                    json={"model": "tiny", "messages": [{"role": "user", "content": "a"}]},
                ),
            ]
            node.gate.set()
        node.script = list(HELLO)

        assert [(each.status_code, each.headers["retry-after"]) for each in others] == [(429, "1")] * 3
        assert len(node.requests) == 1
