"""A run of a real directory of blobs whose file has rotted while the daemon was down."""

from pathlib import Path
from typing import Any

import pytest

from federation.lora import adapted
from federation.training_run import TrainingRun
from node.adapter_maker import at_once
from node.blob_directory import DirectoryBlobs
from node.clock import SystemClock
from node.enlisted import EnlistedBook
from node.journal import Journal
from node.named_blobs import NamedBlobs
from node.run_numbers import RunNumbers
from node.runs import RunBook, RunFile, Seat
from node.services.cohort_link import CohortLink, Take, Traffic, Wanted
from node.services.run_driver import RunDriver, RunTools
from node.store import MemoryStore
from protocol.envelope import Sealed
from protocol.messages import Award, Enlistment, RunAnnouncement
from runtime.engine import Digest
from tests.federation.members import ANN, BOB, MESH, RECIPE, SHAPES, announcement, enlistment
from tests.marketplace.assembly.assembly_town import Town


class Line(CohortLink):
    """To a member that nothing is asked of: it notes how its run ends."""

    def __init__(self, member: str, told: list[str]) -> None:
        self._member = member
        self._told = told

    async def open(self, enlistments: tuple[Sealed[Enlistment], ...]) -> None:
        """A run that is taken up again has its members."""
        raise AssertionError(f"{self._member} is awarded anew with {enlistments}")

    async def ask(self, wanted: Wanted, traffic: Traffic, take: Take) -> None:
        """Nobody may be asked to train from a state that cannot be read."""
        raise AssertionError(f"{self._member} is asked for {wanted}: {traffic}, {take}")

    async def end(self) -> None:
        self._told.append(self._member)


def taken_up(directory: Path, file: RunFile, store: MemoryStore, told: list[str]) -> RunDriver:
    """A driver of a run as a daemon makes it at its start, for a run of Ann and Bob with a round behind it."""

    def link(
        _run: Sealed[RunAnnouncement], bid: Sealed[Enlistment], _award: Sealed[Award] | None
    ) -> CohortLink:
        return Line(bid.sender, told)

    blobs = DirectoryBlobs(directory, free_bytes_min=0)
    book, clock = RunBook(store), SystemClock()
    never: Any = None  # what only a round that goes on needs
    tools = RunTools(
        mesh_id=MESH,
        clock=clock,
        logbook=never,
        blobs=blobs,
        named=NamedBlobs(blobs, book, EnlistedBook(store), Town().assembly, clock.utc_ms),
        compute=at_once,
        book=book,
        patch=never,
        link=link,
        unpaid=never,
        journal=Journal(),
    )
    opened = announcement()
    machine, actions = TrainingRun.continued(opened, [ANN, BOB], rounds_done=1, now=tools.clock.now())
    numbers = RunNumbers(RECIPE, adapted(RECIPE, SHAPES))
    return RunDriver(tools, file, opened, machine, numbers, actions)


@pytest.mark.parametrize("rotted", ["next", "payload"])
async def test_a_checkpoint_that_rotted_ends_its_run_and_tells_its_members(
    tmp_path: Path, rotted: str
) -> None:
    blobs = DirectoryBlobs(tmp_path, free_bytes_min=0)
    made = RunNumbers(RECIPE, adapted(RECIPE, SHAPES)).begin(None)
    file = RunFile(run=announcement().message.run, announcement=announcement().raw, state="running", done=1)
    file.since, file.next = await blobs.put(b"the state before"), await blobs.put(made.state)
    file.payload = await blobs.put(made.payload)
    file.seats = {peer: Seat(enlistment=enlistment(peer).raw) for peer in (ANN, BOB)}
    bad = Digest(getattr(file, rotted))
    blobs.path(bad).write_bytes(b"!" + blobs.path(bad).read_bytes()[1:])
    store = MemoryStore()
    told: list[str] = []

    await taken_up(tmp_path, file, store, told).drive()

    kept = RunBook(store)
    kept.load(await store.load())
    store.close()
    [ended] = kept.files()
    assert (ended.state, ended.reason) == (
        "aborted",
        f"its checkpoint cannot be gone on from: blob {bad.hex()[:12]} was damaged on this device's disk and is dropped",
    )
    assert sorted(told) == sorted([ANN, BOB])
    left = {Digest(file.since), Digest(file.next), Digest(file.payload)} - {bad}
    assert all(blobs.path(each).exists() for each in left)
    assert not blobs.path(bad).exists()
