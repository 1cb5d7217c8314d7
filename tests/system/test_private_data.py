"""Private records in the home of a real daemon: there after SIGKILL, and nowhere but where they belong."""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from node import records
from tests.system.daemons import Device, agora, refused, running

pytestmark = pytest.mark.system

SECRET = "the boiler key hangs behind the cellar door"


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """A founder on its own; each test adds a set of its own."""
    device = Device.founder("lone", tmp_path_factory.mktemp("private_data"))
    with running(device):
        device.start()
        yield device


def add(device: Device, directory: Path, name: str) -> dict[str, Any]:
    path = directory / f"{name}.jsonl"
    path.write_bytes(records.encode((f"{name} {at}", SECRET) for at in range(600)))
    added: dict[str, Any] = device.ask("data", "add", name, str(path), "--budget", "4")
    return added


def test_a_set_is_there_after_sigkill_and_a_restart(device: Device, tmp_path: Path) -> None:
    added = add(device, tmp_path, "lasting")
    listed = device.ask("data")

    device.kill()
    device.start()

    assert device.ask("data") == listed
    [found] = [each for each in listed if each["digest"] == added["digest"]]
    assert (found["samples"], found["held_out"], found["unit"]) == (540, 60, "one record")
    assert (found["budget_milli"], found["spent_milli"], found["left_milli"]) == (4_000, 0, 4_000)


def test_records_are_in_their_directory_and_in_no_log(device: Device, tmp_path: Path) -> None:
    added = add(device, tmp_path, "kept")

    holding = {
        path.relative_to(device.home).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in device.home.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    }

    sets = [each["digest"] for each in device.ask("data")]
    assert added["digest"] in sets
    assert holding == {
        f"data/{digest}/{name}.jsonl": 0o600 for digest in sets for name in ("train", "held_out")
    }
    assert SECRET not in device.home.with_suffix(".log").read_text()


def test_a_malformed_line_is_refused_by_number_and_quotes_nothing(device: Device, tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(f'{{"prompt": "a", "response": "b"}}\n{{"prompt": "{SECRET}"}}\n')

    before = device.ask("data")

    said = refused(agora("data", "add", "logs", str(path), "--budget", "4", home=device.home))

    assert said == f"{path} line 2: no field 'response'"
    assert device.ask("data") == before
    assert SECRET not in device.home.with_suffix(".log").read_text()


def test_the_gateway_does_not_know_of_private_data(device: Device, tmp_path: Path) -> None:
    """An API key opens chats; what the owner keeps is the owner's."""
    add(device, tmp_path, "hidden")
    headers = {"Authorization": f"Bearer {device.told['api_key']}"}

    with httpx.Client(trust_env=False, headers=headers, timeout=10) as client:
        listed = client.get(f"{device.gateway}/api/data")
        added = client.post(
            f"{device.gateway}/api/data/add", json={"path": "/x", "name": "x", "budget_milli": 0}
        )

    assert (listed.status_code, added.status_code) == (404, 404)
    assert "x" not in {each["name"] for each in device.ask("data")}
