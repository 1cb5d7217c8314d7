"""The doctor says what is wrong and what to do, changes nothing, and survives every patient."""

import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from node import database
from node.doctor import Finding, Verdict, examine
from node.errors import StartError
from node.home import Home
from node.keys import create_device_key
from node.patches import HELD_BACK
from node.private_file import write_atomic
from node.store import Record


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.create(tmp_path / "home")
    create_device_key(home)
    write_atomic(home.config, b'gateway = "127.0.0.1:0"\nlisten = ["/ip4/127.0.0.1/tcp/0"]\n')
    return home


async def findings(home: Home) -> dict[str, Finding]:
    return {finding.name: finding for finding in await examine(home)}


async def test_a_sound_home_has_no_failures(home: Home) -> None:
    found = await findings(home)

    assert [finding for finding in found.values() if finding.verdict is Verdict.FAIL] == []
    assert found["models"].advice == "run 'agora model add FILE.gguf', or only buy from others"
    assert list(found) == [
        "home",
        "device key",
        "human key",
        "config",
        "database",
        "disk",
        "fsync",
        "memory",
        "clock",
        "ports",
        "models",
        "patches",
    ]


async def test_a_patch_that_is_held_back_is_named_with_the_reason(home: Home) -> None:
    records = [Record(HELD_BACK, bytes(range(32)), b"sums fell from 0.95 to 0.10")]
    with closing(database.open_file(home.database)) as connection:
        for statement, rows in database.statements(records):
            connection.executemany(statement, rows)
        connection.commit()

    found = (await findings(home))["patches"]

    assert found.verdict is Verdict.WARN
    assert found.found.endswith("told: 000102030405: sums fell from 0.95 to 0.10")
    assert "agora proposals" in found.advice


async def test_each_fault_is_found_with_what_to_do(home: Home) -> None:
    home.identity_key.chmod(0o644)
    write_atomic(home.config, b"slot = 1")
    write_atomic(home.database, b"no database " * 1_000)

    found = await findings(home)

    assert {name for name, finding in found.items() if finding.verdict is Verdict.FAIL} == {
        "home",
        "device key",
        "config",
        "database",
        "ports",
    }
    assert found["device key"].found == f"{home.identity_key} has mode 0644, expected 0600"
    assert found["device key"].advice.startswith(f"run 'chmod 600 {home.identity_key}'")
    assert found["config"] == Finding(
        "config", Verdict.FAIL, f"{home.config}:1: unknown key 'slot'", "did you mean 'slots'?"
    )
    assert "restore a backup" in found["database"].advice


async def test_a_port_in_use_is_found(home: Home) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        write_atomic(home.config, f'gateway = "127.0.0.1:{server.getsockname()[1]}"\n'.encode())

        ports = (await findings(home))["ports"]
        with home.lock():
            ours = (await findings(home))["ports"]

    assert ports.verdict is Verdict.FAIL
    assert "is in use, expected a free port" in ports.found
    assert ours == Finding("ports", Verdict.OK, "in use by the running daemon")


async def test_a_clock_that_went_back_is_found(home: Home) -> None:
    """Live messages would be refused as stale."""
    home.journal.touch()
    os.utime(home.journal, (4_000_000_000, 4_000_000_000))

    clock = (await findings(home))["clock"]

    assert clock.verdict is Verdict.WARN
    assert clock.advice == "set the clock"


async def test_checks_of_other_parts_come_last_and_may_fail(home: Home) -> None:
    def sandbox() -> Finding:
        return Finding("sandbox", Verdict.OK, "S3")

    def refused() -> Finding:
        raise StartError("no engine, expected one; install it")

    def broken() -> Finding:
        raise ZeroDivisionError("oops")

    assert (await examine(home, [sandbox, refused, broken]))[-3:] == [
        Finding("sandbox", Verdict.OK, "S3"),
        Finding("refused", Verdict.FAIL, "no engine, expected one", "install it"),
        Finding("broken", Verdict.FAIL, "ZeroDivisionError: oops"),
    ]


async def test_a_missing_home_is_a_finding(tmp_path: Path) -> None:
    found = await findings(Home(tmp_path / "none"))

    assert found["home"].verdict is Verdict.FAIL
    assert found["home"].advice.startswith("run 'agora init'")
    assert not (tmp_path / "none").exists()
