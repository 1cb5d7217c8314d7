"""What was acknowledged survives a power cut, whatever the disk does with what it was not told to sync."""

from contextlib import closing, suppress
from pathlib import Path
from random import Random

import apsw
import pytest

from node import database
from node.database import Record, StoreCorrupt
from tests.system.torn_disk import PowerCut, TornDisk

pytestmark = [
    pytest.mark.system,
    # raised where SQLite needs no answer of the disk: the test sees it in `TornDisk.remains`
    pytest.mark.filterwarnings("ignore:(?s).*PowerCut:pytest.PytestUnraisableExceptionWarning"),
]

SEEDS = range(20)
CUTS_PER_SEED = 25  # on one disk, so that what one cut left is what the next one strikes

# Checkpoints and cuts of the log come every 4 MB and 16 MB; here they must come many times between two cuts,
# because what overwrites the database and starts the log anew is where a commit could be lost
LOG_PAGES_MAX = 12
LOG_BYTES_KEPT = 32 * 1024
CACHE_PAGES = 4  # a large append spills into the log before its commit

State = dict[tuple[str, bytes], bytes]  # in the order of first append


def drawn_append(rng: Random, state: State, number: int) -> list[Record]:
    """Several records: new ones, replaced ones, deleted ones, and one whose body is like no other's."""
    names = list(state)
    records = []
    for _ in range(rng.randrange(rng.choice((1, 4, 30)))):
        name = rng.choice(names) if names and rng.random() < 0.5 else ("job", rng.randbytes(4))
        is_deletion = rng.random() < (0.7 if len(names) > 100 else 0.3)
        records.append(Record(*name, None if is_deletion else rng.randbytes(rng.choice((0, 50, 700, 9_000)))))
    return [*records, Record("entry", bytes([number % 50]), number.to_bytes(8, "big"))]


def after(state: State, records: list[Record]) -> State:
    changed = dict(state)
    for record in records:
        if record.body is None:
            changed.pop((record.kind, record.key), None)
        else:
            changed[record.kind, record.key] = record.body
    return changed


def append(connection: apsw.Connection, records: list[Record]) -> None:
    """Commit as `SqliteStore` does; what returns is acknowledged."""
    connection.execute("BEGIN IMMEDIATE")
    for statement, rows in database.statements(records):
        connection.executemany(statement, rows)
    connection.execute("COMMIT")


def run_until_the_cut(
    disk: TornDisk, rng: Random, found: State, first: int, *, synchronous: str
) -> tuple[list[State], int]:
    """Append, and now and then close and open again. Return each state since the start, and which was acknowledged last.

    Args:
        found: the state at the start.
        first: no append before had this number or a later one.
    """
    states = [found]
    acknowledged = 0
    # SQLite goes on where it needs no answer from the disk, so a cut is not always an exception
    with suppress(PowerCut):
        while disk.remains is None:
            with closing(apsw.Connection("agora.db", vfs=disk.NAME)) as connection:
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
                database.prepare(connection)
                connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES_MAX}")
                connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES_KEPT}")
                connection.execute(f"PRAGMA cache_size = {CACHE_PAGES}")
                if synchronous != "FULL":
                    connection.execute(f"PRAGMA synchronous = {synchronous}")
                while disk.remains is None and rng.random() < 0.97:
                    records = drawn_append(rng, states[-1], first + len(states))
                    states.append(after(states[-1], records))
                    append(connection, records)
                    if disk.remains is None:
                        acknowledged = len(states) - 1
    return states, acknowledged


def found_on(remains: dict[str, bytes], directory: Path) -> State:
    """Open what is left as a daemon does, with the standard library's SQLite, and read all of it."""
    directory.mkdir()
    for name, content in remains.items():
        (directory / name).write_bytes(content)
    with closing(database.open_file(directory / "agora.db")) as connection:
        connection.execute("PRAGMA synchronous = OFF")  # this copy is only looked at
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return {(kind, key): body for kind, key, body in connection.execute(database.LOAD)}


def lost_appends(directory: Path, seed: int, *, synchronous: str = "FULL") -> list[int]:
    """Cut the power again and again; return how many acknowledged appends each cut has lost.

    Raises:
        StoreCorrupt: what a cut left is damaged.
        ValueError: it is the state after no append: one was kept in part.
    """
    rng = Random(seed)
    files: dict[str, bytes] = {}
    state: State = {}
    number = 0
    lost = []
    for cut in range(CUTS_PER_SEED):
        # many cuts fall into the first operations, which recover from the cut before
        disk = TornDisk(rng, files, cut_after=1 + int(rng.expovariate(1 / 250)))
        states, acknowledged = run_until_the_cut(disk, rng, state, number, synchronous=synchronous)
        assert disk.remains is not None

        state = found_on(disk.remains, directory / f"cut-{cut}")
        kept = [list(each.items()) for each in states].index(list(state.items()))
        lost.append(max(0, acknowledged - kept))
        files = disk.remains
        number += len(states)
    return lost


@pytest.mark.parametrize("seed", SEEDS)
def test_no_power_cut_loses_an_acknowledged_append(tmp_path: Path, seed: int) -> None:
    assert lost_appends(tmp_path, seed) == [0] * CUTS_PER_SEED


@pytest.mark.parametrize("cut_after", range(1, 31))
def test_a_power_cut_in_the_first_start_leaves_a_store_that_opens(tmp_path: Path, cut_after: int) -> None:
    """The one moment with a rollback journal: a look at the file that may not play it back must not refuse the file."""
    for seed in range(4):
        rng = Random(f"{cut_after} {seed}")
        disk = TornDisk(rng, {}, cut_after=cut_after)

        states, acknowledged = run_until_the_cut(disk, rng, {}, 0, synchronous="FULL")

        assert disk.remains is not None
        found = found_on(disk.remains, tmp_path / str(seed))
        assert found in states[acknowledged:], f"seed {seed}"


def test_without_any_sync_power_cuts_damage_the_store(tmp_path: Path) -> None:
    """The disk does tear and reorder: it is the syncs that help."""
    with pytest.raises(StoreCorrupt):
        lost_appends(tmp_path, 0, synchronous="OFF")


def test_without_a_sync_for_each_commit_power_cuts_lose_appends(tmp_path: Path) -> None:
    assert sum(lost_appends(tmp_path, 0, synchronous="NORMAL")) > 0
