"""What is dropped with a run, and what another one still names."""

from collections.abc import Iterator

import pytest

from node.enlisted import EnlistedBook, EnlistedRun, Result
from node.named_blobs import NamedBlobs
from node.runs import RunBook, RunFile
from node.simulation.memory_blobs import MemoryBlobs
from node.spare_blobs import AGE_S_MIN
from node.store import MemoryStore
from protocol.envelope import Sealed
from protocol.messages import NO_HASH, Entry
from tests.marketplace.assembly.assembly_town import ANN, BOB, HOUR, NOON, Town


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    store = MemoryStore()
    yield store
    store.close()


def enlisted(state: bytes, award: bytes = b"award") -> EnlistedRun:
    """A run that this device takes part in, trained from a state in its newest round."""
    newest = Result(round=1, state=state, payload=b"", steps=1, samples=1, epsilon_milli=-1, seconds=1.0)
    return EnlistedRun(
        run=b"e" * 16,
        coordinator="ann",
        announcement=b"",
        enlistments=[],
        award=award,
        data=bytes(32),
        noise=None,
        newest=newest,
    )


async def test_the_first_change_of_one_run_is_that_of_another_and_stays(store: MemoryStore) -> None:
    """Of the same shapes it is the same bytes: two runs at once, and the first to get on must not take it from the other."""
    blobs, runs = MemoryBlobs(), RunBook(store)
    named = NamedBlobs(blobs, runs, EnlistedBook(store), Town().assembly, lambda: NOON)
    nothing_changed, other = await blobs.put(b"no change"), await blobs.put(b"a change")
    await runs.keep(RunFile(run=b"a" * 16, announcement=b"", payload=other))
    await runs.keep(RunFile(run=b"b" * 16, announcement=b"", payload=nothing_changed))

    await named.drop([nothing_changed])
    assert blobs.has(nothing_changed)

    await runs.keep(RunFile(run=b"b" * 16, announcement=b"", payload=other))
    await named.drop([nothing_changed, other, NO_HASH, b""])
    assert not blobs.has(nothing_changed)
    assert blobs.has(other)


async def test_the_newest_state_of_a_member_stays_and_beside_its_own_coordinator_does_not(
    store: MemoryStore,
) -> None:
    """A member may go on from it when the run is over; where the coordinator is, its own record names the newest one."""
    blobs, members = MemoryBlobs(), EnlistedBook(store)
    named = NamedBlobs(blobs, RunBook(store), members, Town().assembly, lambda: NOON)
    state = await blobs.put(b"a state")

    await members.keep(enlisted(state))
    await named.drop([state])
    assert blobs.has(state)

    await members.keep(enlisted(state, award=b""))
    await named.drop([state])
    assert not blobs.has(state)


# --- the assembly -------------------------------------------------------------------------------------------------------
ASKED, REPLAYED, FIRST, SECOND, WRONG = (bytes([number]) * 32 for number in range(1, 6))


def digests(town: Town, store: MemoryStore, *entries: Sealed[Entry], now_ms: int = NOON) -> set[bytes]:
    """What is named where no run is known."""
    assembly = town.assembly(*entries)
    return NamedBlobs(
        MemoryBlobs(), RunBook(store), EnlistedBook(store), lambda: assembly, lambda: now_ms
    ).digests()


async def test_a_line_names_its_public_sets(store: MemoryStore) -> None:
    town = Town()

    assert digests(town, store, town.line(evaluation=ASKED, replay=REPLAYED, replay_bytes=9)) == {
        ASKED,
        REPLAYED,
    }


async def test_patches_in_force_and_before_them_and_proposals_are_named(store: MemoryStore) -> None:
    """Older ones too: a version may be asked for by its number, and a rollback brings one back."""
    town = Town()
    entries = [
        town.line(evaluation=ASKED),
        *town.ratify(FIRST, 1, evaluation=ASKED),
        *town.ratify(SECOND, 2, evaluation=ASKED, at=NOON + 48 * HOUR),
        town.propose(WRONG, 3, evaluation=REPLAYED, at=NOON + 96 * HOUR),
    ]

    named = digests(town, store, *entries, now_ms=NOON + 97 * HOUR)

    assert named == {ASKED, FIRST, SECOND, WRONG, REPLAYED}


async def test_a_proposal_that_can_never_be_in_force_is_named_no_more(store: MemoryStore) -> None:
    town = Town()
    line, wrong = town.line(evaluation=ASKED), town.propose(WRONG, evaluation=ASKED)
    entries = [line, wrong, town.vote(wrong, ANN), town.vote(wrong, BOB)]
    assert WRONG in digests(town, store, *entries)

    assert WRONG not in digests(town, store, *entries, town.veto(wrong))


async def test_the_blobs_of_a_device_are_told_what_is_named(store: MemoryStore) -> None:
    """So that the oldest of the others makes room."""
    blobs, runs = MemoryBlobs(size_bytes_max=20), RunBook(store)
    NamedBlobs(blobs, runs, EnlistedBook(store), Town().assembly, lambda: NOON)
    checkpoint, left_over = await blobs.put(b"checkpoint"), await blobs.put(b"left over.")
    await runs.keep(RunFile(run=b"a" * 16, announcement=b"", next=checkpoint))
    for digest in (checkpoint, left_over):
        blobs.born_s[digest] -= 2 * AGE_S_MIN

    new = await blobs.put(b"a new blob")

    assert [blobs.has(each) for each in (checkpoint, left_over, new)] == [True, False, True]
