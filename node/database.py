"""The SQLite file under the store: how it is opened, checked, laid out, written and read.

Plain blocking calls on one connection, without a thread or a loop of their own: `SqliteStore` runs them in
aiosqlite's thread, `MemoryStore` inline, `backup` and `doctor` where they like.

A file is looked at through a read-only connection first, and refused if it is damaged, is not Agora's or is newer
than this program. Only then is it opened for writing: the first thing that SQLite does to a file it may write is to
fold the write-ahead log into it, and on a damaged file that destroys what could still be rescued.
"""

import os
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from node.errors import StartError

SCHEMA_VERSION = 1
APPLICATION_ID = 0x41474F52  # "AGOR" in the file's header: tells our file from any other SQLite file
WAL_BYTES_KEPT = 16 * 1024 * 1024  # after a burst the log file is cut back to this
FIRST_PAGE_BYTES = 4_096  # SQLite's default page
BUSY_TIMEOUT_S = 5.0  # somebody else's tool holds the file: wait this long before failing the commit

_SCHEMA = (
    # position is the order of first append: replacing a body keeps it
    """CREATE TABLE record (
           position INTEGER PRIMARY KEY, kind TEXT NOT NULL, key BLOB NOT NULL, body BLOB NOT NULL, UNIQUE (kind, key)
       ) STRICT""",
    # filled and emptied to see whether a full disk has room again
    "CREATE TABLE probe (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
_PUT = "INSERT INTO record (kind, key, body) VALUES (?, ?, ?) ON CONFLICT (kind, key) DO UPDATE SET body = excluded.body"
_DELETE = "DELETE FROM record WHERE kind = ? AND key = ?"
_OF_KIND = "SELECT key, body FROM record WHERE kind = ? ORDER BY position"
LOAD = "SELECT kind, key, body FROM record ORDER BY position"
PROBE = (
    "INSERT OR REPLACE INTO probe VALUES (1, zeroblob(65536))",
    "DELETE FROM probe",
)  # a commit after each


class StoreCorrupt(StartError):
    """The database is damaged, not Agora's, or written by a newer version. It was not touched."""


@dataclass(frozen=True)
class Record:
    """One fact that a rule wants to find again after a restart.

    Attributes:
        kind: what it is ("entry", "job", "address"…); a namespace of keys.
        body: None deletes (kind, key).
    """

    kind: str
    key: bytes
    body: bytes | None


class AnyCursor(Protocol):
    """Rows as they come."""

    def fetchone(self) -> Any:
        """Return the next row, or None."""


class AnyConnection(Protocol):
    """What `prepare` needs of a connection: the standard library's has it, and one whose disk can lose its power."""

    def execute(self, statement: str, /) -> AnyCursor:
        """Run one statement."""


def open_file(path: Path) -> sqlite3.Connection:
    """Return a connection that may write, commits to disk (WAL, FULL) and has the current schema.

    Raises:
        StoreCorrupt: the file is damaged, foreign or newer; it was not changed.
        StartError: it cannot be opened: no space, no permission.
    """
    beside = [path.with_name(path.name + suffix) for suffix in ("-wal", "-shm")]
    missing = [each for each in beside if not each.exists()]
    try:
        return _open_file(path)
    except StartError:
        for (
            made
        ) in missing:  # SQLite lays its log and its index beside even a file that it then finds damaged
            made.unlink(missing_ok=True)
        raise


def _open_file(path: Path) -> sqlite3.Connection:
    if path.exists():
        check_file(path)
    try:
        os.close(
            os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        )  # SQLite alone would follow the umask
        # opened in one thread, used in another, never in two at once
        connection = sqlite3.connect(
            path, isolation_level="IMMEDIATE", timeout=BUSY_TIMEOUT_S, check_same_thread=False
        )
    except (OSError, sqlite3.Error) as error:
        raise _refused(path, error) from error
    try:
        prepare(connection)
    except sqlite3.Error as error:
        connection.close()
        raise _refused(path, error) from error
    return connection


def prepare(connection: AnyConnection) -> None:
    """Make every commit wait for the disk (WAL, FULL) and lay the schema out where it is missing."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}")
    _lay_out(connection)


def open_memory() -> sqlite3.Connection:
    """Return a connection to a new database in memory, with the same schema."""
    connection = sqlite3.connect(":memory:", isolation_level="IMMEDIATE")
    _lay_out(connection)
    return connection


def check_file(path: Path) -> None:
    """Read the whole file, change nothing, and return if this program may open it.

    Raises:
        StoreCorrupt: damaged, foreign or newer.
        StartError: it cannot be read.
    """
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)
        try:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        if _is_unfinished_first_start(path, error):
            return
        raise _refused(path, error) from error
    if verdict != "ok":
        raise _corrupt(path, str(verdict).splitlines()[-1])
    if tables == 0:
        return  # killed between creating the file and its first commit
    if application != APPLICATION_ID:
        raise StoreCorrupt(f"{path} is a database of another program, expected Agora's; move it away")
    if version > SCHEMA_VERSION:
        raise StoreCorrupt(
            f"{path} has schema version {version}, expected {SCHEMA_VERSION} or older; update agora-node"
        )


def read_kind(path: Path, kind: str) -> list[tuple[bytes, bytes]]:
    """Return key and body of each record of a kind, beside whatever daemon runs; a file that is not there has none.

    Raises:
        StartError: it cannot be read.
    """
    if not path.exists():
        return []
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)
        try:
            return connection.execute(_OF_KIND, (kind,)).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        if _is_unfinished_first_start(path, error):
            return []
        raise _refused(path, error) from error


def statements(records: Iterable[Record]) -> list[tuple[str, list[tuple[object, ...]]]]:
    """Return what to `executemany` for these records, applied in order; deletions first.

    Equal to applying them one by one: a key that is deleted and then put again comes last in the order, one that is
    put twice keeps its first place.
    """
    deleted: dict[tuple[str, bytes], None] = {}
    put: dict[tuple[str, bytes], bytes] = {}
    for record in records:
        name = (record.kind, record.key)
        if record.body is None:
            put.pop(name, None)
            deleted[name] = None
        else:
            put[name] = record.body
    todo: list[tuple[str, list[tuple[object, ...]]]] = []
    if deleted:
        todo.append((_DELETE, list(deleted)))
    if put:
        todo.append((_PUT, [(kind, key, body) for (kind, key), body in put.items()]))
    return todo


def is_full_error(error: sqlite3.Error) -> bool:
    """Tell whether the disk refused a write; one that is full says so in several ways, and a dying one likewise."""
    return _primary_code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def is_corrupt_error(error: sqlite3.Error) -> bool:
    """Tell whether the file's content is not what SQLite wrote."""
    return _primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _primary_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _is_unfinished_first_start(path: Path, error: sqlite3.Error) -> bool:
    """Tell whether power failed while the file's first page was written: it holds nothing, and opening it undoes that.

    Only that page is ever written with a rollback journal, which a read-only connection may not play back.
    """
    is_unfinished = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY_ROLLBACK
    return is_unfinished and path.stat().st_size <= FIRST_PAGE_BYTES


def _lay_out(connection: AnyConnection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == SCHEMA_VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA:
        connection.execute(statement)
    connection.execute("COMMIT")


def _corrupt(path: Path, found: object) -> StoreCorrupt:
    return StoreCorrupt(
        f"{path} is damaged ({found}) and was left as it is; restore a backup with 'agora restore', or move it away"
    )


def _refused(path: Path, error: OSError | sqlite3.Error) -> StartError:
    if isinstance(error, sqlite3.Error) and is_corrupt_error(error):
        return _corrupt(path, error)
    return StartError(
        f"cannot open {path} ({error}), expected a writable database; check free space and permissions"
    )
