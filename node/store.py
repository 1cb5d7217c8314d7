"""The Store port: what a node must find again after SIGKILL or a power cut.

Rules keep their state in memory; they append records and load all of them at start. An append that returned is on
disk. Two backends: `SqliteStore`, the daemon's, and `MemoryStore`, which runs the same SQL inline for the simulator.
`tests/contracts/test_store.py` is their shared acceptance suite.

A full disk is a state, not a crash: the waiting callers get `StoreFull` and `is_full` stays True until a write has
succeeded again. Whoever takes new work looks at it first; what is in memory can still be served.
"""

import math
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import aiosqlite
import trio
import trio_asyncio

from node import database
from node.database import Record, StoreCorrupt
from protocol.errors import AgoraError

if TYPE_CHECKING:  # its old stubs, which libp2p brings along, hide trio's own types from mypy
    from trio_typing import TaskStatus

__all__ = [
    "MemoryStore",
    "Record",
    "SqliteStore",
    "Store",
    "StoreClosed",
    "StoreCorrupt",
    "StoreFailed",
    "StoreFull",
    "fsync_p50_s",
    "measure_fsync_p50_s",
]

QUEUE_MAX = 256  # requests that wait for the store task; more callers wait to enter
GROUP_MAX = 1_024  # requests in one transaction, so that a flood cannot make it endless
PROBE_INTERVAL_S = 5.0  # how often a full disk is tried again when nobody writes


class StoreFailed(AgoraError):
    """The database refused this append and kept nothing of it: another program holds the file, or it is broken."""


class StoreFull(StoreFailed):
    """The disk took no more; nothing of this append was kept."""


class StoreClosed(AgoraError):
    """The store has stopped; whether this append was kept is unknown."""


class Store(Protocol):
    """Keeps records. Many callers may append at once."""

    @property
    def is_full(self) -> bool:
        """The last write found no space: take no new work."""

    async def append(self, records: Sequence[Record]) -> None:
        """Return when all records are on disk; the same (kind, key) replaces. All or nothing, also if cancelled.

        Raises:
            StoreFailed: nothing was kept; `StoreFull` of them when there is no space.
            StoreClosed: the store has stopped.
        """

    async def load(self) -> list[Record]:
        """Return every record, in the order of first append.

        Raises:
            StoreClosed: the store has stopped.
        """


@dataclass(eq=False)
class _Request:
    """What a caller waits for; `records` is None for a load."""

    records: tuple[Record, ...] | None
    done: trio.Event = field(default_factory=trio.Event)
    loaded: list[Record] = field(default_factory=list)
    error: AgoraError | None = None

    def fail(self, error: AgoraError) -> None:
        if not self.done.is_set():  # what was answered stays so
            self.error = error
            self.done.set()


class SqliteStore:
    """The store in a file. One task (`run`) owns the connection and commits everything that waits in one transaction.

    Args:
        path: the database; created 0600 if missing.
        on_full: told True when the disk is full and False when it takes writes again.
    """

    def __init__(
        self,
        path: Path,
        *,
        on_full: Callable[[bool], None] | None = None,
        probe_interval_s: float = PROBE_INTERVAL_S,
    ) -> None:
        self._path = path
        self._on_full = on_full
        self._probe_interval_s = probe_interval_s
        self._is_full = False
        self._requests, self._inbox = trio.open_memory_channel[_Request](QUEUE_MAX)

    @property
    def is_full(self) -> bool:
        """The last write found no space: take no new work."""
        return self._is_full

    async def append(self, records: Sequence[Record]) -> None:
        """See `Store.append`."""
        await self._ask(_Request(tuple(records)))

    async def load(self) -> list[Record]:
        """See `Store.load`."""
        return (await self._ask(_Request(None))).loaded

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; a store runs once.

        Raises:
            StoreCorrupt: the file is damaged, foreign or newer (it was not changed), or broke while in use.
            StartError: the file cannot be opened.
        """
        try:
            ready = await trio.to_thread.run_sync(database.open_file, self._path)
            # aiosqlite's thread must neither be left half started nor outlive the loop: opening and closing are shielded
            connection = aiosqlite.Connection(lambda: ready, iter_chunk_size=64)
            async with trio_asyncio.open_loop():
                with trio.CancelScope(shield=True):
                    await trio_asyncio.aio_as_trio(connection.__aenter__)()
                try:
                    task_status.started()
                    while True:
                        group = await self._next_group()
                        with trio.CancelScope(shield=True):  # what has begun is finished and answered
                            await self._handle(connection, group)
                finally:
                    with trio.CancelScope(shield=True):
                        await trio_asyncio.aio_as_trio(connection.close)()
        finally:
            while waiting := self._drain():
                for request in waiting:
                    request.fail(self._closed())
            self._inbox.close()

    async def _ask(self, request: _Request) -> _Request:
        try:
            await self._requests.send(request)
        except trio.BrokenResourceError:
            raise self._closed() from None
        await request.done.wait()
        if request.error is not None:
            # a group shares one error, and each caller needs a traceback of its own
            raise type(request.error)(*request.error.args)
        return request

    async def _next_group(self) -> list[_Request]:
        """Wait for a request and take all that came with it; empty when a full disk is to be tried again."""
        with trio.move_on_after(self._probe_interval_s if self._is_full else math.inf):
            return [await self._inbox.receive(), *self._drain()]
        return []

    def _drain(self) -> list[_Request]:
        drained: list[_Request] = []
        while len(drained) < GROUP_MAX:
            try:
                drained.append(self._inbox.receive_nowait())
            except trio.WouldBlock:
                break
        return drained

    async def _handle(self, connection: aiosqlite.Connection, group: list[_Request]) -> None:
        """Commit the appends of a group in one transaction, then answer its loads; a group of none is a probe."""
        appends = [request for request in group if request.records is not None]
        loads = [request for request in group if request.records is None]
        try:
            if appends or not group:
                await self._write(
                    connection, [record for request in appends for record in request.records or ()]
                )
            for request in appends:
                request.done.set()
            for request in loads:
                request.loaded = await trio_asyncio.aio_as_trio(_load)(connection)
                request.done.set()
        except sqlite3.Error as error:
            failure = self._failure(error)
            if isinstance(failure, StoreFull):
                self._note_full(is_full=True)
            for request in group:
                request.fail(failure)
            if isinstance(failure, StoreCorrupt):
                raise failure from error
        finally:  # a bug of ours surfaces, and nobody waits for ever
            for request in group:
                request.fail(self._closed())

    async def _write(self, connection: aiosqlite.Connection, records: list[Record]) -> None:
        if records:
            await trio_asyncio.aio_as_trio(_commit)(connection, database.statements(records))
        else:
            for statement in database.PROBE:
                await trio_asyncio.aio_as_trio(_commit)(connection, [(statement, [()])])
        self._note_full(is_full=False)

    def _note_full(self, *, is_full: bool) -> None:
        if is_full != self._is_full:
            self._is_full = is_full
            if self._on_full is not None:
                self._on_full(is_full)

    def _failure(self, error: sqlite3.Error) -> AgoraError:
        if database.is_full_error(error):
            return StoreFull(f"{self._path} takes no more ({error}), expected free disk space; free some")
        if database.is_corrupt_error(error):
            return StoreCorrupt(
                f"{self._path} is damaged ({error}); stop, and restore a backup with 'agora restore'"
            )
        return StoreFailed(f"{self._path} refused a write ({error}); is another program using it?")

    def _closed(self) -> StoreClosed:
        return StoreClosed(f"the store {self._path} has stopped")


class MemoryStore:
    """The same SQL on `:memory:`, inline: no thread, so that a simulated clock and a seed decide everything.

    Each append passes a checkpoint before and after its commit, so a cancelled one is found in both of its outcomes.
    The object outlives a simulated crash, as a disk does.

    Args:
        size_bytes_max: the size of the disk; None is endless.
    """

    def __init__(self, size_bytes_max: int | None = None) -> None:
        self._connection = database.open_memory()
        self._is_full = False
        self.resize(size_bytes_max)

    @property
    def is_full(self) -> bool:
        """The last write found no space: take no new work."""
        return self._is_full

    def resize(self, size_bytes_max: int | None) -> None:
        """Make room on the simulated disk, or take it away."""
        (page_bytes,) = self._connection.execute("PRAGMA page_size").fetchone()
        pages = 0xFFFFFFFE if size_bytes_max is None else size_bytes_max // page_bytes  # SQLite's own maximum
        self._connection.execute(f"PRAGMA max_page_count = {pages}")
        self._is_full = self._is_full and size_bytes_max is not None

    async def append(self, records: Sequence[Record]) -> None:
        """See `Store.append`."""
        await trio.lowlevel.checkpoint()
        try:
            with self._connection:
                for statement, rows in database.statements(records):
                    self._connection.executemany(statement, rows)
        except sqlite3.Error as error:
            if not database.is_full_error(error):
                raise
            self._is_full = True
            raise StoreFull(f"the simulated disk takes no more ({error})") from error
        self._is_full = False
        await trio.lowlevel.checkpoint()

    async def load(self) -> list[Record]:
        """See `Store.load`."""
        await trio.lowlevel.checkpoint()
        return [Record(*row) for row in self._connection.execute(database.LOAD)]

    def close(self) -> None:
        """Forget everything."""
        self._connection.close()


async def fsync_p50_s(directory: Path, *, samples: int = 100) -> float:
    """Return the median time in seconds to write 4 KiB and fsync it there: what each commit waits for."""
    return await trio.to_thread.run_sync(measure_fsync_p50_s, directory, samples)


def measure_fsync_p50_s(directory: Path, samples: int) -> float:
    """See `fsync_p50_s`; blocks for 2 s at most."""
    times: list[float] = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        deadline = time.perf_counter() + 2.0  # an SD card may need 50 ms for each
        while len(times) < samples and (not times or time.perf_counter() < deadline):
            began = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times)


async def _commit(connection: aiosqlite.Connection, todo: list[tuple[str, list[tuple[object, ...]]]]) -> None:
    try:
        for statement, rows in todo:
            await connection.executemany(statement, rows)
        await connection.commit()
    except BaseException:
        await connection.rollback()
        raise


async def _load(connection: aiosqlite.Connection) -> list[Record]:
    rows = await connection.execute_fetchall(database.LOAD)
    return [Record(kind, key, body) for kind, key, body in rows]
