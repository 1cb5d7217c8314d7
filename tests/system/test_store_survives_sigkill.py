"""What was acknowledged survives SIGKILL; a full disk is survived without lying about it.

This file is also the child process that is killed: `python test_store_survives_sigkill.py appends|fills PATH …`.
"""

import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from node.database import check_file
from node.errors import StartError
from node.store import Record, SqliteStore, StoreFull

pytestmark = pytest.mark.system

ROUNDS = 6
WRITERS = 8
CHILD = [sys.executable, __file__]
CHILD_ENVIRON = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


def twins(key: bytes) -> list[Record]:
    """Two records of one append: both are kept or neither."""
    return [Record("entry", key, key * 20), Record("twin", key, b"")]


async def reopened(path: Path) -> list[Record]:
    async with trio.open_nursery() as nursery:
        store = SqliteStore(path)
        await nursery.start(store.run)
        records = await store.load()
        nursery.cancel_scope.cancel()
    return records


async def append_for_ever(path: Path, round_name: str) -> None:
    """The child: append from several tasks, and say each key only after its append has returned."""

    async def write(store: SqliteStore, writer: int) -> None:
        number = 0
        while True:
            key = f"{round_name}-{writer}-{number}"
            await store.append(twins(key.encode()))
            os.write(1, f"{key}\n".encode())
            number += 1

    async with trio.open_nursery() as nursery:
        store = SqliteStore(path)
        await nursery.start(store.run)
        for writer in range(WRITERS):
            nursery.start_soon(write, store, writer)


@pytest.mark.parametrize("seed", [1, 2])
def test_everything_acknowledged_is_there_after_sigkill(tmp_path: Path, seed: int) -> None:
    """Killed again and again at random moments, and back within a second."""
    rng = random.Random(seed)
    path = tmp_path / "agora.db"
    acknowledged: set[bytes] = set()

    for round_number in range(ROUNDS):
        command = [*CHILD, "appends", str(path), str(round_number)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, env=CHILD_ENVIRON)
        assert child.stdout is not None
        with child, child.stdout:
            for _ in range(rng.randrange(1, 2_000)):
                acknowledged.add(child.stdout.readline().strip())
            child.kill()
            *whole, _torn = child.stdout.read().split(b"\n")
            acknowledged.update(whole)

        began = time.monotonic()
        records = trio.run(reopened, path)
        took_s = time.monotonic() - began

        entries = {record.key for record in records if record.kind == "entry"}
        assert acknowledged <= entries
        assert entries == {record.key for record in records if record.kind == "twin"}
        assert took_s < 1.0
    check_file(path)


class FullByLimit:
    """No file may grow over a size: the system refuses writes as it does on a full disk (RLIMIT_FSIZE)."""

    def __init__(self, _: Path) -> None:
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def squeeze(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, self._limits[1]))

    def release(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)


class FullByBallast:
    """A small disk that is really full."""

    def __init__(self, directory: Path, *, left_bytes: int = 300_000) -> None:
        self._ballast = directory / "ballast"
        self._left_bytes = left_bytes

    def squeeze(self) -> None:
        disk = os.statvfs(self._ballast.parent)
        self._ballast.write_bytes(bytes(disk.f_bavail * disk.f_frsize - self._left_bytes))

    def release(self) -> None:
        self._ballast.unlink()


async def fill_and_recover(path: Path, disk: FullByLimit | FullByBallast) -> None:
    """The child: append until the disk is full, read, make room, and go on once the store says so."""
    changes, changed = trio.open_memory_channel[bool](10)

    async with trio.open_nursery() as nursery:
        store = SqliteStore(path, on_full=changes.send_nowait, probe_interval_s=0.01)
        await nursery.start(store.run)
        await store.append(twins(b"first"))
        disk.squeeze()
        kept = 1
        with suppress(StoreFull):
            while True:
                await store.append(twins(f"many-{kept}".encode() * 200))
                kept += 1
        assert kept < 1_000
        assert store.is_full
        assert await changed.receive() is True
        assert len(await store.load()) == 2 * kept

        disk.release()
        assert await changed.receive() is False
        assert not store.is_full
        await store.append(twins(b"last"))
        assert len(await store.load()) == 2 * kept + 2
        nursery.cancel_scope.cancel()
    os.write(1, f"{2 * kept + 2}\n".encode())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB, if we may mount one."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("only root may mount a small disk")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def fill(directory: Path, how: str) -> None:
    path = directory / "agora.db"

    child = subprocess.run(
        [*CHILD, "fills", str(path), how], stdout=subprocess.PIPE, env=CHILD_ENVIRON, check=True
    )

    assert len(trio.run(reopened, path)) == int(child.stdout)
    check_file(path)


def test_a_full_file_system_refuses_appends_keeps_reads_and_recovers(small_disk: Path) -> None:
    """Nothing of a refused append is kept, everything before it is."""
    fill(small_disk, "ballast")


def test_a_file_that_may_not_grow_refuses_appends_keeps_reads_and_recovers(tmp_path: Path) -> None:
    """The same where nobody may mount a disk."""
    fill(tmp_path, "limit")


def test_a_full_disk_at_start_is_refused_with_one_line(small_disk: Path) -> None:
    """Both where there is no database yet and where there is one."""
    path = small_disk / "agora.db"
    disk = FullByBallast(small_disk, left_bytes=0)

    for _ in range(2):
        disk.squeeze()
        with pytest.RaisesGroup(StartError, allow_unwrapped=True, flatten_subgroups=True) as caught:
            trio.run(reopened, path)
        error = caught.value.exceptions[0] if isinstance(caught.value, BaseExceptionGroup) else caught.value
        assert "check free space" in str(error)
        disk.release()
        assert trio.run(reopened, path) == []


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["appends", path, round_name]:
            trio.run(append_for_ever, Path(path), round_name)
        case ["fills", path, "limit"]:
            trio.run(fill_and_recover, Path(path), FullByLimit(Path(path).parent))
        case ["fills", path, "ballast"]:
            trio.run(fill_and_recover, Path(path), FullByBallast(Path(path).parent))
