"""What `agora up` refuses: one line on stderr, a status other than 0, and a home exactly as it was before."""

import contextlib
import os
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.daemon import main
from tests.system.daemons import Device, agora, contents, copy_of, refused, running

pytestmark = pytest.mark.system

IS_ROOT = os.geteuid() == 0
UP = ("up", "--listen", "/ip4/127.0.0.1/tcp/0", "--gateway", "127.0.0.1:0", "--no-mdns")
Refusal = Callable[..., str]


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that has been up once, so that its database has been written to."""
    device = Device.founder("founded", tmp_path_factory.mktemp("founded"))
    with running(device):
        device.start()
    return device.home


@pytest.fixture
def home(founded: Path, tmp_path: Path) -> Path:
    return copy_of(founded, tmp_path / "home")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def refusal(home: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Start a daemon that must not start, and get the line it leaves. In this process: starting Python takes longer."""

    def start(*options: str) -> str:
        before = contents(home)
        capfd.readouterr()

        status = main([*UP[1:], *options, "--home", str(home)])

        told = capfd.readouterr()
        assert (status, told.out, told.err.count("\n")) == (1, "", 1), told.err
        assert told.err.startswith("agora: ")
        assert contents(home) == before
        return told.err

    return start


def test_a_gateway_port_in_use(refusal: Refusal, taken: int) -> None:
    assert f"gateway 127.0.0.1:{taken} is in use" in refusal("--gateway", f"127.0.0.1:{taken}")


def test_a_mesh_port_in_use(refusal: Refusal, taken: int) -> None:
    line = refusal("--listen", f"/ip4/127.0.0.1/tcp/{taken}")

    assert f"127.0.0.1:{taken} is in use" in line
    assert "--listen" in line


def test_a_gateway_open_to_the_network(refusal: Refusal) -> None:
    assert "expected a loopback one" in refusal("--gateway", "0.0.0.0:0")


def test_a_key_file_that_others_can_read(home: Path, refusal: Refusal) -> None:
    key = home / "identity.key"
    key.chmod(0o644)

    assert f"{key} has mode 0644, expected 0600" in refusal()


@pytest.mark.skipif(not IS_ROOT, reason="takes root to give a file to somebody else")
def test_a_key_file_of_somebody_else(home: Path, refusal: Refusal) -> None:
    key = home / "identity.key"
    os.chown(key, 65_534, 65_534)

    assert f"{key} belongs to uid 65534" in refusal()


def test_a_key_file_that_cannot_be_read(home: Path, refusal: Refusal) -> None:
    """A directory in its place, since root may read any file."""
    key = home / "identity.key"
    key.unlink()
    key.mkdir(mode=0o700)

    assert str(key) in refusal()


def test_a_key_file_cut_short(home: Path, refusal: Refusal) -> None:
    key = home / "identity.key"
    key.write_bytes(key.read_bytes()[:20])

    assert "has 20 bytes, expected 32" in refusal()


def test_an_unknown_config_key_names_the_nearest_one(home: Path, refusal: Refusal) -> None:
    config = home / "config.toml"
    config.write_text('gatway = "127.0.0.1:0"\n')

    assert f"{config}:1: unknown key 'gatway'; did you mean 'gateway'?" in refusal()


def test_a_config_that_is_not_toml(home: Path, refusal: Refusal) -> None:
    (home / "config.toml").write_text("owner = ann\n")

    assert "config.toml is not TOML" in refusal()


def test_a_config_that_anybody_may_change(home: Path, refusal: Refusal) -> None:
    (home / "config.toml").chmod(0o666)

    assert "has mode 0666, expected one that others cannot write" in refusal()


def test_a_home_open_to_others(home: Path, refusal: Refusal) -> None:
    home.chmod(0o755)

    assert "has mode 0755, expected 0700" in refusal()


def test_a_home_that_was_never_made(tmp_path: Path) -> None:
    line = refused(agora(*UP, home=tmp_path / "nowhere"))

    assert "run 'agora init' or 'agora join'" in line
    assert list(tmp_path.iterdir()) == []


def test_a_listen_address_that_is_none(refusal: Refusal) -> None:
    assert "expected a multiaddr" in refusal("--listen", "0.0.0.0:4420")


@pytest.mark.parametrize("multiaddr", ["/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/99999", "/hello"])
def test_a_listen_address_that_cannot_be_listened_on(refusal: Refusal, multiaddr: str) -> None:
    assert multiaddr in refusal("--listen", multiaddr)


def test_a_bootstrap_address_that_is_none(refusal: Refusal) -> None:
    assert "expected a multiaddr" in refusal("--bootstrap", "example.org:4420")


def test_a_second_daemon_on_one_home(home: Path) -> None:
    """The first one is not disturbed."""
    device = Device("first", home)
    with running(device):
        device.start()

        line = refused(agora(*UP, home=home))

        assert f"home {home} is in use by pid {device.pid}" in line
        assert agora("status", home=home).returncode == 0


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "not_a_database"])
def test_a_corrupt_database(home: Path, refusal: Refusal, damage: str) -> None:
    database = home / "agora.db"
    whole = database.read_bytes()
    match damage:
        case "truncated":
            database.write_bytes(whole[: len(whole) // 2])
        case "overwritten":
            database.write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))
        case "not_a_database":
            database.write_bytes(b"a shopping list\n" * 512)

    assert str(database) in refusal()


def test_a_database_that_lost_its_charter(home: Path, refusal: Refusal) -> None:
    """The mesh's id without the entry that proves it."""
    with contextlib.closing(sqlite3.connect(home / "agora.db")) as connection, connection:
        connection.execute("DELETE FROM record WHERE kind = 'entry'")

    assert "restore a backup" in refusal()


def test_a_home_that_left_its_mesh(home: Path, refusal: Refusal) -> None:
    with contextlib.closing(sqlite3.connect(home / "agora.db")) as connection, connection:
        connection.execute(
            "INSERT INTO record (kind, key, body) VALUES ('mesh', CAST('left' AS BLOB), x'31')"
        )

    assert "this home has left its mesh" in refusal()


@pytest.fixture
def full_disk(home: Path, tmp_path: Path) -> Iterator[Path]:
    """The home on a file system without a free byte."""
    if not IS_ROOT:
        pytest.skip("takes root to mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        copied = copy_of(home, place / "home")
        with contextlib.suppress(OSError), (place / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
        yield copied
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(full_disk: Path) -> None:
    before = contents(full_disk)

    line = refused(agora(*UP, home=full_disk))

    assert "check free space" in line
    assert contents(full_disk) == before
