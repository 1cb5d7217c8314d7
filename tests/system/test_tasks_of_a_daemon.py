"""What programs ask of a real daemon with a real model, by the stock client: schemas, log-probabilities, raw texts, vectors.

The founder holds no model: everything is bought from its only member, over the mesh.
"""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from node.bench.random_gguf import write_encoder
from node.local_mesh.processes import until
from tests.system.daemons import ANYBODY, ROOT, STORY, SUM, Device, books_agree, running

pytestmark = pytest.mark.system

TEXTS = ["the lighthouse keeper", "the keeper of the lighthouse", "44 + 25"]
TICKET = {
    "type": "object",
    "properties": {
        "topic": {"enum": ["appliance", "billing"]},
        "count": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 3},
    },
    "required": ["topic", "count", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Device, Device]]:
    """A founder that only buys, and a seller of the tiny model and of one that embeds."""
    directory = tmp_path_factory.mktemp("tasks")
    founder = Device.founder("founder", directory)
    with running(founder):
        founder.start()
        seller = Device.member("bob", founder)
        with running(seller):
            seller.start()
            digests = [seller.hold(), seller.hold(write_encoder(directory / "mini.gguf"), "mini")]
            for digest, name in zip(digests, ("tiny", "mini"), strict=True):
                until(f"the founder hears of {name}", lambda digest=digest: founder.sees(digest, 1))
                founder.ask("model", "publish", digest, "--name", name)
            yield founder, seller


@pytest.fixture
def client(mesh: tuple[Device, Device]) -> Iterator[openai.OpenAI]:
    with mesh[0].client() as client:
        yield client.with_options(default_headers=ANYBODY)


def test_an_answer_keeps_to_its_schema_streamed_and_whole(client: openai.OpenAI) -> None:
    """The tiny model knows nothing of JSON: without the constraint it never answers so."""
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": SUM,
        "max_tokens": 200,
        "response_format": {"type": "json_schema", "json_schema": {"name": "ticket", "schema": TICKET}},
    }

    whole = client.chat.completions.create(**asked).choices[0]
    with client.chat.completions.create(**asked, stream=True) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert whole.finish_reason == "stop"
    assert whole.message.content == text
    ticket = json.loads(text)
    assert list(ticket) == ["topic", "count", "tags"]
    assert ticket["topic"] in {"appliance", "billing"}
    assert isinstance(ticket["count"], int)
    assert all(len(tag) <= 6 for tag in ticket["tags"])


def test_any_json_object_and_a_grammar_of_ones_own(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(model="tiny", messages=SUM, max_tokens=40)
    chosen = client.chat.completions.create(
        model="tiny", messages=SUM, extra_body={"grammar": 'root ::= "yes" | "no, " [0-9]{3}'}
    )

    assert not (plain.choices[0].message.content or "").startswith(("yes", "no, "))
    assert re.fullmatch(r"yes|no, [0-9]{3}", chosen.choices[0].message.content or "")
    assert chosen.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_each_token_says_how_likely_it_was(client: openai.OpenAI, stream: bool) -> None:
    asked: dict[str, Any] = {
        "model": "tiny", "messages": STORY, "max_tokens": 24, "logprobs": True, "top_logprobs": 3,
    }  # fmt: skip
    if stream:
        with client.chat.completions.create(**asked, stream=True) as chunks:
            choices = [chunk.choices[0] for chunk in chunks]
        text = "".join(choice.delta.content or "" for choice in choices)
        tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content or []]
    else:
        choice = client.chat.completions.create(**asked).choices[0]
        text = choice.message.content or ""
        tokens = list(choice.logprobs.content or []) if choice.logprobs else []

    assert len(tokens) == 24
    assert b"".join(bytes(token.bytes or []) for token in tokens).decode(errors="replace") == text
    for token in tokens:
        likeliest = [each.logprob for each in token.top_logprobs]
        assert len(likeliest) == 3
        assert likeliest == sorted(likeliest, reverse=True)
        assert token.logprob == likeliest[0]  # greedy
        assert sum(math.exp(each) for each in likeliest) <= 1.000_01


def test_a_barred_token_is_never_said(client: openai.OpenAI) -> None:
    """The biased answer begins with what was second, and the log-probabilities stay those of the model itself."""
    asked: dict[str, Any] = {"model": "tiny", "messages": STORY, "max_tokens": 1, "logprobs": True}
    free = client.chat.completions.create(**asked, top_logprobs=2).choices[0]
    ids = {str(token): -100 for token in range(300)}

    biased = client.chat.completions.create(**asked, top_logprobs=2, logit_bias=ids).choices[0]

    assert free.logprobs is not None
    assert biased.logprobs is not None
    (before,), (after,) = free.logprobs.content or [], biased.logprobs.content or []
    assert [each.token for each in after.top_logprobs] == [each.token for each in before.top_logprobs]
    assert after.token != before.token


def test_a_raw_text_is_gone_on_from_without_a_template(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "44 + 25", "max_tokens": 12, "logprobs": 2}

    whole = client.completions.create(**asked)
    with client.completions.create(**asked, stream=True) as stream:
        text = "".join(chunk.choices[0].text for chunk in stream)

    choice = whole.choices[0]
    assert choice.text == text != ""
    assert whole.usage is not None
    chatted = client.chat.completions.create(model="tiny", messages=SUM, max_tokens=1)
    assert chatted.usage is not None
    assert whole.usage.prompt_tokens < chatted.usage.prompt_tokens  # a chat's template has tokens of its own
    assert choice.logprobs is not None
    assert len(choice.logprobs.tokens or []) == whole.usage.completion_tokens
    assert choice.logprobs.text_offset == sorted(choice.logprobs.text_offset or [])


@pytest.mark.parametrize("count", [3, 300])
def test_texts_become_unit_vectors_that_are_bought_by_the_prompt_alone(
    mesh: tuple[Device, Device], client: openai.OpenAI, count: int
) -> None:
    """300 texts are two jobs; the same text has the same vector in each."""
    founder, seller = mesh
    texts = (TEXTS * 100)[:count]

    raw = client.embeddings.with_raw_response.create(model="mini", input=texts)
    answer = raw.parse()

    vectors = [each.embedding for each in answer.data]
    assert [each.index for each in answer.data] == list(range(count))
    assert all(math.hypot(*vector) == pytest.approx(1, abs=1e-3) for vector in vectors)
    assert vectors[0] != vectors[2]
    assert all(vectors[index] == pytest.approx(vectors[index % 3], abs=1e-3) for index in range(count))
    jobs = [founder.settled(job_id) for job_id in raw.headers["x-agora-job"].split(", ")]
    assert len(jobs) == (1 if count == 3 else 2)
    assert {(job["kind"], job["seller"]) for job in jobs} == {("embedding", seller.peer_id)}
    assert sum(job["prompt_tokens"] for job in jobs) == answer.usage.prompt_tokens > 0
    until("the ledgers agree", lambda: books_agree(founder, seller))


def test_bad_input_is_the_clients_fault_and_the_next_answer_comes(
    mesh: tuple[Device, Device], client: openai.OpenAI
) -> None:
    contexts = {model["id"]: model["context_tokens"] for model in mesh[0].get("/api/models")}
    most = contexts["tiny"] - 1
    nested: dict[str, Any] = {"type": "string"}
    for _ in range(100):
        nested = {"type": "array", "items": nested}

    def by_schema(schema: dict[str, Any]) -> dict[str, Any]:
        return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}

    chat = client.chat.completions.create
    asks: list[tuple[Any, str, str]] = [
        (lambda: chat(model="tiny", messages=SUM, extra_body={"grammar": "root ::= ("}), "grammar", "grammar"),
        (lambda: chat(model="tiny", messages=SUM, extra_body={"grammar": "("*10_000}), "grammar", "grammar"),
        (lambda: chat(model="tiny", messages=SUM, response_format=by_schema(nested)), "response_format", "schema"),  # type: ignore[arg-type]
        (lambda: chat(model="tiny", messages=SUM, response_format=by_schema({"type": "colour"})), "response_format", "schema"),  # type: ignore[arg-type]
        (lambda: chat(model="tiny", messages=SUM, logit_bias={"2000000000": 1}), "logit_bias", "2000000000"),
        (lambda: chat(model="tiny", messages=[{"role": "user", "content": "a " * 60_000}]), "messages", "tokens"),
        (lambda: chat(model="tiny", messages=SUM, max_tokens=32_768), "max_tokens", "context"),
        (lambda: chat(model="tiny", messages=STORY, max_tokens=most), "max_tokens", "the prompt has"),
        (lambda: chat(model="tiny", messages=STORY, max_completion_tokens=most, stream=True), "max_completion_tokens", "the prompt has"),
        (lambda: client.completions.create(model="tiny", prompt="Once upon a time", max_tokens=most), "max_tokens", "the prompt has"),
        (lambda: chat(model="mini", messages=SUM), "model", "embeds"),
        (lambda: client.embeddings.create(model="tiny", input="a"), "model", "writes"),
        (lambda: client.embeddings.create(model="mini", input="a " * 60_000), "input", "tokens"),
        (lambda: client.completions.create(model="tiny", prompt="a " * 60_000), "prompt", "tokens"),
    ]  # fmt: skip

    for ask, param, word in asks:
        with pytest.raises(openai.BadRequestError) as caught:
            ask()
        assert (caught.value.param, word in caught.value.message) == (param, True), caught.value.message
        assert chat(model="tiny", messages=SUM, max_tokens=4).choices[0].message.content


def test_the_example_that_sorts_a_message(mesh: tuple[Device, Device]) -> None:
    shown = _run(mesh[0], [sys.executable, "examples/structured_output.py", "My heat pump shows E4."])

    ticket, doubt, text, likeness = shown.splitlines()
    assert ticket.startswith("ticket: {'topic': ")
    assert re.fullmatch(r"least sure of '.*': [0-9]+%", doubt)
    assert text.startswith("goes on: ")
    assert re.fullmatch(r"likeness: -?[01]\.[0-9]{2}", likeness)


def test_the_requests_of_the_first_page_are_answered(mesh: tuple[Device, Device]) -> None:
    """Run as they stand there, but for the names of the models and the gateway's address."""
    page = (ROOT / "README.md").read_text()
    commands = re.findall(r"^```bash\n(curl .*?)^```", page, re.DOTALL | re.MULTILINE)
    answers = []
    for command in commands:
        here = command.replace("http://127.0.0.1:8420", mesh[0].gateway)
        here = here.replace("llama-1b", "tiny").replace("bge-small", "mini")
        here = here.replace("curl -s", "curl -s -H 'X-Agora-Privacy: mesh'")
        answers.append(json.loads(_run(mesh[0], ["bash", "-c", here])))

    assert [answer["object"] for answer in answers] == ["chat.completion", "text_completion", "list"]
    assert set(json.loads(answers[0]["choices"][0]["message"]["content"])) == {"topic", "urgent"}
    assert len(answers[2]["data"]) == 2


def _run(device: Device, command: list[str]) -> str:
    environ = {
        **os.environ,
        "AGORA_API_KEY": device.told["api_key"],
        "AGORA_GATEWAY": device.gateway,
        "AGORA_PRIVACY": "mesh",
        "AGORA_MODEL": "tiny",
        "AGORA_EMBEDDER": "mini",
        "NO_PROXY": "*",
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
