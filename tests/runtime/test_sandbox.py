"""What a hijacked child can still do, tried by one: read its model, compute, and speak on its socket."""

import json
import platform
import sys
from pathlib import Path

import pytest

from runtime import landlock, sandbox

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or landlock.abi() == 0 or platform.machine() not in ("x86_64", "aarch64"),
    reason="S3 needs Landlock and seccomp",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the probe's attempts came to."""
    directory = tmp_path_factory.mktemp("sandbox")
    allowed, forbidden = directory / "model.gguf", directory / "secret"
    allowed.write_bytes(b"GGUF")
    forbidden.write_text("a key")

    process, sock = sandbox.spawn("tests.runtime.sandbox_probe", (allowed,), 1 << 30)
    with sock, process:
        sock.sendall(json.dumps([str(allowed), str(forbidden)]).encode())
        answer = sock.recv(1 << 16)
        _, stderr = process.communicate()

    assert answer, stderr.decode()
    assert allowed.read_bytes() == b"GGUF"
    return json.loads(answer)


def test_the_level_is_reported(found: dict[str, str]) -> None:
    assert found["level"] == "S3"


@pytest.mark.parametrize(
    "attempt",
    ["read the model", "start a thread", "import a module late", "say something"],
)
def test_what_computing_needs_is_allowed(found: dict[str, str], attempt: str) -> None:
    assert found[attempt] == "done"


@pytest.mark.parametrize(
    "attempt",
    [
        "read /etc/passwd",
        "read another file",
        "list a directory",
        "read the parent's memory",
        "write a file",
        "append to the model",
        "truncate the model",
        "remove the model",
        "make a TCP socket",
        "make a Unix socket",
        "make a socket pair",
        "run a program",
        "start a process",
        "fork",
        "signal the parent",
        "trace",
        "set up io_uring",
        "open a process",
        "take a descriptor of the parent",
    ],
)
def test_what_reaches_beyond_the_process_is_refused(found: dict[str, str], attempt: str) -> None:
    assert found[attempt] in ("PermissionError", "OSError")


def test_more_memory_than_the_limit_is_refused(found: dict[str, str]) -> None:
    assert found["allocate 4 GiB"] == "MemoryError"


def test_no_attempt_is_left_unread(found: dict[str, str]) -> None:
    """A probe that is not asserted on would prove nothing."""
    asserted = 4 + 19 + 1

    assert len(found) == asserted + 1


def test_the_child_gets_no_environment_and_no_descriptors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Keys, tokens and open files of the daemon stay with it."""
    monkeypatch.setenv("AGORA_SECRET", "in the environment")
    leak = (tmp_path / "open").open("w")

    process, sock = sandbox.spawn("tests.runtime.environment_probe", (), 1 << 30)
    with sock, process, leak:
        seen = json.loads(sock.recv(1 << 16))
        process.communicate()

    assert sorted(seen["environment"]) == ["GGML_NO_BACKTRACE", "LANG", "MALLOC_ARENA_MAX", "PYTHONPATH"]
    assert seen["descriptors"] == 4  # the three standard streams and the socket
