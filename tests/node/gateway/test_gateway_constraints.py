"""What an answer is held to, over HTTP: a JSON schema, a grammar, and tokens made likelier or barred."""

import json
from typing import Any

import httpx
import pytest

from node.chat import BadPrompt
from node.gateway.errors import HttpError
from node.gateway.openai.constraint import ResponseFormat, constraint
from tests.node.gateway.fake_node import STARTED, FakeNode

PATHS = {
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"model": "tiny", "prompt": "hi"},
}
SCHEMA = {
    "type": "object",
    "properties": {"zebra": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["zebra", "age"],
    "additionalProperties": False,
}
BY_SCHEMA = {"type": "json_schema", "json_schema": {"name": "animal", "strict": True, "schema": SCHEMA}}


def of_length(chars: int) -> dict[str, Any]:
    """A response format whose schema has so many characters."""
    empty = {"type": "object", "title": ""}
    title = "x" * (chars - len(json.dumps(empty, separators=(",", ":"))))
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": empty | {"title": title}}}


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


async def ask(client: httpx.AsyncClient, path: str, **fields: Any) -> httpx.Response:
    return await client.post(path, json=PATHS[path] | fields)


@pytest.mark.parametrize("strict", [True, False, None])
async def test_a_json_schema_reaches_the_node_in_the_clients_order_of_keys(
    client: httpx.AsyncClient, node: FakeNode, path: str, strict: bool | None
) -> None:
    """The answer's properties come in the order of the schema's; a model that reasons first needs that."""
    wanted = {"type": "json_schema", "json_schema": {"name": "animal", "strict": strict, "schema": SCHEMA}}

    response = await ask(client, path, response_format=wanted)

    assert response.status_code == 200
    assert node.requests[0].sampling.schema == json.dumps(SCHEMA, separators=(",", ":"))
    assert node.requests[0].sampling.grammar == ""


@pytest.mark.parametrize(
    ("wanted", "schema"),
    [
        ({"type": "json_object"}, '{"type":"object"}'),
        ({"type": "json_object", "schema": {"type": "array"}}, '{"type":"array"}'),
        ({"type": "text"}, ""),
        (None, ""),
    ],
)
async def test_a_json_object_is_the_schema_of_any_object(
    client: httpx.AsyncClient, node: FakeNode, path: str, wanted: Any, schema: str
) -> None:
    await ask(client, path, response_format=wanted)

    assert node.requests[0].sampling.schema == schema


async def test_a_grammar_reaches_the_node_as_it_is(
    client: httpx.AsyncClient, node: FakeNode, path: str
) -> None:
    grammar = 'root ::= "yes" | "no"\n'

    await ask(client, path, grammar=grammar, response_format={"type": "text"})

    assert (node.requests[0].sampling.grammar, node.requests[0].sampling.schema) == (grammar, "")


async def test_biases_are_thousandths_of_a_logit_in_the_order_of_their_tokens(
    client: httpx.AsyncClient, node: FakeNode, path: str
) -> None:
    await ask(client, path, logit_bias={"50256": -100, "7": 1.5, "0": 100})

    assert node.requests[0].sampling.logit_bias == ((0, 100_000), (7, 1_500), (50_256, -100_000))


async def test_as_many_biases_as_are_allowed_reach_the_node(
    client: httpx.AsyncClient, node: FakeNode, path: str
) -> None:
    await ask(client, path, logit_bias={str(token): 1 for token in range(300)})

    assert len(node.requests[0].sampling.logit_bias) == 300


async def test_a_schema_as_large_as_is_allowed_reaches_the_node(
    client: httpx.AsyncClient, node: FakeNode, path: str
) -> None:
    assert (await ask(client, path, response_format=of_length(16_384))).status_code == 200
    assert len(node.requests[0].sampling.schema) == 16_384


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": {"type": "xml"}}, "response_format", "response_format is 'xml', expected 'text', 'json_object' or 'json_schema'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "response_format has no json_schema.schema, expected a JSON schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema", "response_format has no json_schema.schema, expected a JSON schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": "x"}}}, "response_format.json_schema.schema", "response_format.json_schema.schema: expected `object | null`, got `str`"),
        ({"response_format": "json_object"}, "response_format", "response_format: expected `object | null`, got `str`"),
        ({"response_format": of_length(16_385)}, "response_format", "response_format.json_schema has 16385 characters, expected 16384 at most"),
        ({"grammar": "x" * 16_385}, "grammar", "grammar has 16385 characters, expected 16384 at most"),
        ({"grammar": 5}, "grammar", "grammar: expected `str | null`, got `int`"),
        ({"grammar": 'root ::= "x"', "response_format": BY_SCHEMA}, "grammar", "grammar is given beside response_format, expected one of them"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "logit_bias names token 'x', expected ids 0 to 2147483647, each once"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "logit_bias names token '-1', expected ids 0 to 2147483647, each once"),
        ({"logit_bias": {"٣": 1}}, "logit_bias", "logit_bias names token '٣', expected ids 0 to 2147483647, each once"),
        ({"logit_bias": {"1": 1, "01": 2}}, "logit_bias", "logit_bias names token '01', expected ids 0 to 2147483647, each once"),
        ({"logit_bias": {"9" * 5_000: 1}}, "logit_bias", f"logit_bias names token '{'9' * 32}', expected ids 0 to 2147483647, each once"),
        ({"logit_bias": {"2147483648": 1}}, "logit_bias", "logit_bias names token '2147483648', expected ids 0 to 2147483647, each once"),
        ({"logit_bias": {"1": 100.5}}, "logit_bias", "logit_bias of token 1 is 100.5, expected -100 to 100"),
        ({"logit_bias": {"1": "x"}}, "logit_bias[...]", "logit_bias[...]: expected `float`, got `str`"),
        ({"logit_bias": {str(token): 1 for token in range(301)}}, "logit_bias", "logit_bias has 301 tokens, expected 300 at most"),
    ],
)  # fmt: skip
async def test_a_constraint_that_no_seller_is_to_see_is_refused(
    client: httpx.AsyncClient, node: FakeNode, path: str, fields: dict[str, Any], param: str, message: str
) -> None:
    response = await ask(client, path, **fields)

    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["param"], error["message"], error["type"]) == (param, message, "invalid_request_error")
    assert node.requests == []


@pytest.mark.parametrize("depth", [900, 5_000, 100_000])
async def test_a_schema_nested_without_end_crashes_nothing(
    client: httpx.AsyncClient, node: FakeNode, path: str, depth: int
) -> None:
    """The stack of whoever reads it is the target: the gateway's here, the child's if it gets so far."""
    nested = b'{"a":' * depth + b"1" + b"}" * depth
    content = json.dumps(PATHS[path]).encode()[:-1] + (
        b',"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":' + nested + b"}}}"
    )

    response = await client.post(path, content=content, headers={"content-type": "application/json"})

    assert response.status_code in {200, 400}
    assert (response.status_code == 200) == (len(node.requests) == 1)
    assert node.journal.recent() == ()


def test_a_schema_that_can_be_read_but_not_written_is_refused() -> None:
    """Reading and writing have each a limit of depth; what is between them would be a crash."""
    nested: dict[str, Any] = {}
    for _ in range(5_000):
        nested = {"items": nested}

    with pytest.raises(HttpError, match="response_format is nested too deep") as caught:
        constraint(ResponseFormat("json_object", schema=nested), None)
    assert (caught.value.status, caught.value.param) == (400, "response_format")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "told", "param"),
    [
        ({"grammar": "root"}, "grammar at line 1: expected '::=' after 'root'", "grammar"),
        ({"response_format": BY_SCHEMA}, "schema at #/properties nests deeper than 32", "response_format"),
        ({"response_format": BY_SCHEMA}, "the grammar or schema takes over 30000 steps", "response_format"),
        ({"logit_bias": {"99999": 1}}, "logit_bias names token 99999, expected 0 to 511", "logit_bias"),
    ],
)
async def test_a_constraint_that_the_engine_refuses_is_named_by_the_clients_own_field(
    client: httpx.AsyncClient,
    node: FakeNode,
    path: str,
    stream: bool,
    fields: dict[str, Any],
    told: str,
    param: str,
) -> None:
    node.script = [STARTED, BadPrompt(told)]

    response = await ask(client, path, **fields, stream=stream)

    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["param"], error["code"], error["message"]) == (param, "invalid_value", told)
