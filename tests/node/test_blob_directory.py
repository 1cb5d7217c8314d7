"""Blobs as files: who may read them, what a crash leaves, and a file that is no longer what its name says."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from node.blob_directory import PART_AGE_S_MAX, PARTS_MAX, DirectoryBlobs
from node.blobs import BlobNotFound, NoBlobs
from node.store import StoreFull
from runtime.engine import Digest

BLOB = b"an adapter" * 500
DIGEST = Digest(hashlib.sha256(BLOB).digest())


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_nobody_else_reads_the_directory_or_a_file_in_it(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path / "blobs")
    await blobs.put(BLOB)
    part = Digest(bytes(32))
    await blobs.begin(part, 5)
    await blobs.append(part, 0, b"part")

    assert mode(tmp_path / "blobs") == 0o700
    assert {path.name: mode(path) for path in (tmp_path / "blobs").iterdir()} == {
        DIGEST.hex(): 0o600,
        f"{part.hex()}.part": 0o600,
    }


async def test_a_file_that_rotted_is_not_served_under_its_old_name(tmp_path: Path) -> None:
    await DirectoryBlobs(tmp_path).put(BLOB)
    path = tmp_path / DIGEST.hex()
    path.write_bytes(b"!" + BLOB[1:])

    blobs = DirectoryBlobs(tmp_path)

    assert blobs.has(DIGEST)
    with pytest.raises(BlobNotFound, match=f"^blob {DIGEST.hex()[:12]} was damaged on this device's disk"):
        await blobs.read(DIGEST, 10, 5)
    assert not blobs.has(DIGEST)
    assert not path.exists()


async def test_a_file_that_somebody_deleted_is_not_here_any_more(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path)
    await blobs.put(BLOB)
    blobs.path(DIGEST).unlink()

    with pytest.raises(BlobNotFound):
        await blobs.read(DIGEST)
    assert not blobs.has(DIGEST)


async def test_a_file_that_somebody_deleted_is_written_again(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path)
    await blobs.put(BLOB)
    blobs.path(DIGEST).unlink()

    await blobs.put(BLOB)

    assert await blobs.read(DIGEST) == BLOB


async def test_a_part_that_a_power_cut_tore_is_found_out_at_the_end(tmp_path: Path) -> None:
    """Its length is on disk and some of its bytes are not: file systems do that."""
    blobs = DirectoryBlobs(tmp_path)
    await blobs.begin(DIGEST, len(BLOB))
    await blobs.append(DIGEST, 0, BLOB[:1_000])
    (tmp_path / f"{DIGEST.hex()}.part").write_bytes(bytes(1_000))

    blobs = DirectoryBlobs(tmp_path)
    assert await blobs.begin(DIGEST, len(BLOB)) == 1_000
    await blobs.append(DIGEST, 1_000, BLOB[1_000:])

    assert not await blobs.finish(DIGEST)
    assert names(tmp_path) == []


async def test_what_was_left_of_a_fetch_is_cleared_away_after_a_day(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path)
    old, young = Digest(bytes(32)), Digest(b"\1" * 32)
    for digest in (old, young):
        await blobs.begin(digest, 5)
        await blobs.append(digest, 0, b"part")
    path = tmp_path / f"{old.hex()}.part"
    then = path.stat().st_mtime - PART_AGE_S_MAX - 60
    os.utime(path, (then, then))

    blobs = DirectoryBlobs(tmp_path)

    assert (await blobs.begin(old, 5), await blobs.begin(young, 5)) == (0, 4)


async def test_holders_that_always_break_off_do_not_fill_the_disk(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path)
    digests = [Digest(bytes([number]) * 32) for number in range(PARTS_MAX + 3)]

    for number, digest in enumerate(digests):
        await blobs.begin(digest, 5)
        await blobs.append(digest, 0, b"part")
        os.utime(tmp_path / f"{digest.hex()}.part", (number, number))

    assert names(tmp_path) == [f"{digest.hex()}.part" for digest in digests[3:]]


async def test_files_that_are_no_blobs_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ("G" * 64)).write_text("mine too")

    blobs = DirectoryBlobs(tmp_path)

    assert not blobs.has(DIGEST)
    assert len(names(tmp_path)) == 2


async def test_the_last_of_the_disk_is_left_to_the_database(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path, free_bytes_min=2**62)

    with pytest.raises(StoreFull, match="MiB free, expected"):
        await blobs.put(BLOB)
    assert names(tmp_path) == []


async def test_a_node_without_a_place_for_blobs_has_none_and_takes_none() -> None:
    blobs = NoBlobs()

    with pytest.raises(StoreFull):
        await blobs.put(BLOB)
    with pytest.raises(StoreFull):
        await blobs.begin(DIGEST, 1)
    with pytest.raises(BlobNotFound):
        await blobs.read(DIGEST)
    assert not blobs.has(DIGEST)
    assert not await blobs.finish(DIGEST)
