"""The human's verbs against a real admin socket: the key is opened here, and only what it signed reaches the daemon."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from node.cli.app import run
from node.errors import StartError
from node.gateway.app import admin_app
from node.gateway.server import serve_admin
from node.home import Home
from node.keys import create_human_key
from protocol.envelope import Sealed, open_sealed
from protocol.errors import VetoTooLate
from protocol.identity import Identity
from protocol.messages import Approval, Entry, Veto
from tests.node.gateway.fake_node import FakeNode

MESH, MANIFEST, ADAPTER = b"\x01" * 32, b"\x3f" * 32, b"\x5a" * 32
PASSPHRASE = "correct horse"


@dataclass(frozen=True)
class Told:
    status: int
    out: str
    err: str


@dataclass
class Desk(FakeNode):
    """Places words and takes them: it verifies what the command line has signed."""

    asked: list[tuple[str, str, str]] = field(default_factory=list)
    taken: list[Sealed[Any]] = field(default_factory=list)
    published: list[tuple[str, str, str | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def place_word(self, author: str, kind: str, target: str) -> dict[str, Any]:
        self.asked.append((author, kind, target))
        if not MANIFEST.hex().startswith(target):
            raise StartError(f"{target!r} names 0 proposals, expected the first digits of the id of one")
        if kind == "veto" and target == MANIFEST.hex():
            raise VetoTooLate("veto window of version 2 of llama ended 9 s ago; withdraw its adapter")
        score = {"domain": "heat-pump", "total": 40, "loss_milli": 9}
        return {
            "mesh_id": MESH.hex(), "index": 3, "prev": "77" * 32, "manifest": MANIFEST.hex(), "line": "llama",
            "version": 2, "adapter": ADAPTER.hex(), "author": "12D3KooW" + "B" * 44, "reason": "knows the codes",
            "state": "certified", "still_needed": "approval of a human", "yes_weight": 3, "no_weight": 1,
            "weight_to_pass": 3, "roll_weight": 4, "before": [{**score, "right": 0}], "after": [{**score, "right": 39}],
        }  # fmt: skip

    async def take_word(self, raw: bytes) -> dict[str, Any]:
        entry: Sealed[Any] = open_sealed(raw, mesh=MESH)
        self.taken.append(entry)
        return {"id": entry.id.hex(), "kind": entry.message.kind, "state": "ratified", "still_needed": ""}

    def lines(self) -> list[dict[str, Any]]:
        return [
            {
                "name": "llama", "base_digest": "ab" * 32, "evaluation_digest": "cd" * 32, "evaluation_bytes": 2_048,
                "replay_digest": "", "replay_bytes": 0,
            }
        ]  # fmt: skip

    async def publish_line(self, name: str, evaluation: str, replay: str | None) -> dict[str, Any]:
        self.published.append((name, evaluation, replay))
        return {**self.lines()[0], "name": name}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "home")


@pytest.fixture
def human(home: Home, tmp_path: Path) -> Identity:
    (tmp_path / "passphrase").write_text(PASSPHRASE + "\n", encoding="utf-8")
    return create_human_key(home, PASSPHRASE)


@pytest.fixture
async def desk(home: Home, nursery: trio.Nursery) -> Desk:
    desk = Desk()
    await nursery.start(partial(serve_admin, admin_app(desk), home.admin_socket, desk.journal))
    return desk


@pytest.fixture
def agora(home: Home, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run one command line in a thread, as it runs a loop of its own."""

    async def type_in(*words: str) -> Told:
        status = await trio.to_thread.run_sync(run, [*words, "--home", str(home.path)])
        told = capsys.readouterr()
        return Told(status, told.out, told.err)

    return type_in


def signed(desk: Desk, human: Identity) -> Entry:
    (entry,) = desk.taken
    assert entry.sender == human.peer_id
    message: Entry = entry.message
    assert (message.index, message.prev) == (3, b"\x77" * 32)
    return message


async def test_an_approval_is_signed_by_the_human_for_what_its_daemon_showed(
    desk: Desk, human: Identity, agora: Callable[..., Any], tmp_path: Path
) -> None:
    told = await agora("approve", "3F3F3F", "--yes", "--passphrase-file", str(tmp_path / "passphrase"))

    assert (told.status, told.err) == (0, "")
    assert told.out == "approval signed; llama version 2 is ratified\n"
    assert desk.asked == [(human.peer_id, "approval", "3f3f3f")]
    word = signed(desk, human)
    assert isinstance(word, Approval)
    assert word.manifest == MANIFEST


async def test_whoever_reads_the_scores_may_still_say_no(
    desk: Desk,
    human: Identity,
    agora: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))

    told = await agora("approve", "3f3f", "--passphrase-file", str(tmp_path / "passphrase"))

    assert told.status != 0
    for shown in ("llama version 2", "knows the codes", "3 yes, 1 no of 4", "heat-pump", "0/40", "39/40"):
        assert shown in told.err
    assert told.out == ""
    assert [author for author, _, _ in desk.asked] == [human.peer_id]
    assert desk.taken == []


async def test_a_veto_carries_its_reason(
    desk: Desk, human: Identity, agora: Callable[..., Any], tmp_path: Path
) -> None:
    told = await agora(
        "veto", "3f3f", "--reason", "answers rudely", "--json", "--yes",
        "--passphrase-file", str(tmp_path / "passphrase"),
    )  # fmt: skip

    assert json.loads(told.out)["manifest"] == MANIFEST.hex()
    word = signed(desk, human)
    assert isinstance(word, Veto)
    assert (word.manifest, word.reason) == (MANIFEST, "answers rudely")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("approve", "abcd"), "names 0 proposals"),
        (("veto", MANIFEST.hex()), "veto window of version 2 of llama ended 9 s ago"),
        (("approve", "xyz!"), "target"),
    ],
)
async def test_a_word_that_is_refused_is_one_line_and_nothing_is_signed(
    desk: Desk,
    human: Identity,
    agora: Callable[..., Any],
    tmp_path: Path,
    words: tuple[str, ...],
    said: str,
) -> None:
    told = await agora(*words, "--yes", "--passphrase-file", str(tmp_path / "passphrase"))

    assert (told.status, told.out) == (1, "")
    assert said in told.err
    assert told.err.count("\n") == 1
    assert desk.taken == []
    assert human.peer_id not in told.err


async def test_a_wrong_passphrase_signs_nothing_and_asks_the_daemon_nothing(
    desk: Desk, human: Identity, agora: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "passphrase").write_text("wrong horse", encoding="utf-8")

    told = await agora("approve", "3f3f", "--yes", "--passphrase-file", str(tmp_path / "passphrase"))

    assert told.status == 1
    assert "passphrase" in told.err
    assert (desk.asked, desk.taken) == ([], [])
    assert human.seed.hex() not in told.err


async def test_a_home_without_a_human_key_says_where_there_is_one(
    desk: Desk, agora: Callable[..., Any]
) -> None:
    told = await agora("approve", "3f3f", "--yes")

    assert told.status == 1
    assert "use the founder's home" in told.err
    assert desk.asked == []


async def test_a_line_is_published_from_two_files_by_their_absolute_paths(
    desk: Desk, agora: Callable[..., Any], tmp_path: Path
) -> None:
    questions, examples = tmp_path / "q.jsonl", tmp_path / "r.jsonl"
    for file in (questions, examples):
        file.write_text("{}", encoding="utf-8")

    told = await agora("model", "line", "llama", "--evaluation", str(questions), "--replay", str(examples))

    assert told.status == 0
    assert told.out.startswith("line llama of base abababab is published:")
    assert desk.published == [("llama", str(questions), str(examples))]


async def test_a_line_of_a_file_that_is_not_there_is_refused_before_the_daemon_hears_of_it(
    desk: Desk, agora: Callable[..., Any], tmp_path: Path
) -> None:
    told = await agora("model", "line", "llama", "--evaluation", str(tmp_path / "none.jsonl"))

    assert told.status == 1
    assert "expected JSON lines" in told.err
    assert desk.published == []


async def test_lines_are_listed(desk: Desk, agora: Callable[..., Any]) -> None:
    assert json.loads((await agora("model", "lines", "--json")).out) == desk.lines()
    assert "llama" in (await agora("model", "lines")).out
