"""The stock `openai` client against the gateway over a real socket: what people have already works."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import trio
from pydantic import BaseModel

from node.chat import BadPrompt, ChatDelta, ChatError, DeclineView, Unsold
from node.gateway.app import gateway_app
from node.gateway.server import serve_tcp
from runtime.engine import TokenLogprob
from tests.node.gateway.fake_node import BOB, FINISHED, HELLO, JOB_ID, KEY, STARTED, FakeNode, OneKey

USER = [{"role": "user", "content": "hi"}]


class Child(BaseModel):
    """What a program of a user expects an answer to be."""

    name: str
    age: int


class Server:
    """A gateway in its own thread and loop, as a daemon is in its own process."""

    def __init__(self) -> None:
        self.node = FakeNode()
        self.url = ""
        self._started = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._run,))

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(20)

    def stop(self) -> None:
        trio.from_thread.run_sync(self._serving.cancel, trio_token=self._token)
        self._thread.join(20)
        assert not self._thread.is_alive()

    def wait_for(self, event: trio.Event) -> None:
        async def wait() -> None:
            with trio.fail_after(5):
                await event.wait()

        trio.from_thread.run(wait, trio_token=self._token)

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            self._serving = nursery.cancel_scope
            app = gateway_app(self.node, OneKey())
            self.url = await nursery.start(serve_tcp, app, "127.0.0.1:0", self.node.journal)
            self._started.set()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with (
        httpx.Client(trust_env=False) as http,
        openai.OpenAI(api_key=KEY, base_url=f"{server.url}/v1", max_retries=0, http_client=http) as client,
    ):
        yield client


def test_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=USER, temperature=0.5, max_tokens=50)

    assert answer.choices[0].message.content == "Hello “you”"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        7,
        3,
        10,
    )
    assert answer.id == f"chatcmpl-{JOB_ID}"


def test_a_stream_with_its_usage(client: openai.OpenAI) -> None:
    texts, reasons, usages = [], [], []
    with client.chat.completions.create(
        model="tiny", messages=USER, stream=True, stream_options={"include_usage": True}
    ) as stream:
        for chunk in stream:
            texts += [choice.delta.content or "" for choice in chunk.choices]
            reasons += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]
            usages += [chunk.usage.total_tokens] if chunk.usage else []

    assert (texts, reasons, usages) == (["", "Hel", "lo ", "“you”", ""], ["stop"], [10])


def test_how_likely_each_token_was(server: Server, client: openai.OpenAI) -> None:
    hello = TokenLogprob(b"Hello", 105_361, ((b"Hello", 105_361), (b"Hi", 2_302_585)))
    server.node.script = [STARTED, ChatDelta("Hello", 1, (hello,)), FINISHED]

    whole = client.chat.completions.create(model="tiny", messages=USER, logprobs=True, top_logprobs=2)
    with client.chat.completions.create(
        model="tiny", messages=USER, logprobs=True, top_logprobs=2, stream=True
    ) as stream:
        streamed = [token for chunk in stream for token in _tokens(chunk.choices[0].logprobs)]
    text = client.completions.create(model="tiny", prompt="Hi.", logprobs=2)

    (token,) = _tokens(whole.choices[0].logprobs)
    assert (token.token, token.logprob, token.bytes) == ("Hello", -0.105361, list(b"Hello"))
    assert [(each.token, each.logprob) for each in token.top_logprobs] == [
        ("Hello", -0.105361),
        ("Hi", -2.302585),
    ]
    assert streamed == [token]
    told = text.choices[0].logprobs
    assert told is not None
    assert (told.tokens, told.token_logprobs, told.text_offset) == (["Hello"], [-0.105361], [0])
    assert told.top_logprobs == [{"Hello": -0.105361, "Hi": -2.302585}]


def _tokens(logprobs: Any) -> list[Any]:
    return [] if logprobs is None else logprobs.content


def test_an_answer_by_the_schema_of_a_type(server: Server, client: openai.OpenAI) -> None:
    """The client makes the schema out of the type, and the type out of the answer."""
    server.node.script = [STARTED, ChatDelta('{"name": "Ida", "age": 7}', 9), FINISHED]

    answer = client.chat.completions.parse(model="tiny", messages=USER, response_format=Child)

    assert answer.choices[0].message.parsed == Child(name="Ida", age=7)
    schema = json.loads(server.node.requests[0].sampling.schema)
    assert (schema["type"], list(schema["properties"])) == ("object", ["name", "age"])


def test_a_raw_text_is_gone_on_from(server: Server, client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt="Once upon", max_tokens=5, stop=["."])
    with client.completions.create(model="tiny", prompt=["Once upon"], stream=True) as stream:
        texts = [chunk.choices[0].text for chunk in stream]

    assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("Hello “you”", "stop")
    assert whole.usage is not None
    assert whole.usage.total_tokens == 10
    assert texts == ["Hel", "lo ", "“you”", ""]
    assert [asked.inputs for asked in server.node.requests] == [("Once upon",)] * 2


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_texts_are_embedded(server: Server, client: openai.OpenAI, encoding: Any) -> None:
    """Left to itself the client asks for base64 and unpacks it."""
    words = (1_600_000, 200_000, 1_000_000, 500_000, 1_000_000, 1_000_000)
    server.node.script = [STARTED, ChatDelta("", 6, words=words), FINISHED]
    asked = {} if encoding is None else {"encoding_format": encoding}

    answer = client.embeddings.create(model="mini", input=["a", "b"], **asked)

    assert [each.index for each in answer.data] == [0, 1]
    assert answer.usage.prompt_tokens == 7
    if encoding != "base64":
        found = [x for each in answer.data for x in each.embedding]
        assert found == pytest.approx([0.6, -0.8, 0.0, -0.5, 0.0, 0.0], abs=1e-7)


def test_what_a_model_cannot_do_is_a_bad_request(client: openai.OpenAI) -> None:
    for ask, param in (
        (lambda: client.embeddings.create(model="tiny", input="a"), "model"),
        (lambda: client.embeddings.create(model="mini", input="a", dimensions=2), "dimensions"),
        (lambda: client.embeddings.create(model="mini", input=[[1, 2]]), "input"),
        (lambda: client.chat.completions.create(model="mini", messages=USER), "model"),
        (lambda: client.completions.create(model="tiny", prompt=[1, 2]), "prompt"),
        (lambda: client.completions.create(model="tiny", prompt="a", echo=True), "echo"),
        (lambda: client.completions.create(model="tiny", prompt="a", max_tokens=99_999), "max_tokens"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            ask()

        assert caught.value.param == param


def test_the_clients_own_headers_reach_the_node(server: Server, client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="tiny", messages=USER, extra_headers={"X-Agora-Privacy": "mesh", "X-Agora-Session": "s"}
    )

    assert raw.headers["x-agora-job"] == JOB_ID
    assert raw.parse().choices[0].message.content == "Hello “you”"
    assert server.node.requests[0].privacy == "mesh"


def test_text_parts_and_a_conversation_keep_their_session(server: Server, client: openai.OpenAI) -> None:
    """The second request starts with the first and its answer, so it goes to the same seller."""
    parts = [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]
    answer = client.chat.completions.create(model="tiny", messages=parts)
    grown = [*USER, {"role": "assistant", "content": answer.choices[0].message.content}, *USER]
    client.chat.completions.create(model="tiny", messages=grown)

    first, second = server.node.requests
    assert first.session == second.session is not None


def test_the_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "mini"]
    assert client.models.retrieve("tiny").owned_by == "agora"


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    for ask in (
        lambda: client.models.retrieve("gpt-9"),
        lambda: client.chat.completions.create(model="gpt-9", messages=USER),
        lambda: client.chat.completions.create(model="gpt-9", messages=USER, stream=True),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()

        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        assert "it has: tiny" in caught.value.message


def test_each_refusal_is_the_error_that_the_client_has_for_it(server: Server, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=USER, temperature=1.5, n=3)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.PermissionDeniedError):
        client.with_options(default_headers={"Origin": "https://evil.example"}).models.list()
    server.node.script = [BadPrompt("the prompt has 600 tokens, expected 512 at most")]
    with pytest.raises(openai.BadRequestError, match="600 tokens"):
        client.chat.completions.create(model="tiny", messages=USER, stream=True)
    server.node.script = [Unsold("nobody took the job", (DeclineView(BOB, "busy", ""),))]
    with pytest.raises(openai.InternalServerError) as unsold:
        client.chat.completions.create(model="tiny", messages=USER)

    assert bad.value.param == "n"
    assert unsold.value.status_code == 503
    assert unsold.value.body["declines"] == [{"peer_id": BOB, "reason": "busy", "detail": ""}]  # type: ignore[index]


def test_a_failure_inside_a_stream_is_raised_from_it(server: Server, client: openai.OpenAI) -> None:
    server.node.script = [STARTED, ChatDelta("Hel", 1), ChatError("every seller failed")]
    texts: list[str | None] = []

    def read() -> None:
        with client.chat.completions.create(model="tiny", messages=USER, stream=True) as stream:
            for chunk in stream:
                texts.append(chunk.choices[0].delta.content)  # noqa: PERF401  # those before the error count

    with pytest.raises(openai.APIError, match="every seller failed"):
        read()
    assert texts == ["", "Hel"]


def test_a_client_that_closes_its_stream_ends_the_job(server: Server, client: openai.OpenAI) -> None:
    server.node.script = [STARTED, ChatDelta("Hel", 1), trio.Event()]
    with client.chat.completions.create(model="tiny", messages=USER, stream=True) as stream:
        next(iter(stream))

    server.wait_for(server.node.chat_closed)
    server.node.script = list(HELLO)
    assert (
        client.chat.completions.create(model="tiny", messages=USER).choices[0].message.content
        == "Hello “you”"
    )
