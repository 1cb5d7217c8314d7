"""A backup is one file that nobody can read without the passphrase and that makes the same home again."""

import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from node.api_keys import ApiKeys
from node.backup import backup, restore
from node.config import write_default
from node.database import APPLICATION_ID
from node.errors import StartError
from node.home import Home
from node.keys import create_device_key, create_human_key
from node.secret_file import WrongPassphrase, seal
from node.store import Record, SqliteStore

RECORDS = [Record("entry", number.to_bytes(2, "big"), bytes(500)) for number in range(50)]


async def load(home: Home) -> list[Record]:
    async with trio.open_nursery() as nursery:
        store = SqliteStore(home.database)
        await nursery.start(store.run)
        records = await store.load()
        nursery.cancel_scope.cancel()
    return records


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, Path]:
    """A home with everything in it, and its backup, made while a store has the database open."""
    home = Home.create(tmp_path_factory.mktemp("saved") / "home")
    create_device_key(home)
    create_human_key(home, "human")
    write_default(home.config, owner="ann")
    ApiKeys(home.api_keys).create("laptop")
    home.models.mkdir()
    (home.models / "big.gguf").write_bytes(b"GGUF")
    destination = home.path.parent / "home.backup"

    async def back_up_while_running() -> None:
        async with trio.open_nursery() as nursery:
            store = SqliteStore(home.database)
            await nursery.start(store.run)
            await store.append(RECORDS)
            await trio.to_thread.run_sync(backup, home, destination, "pass")
            nursery.cancel_scope.cancel()

    trio.run(back_up_while_running)
    return home, destination


def refusal(action: Callable[[], object], kind: type[StartError] = StartError) -> str:
    with pytest.raises(kind) as caught:
        action()
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_a_restored_home_is_the_same_home(saved: tuple[Home, Path], tmp_path: Path) -> None:
    home, source = saved

    restored = restore(source, tmp_path / "new" / "home", "pass")

    names = ["agora.db", "api_keys.json", "config.toml", "human.key", "identity.key"]
    assert sorted(path.name for path in restored.path.iterdir()) == names
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in restored.path.iterdir())
    for name in names[1:]:
        assert (restored.path / name).read_bytes() == (home.path / name).read_bytes()
    assert trio.run(load, restored) == RECORDS


def test_a_backup_shows_nothing_of_what_is_in_it(saved: tuple[Home, Path]) -> None:
    home, source = saved
    data = source.read_bytes()

    assert home.identity_key.read_bytes() not in data
    assert b"laptop" not in data
    assert stat.S_IMODE(source.stat().st_mode) == 0o600
    assert sorted(path.name for path in source.parent.iterdir()) == ["home", "home.backup"]


def test_an_existing_file_is_not_overwritten(saved: tuple[Home, Path], tmp_path: Path) -> None:
    home, _ = saved
    (tmp_path / "photo.jpg").write_bytes(b"photo")

    assert "already, expected none" in refusal(lambda: backup(home, tmp_path / "photo.jpg", "pass"))
    assert (tmp_path / "photo.jpg").read_bytes() == b"photo"


def test_an_existing_home_is_not_overwritten(saved: tuple[Home, Path], tmp_path: Path) -> None:
    _, source = saved
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "identity.key").write_bytes(b"mine")

    assert "already, expected none" in refusal(lambda: restore(source, tmp_path / "home", "pass"))
    assert [path.read_bytes() for path in (tmp_path / "home").iterdir()] == [b"mine"]


def test_a_wrong_passphrase_or_a_flipped_bit_restores_nothing(
    saved: tuple[Home, Path], tmp_path: Path
) -> None:
    _, source = saved
    damaged = tmp_path / "damaged"
    data = bytearray(source.read_bytes())
    data[-100] ^= 1
    damaged.write_bytes(data)

    assert refusal(lambda: restore(source, tmp_path / "home", "wrong"), WrongPassphrase) == (
        f"wrong passphrase for backup {source}, or the file is damaged"
    )
    refusal(lambda: restore(damaged, tmp_path / "home", "pass"), WrongPassphrase)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged"]


def test_a_file_that_is_no_backup_restores_nothing(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"something else")
    (tmp_path / "empty").write_bytes(seal(b"", "pass", kind="backup"))

    assert "is not a file that agora wrote" in refusal(
        lambda: restore(tmp_path / "other", tmp_path / "home", "pass")
    )
    assert "holds something else" in refusal(lambda: restore(tmp_path / "empty", tmp_path / "home", "pass"))
    assert "cannot read backup" in refusal(lambda: restore(tmp_path / "none", tmp_path / "home", "pass"))
    assert not (tmp_path / "home").exists()


def test_a_damaged_database_is_not_backed_up(saved: tuple[Home, Path], tmp_path: Path) -> None:
    """A backup that looks good and cannot be restored is worse than none."""
    home = restore(saved[1], tmp_path / "home", "pass")
    data = bytearray(home.database.read_bytes())
    data[2 * 4096 : 4 * 4096] = b"\xa5" * 8192
    home.database.write_bytes(data)

    assert "is damaged" in refusal(lambda: backup(home, tmp_path / "backup", "pass"))
    assert not (tmp_path / "backup").exists()


def test_a_snapshot_keeps_the_mark_of_our_database(saved: tuple[Home, Path], tmp_path: Path) -> None:
    home = restore(saved[1], tmp_path / "home", "pass")

    connection = sqlite3.connect(home.database)
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    connection.close()

    assert application == APPLICATION_ID
