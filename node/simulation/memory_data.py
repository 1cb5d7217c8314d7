"""Private data sets of a simulated device: the same records, hashes and rules as in a home, and no files."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import trio

from node import records
from node.clock import Clock
from node.data_sets import Added, DataSet
from node.errors import StartError
from node.records import Records
from node.seen_before import check_budget, find_same
from runtime.engine import Digest
from runtime.examiner import Question


class MemoryData:
    """See `node.data_sets.DataSets`. Its files are what `write` was given; it outlives its daemon.

    Args:
        clock: says when a set was added.
        salt: of the device, so that two with the same records have other digests.
    """

    def __init__(self, clock: Clock, salt: bytes) -> None:
        self._clock = clock
        self._salt = salt
        self._files: dict[Path, bytes] = {}
        self._known: dict[Digest, DataSet] = {}
        self._records: dict[Digest, Records] = {}

    def write(self, source: Path, pairs: Iterable[tuple[str, str]]) -> None:
        """Put a file of prompts and responses where `add` finds it."""
        self._files[source] = records.encode(pairs)

    def sets(self) -> tuple[DataSet, ...]:
        """See `DataSets.sets`."""
        return tuple(each for each in self.known() if not each.is_removed)

    def known(self) -> tuple[DataSet, ...]:
        """See `DataSets.known`."""
        return tuple(self._known.values())

    def named(self, name: str) -> list[DataSet]:
        """See `DataSets.named`."""
        return [each for each in self.sets() if each.name == name]

    async def add(self, name: str, source: Path, budget_milli: int) -> Added:
        """See `DataSets.add`."""
        await trio.lowlevel.checkpoint()
        if source not in self._files:
            raise StartError(f"cannot read {source} (no such file), expected a file of yours")
        return self.insert(name, records.read(self._files[source], source), budget_milli)

    def insert(self, name: str, found: Records, budget_milli: int) -> Added:
        """Add records without a file and without waiting: how a world is furnished before it runs."""
        data_set = DataSet(
            digest=Digest(records.digest_of(found, self._salt)),
            name=name,
            samples=len(found.train),
            held_out=len(found.held_out),
            budget_milli=budget_milli,
            added_ms=self._clock.utc_ms(),
            records=found.hashes,
        )
        if (same := find_same(data_set, self.sets())) is not None:
            return Added(same, is_new=False, duplicates=found.duplicates, seen_before=0)
        seen_before = check_budget(data_set, self.known())
        self._known.pop(data_set.digest, None)
        self._known[data_set.digest] = data_set
        self._records[data_set.digest] = found
        return Added(data_set, is_new=True, duplicates=found.duplicates, seen_before=seen_before)

    async def held_out(self, digest: Digest) -> tuple[Question, ...]:
        """See `DataSets.held_out`."""
        await trio.lowlevel.checkpoint()
        name = self._known[digest].name
        read = (records.decode(line) for line in self._records[digest].held_out)
        return tuple(Question(name, each.prompt, each.response) for each in read)

    async def remove(self, digest: Digest) -> None:
        """See `DataSets.remove`."""
        await trio.lowlevel.checkpoint()
        del self._records[digest]
        data_set = self._known[digest]
        if data_set.is_private:
            self._known[digest] = replace(data_set, is_removed=True)
        else:
            del self._known[digest]
