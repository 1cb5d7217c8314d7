"""The demo is run as a user runs it, and has to show what it promises."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

# two minutes on a quiet machine, most of them training; one that compiles beside it takes its time
pytestmark = [pytest.mark.system, pytest.mark.timeout(480)]

DEMO = (sys.executable, "-m", "node.cli", "demo")
ROOT = Path(__file__).resolve().parents[2]


def environment(tmp_path: Path) -> dict[str, str]:
    """The demo's directories go where the test can look."""
    return {**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "100"}


def daemons(tmp_path: Path) -> list[psutil.Process]:
    """Processes that were told of a directory of this test."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(tmp_path) in word for word in process.info["cmdline"] or ())
    ]


def played(tmp_path: Path, *command: str, timeout_s: float = 200) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def test_the_demo_shows_what_it_promises(tmp_path: Path) -> None:
    """Bids and declines, a kill in mid-answer that loses nothing, ledgers that sum to zero; then a patch that all agreed on."""
    done = played(tmp_path, *DEMO, timeout_s=450)

    shown = done.stdout
    assert (done.returncode, done.stderr) == (0, ""), shown
    # on a machine that is busy enough, cleo's signed no may miss the window
    assert re.search(r"decline   cleo  (context: \d+ tokens|silent)", shown)
    assert "lease     " in shown
    assert re.search(r"kill -9 \d+: (bob|cleo) is dead", shown)
    assert "the same text as undisturbed: no token lost, none repeated" in shown
    assert shown.count("signed by both") >= 6
    assert re.search(r"^  sum +0\.000000 +0\.000000 +0\.000000$", shown, re.MULTILINE)
    assert "together  0.000000 credits" in shown
    assert shown.count("vote      ") == 3
    assert "passed    3 of 3" in shown
    assert "loaded    by all 4 running engines" in shown
    assert shown.count("Error H4 on the heat pump: the water flow is too slow. Clean the filter.") == 4
    assert (
        shown.count("Error H7 on the heat pump: there is air in the heating circuit. Open the air valve.")
        == 4
    )
    assert daemons(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


LATE = """
import time
from node.demo import story

kill_at_once, killed = story.Daemon.kill, []

def kill(daemon):
    killed.append(daemon.name)
    if len(killed) == 1:
        time.sleep(0.5)
    kill_at_once(daemon)

story.Daemon.kill = kill
story.find_spec = lambda _name: None  # without torch it ends before the training
story.run(keep=False)
"""


def test_a_kill_that_comes_too_late_on_a_busy_machine_is_told_and_tried_again(tmp_path: Path) -> None:
    """The whole answer takes a tenth of a second, and any process may have to wait longer for its turn."""
    done = played(tmp_path, sys.executable, "-c", LATE)

    shown = done.stdout
    assert (done.returncode, done.stderr) == (0, ""), shown
    assert "had said it all before it died; once more" in shown
    assert "the same text as undisturbed: no token lost, none repeated" in shown
    assert "together  0.000000 credits" in shown
    assert daemons(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_stopped_leaves_no_process_and_no_file(tmp_path: Path, ending: signal.Signals) -> None:
    with subprocess.Popen(
        DEMO,
        cwd=ROOT,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        while "joined    cleo" not in (line := demo.stdout.readline()):
            assert line, demo.stderr.read()
        running = [process for process in daemons(tmp_path) if process.pid != demo.pid]
        os.killpg(demo.pid, ending)
        errors = demo.stderr.read()

    assert len(running) >= 3
    assert (demo.returncode, errors) == (130, "stopped by Ctrl-C\n")
    assert daemons(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    """One line on stderr; what the daemons last logged above it."""
    model = tmp_path / "not-a-model.gguf"
    model.write_bytes(b"GIF89a" * 100)

    done = played(tmp_path, *DEMO, "--model", str(model))

    assert done.returncode == 1
    assert done.stderr.startswith("agora model add: ")
    assert done.stderr.count("\n") == 1
    assert "the last lines of bob's log" in done.stdout
    assert daemons(tmp_path) == []
    assert list(tmp_path.iterdir()) == [model]
