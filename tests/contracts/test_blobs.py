"""What every backend of the Blobs port promises. A new backend joins by adding itself to `BACKENDS`."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from node.blob_directory import DirectoryBlobs
from node.blobs import BlobNotFound, Blobs
from node.simulation.memory_blobs import MemoryBlobs
from node.spare_blobs import AGE_S_MIN
from node.store import StoreFull
from runtime.engine import Digest

BLOB = bytes(range(256)) * 40


def digest_of(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).digest())


class Directory:
    """Files; a start of the daemon reads the directory again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "blobs"

    def open(self) -> Blobs:
        return DirectoryBlobs(self._directory, free_bytes_min=0)

    def full(self) -> Blobs:
        return DirectoryBlobs(self._directory, free_bytes_min=2**62)

    def small(self, size_bytes: int) -> Blobs:
        def free_bytes() -> int:
            return size_bytes - sum(path.stat().st_size for path in self._directory.iterdir())

        return DirectoryBlobs(self._directory, free_bytes_min=0, free_bytes=free_bytes)

    def age(self, digest: Digest, age_s: float) -> None:
        then = time.time() - age_s
        os.utime(self._directory / digest.hex(), (then, then))


class Memory:
    """The simulator's disk: the object itself outlives its node."""

    def __init__(self, _: Path) -> None:
        self._blobs = MemoryBlobs()

    def open(self) -> Blobs:
        return self._blobs

    def full(self) -> Blobs:
        return MemoryBlobs(size_bytes_max=1)

    def small(self, size_bytes: int) -> Blobs:
        self._blobs.size_bytes_max = size_bytes
        return self._blobs

    def age(self, digest: Digest, age_s: float) -> None:
        self._blobs.born_s[digest] = trio.current_time() - age_s


Place = Directory | Memory
BACKENDS: list[Callable[[Path], Place]] = [Directory, Memory]


@pytest.fixture(params=BACKENDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """One empty place of each kind."""
    backend: Callable[[Path], Place] = request.param
    return backend(tmp_path)


async def fetched(blobs: Blobs, digest: Digest, data: bytes) -> bool:
    """Bring a blob in, in pieces of 1,000 bytes."""
    at = await blobs.begin(digest, len(data))
    while at < len(data):
        await blobs.append(digest, at, data[at : at + 1_000])
        at += 1_000
    return await blobs.finish(digest)


async def test_what_was_put_is_there_after_a_restart(place: Place) -> None:
    digest = await place.open().put(BLOB)

    blobs = place.open()
    assert digest == digest_of(BLOB)
    assert blobs.has(digest)
    assert blobs.size(digest) == len(BLOB)
    assert await blobs.read(digest) == BLOB
    assert blobs.path(digest).name == digest.hex()


async def test_any_part_can_be_read(place: Place) -> None:
    blobs = place.open()
    digest = await blobs.put(BLOB)

    assert await blobs.read(digest, 100, 50) == BLOB[100:150]
    assert await blobs.read(digest, 100) == BLOB[100:]
    assert await blobs.read(digest, len(BLOB) - 1, 50) == BLOB[-1:]
    assert await blobs.read(digest, len(BLOB) + 1, 50) == b""


async def test_putting_it_twice_changes_nothing(place: Place) -> None:
    blobs = place.open()

    assert await blobs.put(BLOB) == await blobs.put(BLOB)
    assert await blobs.read(digest_of(BLOB)) == BLOB


async def test_what_is_not_here_is_said_in_one_line(place: Place) -> None:
    """It is no bug of the caller's: a disk loses files, and whoever reads one tells its user so."""
    blobs = place.open()
    absent = digest_of(b"absent")
    line = f"^blob {absent.hex()[:12]} is not on this device$"

    assert not blobs.has(absent)
    with pytest.raises(BlobNotFound, match=line):
        blobs.size(absent)
    with pytest.raises(BlobNotFound, match=line):
        await blobs.read(absent)


async def test_what_is_dropped_while_it_is_fetched_is_no_blob(place: Place) -> None:
    blobs = place.open()
    digest = digest_of(BLOB)
    await blobs.begin(digest, len(BLOB))
    await blobs.append(digest, 0, BLOB[:5_000])

    await blobs.drop(digest)
    assert not await blobs.finish(digest)
    await blobs.append(digest, 5_000, BLOB[5_000:])
    assert not await blobs.finish(digest)

    assert not blobs.has(digest)
    assert await fetched(blobs, digest, BLOB)


@pytest.mark.parametrize("data", [BLOB, b"", b"x"])
async def test_a_fetched_blob_is_there_when_it_is_finished_and_not_before(place: Place, data: bytes) -> None:
    blobs = place.open()
    digest = digest_of(data)

    assert await blobs.begin(digest, len(data)) == 0
    assert not blobs.has(digest)
    assert await fetched(blobs, digest, data)

    assert await place.open().read(digest) == data


async def test_a_fetch_goes_on_after_a_restart_where_it_ended(place: Place) -> None:
    digest = digest_of(BLOB)
    blobs = place.open()
    await blobs.begin(digest, len(BLOB))
    await blobs.append(digest, 0, BLOB[:3_000])
    await blobs.append(digest, 3_000, BLOB[3_000:4_000])

    blobs = place.open()

    assert not blobs.has(digest)
    assert await blobs.begin(digest, len(BLOB)) == 4_000
    assert await fetched(blobs, digest, BLOB)
    assert await blobs.read(digest) == BLOB


async def test_bytes_of_another_blob_are_dropped_whole(place: Place) -> None:
    """A liar's bytes must not be what the next fetch goes on with."""
    blobs = place.open()
    digest = digest_of(BLOB)

    assert not await fetched(blobs, digest, BLOB[:-1] + b"!")

    assert not blobs.has(digest)
    assert await blobs.begin(digest, len(BLOB)) == 0
    assert await fetched(blobs, digest, BLOB)


async def test_an_append_at_the_beginning_forgets_what_was_there(place: Place) -> None:
    blobs = place.open()
    digest = digest_of(BLOB)
    await blobs.begin(digest, len(BLOB))
    await blobs.append(digest, 0, bytes(5_000))

    await blobs.append(digest, 0, b"")
    await blobs.append(digest, 0, BLOB)

    assert await blobs.finish(digest)


async def test_what_is_longer_than_the_blob_is_no_beginning_of_it(place: Place) -> None:
    blobs = place.open()
    digest = digest_of(b"short")
    await blobs.begin(digest, 1_000)
    await blobs.append(digest, 0, bytes(1_000))

    assert await blobs.begin(digest, 5) == 0
    assert await fetched(blobs, digest, b"short")


async def test_what_is_dropped_is_gone_after_a_restart_too(place: Place) -> None:
    blobs = place.open()
    kept, dropped, begun = await blobs.put(b"kept"), await blobs.put(BLOB), digest_of(b"begun")
    await blobs.begin(begun, 5)
    await blobs.append(begun, 0, b"beg")

    await blobs.drop(dropped)
    await blobs.drop(begun)
    await blobs.drop(digest_of(b"never here"))

    blobs = place.open()
    assert [blobs.has(each) for each in (kept, dropped, begun)] == [True, False, False]
    assert await blobs.begin(begun, 5) == 0


async def test_a_full_disk_is_said_and_keeps_nothing(place: Place) -> None:
    blobs = place.full()

    with pytest.raises(StoreFull):
        await blobs.put(BLOB)
    with pytest.raises(StoreFull):
        await blobs.begin(digest_of(BLOB), len(BLOB))

    assert not place.open().has(digest_of(BLOB))


# --- room for another one ---------------------------------------------------------------------------------------------
async def held(place: Place, blobs: Blobs) -> list[Digest]:
    """Three blobs of 10 bytes each, the oldest first, on a disk of 35; the first is named."""
    old = [await blobs.put(bytes([number]) * 10) for number in range(3)]
    for number, digest in enumerate(old):
        place.age(digest, AGE_S_MIN + 30 - number)
    blobs.keep_named(lambda: {old[0]})
    return old


async def test_what_nobody_names_makes_room_the_oldest_first(place: Place) -> None:
    blobs = place.small(35)
    old = await held(place, blobs)

    new = await blobs.put(b"a new blob")

    assert [blobs.has(each) for each in (*old, new)] == [True, False, True, True]
    assert await blobs.read(new) == b"a new blob"


async def test_a_fetch_finds_room_too(place: Place) -> None:
    blobs = place.small(35)
    old = await held(place, blobs)

    assert await fetched(blobs, digest_of(b"x" * 20), b"x" * 20)

    assert [blobs.has(each) for each in old] == [True, False, False]


async def test_what_is_named_or_young_never_makes_room_and_nothing_goes_in_vain(place: Place) -> None:
    """A full disk is said as before, and all that is here is still here."""
    blobs = place.small(35)
    old = await held(place, blobs)
    place.age(old[2], AGE_S_MIN - 60)

    with pytest.raises(StoreFull):
        await blobs.put(b"x" * 26)
    with pytest.raises(StoreFull):
        await blobs.begin(digest_of(b"x" * 16), 16)

    assert [blobs.has(each) for each in old] == [True, True, True]


async def test_what_is_put_once_more_is_young_again(place: Place) -> None:
    """Somebody is about to name it."""
    blobs = place.small(35)
    old = await held(place, blobs)

    await blobs.put(bytes([1]) * 10)
    await blobs.put(b"a new blob")

    assert [blobs.has(each) for each in old] == [True, True, False]


async def test_nothing_goes_before_it_was_said_what_is_named(place: Place) -> None:
    blobs = place.small(15)
    digest = await blobs.put(bytes(10))
    place.age(digest, 2 * AGE_S_MIN)

    with pytest.raises(StoreFull):
        await blobs.put(b"a new blob")

    assert blobs.has(digest)
