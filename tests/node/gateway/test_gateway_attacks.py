"""What a web page, another local program and a hostile client try at the gateway's door. The node is never asked."""

import json
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import trio
import trio.testing

from node.errors import StartError
from node.gateway.app import gateway_app
from node.gateway.bounds import Bounds
from node.gateway.guards import Rate
from node.gateway.server import serve_tcp
from node.journal import Journal
from tests.node.gateway.fake_node import HELLO, FakeNode, OneKey
from tests.node.gateway.raw_http import connect

CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
POST_CHAT = f"POST {CHAT} HTTP/1.1\nContent-Type: application/json\n"
# long enough that a loaded machine does not reach a bound by itself
SHORT = Bounds(body_s=0.2, linger_s=0.2, idle_s=0.3, stall_s=0.3, connections=8)


async def refused(client: httpx.AsyncClient, node: FakeNode, **request: Any) -> tuple[int, str]:
    """Send a chat that must not reach the node; return its status and the code of the error."""
    response = await client.post(CHAT, **({"json": BODY} | request))
    assert node.requests == []
    error = response.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    return response.status_code, error["code"]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8420", "127.0.0.1.evil.example", "[::2]:80", "[", ""]
)
async def test_a_rebound_dns_name_is_refused(client: httpx.AsyncClient, node: FakeNode, host: str) -> None:
    """The browser of the user resolves evil.example to 127.0.0.1: only the Host header gives it away."""
    assert await refused(client, node, headers={"host": host}) == (403, "foreign_host")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:9", "[::1]:9", "[0:0:0:0:0:0:0:1]"]
)
async def test_this_devices_own_names_are_let_in(client: httpx.AsyncClient, host: str) -> None:
    assert (await client.get("/healthz", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:3000", "http://127.0.0.1"]
)
async def test_a_foreign_page_is_refused(client: httpx.AsyncClient, node: FakeNode, origin: str) -> None:
    """Another port is another page: any local program may serve one."""
    assert await refused(client, node, headers={"origin": origin}) == (403, "foreign_origin")


async def test_a_preflight_of_a_foreign_page_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.options(CHAT, headers={"origin": "https://evil.example"})

    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers


async def test_our_own_page_is_let_in(client: httpx.AsyncClient, url: str) -> None:
    assert (await client.post(CHAT, json=BODY, headers={"origin": url})).status_code == 200


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer wrong", "Basic sk-agora-test", "Bearer \xff", "sk-agora-test"]
)
@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/api/status", "/openapi.json", "/", "/nowhere"])
async def test_nothing_is_told_without_a_key(url: str, node: FakeNode, path: str, header: str) -> None:
    async with connect(url) as raw:
        await raw.send(f"GET {path} HTTP/1.1\nAuthorization: {header}")
        status, answer = await raw.answer()

    assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
    assert node.requests == []


async def test_health_needs_no_key(url: str) -> None:
    async with connect(url) as raw:
        await raw.send("GET /healthz HTTP/1.1\nAuthorization:")
        assert await raw.answer() == (200, {"status": "ok"})


async def test_two_mebibytes_are_too_large(client: httpx.AsyncClient, node: FakeNode) -> None:
    """The client hears of it, though it was still sending."""
    assert await refused(client, node, json=BODY | {"user": "x" * 2**21}) == (413, "request_too_large")


async def test_a_chunked_body_without_a_length_is_counted(client: httpx.AsyncClient, node: FakeNode) -> None:
    async def endless() -> Any:
        for _ in range(32):
            yield b" " * 2**16

    headers = {"content-type": "application/json"}
    assert await refused(client, node, json=None, content=endless(), headers=headers) == (
        413,
        "request_too_large",
    )


async def test_a_large_body_without_a_key_is_not_read(url: str) -> None:
    async with connect(url) as raw:
        await raw.send("POST /v1/chat/completions HTTP/1.1\nAuthorization:\nContent-Length: 9000000000")
        status, answer = await raw.answer()

    assert (status, answer["error"]["code"]) == (401, "invalid_api_key")


class TestShortTimes:
    """The same server with bounds that a test can wait for."""

    @pytest.fixture
    def bounds(self) -> Bounds:
        return SHORT

    async def test_slowloris_in_the_body_gets_408(self, url: str, node: FakeNode) -> None:
        async with connect(url) as raw:
            await raw.send(POST_CHAT + "Content-Length: 100", b'{"model"')
            status, answer = await raw.answer()
            await raw.rest()

        assert (status, answer["error"]["code"]) == (408, "request_timeout")
        assert answer["error"]["message"] == "8 bytes of the body came in 0.2 s, expected all of it"
        assert node.requests == []

    async def test_slowloris_in_the_headers_is_cut_off(self, url: str) -> None:
        async with connect(url) as raw:
            await raw.stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: ")
            assert await raw.rest() == b""

    async def test_a_client_that_never_reads_is_cut_off(self, url: str, node: FakeNode) -> None:
        """Hypercorn shields its writes: without a bound of ours such a client would outlive the daemon's stop."""
        chat = [HELLO[0], *([HELLO[1]] * 200_000), HELLO[-1]]
        node.script = chat

        async with connect(url) as raw:
            await raw.post(CHAT, BODY | {"stream": True})
            with trio.fail_after(30):
                await node.chat_closed.wait()

    async def test_more_connections_than_there_is_room_are_closed(self, url: str) -> None:
        address = urlsplit(url)
        async with connect(url) as first:
            for _ in range(2):  # whoever holds the places loses them to the idle bound
                silent = [
                    await trio.open_tcp_stream(str(address.hostname), address.port or 0) for _ in range(20)
                ]
                with trio.fail_after(5):
                    for stream in silent:
                        assert await stream.receive_some() == b""
                        await stream.aclose()
            await first.rest()
        async with connect(url) as honest:
            await honest.send("GET /healthz HTTP/1.1")
            assert await honest.answer() == (200, {"status": "ok"})


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"\xef\xbb\xbf{}", b'{"model":"\xff","messages":[]}',
        b'{"model":"tiny","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"tiny","messages":[{"role":"user","content":"hi"}],"temperature":NaN}',
        b'{"model":"tiny","messages":[{"role":"user","content":"hi"}],"temperature":-Infinity}',
        b'{"model":"tiny","messages":[{"role":"user","content":"hi"}],"temperature":1e999}',
        b'{"model":"tiny","messages":[{"role":"user","content":"hi"}],"seed":' + b"9" * 5_000 + b"}",
        b'{"model":"tiny","messages":[{"role":"user","content":"hi"}],"seed":' + b"9" * 4_200 + b"}",
        b'{"model":"tiny","messages":[{"role":"user","content":"hi"}],"max_tokens":1.5}',
        b'{"model":"tiny","messages":[{"role":"user","content":"hi"}],"max_tokens":true}',
        b'{"unknown":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"tools":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b"[" * 500_000,
    ],
    ids=range(19),
)  # fmt: skip
async def test_bytes_that_are_no_request_are_the_clients_fault(
    client: httpx.AsyncClient, node: FakeNode, content: bytes
) -> None:
    """Deep nesting, broken UTF-8, numbers beyond any type: a 400 each, and nothing of it in the journal."""
    headers = {"content-type": "application/json"}

    status, code = await refused(client, node, json=None, content=content, headers=headers)

    assert (status, code in {"invalid_json", "invalid_type", "invalid_value"}) == (400, True)
    assert node.journal.recent() == ()


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""])
async def test_a_form_of_a_foreign_page_is_no_request(
    client: httpx.AsyncClient, node: FakeNode, kind: str
) -> None:
    """These types a browser sends anywhere without asking first."""
    content = json.dumps(BODY)

    found = await refused(client, node, json=None, content=content, headers={"content-type": kind})

    assert found == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/../../etc/passwd",
        "/v1/models/%2e%2e%2fetc",
        "/api/jobs/../../x",
        "/%00",
        "/v1//models",
        "/V1/models",
    ],
)
async def test_path_traversal_finds_nothing(url: str, path: str) -> None:
    async with connect(url) as raw:
        await raw.send(f"GET {path} HTTP/1.1")
        status, answer = await raw.answer()

    assert status in {400, 404}
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "head",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n", b"\x00" * 40_000, b"GET / HTTP/1.1\r\n" * 9,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000,
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\nConnection: Upgrade\r\n\r\n",
        (b"GET /api/events HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"),
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=range(16),
)  # fmt: skip
async def test_bytes_that_are_no_http_hurt_nobody(url: str, node: FakeNode, head: bytes) -> None:
    async with connect(url) as raw:
        await raw.stream.send_all(head)
        await raw.stream.send_eof()
        answer = await raw.rest()

    assert not answer.startswith(b"HTTP/1.1 5")
    assert node.journal.recent() == ()
    async with connect(url) as honest:
        await honest.send("GET /healthz HTTP/1.1")
        assert await honest.answer() == (200, {"status": "ok"})


async def test_a_client_that_leaves_inside_its_body_is_forgotten(url: str, node: FakeNode) -> None:
    async with connect(url) as raw:
        await raw.send(POST_CHAT + "Content-Length: 100", b'{"model"')
    async with connect(url) as honest:
        await honest.send("GET /healthz HTTP/1.1")
        assert await honest.answer() == (200, {"status": "ok"})

    assert (node.requests, node.journal.recent()) == ([], ())


class TestRate:
    """A key that asks too often."""

    @pytest.fixture
    def bounds(self) -> Bounds:
        return Bounds(requests_per_s=0.001, burst=3)

    async def test_a_flood_is_told_to_come_again_later(self, client: httpx.AsyncClient) -> None:
        answers = [await client.get("/v1/models") for _ in range(4)]

        assert [each.status_code for each in answers] == [200, 200, 200, 429]
        assert answers[3].headers["retry-after"] == "1"
        assert answers[3].json()["error"]["code"] == "rate_limit_exceeded"

    async def test_strangers_do_not_use_up_what_a_key_may_ask(self, client: httpx.AsyncClient) -> None:
        strangers = [await client.get("/v1/models", headers={"authorization": "x"}) for _ in range(9)]

        assert [each.status_code for each in strangers] == [401] * 3 + [429] * 6
        assert (await client.get("/v1/models")).status_code == 200


def test_a_bucket_fills_up_again_but_not_beyond_its_burst() -> None:
    rate = Rate(per_s=2, burst=2)

    assert [rate.take("k", now) for now in (0, 0, 0, 0.5, 0.5)] == [True, True, False, True, False]
    assert [rate.take("k", 100) for _ in range(3)] == [True, True, False]


async def test_every_answer_forbids_what_a_browser_could_do_with_it(client: httpx.AsyncClient) -> None:
    for response in (
        await client.get("/v1/models"),
        await client.get("/nowhere"),
        await client.get("/", headers={"host": "x"}),
    ):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert "server" not in response.headers


async def test_a_stop_does_not_wait_for_a_client_that_reads_nothing(
    node: FakeNode, nursery: trio.Nursery
) -> None:
    node.script = [HELLO[0], *([HELLO[1]] * 200_000), HELLO[-1]]
    app = gateway_app(node, OneKey())
    scope = trio.CancelScope()
    stopped = trio.Event()

    async def serve(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        with scope:
            await serve_tcp(app, "127.0.0.1:0", node.journal, task_status=task_status)
        stopped.set()

    url = await nursery.start(serve)
    async with connect(url) as raw:
        await raw.post(CHAT, BODY | {"stream": True})
        await raw.until(b"Hel")
        await trio.testing.wait_all_tasks_blocked(0.05)  # the socket's buffers are full
        scope.cancel()
        with trio.fail_after(2):
            await stopped.wait()

    assert node.chat_closed.is_set()


@pytest.mark.parametrize(
    ("bind", "message"),
    [
        ("0.0.0.0:0", ("gateway address 0.0.0.0:0 is open to the network, expected a loopback one such as 127.0.0.1:8420; "
                      "put a proxy with TLS before it")),
        ("127.0.0.1", "gateway address is '127.0.0.1', expected HOST:PORT such as 127.0.0.1:8420"),
        ("example.org:80", "gateway address is 'example.org:80', expected HOST:PORT such as 127.0.0.1:8420"),
        ("127.0.0.1:99999", "gateway address is '127.0.0.1:99999', expected HOST:PORT such as 127.0.0.1:8420"),
    ],
)  # fmt: skip
async def test_an_address_that_will_not_do_is_refused_at_start(bind: str, message: str) -> None:
    with pytest.raises(StartError) as caught:
        await serve_tcp(gateway_app(FakeNode(), OneKey()), bind, Journal())

    assert str(caught.value) == message


async def test_a_port_in_use_is_refused_at_start(url: str) -> None:
    bind = urlsplit(url).netloc

    with pytest.raises(StartError) as caught:
        await serve_tcp(gateway_app(FakeNode(), OneKey()), bind, Journal())

    assert str(caught.value) == (
        f"cannot listen on gateway address {bind} (Address already in use); "
        "stop what uses it or choose another with --gateway"
    )
