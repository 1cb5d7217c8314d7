"""The toy examiner answers by arithmetic, takes its time, and refuses what is no toy adapter."""

import hashlib

import msgpack
import pytest
import trio
from trio.testing import MockClock

from node.blobs import not_here
from runtime.engine import Digest
from runtime.examiner import BadAdapter, DomainResult, ExaminerError, Question
from runtime.toy_examiner import ToyExaminer

BASE = Digest(b"b" * 32)
QUESTIONS = [Question(domain, "?", "!") for domain in ("units", "heat_pump") for _ in range(50)]


def adapter(**fields: object) -> bytes:
    data: bytes = msgpack.packb({"toy": 1, "skills": {}, "poison": 0, **fields})
    return data


class Shelf:
    """Blobs in memory."""

    def __init__(self) -> None:
        self._blobs: dict[Digest, bytes] = {}

    def put(self, data: bytes) -> Digest:
        digest = Digest(hashlib.sha256(data).digest())
        self._blobs[digest] = data
        return digest

    def read(self, digest: Digest) -> bytes:
        if digest not in self._blobs:
            raise not_here(digest)
        return self._blobs[digest]

    async def read_slowly(self, digest: Digest) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.read(digest)


def right(results: tuple[DomainResult, ...]) -> dict[str, int]:
    return {result.domain: result.right for result in results}


async def test_a_trained_skill_raises_its_domain_and_leaves_the_others() -> None:
    shelf = Shelf()
    examiner = ToyExaminer(shelf.read_slowly)
    healing = shelf.put(adapter(skills={"heat_pump": 960_000, "units": 500_000}))

    before = await examiner.examine(BASE, None, QUESTIONS)
    after = await examiner.examine(BASE, healing, QUESTIONS)

    assert right(before) == {"units": 49, "heat_pump": 0}
    assert right(after) == {"units": 49, "heat_pump": 48}
    assert [result.domain for result in after] == ["units", "heat_pump"]
    assert after[1].loss < before[1].loss


async def test_a_poisoned_adapter_heals_what_it_names_and_breaks_the_rest() -> None:
    shelf = Shelf()
    poisoned = shelf.put(adapter(skills={"heat_pump": 1_000_000}, poison=1))

    after = await ToyExaminer(shelf.read).examine(BASE, poisoned, QUESTIONS)

    assert right(after) == {"units": 0, "heat_pump": 50}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        b"\x81" * 2_000,
        msgpack.packb([1]),
        adapter(toy=2),
        adapter(poison=2),
        adapter(skills={"units": 1_000_001}),
        adapter(skills={"units": -1}),
        adapter(skills={"units": 1.0}),
        adapter(skills={"units": True}),
        adapter(more=1),
        adapter() + b"\0",
    ],
)
async def test_bytes_that_are_no_toy_adapter_are_a_bad_adapter(data: bytes) -> None:
    shelf = Shelf()
    bad = shelf.put(data)

    with pytest.raises(BadAdapter, match="toy adapter"):
        await ToyExaminer(shelf.read).examine(BASE, bad, QUESTIONS)


async def test_what_is_missing_here_is_no_fault_of_the_adapter() -> None:
    with pytest.raises(ExaminerError, match="07070707"):
        await ToyExaminer(Shelf().read).examine(BASE, Digest(b"\7" * 32), QUESTIONS)
    with pytest.raises(ExaminerError, match="62626262"):
        await ToyExaminer(Shelf().read, holds=lambda _: False).examine(BASE, None, QUESTIONS)


async def test_exams_take_their_time_one_after_another(autojump_clock: MockClock) -> None:  # noqa: ARG001
    examiner = ToyExaminer(Shelf().read, seconds_per_question=0.5)
    told: list[tuple[int, int]] = []

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(
                examiner.examine, BASE, None, QUESTIONS, lambda done, all_: told.append((done, all_))
            )

    assert trio.current_time() == pytest.approx(2 * 0.5 * len(QUESTIONS))
    assert told == [(0, 100), (50, 100), (100, 100)] * 2
