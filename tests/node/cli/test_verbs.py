"""The verbs against a real admin socket with a fake node behind it: what they ask for and what they show."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio

from node.chat import Unsold
from node.cli import show
from node.cli.app import run
from node.cli.time_text import duration, seconds
from node.gateway.app import admin_app
from node.gateway.server import serve_admin
from node.home import Home
from node.journal import Journal
from tests.node.gateway.fake_node import BOB, JOB_ID, STARTED, FakeNode


@dataclass(frozen=True)
class Told:
    """What a command line came to."""

    status: int
    out: str
    err: str


class Mesh(FakeNode):
    """With a whole charter, as the real node gives it."""

    def charter(self) -> dict[str, object]:
        return {
            "version": 1, "name": "home", "mesh_id": "ab" * 32, "approvers": ["cd" * 32], "recovery": ["ef" * 32],
            "approvals_min": 1, "proposed": [], "pass_percent": 67, "machine_vote_ms": 1_800_000, "human_approval_ms": 86_400_000, "veto_ms": 3_600_000,
            "roll": [{"key": "01" * 32, "owner": "ann", "weight": 1}],
            "facts": {
                "voters": 1, "owners": 1, "weight_total": 1, "weight_to_pass": 1, "absent_to_block": 1,
                "is_byzantine_safe": False,
            },
        }  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "home")


@pytest.fixture
async def node(home: Home, nursery: trio.Nursery) -> FakeNode:
    node = Mesh()
    await nursery.start(partial(serve_admin, admin_app(node), home.admin_socket, node.journal))
    return node


@pytest.fixture
def agora(home: Home, capsys: pytest.CaptureFixture[str]) -> Callable[..., object]:
    """Run one command line in a thread, as it runs a loop of its own."""

    async def type_in(*words: str) -> Told:
        status = await trio.to_thread.run_sync(run, [*words, "--home", str(home.path)])
        told = capsys.readouterr()
        return Told(status, told.out, told.err)

    return type_in


@pytest.mark.parametrize(
    "listing", ["status", "peers", "models", "jobs", "ledger", "charter", "charter show"]
)
async def test_a_listing_is_shown_and_with_json_it_is_the_view(
    listing: str, node: FakeNode, agora: Callable[..., object]
) -> None:
    view = {
        "status": node.status,
        "peers": node.peers,
        "models": node.models,
        "jobs": node.jobs,
        "ledger": node.ledger,
    }.get(listing, node.charter)

    shown = await agora(*listing.split())
    as_json = await agora(*listing.split(), "--json")

    assert (shown.status, shown.err) == (0, "")
    assert shown.out
    assert (as_json.status, as_json.err) == (0, "")
    assert json.loads(as_json.out) == json.loads(_json(view()))


async def test_the_story_of_a_job_says_who_was_asked_and_what_it_came_to(
    node: FakeNode,
    agora: Callable[..., object],
) -> None:
    assert node.job(JOB_ID) is not None

    told = await agora("jobs", "show", JOB_ID[:8])

    assert told.status == 0
    for part in (
        JOB_ID,
        "attempt 1",
        f"…{BOB[-8:]}",
        "0.000013 credits",
        "first token 100 ms",
        "receipt efef",
        "promised first token 80 ms, 20 tok/s · delivered first token 95 ms, 9 tok/s",
    ):
        assert part in told.out


async def test_the_list_of_jobs_shows_what_was_promised_beside_what_came(
    node: FakeNode, agora: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert node.jobs()
    monkeypatch.setattr(show.out, "_width", 160)  # it has looked at COLUMNS when it was imported

    told = await agora("jobs")

    header, *rows = told.out.splitlines()
    assert header.split()[-3:] == ["ttft", "tok/s", "promised"]
    assert "100 ms      9  80 ms, 20 tok/s" in rows[0]


async def test_a_reading_is_told_in_words(
    node: FakeNode, agora: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An embedding has no completion; its words cost nothing."""
    (job,) = node.jobs()
    monkeypatch.setattr(node, "job", lambda _prefix: msgspec.structs.replace(job, kind="embedding"))
    monkeypatch.setattr(node, "jobs", lambda _limit=0: [msgspec.structs.replace(job, kind="embedding")])
    monkeypatch.setattr(show.out, "_width", 160)  # it has looked at COLUMNS when it was imported

    listed, told = await agora("jobs"), await agora("jobs", "show", JOB_ID[:8])

    counted = f"{job.prompt_tokens}+{job.completion_tokens}w"
    assert {"embedding", counted} <= set(listed.out.splitlines()[1].split())
    assert f"{job.prompt_tokens} prompt + {job.completion_tokens} words of the answer" in told.out
    assert f"settled, {job.attempts[0].tokens} words" in told.out


async def test_an_invitation_is_one_line_to_paste(node: FakeNode, agora: Callable[..., object]) -> None:
    told = await agora("invite", "--expires", "2h", "--uses", "3", "--owner", "bob", "--credit-line", "1.5")

    assert told.out.splitlines()[-1] == "agora join agora1xyz && agora up"
    assert node.calls == [("invite", 7_200.0, 3, "bob", 1_500_000)]


async def test_an_answer_streams_to_stdout_and_its_price_to_stderr(
    node: FakeNode, agora: Callable[..., object]
) -> None:
    """So that `agora chat … > file` holds the answer alone."""
    told = await agora("chat", "--model", "tiny", "--privacy", "mesh", "say", "hello")

    assert (told.status, told.out) == (0, "Hello “you”\n")
    assert told.err == f"…{BOB[-8:]} · 0.000013 credits · first token 100 ms · 9 tok/s · job {JOB_ID[:8]}\n"
    [request] = node.requests
    assert (request.model, request.privacy, request.messages[0].content) == ("tiny", "mesh", "say hello")


async def test_an_answer_is_held_to_the_schema_of_a_file(
    node: FakeNode, agora: Callable[..., object], tmp_path: Path
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"zebra": {}, "age": {}}}')

    told = await agora("chat", "--schema", str(schema), "--max-tokens", "9", "hello")

    assert told.status == 0
    [request] = node.requests
    assert request.sampling.schema == '{"type":"object","properties":{"zebra":{},"age":{}}}'
    assert request.tokens_max == 9


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "cannot read {} (No such file or directory), expected a JSON schema"),
        ("[1]", "{} is no JSON object, expected a JSON schema"),
        ("{", "{} is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)), expected a JSON schema"),
    ],
)  # fmt: skip
async def test_a_file_that_is_no_schema_is_refused_before_anything_is_asked(
    node: FakeNode, agora: Callable[..., object], tmp_path: Path, content: str | None, line: str
) -> None:
    schema = tmp_path / "schema.json"
    if content is not None:
        schema.write_text(content)

    told = await agora("chat", "--schema", str(schema), "hello")

    assert (told.status, told.out, told.err) == (1, "", line.format(schema) + "\n")
    assert node.requests == []


async def test_an_answer_that_nobody_sells_is_one_line_with_the_reasons(
    node: FakeNode, agora: Callable[..., object]
) -> None:
    node.script = [Unsold("nobody takes the job", ())]

    told = await agora("chat", "hello")

    assert (told.status, told.out, told.err) == (1, "", "nobody takes the job\n")


async def test_an_answer_that_breaks_off_ends_the_line_before_the_reason(
    node: FakeNode, agora: Callable[..., object]
) -> None:
    node.script = [STARTED, *node.script[1:3], Unsold("every seller is gone", ())]

    told = await agora("chat", "hello")

    assert (told.status, told.out, told.err) == (1, "Hello \n", "every seller is gone\n")


async def test_a_model_is_added_by_its_absolute_path(
    node: FakeNode, agora: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon may run in another directory."""
    (tmp_path / "tiny.gguf").touch()
    monkeypatch.chdir(tmp_path)

    told = await agora("model", "add", "tiny.gguf", "--name", "tiny", "--publish")

    assert told.status == 0
    assert node.calls == [("add_model", str(tmp_path / "tiny.gguf"), "tiny", True)]


async def test_a_peer_is_revoked_by_the_end_of_its_id(node: FakeNode, agora: Callable[..., object]) -> None:
    """Each id begins alike, so the listings show the end."""
    told = await agora("revoke", BOB[-8:], "--reason", "stolen", "--yes")

    assert told.status == 0
    assert node.calls == [("revoke", BOB, "stolen")]


async def test_a_peer_that_is_not_known_is_not_revoked(node: FakeNode, agora: Callable[..., object]) -> None:
    told = await agora("revoke", "zzzzzzzz", "--yes")

    assert told.status == 1
    assert told.err.startswith("'zzzzzzzz' names 0 peers, expected a peer id")
    assert node.calls == []


async def test_what_the_daemon_refuses_is_one_line(node: FakeNode, agora: Callable[..., object]) -> None:
    told = await agora("leave", "--yes")

    assert (told.status, told.out) == (1, "")
    assert told.err == "cannot reach a roll member now; try again later\n"
    assert node.calls == []


async def test_without_a_daemon_the_line_says_how_to_start_one(
    home: Home, agora: Callable[..., object]
) -> None:
    told = await agora("ledger")

    assert told == Told(1, "", f"no daemon at {home.path}; run 'agora up'\n")


async def test_keys_are_made_listed_and_revoked_while_no_daemon_runs(
    home: Home, agora: Callable[..., object]
) -> None:
    made = json.loads((await agora("keys", "create", "--name", "laptop", "--json")).out)
    listed = json.loads((await agora("keys", "list", "--json")).out)
    revoked = await agora("keys", "revoke", made["key_id"])

    assert [(key["key_id"], key["name"]) for key in listed] == [(made["key_id"], "laptop")]
    assert made["key"][-4:] == listed[0]["last_four"]
    assert revoked.status == 0
    assert json.loads((await agora("keys", "--json")).out) == []
    assert made["key"] not in home.api_keys.read_text()


async def test_the_log_is_filtered_by_name_and_id(home: Home, agora: Callable[..., object]) -> None:
    journal = Journal(home.journal)
    journal.write("award_sent", job_id=JOB_ID, price_micro=5)
    journal.write("peer_connected", peer_id=BOB)
    journal.close()

    by_name = await agora("logs", "--event", "award_*", "--since", "1h")
    by_id = await agora("logs", "--job", JOB_ID[:8], "--json")

    assert by_name.out.count("\n") == 1
    assert f"award_sent job_id={JOB_ID} price_micro=5" in by_name.out
    assert json.loads(by_id.out)["event"] == "award_sent"


def _json(view: object) -> bytes:
    return msgspec.json.encode(view)


@pytest.mark.parametrize(
    ("text", "in_s"), [("90s", 90.0), ("30m", 1_800.0), ("24h", 86_400.0), ("7d", 604_800.0)]
)
def test_durations_are_numbers_with_a_unit(text: str, in_s: float) -> None:
    assert seconds("--since", text) == in_s


def test_a_duration_is_shown_in_the_largest_unit_that_fits() -> None:
    assert [duration(ms) for ms in (86_400_000, 3_600_000, 90_000, 1_000, 0)] == [
        "1d",
        "1h",
        "90s",
        "1s",
        "0s",
    ]
