"""The mesh's own API, the events as they happen, and what describes it all."""

import json
import re

import httpx
import msgspec
import pytest
import trio
import trio.testing

from node.gateway.bounds import Bounds
from node.runs import RunView
from node.views import JobView, LedgerView, ModelView, PatchView, PeerView, ProposalView, StatusView
from tests.node.gateway.fake_node import BOB, JOB_ID, PATCH_ID, RUN_ID, FakeNode
from tests.node.gateway.raw_http import connect


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/api/status", StatusView),
        ("/api/peers", list[PeerView]),
        ("/api/models", list[ModelView]),
        ("/api/jobs", list[JobView]),
        ("/api/jobs?limit=1", list[JobView]),
        (f"/api/jobs/{JOB_ID}", JobView),
        (f"/api/jobs/{JOB_ID[:6]}", JobView),
        ("/api/runs", list[RunView]),
        (f"/api/runs/{RUN_ID[:6]}", RunView),
        ("/api/patches", list[PatchView]),
        (f"/api/patches/{PATCH_ID[:6]}", PatchView),
        ("/api/proposals", list[ProposalView]),
        ("/api/ledger", LedgerView),
    ],
)
async def test_a_listing_is_its_view(client: httpx.AsyncClient, path: str, shape: type) -> None:
    response = await client.get(path)

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    msgspec.json.decode(response.content, type=shape)


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/api/jobs/ffff", 404, "no job 'ffff', or several; 'agora jobs' lists them"),
        ("/api/runs/ffff", 404, "no run 'ffff', or several; 'agora runs' lists them"),
        ("/api/patches/ffff", 404, "'ffff' names 0 patches; run 'agora patches'"),
        ("/api/patches/nothex", 400, "patch_id is 'nothex': string should match pattern '^[0-9a-f]{1,64}$'"),
        ("/api/jobs/nothex", 400, "job_id is 'nothex': string should match pattern '^[0-9a-f]{1,32}$'"),
        ("/api/jobs?limit=0", 400, "limit is '0': input should be greater than or equal to 1"),
        ("/api/jobs?limit=x", 400, "limit is 'x': input should be a valid integer, unable to parse string as an integer"),
        ("/api/quotes", 400, "model is 'None': field required"),
        ("/api/quotes?model=x&prompt_tokens=5", 404, "no model 'x' on this mesh; it has: tiny"),
        ("/api/events?job=zz", 400, "job is 'zz': string should match pattern '^[0-9a-f]{8,32}$'"),
        ("/api/nowhere", 404, "GET /api/nowhere: Not Found"),
        ("/v1/models/gpt-9", 404, "no model 'gpt-9' on this mesh; it has: tiny, mini"),
        ("/v1/chat/completions", 405, "GET /v1/chat/completions: Method Not Allowed"),
        ("/docs", 404, "GET /docs: Not Found"),
    ],
)  # fmt: skip
async def test_a_wrong_question_has_the_one_shape_of_errors(
    client: httpx.AsyncClient, path: str, status: int, message: str
) -> None:
    response = await client.get(path)

    error = response.json()["error"]
    assert (response.status_code, error["message"], error["type"]) == (
        status,
        message,
        "invalid_request_error",
    )
    assert set(error) >= {"message", "type", "param", "code"}


async def test_the_owners_verbs_are_not_on_the_gateway(client: httpx.AsyncClient, node: FakeNode) -> None:
    """A stolen API key can spend credits, not admit or bar devices."""
    for path in (
        "/api/invite",
        "/api/models/add",
        "/api/models/publish",
        "/api/vote",
        "/api/patches/rollback",
        "/api/revoke",
        "/api/leave",
    ):
        assert (await client.post(path, json={})).status_code in {404, 405}
    assert (await client.get("/api/charter")).status_code == 404
    assert node.calls == []


async def test_models_are_listed_as_openai_clients_expect(client: httpx.AsyncClient) -> None:
    tiny = {"id": "tiny", "object": "model", "created": 0, "owned_by": "agora"}

    assert (await client.get("/v1/models")).json() == {
        "object": "list",
        "data": [tiny, tiny | {"id": "mini"}],
    }
    assert (await client.get("/v1/models/tiny")).json() == tiny


async def test_quotes_ask_and_award_nothing(client: httpx.AsyncClient, node: FakeNode) -> None:
    response = await client.get("/api/quotes?model=tiny&prompt_tokens=5&completion_tokens=9")

    assert response.json()["asked"] == [BOB]
    assert node.calls == [("quotes", "tiny", 5, 9)]
    assert node.requests == []


async def test_events_are_told_as_they_happen(url: str, node: FakeNode) -> None:
    node.journal.write("daemon_started")
    node.journal.write("request_sent", job_id=JOB_ID)

    async with connect(url) as raw:
        await raw.send("GET /api/events?recent=1 HTTP/1.1")
        before = await raw.until(b"\n\n\r\n")
        node.journal.write("award_sent", job_id=JOB_ID, price_micro=20)
        after = await raw.until(b"}\n\n")

    assert b"daemon_started" not in before
    assert b"id: 2\ndata: " in before
    told = json.loads(after.partition(b"data: ")[2])
    assert (told["event"], told["job_id"], told["price_micro"]) == ("award_sent", JOB_ID, 20)


async def test_events_of_one_job_are_told_alone(url: str, node: FakeNode) -> None:
    async with connect(url) as raw:
        await raw.send(f"GET /api/events?job={JOB_ID[:8]} HTTP/1.1")
        await raw.until(b": events\n\n")
        node.journal.write("award_sent", job_id="f" * 32)
        node.journal.write("receipt_signed", job_id=JOB_ID)
        told = await raw.until(b"}\n\n")

    assert b"award_sent" not in told
    assert b"receipt_signed" in told


class TestReaders:
    """Readers of events are few, each with a bounded queue."""

    @pytest.fixture
    def bounds(self) -> Bounds:
        return Bounds(readers=1, keep_alive_s=0.02)

    async def test_a_reader_that_leaves_makes_room(self, url: str, client: httpx.AsyncClient) -> None:
        async with connect(url) as raw:
            await raw.send("GET /api/events HTTP/1.1")
            await raw.until(b": waiting\n\n")
            assert (await client.get("/api/events")).status_code == 429
        await trio.testing.wait_all_tasks_blocked(0.01)

        async with connect(url) as raw:
            await raw.send("GET /api/events HTTP/1.1")
            assert b"200" in await raw.until(b": waiting\n\n")


async def test_the_description_names_every_route_and_its_shapes(client: httpx.AsyncClient) -> None:
    described = (await client.get("/openapi.json")).json()

    assert set(described["paths"]) == {
        "/healthz", "/v1/models", "/v1/models/{model}", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/api/status", "/api/peers", "/api/models",
        "/api/jobs", "/api/jobs/{job_id}", "/api/ledger", "/api/quotes", "/api/events",
        "/api/runs", "/api/runs/{run_id}", "/api/patches", "/api/patches/{patch_id}", "/api/proposals",
    }  # fmt: skip
    assert {"ChatBody", "CompletionBody", "EmbeddingBody", "StatusView", "JobView"} <= set(
        described["components"]["schemas"]
    )
    for path, body, headers in (
        ("/v1/chat/completions", "ChatBody", ["X-Agora-Privacy", "X-Agora-Session"]),
        ("/v1/completions", "CompletionBody", ["X-Agora-Privacy", "X-Agora-Session"]),
        ("/v1/embeddings", "EmbeddingBody", ["X-Agora-Privacy"]),
    ):
        route = described["paths"][path]["post"]
        (reference,) = route["requestBody"]["content"]["application/json"]["schema"].values()
        assert reference == f"#/components/schemas/{body}"
        assert [each["name"] for each in route["parameters"]] == headers
        assert "default" in route["responses"]
    shapes = described["components"]["schemas"]
    assert {name: shapes["ChatBody"]["properties"]["temperature"][name] for name in ("minimum", "maximum")} == {
        "minimum": 0, "maximum": 2,
    }  # fmt: skip
    assert set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described))) <= set(shapes)
    assert "http://" not in json.dumps(described)
    assert "https://" not in json.dumps(described)
