"""Private data sets as files of the home: `data/<digest>/` with `train.jsonl`, `held_out.jsonl`, `hashes` and `card.json`.

All of it is 0600 and in the backup: the records are nobody else's, and without their hashes a restored device would not
know on which of them it has spent. A set appears under its name at once and whole; `data/salt` makes the names opaque.
"""

import hashlib
import os
import shutil
import stat
import tempfile
from dataclasses import replace
from pathlib import Path

import msgspec
import trio

from node import records
from node.clock import Clock
from node.data_sets import Added, DataSet
from node.errors import StartError
from node.private_file import sync_directory, write_atomic
from node.records import HASH_BYTES, RecordHash, Records
from node.seen_before import check_budget, find_same
from node.store import StoreFull
from runtime.engine import Digest
from runtime.examiner import Question

TRAIN, HELD_OUT, HASHES, CARD = "train.jsonl", "held_out.jsonl", "hashes", "card.json"
SALT = "salt"
_SALT_BYTES = 32
_VERSION = 1


class _Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands beside the records."""

    version: int
    name: str
    samples: int
    held_out: int
    budget_milli: int
    added_ms: int
    is_removed: bool


class DataDirectory:
    """See `node.data_sets.DataSets`.

    Args:
        directory: is made, 0700, if it is not there.
        clock: says when a set was added.

    Raises:
        StartError: a set in it cannot be read. It is not passed over: what was spent on its records would be forgotten.
    """

    def __init__(self, directory: Path, clock: Clock) -> None:
        self.directory = directory.absolute()
        self._clock = clock
        self._adding = trio.Lock()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._salt = self._read_salt()
        self._known: dict[Digest, DataSet] = {}
        for path in sorted(self.directory.iterdir()):
            if path.name.startswith("."):  # a copy or a write that a crash broke off
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            elif path.is_dir():
                data_set = _load(path)
                self._known[data_set.digest] = data_set

    def sets(self) -> tuple[DataSet, ...]:
        """See `DataSets.sets`."""
        return tuple(each for each in self.known() if not each.is_removed)

    def known(self) -> tuple[DataSet, ...]:
        """See `DataSets.known`."""
        return tuple(sorted(self._known.values(), key=lambda each: (each.added_ms, each.digest)))

    def named(self, name: str) -> list[DataSet]:
        """See `DataSets.named`."""
        return [each for each in self.sets() if each.name == name]

    async def add(self, name: str, source: Path, budget_milli: int) -> Added:
        """See `DataSets.add`."""
        async with self._adding:
            found = await trio.to_thread.run_sync(_read, source)
            digest = Digest(records.digest_of(found, self._salt))
            data_set = DataSet(
                digest=digest,
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
            try:
                await trio.to_thread.run_sync(self._freeze, data_set, found)
            except OSError as error:
                raise StoreFull(
                    f"cannot keep {name} in {self.directory} ({error.strerror}); check free space"
                ) from error
            self._known[digest] = data_set
            return Added(data_set, is_new=True, duplicates=found.duplicates, seen_before=seen_before)

    async def held_out(self, digest: Digest) -> tuple[Question, ...]:
        """See `DataSets.held_out`."""
        data_set = self._here(digest)
        lines = await trio.to_thread.run_sync((self._path(digest) / HELD_OUT).read_bytes)
        read = (records.decode(line) for line in lines.splitlines())
        return tuple(Question(data_set.name, each.prompt, each.response) for each in read)

    async def remove(self, digest: Digest) -> None:
        """See `DataSets.remove`."""
        async with self._adding:
            data_set = self._here(digest)
            if data_set.is_private:
                self._known[digest] = replace(data_set, is_removed=True)
            else:
                del self._known[digest]
            await trio.to_thread.run_sync(self._delete, data_set)

    def _here(self, digest: Digest) -> DataSet:
        data_set = self._known[digest]
        if data_set.is_removed:
            raise KeyError(digest)
        return data_set

    def _path(self, digest: Digest) -> Path:
        return self.directory / digest.hex()

    def _read_salt(self) -> bytes:
        path = self.directory / SALT
        if not path.exists():
            write_atomic(path, os.urandom(_SALT_BYTES))
        salt = path.read_bytes()
        if len(salt) != _SALT_BYTES:
            raise StartError(f"{path} has {len(salt)} bytes, expected {_SALT_BYTES}; restore a backup")
        return salt

    def _freeze(self, data_set: DataSet, found: Records) -> None:
        path = self._path(data_set.digest)
        if (
            path.exists()
        ):  # it was removed; its hashes are those of the same records, and never gone in between
            _write_set(path, data_set, found)
            return
        staging = Path(tempfile.mkdtemp(prefix=".adding-", dir=self.directory))
        try:
            _write_set(staging, data_set, found)
            staging.replace(path)
            sync_directory(self.directory)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _delete(self, data_set: DataSet) -> None:
        path = self._path(data_set.digest)
        if data_set.is_private:
            write_atomic(path / CARD, _card(replace(data_set, is_removed=True)))
            _delete_records(path)
        else:
            removed = self.directory / f".removed-{data_set.digest.hex()}"
            path.rename(removed)
            shutil.rmtree(removed)


def _write_set(directory: Path, data_set: DataSet, found: Records) -> None:
    """Write the card last: it says that the rest is there."""
    for name, data in (
        (TRAIN, b"".join(line + b"\n" for line in found.train)),
        (HELD_OUT, b"".join(line + b"\n" for line in found.held_out)),
        (HASHES, b"".join(sorted(found.hashes))),
        (CARD, _card(data_set)),
    ):
        write_atomic(directory / name, data)


def _read(source: Path) -> Records:
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hang the thread
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise StartError(f"{source} is no regular file, expected JSON lines")
            data = file.read(records.FILE_BYTES_MAX + 1)
    except OSError as error:
        raise StartError(f"cannot read {source} ({error.strerror}), expected a file of yours") from error
    return records.read(data, source)


def _card(data_set: DataSet) -> bytes:
    card = _Card(
        version=_VERSION,
        name=data_set.name,
        samples=data_set.samples,
        held_out=data_set.held_out,
        budget_milli=data_set.budget_milli,
        added_ms=data_set.added_ms,
        is_removed=data_set.is_removed,
    )
    return msgspec.json.encode(card)


def _delete_records(path: Path) -> None:
    for name in (TRAIN, HELD_OUT):
        (path / name).unlink(missing_ok=True)


def _load(path: Path) -> DataSet:
    try:
        card = msgspec.json.decode((path / CARD).read_bytes(), type=_Card)
        packed = (path / HASHES).read_bytes()
        digest = Digest(bytes.fromhex(path.name))
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise StartError(f"data set {path} cannot be read ({error}); restore a backup") from error
    hashes = frozenset(RecordHash(packed[at : at + HASH_BYTES]) for at in range(0, len(packed), HASH_BYTES))
    if card.version != _VERSION or len(hashes) != card.samples or len(digest) != hashlib.sha256().digest_size:
        raise StartError(f"data set {path} is not as it was written; restore a backup")
    if card.is_removed:  # a crash may have come in between
        _delete_records(path)
    return DataSet(
        digest=digest,
        name=card.name,
        samples=card.samples,
        held_out=card.held_out,
        budget_milli=card.budget_milli,
        added_ms=card.added_ms,
        records=hashes,
        is_removed=card.is_removed,
    )
