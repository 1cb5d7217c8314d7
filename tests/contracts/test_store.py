"""What every backend of the Store port promises. A new backend joins by adding itself to `BACKENDS`."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from node.store import MemoryStore, Record, SqliteStore, Store


class SqliteDisk:
    """A file that stores are opened on, one after the other."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "agora.db"

    @asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        """Start a store on the file; stop it as a daemon does, by cancelling."""
        async with trio.open_nursery() as nursery:
            store = SqliteStore(self._path)
            await nursery.start(store.run)
            yield store
            nursery.cancel_scope.cancel()


class MemoryDisk:
    """The simulator's disk: the store object itself outlives its node."""

    def __init__(self, _: Path) -> None:
        self._store = MemoryStore()

    @asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        """Hand out the one store."""
        yield self._store


Disk = SqliteDisk | MemoryDisk
BACKENDS: list[Callable[[Path], Disk]] = [SqliteDisk, MemoryDisk]


@pytest.fixture(params=BACKENDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    """One empty disk of each kind."""
    backend: Callable[[Path], Disk] = request.param
    return backend(tmp_path)


def entry(number: int, body: bytes | None = b"body") -> Record:
    return Record("entry", number.to_bytes(4, "big"), body)


async def test_what_was_appended_is_found_after_a_restart_in_order(disk: Disk) -> None:
    async with disk.store() as store:
        await store.append([entry(3), entry(1)])
        await store.append([entry(2), Record("job", b"\x00\xff", b"")])

    async with disk.store() as store:
        assert await store.load() == [entry(3), entry(1), entry(2), Record("job", b"\x00\xff", b"")]


async def test_a_new_store_is_empty_and_not_full(disk: Disk) -> None:
    async with disk.store() as store:
        assert await store.load() == []
        assert not store.is_full


async def test_the_same_kind_and_key_replaces_and_keeps_its_place(disk: Disk) -> None:
    async with disk.store() as store:
        await store.append([entry(1, b"old"), entry(2)])
        await store.append([entry(1, b"new"), Record("job", entry(1).key, b"another kind")])

        assert await store.load() == [
            entry(1, b"new"),
            entry(2),
            Record("job", entry(1).key, b"another kind"),
        ]


async def test_no_body_deletes_and_a_later_put_comes_last(disk: Disk) -> None:
    """Also inside one append: records apply in the order given."""
    async with disk.store() as store:
        await store.append([entry(1), entry(2), entry(3), entry(3, None)])
        await store.append([entry(1, None), entry(1, b"again"), entry(9, None)])

        assert await store.load() == [entry(2), entry(1, b"again")]


async def test_random_appends_equal_a_dict(disk: Disk) -> None:
    """Grouping many appends into one transaction changes nothing about what they mean."""
    rng = random.Random(7)
    model: dict[bytes, Record] = {}

    async with disk.store() as store:
        for _ in range(60):
            batch = [
                entry(rng.randrange(12), rng.choice([None, rng.randbytes(3)]))
                for _ in range(rng.randrange(6))
            ]
            await store.append(batch)
            for record in batch:
                if record.body is None:
                    model.pop(record.key, None)
                else:
                    model[record.key] = record

        assert await store.load() == list(model.values())


async def test_many_callers_at_once_are_all_kept(disk: Disk) -> None:
    async with disk.store() as store:
        async with trio.open_nursery() as nursery:
            for number in range(600):
                nursery.start_soon(store.append, [entry(number), Record("twin", entry(number).key, b"")])

        loaded = await store.load()
        assert sorted(record.key for record in loaded if record.kind == "entry") == [
            entry(number).key for number in range(600)
        ]
        assert len(loaded) == 1_200


async def test_a_cancelled_append_is_kept_whole_or_not_at_all(disk: Disk) -> None:
    """And the store serves on, and what was acknowledged is there. Some are never cancelled, however slow the disk is."""
    rng = random.Random(11)
    acknowledged: set[int] = set()

    async def append_for(number: int, checkpoints: int | None) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def cancel() -> None:
                    for _ in range(checkpoints or 0):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                if checkpoints is not None:
                    nursery.start_soon(cancel)
                await store.append([entry(number), Record("twin", entry(number).key, b"")])
                acknowledged.add(number)
                nursery.cancel_scope.cancel()

    async with disk.store() as store:
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(append_for, number, rng.choice([0, 1, 2, 5, 500, None]))
        await store.append([entry(1_000), Record("twin", entry(1_000).key, b"")])

    async with disk.store() as store:
        loaded = await store.load()
    entries = {record.key for record in loaded if record.kind == "entry"}
    assert entries == {record.key for record in loaded if record.kind == "twin"}
    assert {entry(number).key for number in acknowledged | {1_000}} <= entries
    assert 0 < len(acknowledged) < 200


async def test_appending_nothing_returns(disk: Disk) -> None:
    async with disk.store() as store:
        await store.append([])

        assert await store.load() == []


def test_both_backends_are_stores(tmp_path: Path) -> None:
    """The type checker reads this."""
    stores: list[Store] = [MemoryStore(), SqliteStore(tmp_path / "agora.db")]

    assert len(stores) == len(BACKENDS)
