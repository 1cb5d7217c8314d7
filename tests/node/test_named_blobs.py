"""What is dropped with a run, and what another one still names."""

from collections.abc import Iterator

import pytest

from node.enlisted import EnlistedBook, EnlistedRun, Result
from node.named_blobs import NamedBlobs
from node.runs import RunBook, RunFile
from node.simulation.memory_blobs import MemoryBlobs
from node.store import MemoryStore
from protocol.messages import NO_HASH


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
    named = NamedBlobs(blobs, runs, EnlistedBook(store))
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
    named = NamedBlobs(blobs, RunBook(store), members)
    state = await blobs.put(b"a state")

    await members.keep(enlisted(state))
    await named.drop([state])
    assert blobs.has(state)

    await members.keep(enlisted(state, award=b""))
    await named.drop([state])
    assert not blobs.has(state)
