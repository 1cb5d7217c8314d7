"""A disk that survives its daemon, and loses what it had not yet acknowledged when the power goes.

`Disk` is a store with a cable: an append takes as long as a sync does, and in a crash only the first few of those that
were under way are kept, as many as chance has it. What it stands on is either `MemoryStore` (the daemon's own SQL) or, in
large worlds, `Shelf`: the same records in a table, which costs a hundredth.
"""

from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from random import Random

import trio

from node.store import MemoryStore, Record, StoreClosed, StoreFull

FULL_BYTES = 4_096  # a disk that `fill` has made this small holds nothing more


class Shelf:
    """See `node.store.Store`: records in a table, by kind and key."""

    is_full = False  # a shelf has no end

    def __init__(self) -> None:
        self._records: dict[tuple[str, bytes], Record] = {}

    async def append(self, records: Sequence[Record]) -> None:
        """See `Store.append`."""
        for record in records:
            self._records[record.kind, record.key] = record
        await trio.lowlevel.checkpoint()

    async def load(self) -> list[Record]:
        """See `Store.load`."""
        await trio.lowlevel.checkpoint()
        return list(self._records.values())

    def close(self) -> None:
        """Forget everything."""
        self._records.clear()


class Disk:
    """See `node.store.Store`.

    Args:
        rng: draws what a crash leaves of the appends that were under way.
        sync_s: how long each append takes.
        is_large_world: records are kept on a shelf instead of in SQLite.
    """

    def __init__(self, rng: Random, *, sync_s: float = 0.0, is_large_world: bool = False) -> None:
        self.is_plugged_in = True
        self.was_filled = False  # at any time: its daemon may know more than is on it
        self.appends: list[tuple[Record, ...]] = []  # those of a small world, for its checkers
        self._rng = rng
        self._sync_s = sync_s
        self._is_large_world = is_large_world
        self._under_way: dict[int, tuple[Record, ...]] = {}  # by the order in which they came
        self._numbers = count()
        self._store: MemoryStore | Shelf = Shelf() if is_large_world else MemoryStore()

    @property
    def is_full(self) -> bool:
        """See `Store.is_full`."""
        return self._store.is_full

    async def append(self, records: Sequence[Record]) -> None:
        """See `Store.append`."""
        if not self.is_plugged_in:
            raise StoreClosed("the power is off")
        batch = tuple(records)
        if self._sync_s:
            number = next(self._numbers)
            self._under_way[number] = batch
            with trio.CancelScope(shield=True):  # what has begun is finished, whoever has stopped waiting
                await trio.sleep(self._sync_s)
            if self._under_way.pop(number, None) is None:
                raise StoreClosed("the power went off")
        await self._store.append(batch)
        if not self._is_large_world:
            self.appends.append(batch)

    async def load(self) -> list[Record]:
        """See `Store.load`."""
        return await self._store.load()

    async def crash(self) -> None:
        """The power goes: of the appends under way the first few are kept, and nothing is acknowledged any more."""
        self.is_plugged_in = False
        under_way = list(self._under_way.values())
        self._under_way.clear()
        for batch in under_way[: self._rng.randint(0, len(under_way))]:
            with suppress(StoreFull):
                await self._store.append(batch)

    async def fill(self) -> None:
        """Write until nothing more fits."""
        assert isinstance(self._store, MemoryStore), "only small worlds have disks that fill"
        self.was_filled = True
        self._store.resize(FULL_BYTES)
        with suppress(StoreFull):
            for number in count():
                await self._store.append([Record("junk", number.to_bytes(4), bytes(64))])

    def empty(self) -> None:
        """Make room again."""
        assert isinstance(self._store, MemoryStore), "only small worlds have disks that fill"
        self._store.resize(None)

    async def replace(self, records: Sequence[Record]) -> None:
        """Restore a backup: what the disk held is gone."""
        self._store.close()
        self._store = Shelf() if self._is_large_world else MemoryStore()
        await self._store.append(records)

    def kinds(self) -> list[str]:
        """The kinds of the records appended so far, in order."""
        return [record.kind for batch in self.appends for record in batch]

    def close(self) -> None:
        """Forget everything."""
        self._store.close()
