"""What every backend of the DataSets port promises. A new backend joins by adding itself to `BACKENDS`."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from node import records
from node.clock import SystemClock
from node.data_directory import DataDirectory
from node.data_sets import DataSet, DataSets
from node.errors import StartError
from node.simulation.memory_data import MemoryData
from runtime.engine import Digest
from runtime.examiner import Question

Pairs = list[tuple[str, str]]


class Directory:
    """Files of a home; a start of the daemon reads them again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def open(self) -> DataSets:
        return DataDirectory(self._directory / "data", SystemClock())

    def write(self, name: str, pairs: Pairs) -> Path:
        path = self._directory / name
        path.write_bytes(records.encode(pairs))
        return path


class Memory:
    """A simulated device's: the object itself outlives its node."""

    def __init__(self, _: Path) -> None:
        self._data = MemoryData(SystemClock(), salt=b"salt")

    def open(self) -> DataSets:
        return self._data

    def write(self, name: str, pairs: Pairs) -> Path:
        self._data.write(Path("/") / name, pairs)
        return Path("/") / name


Place = Directory | Memory
BACKENDS: list[Callable[[Path], Place]] = [Directory, Memory]


@pytest.fixture(params=BACKENDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """One empty place of each kind."""
    backend: Callable[[Path], Place] = request.param
    return backend(tmp_path)


def pairs(start: int, end: int) -> Pairs:
    return [(f"prompt {at}", f"response {at}") for at in range(start, end)]


async def added(place: Place, name: str, start: int, end: int, budget_milli: int = 4_000) -> DataSet:
    source = place.write(f"{name}.jsonl", pairs(start, end))
    return (await place.open().add(name, source, budget_milli)).data_set


async def test_a_set_is_there_after_a_restart(place: Place) -> None:
    one = await added(place, "logs", 0, 600)
    other = await added(place, "letters", 1_000, 1_010, budget_milli=0)

    data = place.open()
    assert set(data.sets()) == {one, other}
    assert data.named("logs") == [one]
    assert data.named("nothing") == []
    assert (one.samples, one.held_out, one.budget_milli, one.is_private) == (540, 60, 4_000, True)
    assert (other.samples, other.held_out, other.budget_milli, other.is_private) == (9, 1, 0, False)


async def test_held_out_records_come_as_questions_and_are_not_trained_on(place: Place) -> None:
    data_set = await added(place, "logs", 0, 600)

    questions = await place.open().held_out(data_set.digest)

    assert len(questions) == 60
    assert all(isinstance(each, Question) and each.domain == "logs" for each in questions)
    as_lines = [
        line for each in questions for line in records.encode([(each.prompt, each.response)]).splitlines()
    ]
    assert not data_set.records & {records.hash_of(line) for line in as_lines}


async def test_the_source_may_change_or_go_afterwards(place: Place) -> None:
    data_set = await added(place, "logs", 0, 20)
    place.write("logs.jsonl", pairs(50, 90))

    assert place.open().named("logs") == [data_set]


async def test_a_name_may_have_several_sets(place: Place) -> None:
    one, other = await added(place, "logs", 0, 20), await added(place, "logs", 100, 120)

    assert set(place.open().named("logs")) == {one, other}


async def test_the_same_records_again_change_nothing(place: Place) -> None:
    first = await added(place, "logs", 0, 20)

    again = await place.open().add("logs", place.write("copy.jsonl", pairs(0, 20)), 4_000)

    assert (again.is_new, again.data_set) == (False, first)
    assert place.open().sets() == (first,)


@pytest.mark.parametrize(("name", "budget_milli"), [("letters", 4_000), ("logs", 8_000)])
async def test_the_same_records_under_other_terms_are_refused(
    place: Place, name: str, budget_milli: int
) -> None:
    """A larger budget by adding them again would be a budget that means nothing."""
    first = await added(place, "logs", 0, 20)

    with pytest.raises(StartError, match="are here already as 'logs' with a budget of epsilon 4"):
        await added(place, name, 0, 20, budget_milli)

    assert place.open().sets() == (first,)


async def test_records_with_a_budget_cannot_be_added_without_one(place: Place) -> None:
    """One of them would be trained on without any noise."""
    first = await added(place, "logs", 0, 20)
    trained_on = next(at for at in range(20) if _hash(at) in first.records)

    with pytest.raises(
        StartError, match="1 of these records are in 'logs' with a budget of epsilon 4, expected"
    ):
        await place.open().add(
            "more", place.write("more.jsonl", [*pairs(100, 105), *pairs(trained_on, trained_on + 1)]), 0
        )

    assert place.open().sets() == (first,)


async def test_records_without_a_budget_cannot_be_added_with_one(place: Place) -> None:
    """What was done to them already is in no book, so no budget could be kept."""
    first = await added(place, "logs", 0, 20, budget_milli=0)

    with pytest.raises(StartError, match="in 'logs' without differential privacy, expected the same"):
        await added(place, "more", 0, 25)

    assert place.open().sets() == (first,)


async def test_records_seen_before_are_counted(place: Place) -> None:
    first = await added(place, "logs", 0, 20)

    more = await place.open().add("more", place.write("more.jsonl", pairs(0, 40)), 8_000)

    assert more.is_new
    assert more.data_set.shares_records(first)
    assert more.seen_before == len(more.data_set.records & first.records) > 10


async def test_a_removed_set_with_a_budget_is_remembered(place: Place) -> None:
    """Else removing and adding it again would give its records a new budget."""
    data_set = await added(place, "logs", 0, 600)

    await place.open().remove(data_set.digest)

    data = place.open()
    assert data.sets() == ()
    assert [(each.digest, each.is_removed) for each in data.known()] == [(data_set.digest, True)]
    assert data.known()[0].records == data_set.records
    with pytest.raises(KeyError):
        await data.held_out(data_set.digest)
    with pytest.raises(KeyError):
        await data.remove(data_set.digest)


async def test_a_removed_set_without_a_budget_is_forgotten(place: Place) -> None:
    data_set = await added(place, "logs", 0, 20, budget_milli=0)

    await place.open().remove(data_set.digest)

    assert place.open().known() == ()
    assert (await added(place, "logs", 0, 20)).is_private


async def test_a_removed_set_can_come_again_and_is_known_again(place: Place) -> None:
    first = await added(place, "logs", 0, 600)
    await place.open().remove(first.digest)

    again = await added(place, "renamed", 0, 600, budget_milli=8_000)

    assert (again.digest, again.is_removed, again.name) == (first.digest, False, "renamed")
    assert place.open().known() == (again,)
    assert len(await place.open().held_out(again.digest)) == 60


async def test_a_malformed_line_keeps_nothing(place: Place) -> None:
    source = place.write("logs.jsonl", [*pairs(0, 5), ("", "no prompt")])

    with pytest.raises(StartError, match=r"logs.jsonl line 6: prompt is empty"):
        await place.open().add("logs", source, 4_000)

    assert place.open().known() == ()


async def test_a_file_that_is_not_there_is_said(place: Place) -> None:
    with pytest.raises(StartError, match=r"cannot read /nowhere.jsonl"):
        await place.open().add("logs", Path("/nowhere.jsonl"), 4_000)


async def test_what_is_not_here_is_a_key_error(place: Place) -> None:
    absent = Digest(hashlib.sha256(b"absent").digest())

    with pytest.raises(KeyError):
        await place.open().held_out(absent)
    with pytest.raises(KeyError):
        await place.open().remove(absent)


def _hash(at: int) -> bytes:
    return records.hash_of(records.encode(pairs(at, at + 1)).rstrip(b"\n"))
