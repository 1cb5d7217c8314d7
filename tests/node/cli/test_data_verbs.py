"""`agora data` against real files, a real log and a real admin socket: what it asks, shows and refuses."""

import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from marketplace.assembly.assembly import Assembly
from marketplace.assembly.charter import founding_charter
from marketplace.ledger import Ledger
from node import records
from node.clock import MembersTime, SystemClock
from node.data_directory import DataDirectory
from node.gateway.app import admin_app
from node.gateway.server import serve_admin
from node.home import Home
from node.logbook import Logbook
from node.own_data import OwnData
from node.privacy_book import PrivacyBook
from node.store import MemoryStore
from node.views import DataView
from node.wire import Wire
from protocol.envelope import seal
from protocol.identity import Identity
from protocol.messages import NO_HASH
from runtime.trainer import NoisePlan
from tests.node.cli.test_verbs import Told
from tests.node.gateway.fake_node import FakeNode

Agora = Callable[..., Awaitable[Told]]


class Owner(FakeNode):
    """A node whose private data is real."""

    def __init__(self, data: DataDirectory, book: PrivacyBook) -> None:
        super().__init__()
        self.sets = data
        self.book = book
        self.own = OwnData(data, book, self.journal)

    def data(self) -> list[DataView]:
        return self.own.views()

    async def add_data(self, path: str, name: str, budget_milli: int) -> dict[str, Any]:
        return await self.own.add(path, name, budget_milli)

    async def remove_data(self, digest_prefix: str) -> dict[str, Any]:
        return await self.own.remove(digest_prefix)


def logbook() -> Logbook:
    """The log of a founder who is alone."""
    ann, clock = Identity(Random("ann").randbytes(32)), SystemClock()
    charter = seal(
        founding_charter("home", founder=ann.public_key, owner="ann", approver=ann.public_key),
        ann,
        mesh=NO_HASH,
        seq=(1, 1),
        time_ms=clock.utc_ms(),
        ttl_ms=0,
    )
    assembly = Assembly.found(charter)
    wire = Wire(ann, charter.id, boot=1, clock=clock, members_time=MembersTime(clock))
    ledger = Ledger(charter.id, assembly.was_admitted)
    made = Logbook(wire, MemoryStore(), assembly, ledger, clock=clock, journal=FakeNode().journal)
    made.confirm()
    return made


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "home")


@pytest.fixture
async def owner(home: Home, nursery: trio.Nursery) -> Owner:
    log = logbook()
    data = DataDirectory(home.data, SystemClock())
    node = Owner(data, PrivacyBook(log, data, FakeNode().journal, run_percent=25))
    await nursery.start(log.run)
    await nursery.start(partial(serve_admin, admin_app(node), home.admin_socket, node.journal))
    return node


@pytest.fixture
def agora(home: Home, owner: Owner, capsys: pytest.CaptureFixture[str]) -> Agora:  # noqa: ARG001  its daemon
    async def type_in(*words: str) -> Told:
        from node.cli.app import run  # noqa: PLC0415

        status = await trio.to_thread.run_sync(run, [*words, "--home", str(home.path)])
        told = capsys.readouterr()
        return Told(status, told.out, told.err)

    return type_in


@pytest.fixture
def logs(tmp_path: Path) -> str:
    path = tmp_path / "logs.jsonl"
    path.write_bytes(records.encode((f"prompt {at}", f"response {at}") for at in range(600)))
    return str(path)


async def test_a_new_owner_is_told_what_to_run(agora: Agora) -> None:
    told = await agora("data")

    assert (told.status, told.err) == (0, "")
    assert told.out == "no private data yet; run 'agora data add NAME FILE.jsonl --budget 4'\n"


async def test_a_set_is_added_listed_and_its_spending_shown(agora: Agora, owner: Owner, logs: str) -> None:
    added = await agora("data", "add", "pump-logs", logs, "--budget", "4.5")
    [data_set] = owner.sets.sets()
    assert await owner.book.reserve(data_set, b"r" * 16, 1, NoisePlan(1_000, 20_000), 30) is None
    spent = owner.book.spent_milli(data_set)
    shown = await agora("data")
    [as_json] = json.loads((await agora("data", "--json")).out)

    assert added.out == f"added pump-logs ({data_set.digest.hex()[:8]}): 540 to train on, 60 held out\n"
    told = " ".join(added.err.split())
    assert "540 records under epsilon 1.125 will most likely teach nothing" in told
    assert told.endswith("; one run may spend 1.125 of the 4.5 (privacy_run_percent)")
    for part in ("pump-logs", "540", "60", "4.5", f"{spent / 1000:.3f}", f"{4.5 - spent / 1000:.3f}"):
        assert part in shown.out
    assert "the unit is one record" in shown.out
    assert as_json == {
        "digest": data_set.digest.hex(), "name": "pump-logs", "samples": 540, "held_out": 60, "is_private": True,
        "budget_milli": 4_500, "spent_milli": spent, "left_milli": 4_500 - spent, "unit": "one record",
        "added_at": data_set.added_ms / 1000,
    }  # fmt: skip


async def test_without_differential_privacy_is_said_wherever_it_is_shown(agora: Agora, logs: str) -> None:
    added = await agora("data", "add", "logs", logs, "--no-dp")
    shown = await agora("data")

    assert "updates may give single records away" in " ".join(added.err.split())
    assert "no DP" in shown.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "found neither of --budget E and --no-dp, expected exactly one: how may it be trained on?"),
        (
            ["--budget", "4", "--no-dp"],
            "found both of --budget E and --no-dp, expected exactly one: how may it be trained on?",
        ),
        (["--budget", "0"], "--budget is 0, expected an epsilon from 0.001 to 1000, e.g. 4"),
        (["--budget", "-1"], "--budget is -1, expected an epsilon from 0.001 to 1000, e.g. 4"),
        (["--budget", "nan"], "--budget is nan, expected an epsilon from 0.001 to 1000, e.g. 4"),
        (["--budget", "inf"], "--budget is inf, expected an epsilon from 0.001 to 1000, e.g. 4"),
    ],
)  # fmt: skip
async def test_exactly_one_decision_about_privacy_is_wanted(
    agora: Agora, owner: Owner, logs: str, options: list[str], said: str
) -> None:
    told = await agora("data", "add", "logs", logs, *options)

    assert (told.status, told.out, told.err) == (1, "", f"{said}\n")
    assert owner.sets.known() == ()


async def test_a_malformed_line_is_one_line_with_its_file_and_number(
    agora: Agora, owner: Owner, tmp_path: Path
) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n')

    told = await agora("data", "add", "logs", str(path), "--budget", "4")

    assert (told.status, told.out, told.err) == (1, "", f"{path} line 2: no field 'response'\n")
    assert owner.sets.known() == ()


async def test_a_name_that_no_run_could_ask_for_is_refused(agora: Agora, owner: Owner, logs: str) -> None:
    told = await agora("data", "add", "../logs", logs, "--budget", "4")

    assert (told.status, told.out) == (1, "")
    assert "name" in told.err
    assert told.err.count("\n") == 1
    assert owner.sets.known() == ()


async def test_a_file_that_is_not_there_is_said_before_the_daemon_is_asked(
    agora: Agora, tmp_path: Path
) -> None:
    told = await agora("data", "add", "logs", str(tmp_path / "none.jsonl"), "--budget", "4")

    assert told.err == f"no file {tmp_path / 'none.jsonl'}, expected JSON lines; name one that exists\n"


async def test_repeated_lines_and_records_seen_before_are_reported(
    agora: Agora, owner: Owner, logs: str, tmp_path: Path
) -> None:
    await agora("data", "add", "logs", logs, "--budget", "8")
    [data_set] = owner.sets.sets()
    assert await owner.book.reserve(data_set, b"r" * 16, 1, NoisePlan(1_000, 20_000), 30) is None
    more = tmp_path / "more.jsonl"
    more.write_bytes(records.encode((f"prompt {at % 700}", f"response {at % 700}") for at in range(710)))

    told = await agora("data", "add", "more", str(more), "--budget", "8")

    said = " ".join(told.err.split())
    assert "10 lines repeat an earlier one and were left out: the unit is one record" in said
    assert "were trained on in other sets: epsilon" in said
    assert "is spent already" in said


async def test_a_set_that_is_here_already_is_not_added_twice(agora: Agora, owner: Owner, logs: str) -> None:
    await agora("data", "add", "logs", logs, "--budget", "4")

    told = await agora("data", "add", "logs", logs, "--budget", "4")

    assert told.out.startswith("was here already: logs (")
    assert len(owner.sets.sets()) == 1


async def test_a_removed_set_is_not_listed_any_more(agora: Agora, owner: Owner, logs: str) -> None:
    await agora("data", "add", "logs", logs, "--budget", "4")
    digest = owner.sets.sets()[0].digest.hex()

    told = await agora("data", "remove", digest[:8])

    assert told.out == f"removed logs ({digest[:8]})\n"
    assert json.loads((await agora("data", "--json")).out) == []


async def test_removing_what_is_not_here_is_refused(agora: Agora) -> None:
    told = await agora("data", "remove", "abcd1234")

    assert (told.status, told.out) == (1, "")
    assert (
        told.err == "no data set 'abcd1234', or several; run 'agora data' to see the digests of those here\n"
    )
