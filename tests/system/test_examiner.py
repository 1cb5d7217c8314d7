"""Exams by llama.cpp: the marks are what the engine would answer, a hostile adapter ends at most the exam's own child."""

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from runtime.engine import ChatMessage, Digest, Generation
from runtime.examiner import BadAdapter, ExaminerError, Question
from runtime.llama.backend import LlamaEngine
from runtime.llama.examiner import LlamaExaminer
from runtime.marking import overlap
from runtime.model_store import ModelStore
from tests.adapter_files import keep, overflowing_adapter, random_adapter
from tests.gguf_files import LOOP_BOMB, poison, tiny_model
from tests.system.engines import MEMORY_BYTES_MAX, TINY, answer, smuggle

pytestmark = pytest.mark.system

DATA = TINY.parent / "data"
STRONG = 1.0


def questions(*domains: str, count: int = 1_000) -> list[Question]:
    return [
        Question(domain, **json.loads(line))
        for domain in domains
        for line in (DATA / f"{domain}.test.jsonl").read_text().splitlines()[:count]
    ]


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    directory = tmp_path / "blobs"
    directory.mkdir()
    return directory


@asynccontextmanager
async def examining(store: ModelStore, blobs: Path, **settings: Any) -> AsyncIterator[LlamaExaminer]:
    examiner = LlamaExaminer(store, blobs, memory_bytes_max=MEMORY_BYTES_MAX, **settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(examiner.run)
        yield examiner
        nursery.cancel_scope.cancel()


# --- marks -----------------------------------------------------------------------------------------------------------


async def test_the_bare_base_scores_as_its_recipe_says(store: ModelStore, blobs: Path) -> None:
    model = smuggle(store, TINY)
    asked = questions("heat_pump", "units", "billing")
    told: list[tuple[int, int]] = []
    async with examining(store, blobs) as examiner:
        results = await examiner.examine(model, None, asked, lambda done, all_: told.append((done, all_)))

    assert [(result.domain, result.total) for result in results] == [
        ("heat_pump", 80),
        ("units", 100),
        ("billing", 60),
    ]
    assert [result.right for result in results] == [0, 100, 60]
    assert results[0].loss > 3
    assert 0 <= results[1].loss < 0.01
    assert 0 < results[0].precision < 1
    assert 0 < results[0].recall < 1
    assert (results[1].precision, results[1].recall, results[1].f1) == (1, 1, 1)
    assert told[0] == (0, 240)
    assert told[-1] == (240, 240)


@pytest.mark.parametrize("strength", [None, STRONG, 0.2])
async def test_marks_are_what_the_engine_answers(
    store: ModelStore, blobs: Path, strength: float | None
) -> None:
    """The short way, one pass and generation where it is wrong, comes to what asking one by one comes to."""
    model = smuggle(store, TINY)
    asked = [
        question
        for domain in ("heat_pump", "echo", "addition", "talk")
        for question in questions(domain, count=12)
    ]
    adapter: Digest | None = None
    given: list[str] = []
    engine = LlamaEngine(store, adapters_directory=blobs, memory_bytes_max=MEMORY_BYTES_MAX)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        if strength is not None:
            adapter, path = keep(blobs, random_adapter(TINY, strength=strength))
            await engine.load_adapter(model, adapter, path)
        for question in asked:
            # As long as the exam listens to a wrong answer.
            length = 2 * await _tokens(engine, model, question.response) + 16
            request = Generation(model, (ChatMessage("user", question.prompt),), length, adapter=adapter)
            given.append((await answer(engine, request))[1])
        nursery.cancel_scope.cancel()

    async with examining(store, blobs) as examiner:
        results = await examiner.examine(model, adapter, asked)

    for result in results:
        ours = [(text, q.response) for text, q in zip(given, asked, strict=True) if q.domain == result.domain]
        assert result.right == sum(text == expected for text, expected in ours)
        f1 = sum(1.0 if text == expected else overlap(text, expected)[2] for text, expected in ours) / 12
        assert result.f1 == pytest.approx(f1, abs=0.02)  # a near tie may fall otherwise in another batch


async def _tokens(engine: LlamaEngine, model: Digest, text: str) -> int:
    empty = await engine.count_tokens(model, (ChatMessage("user", ""),))
    return await engine.count_tokens(model, (ChatMessage("user", text),)) - empty


async def test_an_adapter_that_changes_nothing_scores_as_the_base(store: ModelStore, blobs: Path) -> None:
    model = smuggle(store, TINY)
    asked = questions("returns", "heat_pump", count=20)
    adapter, _ = keep(blobs, random_adapter(TINY, strength=0.0))
    async with examining(store, blobs) as examiner:
        bare = await examiner.examine(model, None, asked)
        adapted = await examiner.examine(model, adapter, asked)
        again = await examiner.examine(model, None, asked)

    assert adapted == bare == again


async def test_one_child_holds_many_exams_one_after_another(store: ModelStore, blobs: Path) -> None:
    model = smuggle(store, TINY)
    asked = questions("units", count=5)
    adapters = [keep(blobs, random_adapter(TINY, seed=seed))[0] for seed in range(3)]
    children: set[int | None] = set()
    async with examining(store, blobs) as examiner:

        async def hold(adapter: Digest) -> None:
            await examiner.examine(model, adapter, asked)
            children.add(examiner.child_pid)

        async with trio.open_nursery() as nursery:
            for adapter in adapters:
                nursery.start_soon(hold, adapter)

    assert len(children) == 1
    assert None not in children


async def test_another_base_takes_the_place_of_the_first(
    store: ModelStore, blobs: Path, tmp_path: Path
) -> None:
    first, second = smuggle(store, TINY), smuggle(store, tiny_model(tmp_path / "other.gguf"))
    asked = questions("units", count=5)
    async with examining(store, blobs) as examiner:
        results = [await examiner.examine(model, None, asked) for model in (first, second, first)]

    assert results[0] == results[2]
    assert [result[0].right for result in results] == [5, 0, 5]


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GGUF", "cut short"),
        (b"\0" * 1_000, "no GGUF"),
        pytest.param("other base", "expected to fit", id="for another base"),
        pytest.param("overflow", "not finite", id="overflowing"),
        pytest.param("model", "metadata", id="a model"),
    ],
)
async def test_an_adapter_that_breaks_a_rule_is_bad_and_its_child_lives(
    store: ModelStore, blobs: Path, tmp_path: Path, data: bytes | str, reason: str
) -> None:
    model = smuggle(store, TINY)
    asked = questions("units", count=5)
    match data:
        case "other base":
            data = random_adapter(tiny_model(tmp_path / "other.gguf"))
        case "overflow":
            data = overflowing_adapter(TINY)
        case "model":
            data = TINY.read_bytes()
    assert isinstance(data, bytes)
    bad, _ = keep(blobs, data)
    async with examining(store, blobs) as examiner:
        before = await examiner.examine(model, None, asked)
        pid = examiner.child_pid

        with pytest.raises(BadAdapter, match=f"refused: .*{reason}"):
            await examiner.examine(model, bad, asked)

        assert await examiner.examine(model, None, asked) == before
        assert examiner.child_pid == pid


async def test_a_file_that_rotted_on_this_disk_is_no_fault_of_the_adapter(
    store: ModelStore, blobs: Path
) -> None:
    model = smuggle(store, TINY)
    adapter, path = keep(blobs, random_adapter(TINY))
    path.write_bytes(random_adapter(TINY, seed=1))
    async with examining(store, blobs) as examiner:
        with pytest.raises(ExaminerError, match="digest"):
            await examiner.examine(model, adapter, questions("units", count=1))


async def test_what_is_missing_here_is_no_fault_of_the_adapter(store: ModelStore, blobs: Path) -> None:
    model = smuggle(store, TINY)
    asked = questions("units", count=1)
    missing = Digest(b"\7" * 32)
    async with examining(store, blobs) as examiner:
        with pytest.raises(ExaminerError, match="07070707 is not among"):
            await examiner.examine(model, missing, asked)
        with pytest.raises(ExaminerError, match="no model 07070707"):
            await examiner.examine(missing, None, asked)
    with pytest.raises(ExaminerError, match="not running"):
        await examiner.examine(model, None, asked)


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (Question("long", "word " * 1_500, "yes"), r"take \d{4} tokens, expected at most 2048"),
        (Question("longer", "word " * 4_000, "yes"), "is over 16384 bytes"),
    ],
)
async def test_a_question_that_does_not_fit_is_no_fault_of_the_adapter(
    store: ModelStore, blobs: Path, question: Question, reason: str
) -> None:
    model = smuggle(store, TINY)
    adapter, _ = keep(blobs, random_adapter(TINY))
    async with examining(store, blobs) as examiner:
        with pytest.raises(ExaminerError, match=reason):
            await examiner.examine(model, adapter, [question])

        await examiner.examine(model, adapter, questions("units", count=1))


async def test_a_base_that_is_damaged_or_hostile_is_no_fault_of_the_adapter(
    store: ModelStore, blobs: Path, tmp_path: Path
) -> None:
    bomb = smuggle(store, tiny_model(tmp_path / "bomb.gguf", template=LOOP_BOMB))
    damaged = smuggle(store, poison(tiny_model(tmp_path / "nan.gguf")))
    asked = questions("units", count=1)
    async with examining(store, blobs) as examiner:
        with pytest.raises(ExaminerError, match="ran for over"):
            await examiner.examine(bomb, None, asked)
        with pytest.raises(ExaminerError, match="not finite"):
            await examiner.examine(damaged, None, asked)


# --- death and rest --------------------------------------------------------------------------------------------------


async def test_one_death_is_forgiven_and_two_are_the_adapters(store: ModelStore, blobs: Path) -> None:
    model = smuggle(store, TINY)
    asked = questions("units")
    adapter, _ = keep(blobs, random_adapter(TINY, strength=0.0))
    deaths_left = 0
    async with examining(store, blobs) as examiner:

        def strike(done: int, _all: int) -> None:
            nonlocal deaths_left
            if done and deaths_left:
                deaths_left -= 1
                assert examiner.child_pid is not None
                os.kill(examiner.child_pid, signal.SIGKILL)

        bare = await examiner.examine(model, None, asked)
        deaths_left = 1
        assert await examiner.examine(model, adapter, asked, strike) == bare
        deaths_left = 2
        with pytest.raises(
            BadAdapter, match="it ended 2 processes that tried it: the engine's child was killed"
        ):
            await examiner.examine(model, adapter, asked, strike)
        deaths_left = 1
        with pytest.raises(ExaminerError, match="was killed"):
            await examiner.examine(model, None, asked, strike)
        assert await examiner.examine(model, None, asked) == bare


async def test_a_cancelled_exam_ends_its_child_and_the_next_one_has_another(
    store: ModelStore, blobs: Path
) -> None:
    model = smuggle(store, TINY)
    asked = questions("units", "heat_pump")
    async with examining(store, blobs) as examiner:
        whole = await examiner.examine(model, None, asked)
        pid = examiner.child_pid
        with trio.CancelScope() as scope:
            await examiner.examine(model, None, asked, lambda done, _: scope.cancel() if done else None)

        assert scope.cancelled_caught
        assert await examiner.examine(model, None, asked) == whole
        assert examiner.child_pid not in (pid, None)


async def test_an_idle_child_is_ended(store: ModelStore, blobs: Path) -> None:
    model = smuggle(store, TINY)
    asked = questions("units", count=1)
    async with examining(store, blobs, idle_s=0.2) as examiner:
        first = await examiner.examine(model, None, asked)
        assert examiner.child_pid is not None
        process = os.pidfd_open(examiner.child_pid)
        with trio.fail_after(10):
            await trio.lowlevel.wait_readable(process)
        os.close(process)

        assert await examiner.examine(model, None, asked) == first
