"""A home is made whole or not at all: whatever broke off can be begun again, and whatever was finished is left alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from node import database
from node.api_keys import ApiKeys
from node.errors import StartError
from node.founding import found
from node.home import Home
from node.keys import load_device_key, load_human_key
from node.new_home import making
from node.private_file import write_atomic
from tests.node.dying import found_a_home

ROOT = Path(__file__).resolve().parents[2]


def contents(home: Path) -> dict[str, bytes]:
    """Every file, but for the lock, which has a process id in it."""
    return {
        path.name: path.read_bytes()
        for path in home.iterdir()
        if path.is_file() and path.name != "daemon.lock"
    }


@pytest.mark.slow
def test_an_init_that_is_killed_at_any_step_can_be_done_again(tmp_path: Path) -> None:
    """Until it is done the home starts no daemon and says why; done again, it is as if nothing had been."""
    path = tmp_path / "home"

    done = subprocess.run(
        [sys.executable, "-m", "tests.node.dying", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) > 12  # two for each of its six files, at the least
    assert {line.replace(str(path), "HOME") for line in said} == {
        "no home HOME; run 'agora init' or 'agora join', or name another with --home",
        "no device key HOME/identity.key; run 'agora init' or 'agora join', or restore a backup",
        "home HOME was never finished: the 'agora init' or 'agora join' that made it broke off; run it again",
    }
    home = Home.open(path)
    assert sorted(contents(path)) == [
        "agora.db",
        "api_keys.json",
        "config.toml",
        "human.key",
        "identity.key",
        "recovery.agora",
    ]
    load_device_key(home)
    load_human_key(home, "a passphrase")
    assert len(ApiKeys(home.api_keys).list()) == 1
    database.check_file(home.database)


def test_a_second_init_or_join_leaves_a_finished_home_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "home"
    found_a_home(path)
    before = contents(path)

    with pytest.raises(StartError, match=r"belongs to a mesh already \(identity.key is there\)"):
        found_a_home(path)

    assert contents(path) == before


def test_an_init_that_fails_leaves_nothing_of_a_home(tmp_path: Path) -> None:
    """The device's key was written before the human's was refused: it is not there to be mistaken for a home."""
    path = tmp_path / "home"

    with pytest.raises(StartError, match="the passphrase is empty"):
        found(path, mesh_name="town", owner="ann", device_passphrase=None, human_passphrase="")

    assert contents(path) == {}
    found_a_home(path)
    Home.open(path)


def test_what_lay_in_the_directory_before_survives_an_init_that_broke_off(tmp_path: Path) -> None:
    """A models directory of an earlier home, say, is none of its business; a key or a config is refused at once."""
    path = tmp_path / "home"
    Home.create(path)
    (path / "models").mkdir()
    (path / "models" / "a.gguf").write_bytes(b"weights")

    with pytest.raises(OSError, match="no space"), making(path):
        raise OSError("no space")
    assert (path / "models" / "a.gguf").read_bytes() == b"weights"
    write_atomic(path / "human.key", b"precious")
    with pytest.raises(StartError, match=r"there is a file .*human.key already, expected none"):
        found_a_home(path)

    assert contents(path) == {"human.key": b"precious"}


def test_two_at_once_do_not_make_one_home(tmp_path: Path) -> None:
    path = tmp_path / "home"

    with making(path), pytest.raises(StartError, match="is in use by pid"):
        found_a_home(path)

    Home.open(path)
