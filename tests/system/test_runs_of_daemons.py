"""A training run of real daemons on the tiny model: torch in a child of each, llama.cpp's exams, crashes on either side."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from node.local_mesh.tiny_line import domains, evaluation_set, private_records
from tests.system.daemons import Device, agora, books_agree, running, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

MEMBERS = ("bob", "cleo", "dan")
CODES = (("H1", "H2"), ("H3", "H4"), ("H5", "H6"))
DATA = ("heat-1", "heat-2", "heat-3")
QUESTIONS_PER_DOMAIN = 3
POLL_S = 0.3  # each look costs the busy machine something
ENDED = ("finished", "aborted", "cancelled", "unsold")
STARTING_S = 120.0  # torch, transformers and a model in three children at once, on a busy machine


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Device, list[Device]]]:
    """A founder that coordinates and three members with private data, which they let be trained on under a budget."""
    directory = tmp_path_factory.mktemp("mesh")
    founder = Device.founder("founder", directory)
    with ExitStack() as stack:
        stack.enter_context(running(founder))
        founder.start()
        digest = founder.hold()
        members = []
        for name, codes in zip(MEMBERS, CODES, strict=True):
            member = Device.member(name, founder)
            stack.enter_context(running(member))
            settings = member.home / "config.toml"
            settings.write_text("cohort_min = 2\n" + settings.read_text())  # one run goes on with two
            member.start()
            member.hold()
            lines = private_records(codes).splitlines(keepends=True)
            for number, data in enumerate(
                DATA
            ):  # what one run has spent another one would have to make up for with noise: each has its own
                records = directory / f"{name}-{data}.jsonl"
                records.write_bytes(b"".join(lines[number :: len(DATA)]))
                member.ask("data", "add", data, str(records), "--budget", "8")
            members.append(member)
        founder.ask("model", "publish", digest, "--name", "tiny")
        questions = directory / "questions.jsonl"
        questions.write_bytes(few_questions())
        founder.ask("model", "line", "tiny", "--evaluation", str(questions))
        until("the founder hears of all holders", lambda: founder.sees(digest, 4))
        yield founder, members


def few_questions() -> bytes:
    """Some of each domain, so that an exam takes a second."""
    lines = evaluation_set().splitlines(keepends=True)
    chosen = {name: [line for line in lines if json.loads(line)["domain"] == name] for name in domains()}
    return b"".join(line for found in chosen.values() for line in found[:QUESTIONS_PER_DOMAIN])


def announce(founder: Device, data: str, *, rounds: int, steps: int, least: int = 3) -> str:
    """Announce a small run and return its id."""
    run: dict[str, Any] = founder.ask(
        "train", data, "--model", "tiny", "--rounds", str(rounds), "--steps", str(steps),
        "--min", str(least),
        "--batch", "8", "--window", "4", "--round-timeout", "150",
    )  # fmt: skip
    return str(run["run_id"])


def seen(founder: Device, run: str) -> dict[str, Any]:
    """The run as its coordinator shows it."""
    view: dict[str, Any] = founder.get(f"/api/runs/{run}")
    return view


def in_round(founder: Device, run: str, number: int, peer_id: str) -> None:
    """Wait until a member is in the middle of a round."""

    def is_training() -> bool:
        view = seen(founder, run)
        assert view["state"] not in ENDED, view["reason"]
        return view["round"] == number - 1 and 0 < view["progress"].get(peer_id, 0) < 1

    until(f"{peer_id[-6:]} trains round {number}", is_training, pause_s=POLL_S, timeout_s=STARTING_S)


def finished(founder: Device, run: str) -> dict[str, Any]:
    """Wait until a run has ended, and return it."""
    until(
        f"run {run[:8]} ends",
        lambda: seen(founder, run)["state"] in ENDED,
        pause_s=POLL_S,
        timeout_s=2 * STARTING_S,
    )
    return seen(founder, run)


def reserved(member: Device, run: str) -> list[int]:
    """The rounds of a run that a member has reserved privacy for, by its journal, in order."""
    lines = [json.loads(line) for line in (member.home / "journal.jsonl").read_text().splitlines()]
    return [each["round"] for each in lines if each["event"] == "privacy_reserved" and each["run"] == run]


def test_private_logs_of_three_devices_become_a_proposal(
    mesh: tuple[Device, list[Device]], tmp_path: Path
) -> None:
    founder, members = mesh

    done = agora(
        "train", DATA[0], "--model", "tiny", "--rounds", "2", "--steps", "3", "--batch", "8", "--window", "4",
        home=founder.home, environ={"COLUMNS": "200"},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "round 1/2: 3 members" in done.stdout
    assert "round 2/2: 3 members" in done.stdout
    assert "is proposed to the mesh for tiny" in done.stdout
    assert "will most likely teach nothing" in " ".join(done.stdout.split())  # however wide the screen is
    (listed,) = founder.ask("runs")
    run = founder.ask("runs", "show", listed["run_id"][:8])
    assert (run["state"], run["round"]) == ("finished", 2)
    assert {domain["domain"] for domain in run["before"]} == set(domains())
    assert [len(each["domains"]) for each in run["history"]] == [len(domains())] * 2
    assert {member["peer_id"]: member["paid_micro"] for member in run["cohort"]} == {
        member.peer_id: 2 * 3 * 1_000 for member in members
    }
    until("all books agree", lambda: books_agree(founder, *members))
    for member in members:
        data_set = next(each for each in member.ask("data") if each["name"] == DATA[0])
        assert 0 < data_set["spent_milli"] <= 8_000
        assert reserved(member, run["run_id"]) == [1, 2]
        assert member.ask("runs", "show", run["run_id"])["role"] == "member"
    drawn = agora("runs", "plot", run["run_id"], "--out", str(tmp_path / "run.svg"), home=founder.home)
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "run.svg").read_text().startswith("<svg")


def test_a_member_killed_in_mid_step_spends_once_and_comes_back(mesh: tuple[Device, list[Device]]) -> None:
    """The others' round goes on; what it had reserved stays spent, and the next round has it again."""
    founder, (bob, cleo, dan) = mesh
    run = announce(founder, DATA[1], rounds=3, steps=12, least=2)
    in_round(founder, run, 1, bob.peer_id)

    bob.kill()
    bob.start()
    view = finished(founder, run)

    assert (view["state"], view["round"]) == ("finished", 3), view["reason"]
    assert reserved(bob, run) == [1, 2, 3]
    assert [bob.peer_id in each["members"] for each in view["history"]] == [False, True, True]
    for other in (cleo, dan):
        assert reserved(other, run) == [1, 2, 3]
    until("all books agree", lambda: books_agree(founder, bob, cleo, dan))


def test_a_coordinator_killed_in_mid_round_goes_on_from_its_checkpoint(
    mesh: tuple[Device, list[Device]],
) -> None:
    """Who had trained the round sends the same bytes again: nothing is trained, spent or paid twice."""
    founder, members = mesh
    before = [member.balances().get(member.peer_id, 0) for member in members]
    run = announce(founder, DATA[2], rounds=3, steps=12)
    in_round(founder, run, 2, members[0].peer_id)

    founder.kill()
    founder.start()
    view = finished(founder, run)

    assert (view["state"], view["round"]) == ("finished", 3), view["reason"]
    assert [len(each["members"]) for each in view["history"]] == [3, 3, 3]
    for member, balance in zip(members, before, strict=True):
        assert reserved(member, run) == [1, 2, 3]
        until(
            "every round is paid once",
            lambda member=member, balance=balance: (
                member.balances()[member.peer_id] == balance + 3 * 12 * 1_000
            ),
        )
    until("all books agree", lambda: books_agree(founder, *members))
    assert founder.ask("ledger")["held_micro"] == 0
