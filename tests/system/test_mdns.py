"""Two machines on one network, as two network namespaces with a cable between them: each finds the other by itself."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
SIDES = ("a", "b")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """The names of two namespaces that share a network, 10.77.0.1 and 10.77.0.2."""
    names = [f"agora-{os.getpid()}-{side}" for side in SIDES]
    try:
        ip("netns", "add", names[0])
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    try:
        ip("netns", "add", names[1])
        ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "cable", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=10)


def start(machine: str) -> subprocess.Popen[bytes]:
    settings = json.dumps({"listen": ["/ip4/0.0.0.0/tcp/0"], "mdns": True})
    return subprocess.Popen(
        ["ip", "netns", "exec", machine, sys.executable, "-m", "tests.system.victim", settings],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def until(process: subprocess.Popen[bytes], event: str) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        written: dict[str, Any] = json.loads(line)
        if written["event"] == event:
            return written
    pytest.fail(f"the daemon ended before {event}")


@pytest.mark.timeout(40)
def test_two_machines_on_one_network_find_each_other(machines: list[str]) -> None:
    """Stock libp2p announces 0.0.0.0, and dials what it has found 7 to 9 s later."""
    daemons = [start(machine) for machine in machines]
    try:
        addresses = [until(daemon, "ready")["address"] for daemon in daemons]
        assert [address.split("/")[2] for address in addresses] == ["10.77.0.1", "10.77.0.2"]

        met = [until(daemon, "peer_connected")["peer_id"] for daemon in daemons]

        assert met == [address.rpartition("/")[2] for address in reversed(addresses)]
    finally:
        for daemon in daemons:
            assert daemon.stdin is not None
            assert daemon.stdout is not None
            daemon.stdin.close()
            daemon.wait(10)
            daemon.stdout.close()
