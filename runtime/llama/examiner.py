"""`LlamaExaminer`: exams in a sandboxed llama.cpp child of their own, beside the engine that serves.

What is measured is what will be served: the same library, the same file, the model's own chat template. The adapter
passes its gates inside the child: digest, strict check, llama.cpp's loader, canary prompts with finite numbers; then the
questions (`grading.py`). A hostile one kills at most that child.

The child lives on for a while with the base in memory, since what is examined with an adapter is mostly examined
without one too, and voters examine several proposals in a row.
"""

import itertools
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import trio

from protocol.errors import AgoraError
from protocol.limits import KIB
from runtime.engine import AdapterRefused, Digest, EngineDied, EngineError
from runtime.examiner import BadAdapter, DomainResult, ExaminerError, Question
from runtime.llama import wire
from runtime.llama.process import Answer, LlamaChild, adapter_memory, memory_needed
from runtime.llama.process import Question as Ask
from runtime.marking import Answered, results
from runtime.model_store import ModelStore

if TYPE_CHECKING:  # trio-typing's stubs, which libp2p brings, hide trio's own types
    from trio_typing import TaskStatus

IDLE_S = 60.0  # for which the child is kept
CONTEXT_TOKENS = 4_096  # of one question with its answer, at most
QUESTIONS_PER_ASK = 64  # progress is told this often; an ask of more would need larger frames
DEATHS_MAX = 2  # of children under one adapter in one exam: the first may have been a kill from outside
QUESTION_BYTES_MAX = 16 * KIB  # with its answer
MEMORY_SHARE = 0.8  # of the machine, at most, for the child


class LlamaExaminer:
    """Holds exams of the store's models. `run` it; an exam that is asked for before is refused.

    Args:
        store: where the bases are.
        blobs_directory: where adapters are, each in a file named by its digest in hex.
        threads: for compute; by default the cores but one.
        idle_s: after an exam, for which the child and its base are kept.
        memory_bytes_max: for the child; by default a share of the machine.
        main: the child's main; a test's own misbehaves.
    """

    def __init__(
        self,
        store: ModelStore,
        blobs_directory: Path,
        *,
        threads: int | None = None,
        idle_s: float = IDLE_S,
        memory_bytes_max: int | None = None,
        main: str = "runtime.llama.child",
    ) -> None:
        self._store = store
        self._blobs_directory = blobs_directory.absolute()
        # A child can be let into what is there when it starts.
        self._blobs_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._threads = threads or max(1, (os.cpu_count() or 2) - 1)
        self._idle_s = idle_s
        self._memory_bytes_max = memory_bytes_max or int(psutil.virtual_memory().total * MEMORY_SHARE)
        self._main = main
        self._ids = itertools.count(1)
        self._turn = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self._life: _Life | None = None

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Hold exams until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    @property
    def child_pid(self) -> int | None:
        """The child's process id, while there is one."""
        return self._life.child.pid if self._life else None

    async def examine(
        self,
        base: Digest,
        adapter: Digest | None,
        questions: Sequence[Question],
        on_progress: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> tuple[DomainResult, ...]:
        """Check, try, and ask. See the port."""
        _check_sizes(questions)
        async with self._turn:
            for attempt in itertools.count(1):
                try:
                    return await self._hold(base, adapter, questions, on_progress)
                except EngineDied as error:
                    if adapter is None:
                        raise ExaminerError(f"no exam could be held: {error}") from None
                    if attempt == DEATHS_MAX:
                        raise BadAdapter(
                            f"refused: it ended {attempt} processes that tried it: {error}"
                        ) from None
            raise AssertionError  # it counts for ever

    async def _hold(
        self,
        base: Digest,
        adapter: Digest | None,
        questions: Sequence[Question],
        on_progress: Callable[[int, int], None],
    ) -> tuple[DomainResult, ...]:
        try:
            path = await self._store.verify(base)
        except EngineError as error:
            raise ExaminerError(f"no exam could be held: {error}") from None
        async with self._living() as life:
            await self._load(life, base, path)
            if adapter is not None:
                await self._load_adapter(life, base, path, adapter)
            try:
                answers: list[Answered] = []
                for start in range(0, len(questions), QUESTIONS_PER_ASK):
                    on_progress(start, len(questions))
                    part = questions[start : start + QUESTIONS_PER_ASK]
                    answers += await self._ask_all(life, base, adapter, part)
                on_progress(len(answers), len(questions))
            finally:
                if adapter is not None:
                    life.child.tell(wire.UnloadAdapter(base, adapter))
            return results(answers)

    async def _load(self, life: "_Life", base: Digest, path: Path) -> None:
        if life.base == base:
            return
        if life.base is not None:
            life.child.tell(wire.Unload(life.base))
            life.base = None
        try:
            await life.ask(
                wire.Load(
                    call=next(self._ids),
                    model=base,
                    path=str(path),
                    context_tokens=CONTEXT_TOKENS,
                    slots=1,
                    threads=self._threads,
                    memory_bytes_max=self._memory(base, 0),
                    tokens_per_s=0.0,
                    for_exams=True,
                )
            )
        except EngineDied as error:  # before it saw an adapter
            raise ExaminerError(f"no exam could be held: {error}") from None
        except EngineError as error:
            raise ExaminerError(f"no exam could be held: {error}") from None
        life.base = base

    async def _load_adapter(self, life: "_Life", base: Digest, base_path: Path, adapter: Digest) -> None:
        path = self._blobs_directory / adapter.hex()
        try:
            size = path.stat().st_size
        except OSError:
            raise ExaminerError(f"adapter {adapter.hex()[:8]} is not among this device's blobs") from None
        try:
            await life.ask(
                wire.LoadAdapter(
                    call=next(self._ids),
                    model=base,
                    adapter=adapter,
                    path=str(path),
                    base_path=str(base_path),
                    memory_bytes_max=self._memory(base, size),
                )
            )
        except AdapterRefused as error:
            raise BadAdapter(f"refused: {error}") from None
        except EngineDied:
            raise
        except EngineError as error:
            raise ExaminerError(f"no exam could be held: {error}") from None

    async def _ask_all(
        self, life: "_Life", base: Digest, adapter: Digest | None, questions: Sequence[Question]
    ) -> list[Answered]:
        pairs = tuple((question.prompt, question.response) for question in questions)
        try:
            graded = await life.ask(wire.Grade(next(self._ids), base, adapter, pairs))
        except AdapterRefused as error:
            raise BadAdapter(f"refused: {error}") from None
        except EngineDied:
            raise
        except EngineError as error:
            raise ExaminerError(f"no exam could be held: {error}") from None
        if not isinstance(graded, wire.Graded) or len(graded.marks) != len(questions):
            raise ExaminerError("the examiner's child answered something else than was asked")
        return [
            Answered(question, mark.is_right, mark.loss, mark.tokens, mark.given)
            for question, mark in zip(questions, graded.marks, strict=True)
        ]

    def _memory(self, base: Digest, adapter_bytes: int) -> int:
        card = self._store.models[base]
        kv_bytes = self._store.kv_bytes_per_token(base) * CONTEXT_TOKENS
        return memory_needed(card.size_bytes, kv_bytes) + adapter_memory(adapter_bytes)

    @asynccontextmanager
    async def _living(self) -> AsyncIterator["_Life"]:
        """A child for the length of the block, the last one's if it lives; who leaves by an error ends it."""
        if self._nursery is None:
            raise ExaminerError("the examiner is not running")
        if self._life is None or self._life.scope.cancel_called:
            try:
                readable = (self._store.directory, self._blobs_directory)
                child = LlamaChild(readable, self._memory_bytes_max, _expect_nothing, self._main)
            except OSError as error:  # no memory, no descriptors: this may pass
                raise ExaminerError(f"the examiner's child cannot be started: {error}") from None
            self._life = _Life(child)
            self._nursery.start_soon(self._live, self._life)
        life = self._life
        life.scope.deadline = float("inf")
        try:
            yield life
        except EngineDied:
            self._forget(life)
            raise
        except AgoraError:
            raise  # a refusal leaves it in order
        except BaseException:
            life.scope.cancel()  # in the middle of a question
            self._forget(life)
            raise
        finally:
            life.scope.deadline = trio.current_time() + self._idle_s

    async def _live(self, life: "_Life") -> None:
        try:
            with life.scope:
                await life.child.run()
        finally:
            self._forget(life)

    def _forget(self, life: "_Life") -> None:
        if self._life is life:
            self._life = None


class _Life:
    """One child, and what it holds. `scope` ends it: at its deadline when it is idle."""

    def __init__(self, child: LlamaChild) -> None:
        self.child = child
        self.base: Digest | None = None
        self.scope = trio.CancelScope()

    async def ask(self, question: Ask) -> Answer:
        return await self.child.ask(question)


def _expect_nothing(_message: object) -> None:
    """It is asked for no generation, so that nothing of the kind comes through `LlamaChild`."""


def _check_sizes(questions: Sequence[Question]) -> None:
    for question in questions:
        if len(question.prompt.encode()) + len(question.response.encode()) > QUESTION_BYTES_MAX:
            raise ExaminerError(
                f"a question of domain {question.domain!r} is over {QUESTION_BYTES_MAX} bytes"
            )
