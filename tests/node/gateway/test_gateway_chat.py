"""A chat over HTTP: what is asked of the node, what the client is told, and when it ends."""

from dataclasses import replace
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from node.chat import BadPrompt, ChatDelta, ChatError, DeclineView, Unsold
from node.gateway.bounds import Bounds
from protocol.errors import LocalProtocolError
from runtime.engine import ChatMessage, Sampling
from tests.node.gateway.fake_node import ANN, BOB, FINISHED, HELLO, JOB_ID, STARTED, FakeNode
from tests.node.gateway.raw_http import connect, events

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": USER} | fields


async def test_a_whole_answer_has_the_shape_that_openai_clients_read(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=body())

    answer = response.json()
    assert response.status_code == 200
    assert response.headers["x-agora-job"] == JOB_ID
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "id": f"chatcmpl-{JOB_ID}",
        "object": "chat.completion",
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello “you”", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }


async def test_a_stream_is_one_chunk_for_each_delta(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=body(stream=True))

    told = events(response.text)
    assert response.headers["x-agora-job"] == JOB_ID
    assert response.headers["content-type"].startswith("text/event-stream")
    assert told.pop() == "[DONE]"
    assert [(each["choices"][0]["delta"], each["choices"][0]["finish_reason"]) for each in told] == [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "Hel"}, None),
        ({"content": "lo "}, None),
        ({"content": "“you”"}, None),
        ({}, "stop"),
    ]
    assert {each["id"] for each in told} == {f"chatcmpl-{JOB_ID}"}
    assert all("usage" not in each for each in told)


async def test_usage_comes_in_a_last_chunk_when_it_is_asked_for(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=body(stream=True, stream_options={"include_usage": True}))

    *others, last, done = events(response.text)
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert all(each["usage"] is None for each in others)


async def test_the_end_of_a_stream_waits_for_what_the_node_has_to_settle(url: str, node: FakeNode) -> None:
    """Whoever has read `[DONE]` finds the job's price and receipt; and leaving then cuts nothing off."""
    gate = trio.Event()
    node.script = [*HELLO, gate]

    async with connect(url) as raw:
        await raw.post(CHAT, body(stream=True))
        before = await raw.until("“you”".encode())
        await trio.testing.wait_all_tasks_blocked()
        assert not node.chat_closed.is_set()
        gate.set()
        after = await raw.until(b"[DONE]")

    assert b'finish_reason":"stop' not in before
    assert b'finish_reason":"stop' in after


async def test_a_second_seller_does_not_show_in_the_stream(client: httpx.AsyncClient, node: FakeNode) -> None:
    """The client sees one unbroken stream, with one role and one id."""
    node.script = [STARTED, ChatDelta("a", 1), replace(STARTED, attempt=2), ChatDelta("b", 1), FINISHED]

    told = events((await client.post(CHAT, json=body(stream=True))).text)

    assert [each["choices"][0]["delta"] for each in told[:-1]] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"content": "b"},
        {},
    ]


async def test_an_answer_without_text_is_still_an_answer(client: httpx.AsyncClient, node: FakeNode) -> None:
    node.script = [STARTED, FINISHED]

    told = events((await client.post(CHAT, json=body(stream=True))).text)
    whole = (await client.post(CHAT, json=body())).json()

    assert [each["choices"][0]["delta"] for each in told[:-1]] == [{"role": "assistant", "content": ""}, {}]
    assert whole["choices"][0]["message"]["content"] == ""


async def test_what_is_asked_reaches_the_node_in_its_own_terms(
    client: httpx.AsyncClient, node: FakeNode
) -> None:
    await client.post(
        CHAT,
        json=body(
            messages=[
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            ],
            max_tokens=9, max_completion_tokens=12, temperature=0.1, top_p=0.95, top_k=40, min_p=0.05,
            repeat_penalty=1.1, frequency_penalty=-0.5, presence_penalty=2, seed=7, stop=["x", "y"],
            user="u", store=True, metadata={"a": "b"}, n=1, tools=[], tool_choice="auto", logprobs=False,
            response_format={"type": "text"},
        ),
        headers={"x-agora-privacy": "mesh"},
    )  # fmt: skip

    asked = node.requests[0]
    assert asked.messages == (ChatMessage("system", "be brief"), ChatMessage("user", "ab"))
    assert (asked.tokens_max, asked.stop, asked.privacy) == (12, ("x", "y"), "mesh")
    assert asked.sampling == Sampling(
        temperature_ppm=100_000,
        top_p_ppm=950_000,
        top_k=40,
        min_p_ppm=50_000,
        repeat_penalty_ppm=1_100_000,
        frequency_penalty_ppm=-500_000,
        presence_penalty_ppm=2_000_000,
        seed=7,
    )


async def test_without_terms_an_answer_is_greedy_and_bounded(
    client: httpx.AsyncClient, node: FakeNode
) -> None:
    await client.post(CHAT, json=body())

    assert node.requests[0].sampling == Sampling()
    assert node.requests[0].tokens_max == 1_024
    assert node.requests[0].privacy == "owner"


async def test_sampling_without_a_seed_draws_one(client: httpx.AsyncClient, node: FakeNode) -> None:
    """Else two requests for variety would give one answer twice."""
    for _ in range(2):
        await client.post(CHAT, json=body(temperature=1))

    first, second = (asked.sampling.seed for asked in node.requests)
    assert first != second


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"temperature": 2.1}, "temperature", "temperature is 2.1, expected 0 to 2"),
        ({"temperature": "warm"}, "temperature", "temperature: expected `float | null`, got `str`"),
        ({"top_p": -1}, "top_p", "top_p is -1.0, expected 0 to 1"),
        ({"top_k": 2_000_000}, "top_k", "top_k is 2000000, expected 0 to 1000000"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens is 0, expected 1 to 32768"),
        ({"max_completion_tokens": 32_769}, "max_completion_tokens", "max_completion_tokens is 32769, expected 1 to 32768"),
        ({"seed": -1}, "seed", "seed is -1, expected 0 to 4294967295"),
        ({"seed": 10**40}, "seed", f"seed is 1{'0' * 31}…, expected 0 to 4294967295"),
        ({"n": 2}, "n", "n is 2, expected 1"),
        ({"stop": ["a"] * 9}, "stop", "stop has 9 texts, expected 8 at most"),
        ({"stop": ""}, "stop", "stop has a text of 0 characters, expected 1 to 256"),
        ({"tools": [{"type": "function"}]}, "tools", "tools is not supported, expected none"),
        ({"tool_choice": "required"}, "tool_choice", "tool_choice is not supported, expected none"),
        ({"repeat_penalty": 0}, "repeat_penalty", "repeat_penalty is 0.0, expected 0.01 to 2"),
        ({"modalities": ["audio"]}, "modalities", "modalities: expected ['text']"),
        ({"model": ""}, "model", "model has 0 characters, expected 1 to 256"),
        ({"messages": []}, "messages", "messages has 0 messages, expected 1 to 1024"),
        ({"messages": USER * 10_000}, "messages", "messages has 10000 messages, expected 1 to 1024"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "messages[0].role is 'tool', expected system, user or assistant"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "messages[0].content is missing, expected a text or a list of text parts"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "messages[0].content[0] is of type 'image_url', expected 'text' with a text"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0]", "messages[0] calls a tool; tools are not supported"),
        ({"messages": [{"role": "user", "content": "é" * 150_000}]}, "messages", "messages have 300032 bytes, expected 245760 at most"),
    ],
)  # fmt: skip
async def test_a_wrong_field_is_named_with_what_was_found_and_what_is_allowed(
    client: httpx.AsyncClient, node: FakeNode, fields: dict[str, Any], param: str, message: str
) -> None:
    response = await client.post(CHAT, json=body(**fields))

    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["param"], error["message"], error["type"]) == (param, message, "invalid_request_error")
    assert node.requests == []


async def test_a_wrong_privacy_class_is_refused(client: httpx.AsyncClient, node: FakeNode) -> None:
    """Taking a typing error for the default could send a prompt further than its author meant."""
    response = await client.post(CHAT, json=body(), headers={"x-agora-privacy": "Local"})

    assert response.status_code == 400
    assert response.json()["error"]["message"] == "X-Agora-Privacy is 'Local', expected local, owner or mesh"
    assert node.requests == []


async def test_an_unknown_model_is_not_found_and_the_known_ones_are_named(client: httpx.AsyncClient) -> None:
    for stream in (False, True):
        response = await client.post(CHAT, json=body(model="gpt-9", stream=stream))

        assert response.status_code == 404
        assert response.json() == {
            "error": {
                "message": "no model 'gpt-9' on this mesh; it has: tiny",
                "type": "invalid_request_error",
                "param": "model",
                "code": "model_not_found",
                "models": ["tiny"],
            }
        }


@pytest.mark.parametrize("stream", [False, True])
async def test_unsold_names_every_decline_with_its_reason(
    client: httpx.AsyncClient, node: FakeNode, stream: bool
) -> None:
    declines = (DeclineView(ANN, "busy", "2 of 2 slots"), DeclineView(BOB, "silent", ""))
    node.script = [Unsold("nobody took the job", declines, retry_after_s=3)]

    response = await client.post(CHAT, json=body(stream=stream))

    assert response.status_code == 503
    assert response.headers["retry-after"] == "3"
    assert response.json()["error"] == {
        "message": "nobody took the job: AAAAAAAA: busy (2 of 2 slots); BBBBBBBB: silent",
        "type": "server_error",
        "param": None,
        "code": "unsold",
        "declines": [
            {"peer_id": ANN, "reason": "busy", "detail": "2 of 2 slots"},
            {"peer_id": BOB, "reason": "silent", "detail": ""},
        ],
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_the_seller_refuses_is_the_clients_fault(
    client: httpx.AsyncClient, node: FakeNode, stream: bool
) -> None:
    """A stream says nothing before its first token, so that this still gets its status."""
    node.script = [STARTED, BadPrompt("the prompt has 600 tokens, expected 512 at most")]

    response = await client.post(CHAT, json=body(stream=stream))

    assert response.status_code == 400
    assert response.json()["error"]["message"] == "the prompt has 600 tokens, expected 512 at most"


async def test_a_failure_inside_a_stream_is_its_last_event(client: httpx.AsyncClient, node: FakeNode) -> None:
    node.script = [STARTED, ChatDelta("a", 1), ChatError("every seller failed")]

    response = await client.post(CHAT, json=body(stream=True))

    told = events(response.text)
    assert response.status_code == 200
    assert told[-1]["error"] == {
        "message": "every seller failed",
        "type": "server_error",
        "param": None,
        "code": "unavailable",
    }


@pytest.mark.parametrize("bug", [LocalProtocolError("secret prompt"), ZeroDivisionError("secret prompt")])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("before", [[], [STARTED, ChatDelta("a", 1)]])
async def test_a_bug_is_journaled_without_its_text(
    client: httpx.AsyncClient, node: FakeNode, bug: Exception, stream: bool, before: list[Any]
) -> None:
    """An exception's text may quote a prompt: neither the client nor the log gets it."""
    node.script = [*before, bug]

    response = await client.post(CHAT, json=body(stream=stream))

    assert response.status_code == (200 if stream and before else 500)
    assert "internal error; 'agora logs' shows what happened" in response.text
    assert "secret" not in response.text
    (event,) = node.journal.recent()
    assert (event.name, event.fields["error"]) == ("request_crashed", type(bug).__name__)
    assert "secret" not in str(event.fields)


@pytest.mark.parametrize("script", [[], [STARTED], [FINISHED]])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_that_the_node_left_unfinished_is_no_answer(
    client: httpx.AsyncClient, node: FakeNode, script: list[Any], stream: bool
) -> None:
    """Half an answer may not look like a whole one."""
    node.script = script

    response = await client.post(CHAT, json=body(stream=stream))

    assert response.status_code == 500
    assert [event.fields["error"] for event in node.journal.recent()] == ["LocalProtocolError"]


async def test_a_client_that_leaves_ends_its_job_at_once(url: str, node: FakeNode) -> None:
    """Nobody wants the answer any more, so the seller's slot is freed: long before a sign of life finds out, at 5 s."""
    node.script = [STARTED, ChatDelta("a", 1), trio.Event()]

    async with connect(url) as raw:
        await raw.post(CHAT, body(stream=True))
        await raw.until(b'{"content":"a"}')
        assert not node.chat_closed.is_set()

    with trio.fail_after(2):
        await node.chat_closed.wait()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_the_first_token_ends_its_job(
    url: str, node: FakeNode, stream: bool
) -> None:
    node.script = [STARTED, trio.Event()]

    async with connect(url) as raw:
        await raw.post(CHAT, body(stream=stream))
        await node.is_chatting.wait()

    with trio.fail_after(5):
        await node.chat_closed.wait()
    assert node.journal.recent() == ()


async def test_each_delta_is_written_when_it_comes(url: str, node: FakeNode) -> None:
    """Nothing on the way waits for more text."""
    gate = trio.Event()
    node.script = [STARTED, ChatDelta("a", 1), gate, ChatDelta("b", 1), FINISHED]

    async with connect(url) as raw:
        await raw.post(CHAT, body(stream=True))
        first = await raw.until(b'{"content":"a"}')
        gate.set()
        await raw.until(b'{"content":"b"}')

    assert b"HTTP/1.1 200" in first


class TestWaiting:
    """While nothing comes from the node."""

    @pytest.fixture
    def bounds(self) -> Bounds:
        return Bounds(keep_alive_s=0.02, chats=1)

    async def test_a_waiting_stream_shows_signs_of_life(self, url: str, node: FakeNode) -> None:
        gate = trio.Event()
        node.script = [STARTED, gate, *HELLO[1:]]

        async with connect(url) as raw:
            await raw.post(CHAT, body(stream=True))
            for _ in range(3):
                await raw.until(b": waiting\n\n")
            gate.set()
            told = events((await raw.until(b"[DONE]")).decode())

        assert "".join(each["choices"][0]["delta"].get("content", "") for each in told[:-1]) == "Hello “you”"

    async def test_a_refusal_after_a_sign_of_life_is_the_streams_last_event(
        self, url: str, node: FakeNode
    ) -> None:
        gate = trio.Event()
        node.script = [gate, Unsold("nobody took the job", ())]

        async with connect(url) as raw:
            await raw.post(CHAT, body(stream=True))
            await raw.until(b": waiting\n\n")
            gate.set()
            told = events((await raw.until(b"}}")).decode())

        assert [each["error"]["code"] for each in told] == ["unsold"]

    @pytest.mark.parametrize("stream", [False, True])
    async def test_more_chats_than_there_are_places_are_told_to_come_again(
        self, url: str, client: httpx.AsyncClient, node: FakeNode, stream: bool
    ) -> None:
        node.script = [STARTED, ChatDelta("a", 1), trio.Event()]

        async with connect(url) as raw:
            await raw.post(CHAT, body(stream=True))
            await raw.until(b'{"content":"a"}')
            second = await client.post(CHAT, json=body(stream=stream))
        with trio.fail_after(5):
            await node.chat_closed.wait()
        node.script = list(HELLO)
        third = await client.post(CHAT, json=body(stream=stream))

        assert (second.status_code, second.headers["retry-after"]) == (429, "1")
        assert third.status_code == 200
