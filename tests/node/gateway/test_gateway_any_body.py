"""Whatever JSON comes: an answer, or a 4xx in OpenAI's shape; never a 5xx, and nothing crashed."""

import json
from typing import Any

import httpx
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from node.gateway.app import gateway_app
from node.gateway.bounds import Bounds
from node.gateway.guards import App
from node.gateway.openai.chat_body import ChatBody
from node.gateway.openai.completion_body import CompletionBody
from node.gateway.openai.embedding_body import EmbeddingBody
from tests.node.gateway.fake_node import KEY, FakeNode, OneKey

BODIES = {
    "/v1/chat/completions": (ChatBody, {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}),
    "/v1/completions": (CompletionBody, {"model": "tiny", "prompt": "hi"}),
    "/v1/embeddings": (EmbeddingBody, {"model": "mini", "input": "hi"}),
}
NUMBERS = st.one_of(
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, 1, 5, 20, 2**31, 2**53, 2**64, 10**40, -1, 1e300, 5e-324, 0.1, True]),
)
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["tiny", "mini", "auto", "text", "json_object", "json_schema", "base64", "user", "7", ""]
    ),
)
KEYS = st.one_of(
    TEXTS, st.sampled_from(["type", "schema", "json_schema", "role", "content", "include_usage"])
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A request that is right but for a few of its fields."""
    path = draw(st.sampled_from(sorted(BODIES)))
    shape, right = BODIES[path]
    names = st.sampled_from([*shape.__struct_fields__, "user"])
    return path, right | draw(st.dictionaries(names, JSON, max_size=5))


async def post(app: App, path: str, content: bytes) -> httpx.Response:
    """Ask the application itself; what a socket does to bytes is tested elsewhere."""
    headers = {"authorization": f"Bearer {KEY}", "host": "localhost", "content-type": "application/json"}
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "server": ("127.0.0.1", 80),
        "headers": [*((name.encode(), value.encode()) for name, value in headers.items()),
                    (b"content-length", str(len(content)).encode())],
    }  # fmt: skip
    sent: list[Any] = []
    incoming = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Any:
        if not incoming:
            await trio.sleep_forever()
        return incoming.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    with trio.fail_after(10):
        await app(scope, receive, send)
    return httpx.Response(sent[0]["status"], content=b"".join(each.get("body", b"") for each in sent[1:]))


@pytest.fixture(scope="module")
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture(scope="module")
def app(node: FakeNode) -> App:
    return gateway_app(node, OneKey(), Bounds(requests_per_s=1e9, burst=1e9))


@settings(max_examples=400, deadline=None)
@given(asked=bodies())
def test_a_body_of_any_fields_is_answered_or_refused_but_never_crashes(
    app: App, node: FakeNode, asked: tuple[str, dict[str, Any]]
) -> None:
    path, body = asked
    before = len(node.requests)

    response = trio.run(post, app, path, json.dumps(body).encode())

    is_asked = len(node.requests) > before
    assert response.status_code in ({200} if is_asked else {400, 404})
    assert is_asked or set(response.json()["error"]) >= {"message", "type", "param", "code"}
    assert node.journal.recent() == ()
