"""The home directory refuses with one line, changes nothing, and belongs to one daemon."""

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from node.errors import StartError
from node.home import SOCKET_PATH_BYTES_MAX, Home
from node.private_file import read_private, write_atomic


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "home")


def refusal(action: Callable[[], object]) -> str:
    """The one line with which it was refused."""
    with pytest.raises(StartError) as caught:
        action()
    line = str(caught.value)
    assert line.isprintable()
    return line


def test_the_home_is_the_option_else_the_environment_else_dot_agora() -> None:
    environ = {"AGORA_HOME": "/srv/agora"}

    assert Home.locate("/a", environ).path == Path("/a")
    assert Home.locate(None, environ).path == Path("/srv/agora")
    assert Home.locate(None, {}).path == Path("~/.agora").expanduser()


def test_a_new_home_is_private(tmp_path: Path) -> None:
    home = Home.create(tmp_path / "a" / "home")

    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700


def test_a_missing_home_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none"

    assert refusal(lambda: Home.open(path)) == (
        f"no home {path}; run 'agora init' or 'agora join', or name another with --home"
    )
    assert not path.exists()


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    path.chmod(0o700)

    assert "is a file, expected a directory" in refusal(lambda: Home.open(path))
    assert "cannot make home" in refusal(lambda: Home.create(path))


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701, 0o770])
def test_a_home_open_to_others_is_refused(home: Home, mode: int) -> None:
    home.path.chmod(mode)

    assert refusal(lambda: Home.open(home.path)) == (
        f"home {home.path} has mode {mode:04o}, expected 0700; run 'chmod 700 {home.path}'"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_home_of_another_user_is_refused(home: Home) -> None:
    os.chown(home.path, 12_345, -1)

    assert "belongs to uid 12345, expected 0" in refusal(lambda: Home.open(home.path))


@pytest.mark.parametrize("name", ["identity.key", "human.key", "api_keys.json"])
def test_a_key_file_too_open_is_refused(home: Home, name: str) -> None:
    """Somebody may have read it: it is not quietly repaired."""
    key = home.path / name
    key.write_bytes(bytes(32))
    key.chmod(0o640)

    assert f"{key} has mode 0640, expected 0600; run 'chmod 600 {key}'" in refusal(
        lambda: Home.open(home.path)
    )
    assert stat.S_IMODE(key.stat().st_mode) == 0o640


def test_a_world_writable_config_is_refused(home: Home) -> None:
    home.config.write_text("")
    home.config.chmod(0o646)

    assert f"{home.config} has mode 0646" in refusal(lambda: Home.open(home.path))


def test_a_key_file_is_read_only_if_it_is_a_private_file_of_the_right_size(home: Home) -> None:
    path = home.identity_key

    def read() -> bytes:
        return read_private(path, what="device key", size_bytes_max=64)

    assert refusal(read).startswith(f"no device key {path}")
    path.mkdir()
    assert "is not a regular file" in refusal(read)
    path.rmdir()
    os.mkfifo(path, 0o600)
    assert "is not a regular file" in refusal(read)
    path.unlink()
    write_atomic(path, bytes(65))
    assert "has 65 bytes, expected 64 at most" in refusal(read)
    write_atomic(path, b"seed")
    assert read() == b"seed"
    path.chmod(0o604)
    assert "has mode 0604, expected 0600" in refusal(read)


def test_an_unreadable_key_file_is_refused(home: Home) -> None:
    """A loop of links fails for root too."""
    home.identity_key.symlink_to(home.identity_key)

    line = refusal(lambda: read_private(home.identity_key, what="device key", size_bytes_max=64))

    assert line.startswith(f"cannot read device key {home.identity_key} (")


def test_a_second_daemon_on_one_home_is_refused(home: Home) -> None:
    with home.lock():
        line = refusal(lambda: home.lock().__enter__())
        assert home.holder() == os.getpid()

    assert line == (
        f"home {home.path} is in use by pid {os.getpid()}, expected one daemon a home; "
        "stop it or name another with --home"
    )
    assert home.holder() is None
    with home.lock():
        pass


def test_the_lock_of_a_killed_daemon_is_free(home: Home) -> None:
    code = (
        "import sys, pathlib, signal\n"
        "from node.home import Home\n"
        "with Home(pathlib.Path(sys.argv[1])).lock():\n"
        "    print('locked', flush=True); signal.pause()"
    )
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(home.path)], stdout=subprocess.PIPE, env=environ
    )
    assert child.stdout is not None
    with child, child.stdout:
        assert child.stdout.readline() == b"locked\n"
        assert home.holder() == child.pid
        assert f"in use by pid {child.pid}" in refusal(lambda: home.lock().__enter__())
        child.send_signal(signal.SIGKILL)

    with home.lock():
        assert home.holder() == os.getpid()


def test_the_admin_socket_lies_in_the_home_and_what_was_left_there_is_removed(home: Home) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(home.path / "admin.sock"))

    with home.bind_admin({}) as path, socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert path == home.admin_socket == home.path / "admin.sock"

    assert not path.exists()


def test_a_socket_path_too_long_goes_to_a_short_private_directory(tmp_path: Path) -> None:
    """Linux takes 107 bytes; clients find it through the home."""
    home = Home.create(tmp_path / ("x" * SOCKET_PATH_BYTES_MAX))

    with tempfile.TemporaryDirectory(prefix="run-", dir="/tmp") as runtime:
        with home.bind_admin({"XDG_RUNTIME_DIR": runtime}) as path, socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            assert Home(home.path).admin_socket == path
            assert path.is_relative_to(runtime)
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

        assert list(Path(runtime).iterdir()) == []
    assert home.admin_socket == home.path / "admin.sock"


def test_a_failed_write_leaves_the_old_file(home: Home) -> None:
    write_atomic(home.config, b"old")

    with pytest.raises(TypeError):
        write_atomic(home.config, "not bytes")  # type: ignore[arg-type]

    assert home.config.read_bytes() == b"old"
    assert list(home.path.iterdir()) == [home.config]
    assert stat.S_IMODE(home.config.stat().st_mode) == 0o600
