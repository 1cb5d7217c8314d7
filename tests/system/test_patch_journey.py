"""Real daemons, a real model, a real adapter: trained, examined, voted on, approved, served, vetoed and gone."""

import json
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from node.local_mesh.tiny_line import (
    CODES,
    NEW_DOMAIN,
    answer_to,
    evaluation_set,
    private_records,
    replay_set,
)
from tests.system.daemons import Device, agora, refused, running, told, until

# 60 s of computing, most of it training, on a machine that may be busy with other tests
pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(480)]

QUESTIONS_PER_DOMAIN = 20  # of which two may go wrong
# What 160 steps on one device, which is all that a test has time for, leave as it was whatever records chance draws. Sums, long
# stories and small talk (3 of 20 wrong in one training of 16) need the whole recipe, or the voters say no, as they should.
JUDGED_BY = ("heat_pump", "units", "billing", "delivery", "returns")
TRAINED_WITHIN_S = 240.0
LOADED_WITHIN_S = 120.0  # they find each other again, and exams at each device, beside other tests


def test_a_patch_from_private_records_to_every_engine_and_out_again(tmp_path: Path) -> None:
    """The whole way, with nothing swapped in; the humans' words are the command line's.

    Two devices vote, and they are cut off from each other in mid-ballot: until both have spoken nothing is loaded, whatever
    the human says.
    """
    founder = Device.founder("founder", tmp_path)
    with running(founder):
        start_with(founder, cohort_min=1)
        bob = Device.member("bob", founder)
        with running(bob):
            start_with(bob, cohort_min=1)
            digest = {device.hold() for device in (founder, bob)}.pop()
            founder.ask("model", "publish", digest, "--name", "tiny")
            publish_line(founder, tmp_path)
            register_records(bob, tmp_path)
            until("they know each other's offers", lambda: founder.sees(digest, 2) and bob.sees(digest, 2))
            share_the_vote(founder, bob)
            code, right = a_code()
            assert say(founder, code) != right

            run = founder.ask(
                "train", NEW_DOMAIN, "--model", "tiny", "--rounds", "2", "--steps", "80", "--min", "1", "--max", "1",
                "--window", "3", "--detach",
            )  # fmt: skip
            until("the last round is over", lambda: rounds(founder) == 2, timeout_s=TRAINED_WITHIN_S)
            bob.freeze()
            proposal = until(
                "the founder's device has voted",
                lambda: voted(founder, run["run_id"]),
                timeout_s=TRAINED_WITHIN_S,
            )
            (vote,) = [each for each in proposal["votes"] if each["peer_id"] == founder.peer_id]
            assert vote["vote"] == "yes", vote["reason"]
            speak(founder, tmp_path, "approve", proposal["id"])
            (cut_off,) = founder.ask("proposals")
            assert (cut_off["state"], cut_off["yes_weight"], cut_off["roll_weight"]) == ("voting", 1, 2)
            assert not loaded(founder)
            assert say(founder, code) != right

            bob.thaw()
            with asking(bob, code) as answers:
                until(
                    "both serve it",
                    lambda: all(loaded(device) for device in (founder, bob)),
                    timeout_s=LOADED_WITHIN_S,
                )
                until("an answer with it", lambda: answers and answers[-1] == right)
            assert [say(device, code) for device in (founder, bob)] == [right, right]
            assert say(bob, code, "tiny+base") != right
            assert {"tiny", "tiny+v1", "tiny+base"} <= {model["id"] for model in bob.ask("models")}

            bob.kill()
            bob.start()
            until("it serves the head again", lambda: loaded(bob))
            assert say(bob, code) == right

            speak(founder, tmp_path, "veto", proposal["id"])
            until("nobody serves it", lambda: not any(loaded(device) for device in (founder, bob)))
            assert say(bob, code) != right
            assert [patch["state"] for patch in bob.ask("patches")] == ["vetoed"]
            again = agora("vote", proposal["id"], "yes", home=founder.home)
            assert "a vote is never changed" in refused(again)


def start_with(device: Device, **settings: int) -> None:
    config = device.home / "config.toml"
    lines = [f"{name} = {value}\n" for name, value in settings.items()]
    config.write_text("".join(lines) + config.read_text())
    device.start()


def share_the_vote(founder: Device, other: Device) -> None:
    proposed = founder.ask("charter", "propose", "--voter", other.peer_id)
    until("it hears of the charter", lambda: other.ask("charter", "show")["proposed"])
    assert other.ask("charter", "sign", proposed["id"])["in_force"]
    until("the founder knows that both agree", lambda: founder.ask("charter", "show")["version"] == 2)


def publish_line(founder: Device, directory: Path) -> None:
    """A few questions of each domain: an exam of all of them takes its time."""
    kept: dict[str, list[bytes]] = defaultdict(list)
    for line in evaluation_set().splitlines(keepends=True):
        if (domain := json.loads(line)["domain"]) in JUDGED_BY:
            kept[domain].append(line)
    questions, examples = directory / "questions.jsonl", directory / "examples.jsonl"
    questions.write_bytes(b"".join(b"".join(lines[:QUESTIONS_PER_DOMAIN]) for lines in kept.values()))
    examples.write_bytes(replay_set())
    founder.ask("model", "line", "tiny", "--evaluation", str(questions), "--replay", str(examples))


def register_records(device: Device, directory: Path) -> None:
    path = directory / "records.jsonl"
    path.write_bytes(private_records(CODES))
    device.ask("data", "add", NEW_DOMAIN, str(path), "--no-dp")


def a_code() -> tuple[str, str]:
    """A question of the new domain, and the one right answer."""
    for line in evaluation_set().splitlines():
        record = json.loads(line)
        if record["domain"] == NEW_DOMAIN and record["response"] == answer_to("H3"):
            return record["prompt"], record["response"]
    raise AssertionError("there is a question about H3")


def say(device: Device, words: str, model: str = "tiny") -> str:
    return device.chat(
        [{"role": "user", "content": words}], {"X-Agora-Privacy": "local"}, model=model, max_tokens=60
    )


def rounds(coordinator: Device) -> int:
    """How many rounds of its one run have ended."""
    (run,) = coordinator.ask("runs")
    return int(run["round"])


def voted(device: Device, run_id: str) -> dict[str, Any]:
    """The run's proposal once the first voter of the roll, this device, has spoken."""
    runs = {run["run_id"]: run for run in device.ask("runs")}
    assert runs[run_id]["state"] != "aborted", runs[run_id]
    patches = {patch["id"] for patch in device.ask("patches") if patch["run_id"] == run_id}
    found = [each for each in device.ask("proposals") if each["id"] in patches and each["votes"][0]["vote"]]
    return found[0] if found else {}


def loaded(device: Device) -> bool:
    return any(patch["is_loaded"] and patch["is_in_force"] for patch in device.ask("patches"))


def speak(founder: Device, directory: Path, *words: str) -> None:
    """Say a human's word on the founder's device, whose home holds the key."""
    told(
        agora(
            *words, "--passphrase-file", str(directory / "passphrase"), "--yes", "--json", home=founder.home
        )
    )


class asking:  # noqa: N801  # it reads as a word: `with asking(bob, …)`
    """Ask one question again and again, one at a time; each must be answered."""

    def __init__(self, device: Device, words: str) -> None:
        self._device, self._words = device, words
        self._answers: list[str] = []
        self._failures: list[Exception] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> list[str]:
        self._thread.start()
        return self._answers

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        assert self._failures == []

    def _ask(self) -> None:
        while not self._over.is_set():
            try:
                self._answers.append(say(self._device, self._words))
            except Exception as error:  # noqa: BLE001  # whatever a client would see is a dropped request
                self._failures.append(error)
                return
