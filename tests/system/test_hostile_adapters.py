"""Two thousand structured hostile adapters: none that harms is accepted, and no process dies of any."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from runtime.adapter_file import check
from runtime.engine import AdapterRefused, EngineError
from runtime.examiner import BadAdapter
from runtime.gguf_header import read_layout
from runtime.llama.backend import LlamaEngine
from runtime.llama.examiner import LlamaExaminer
from runtime.model_store import ModelStore
from tests.adapter_files import keep
from tests.hostile_adapters import ATTACKS, hostile
from tests.system.engines import MEMORY_BYTES_MAX, TINY, answer, ask, smuggle

pytestmark = [pytest.mark.system, pytest.mark.slow]

COUNT = 2_000


@pytest.mark.timeout(360)  # 40 s of computing, on a machine that may be busy with other tests
async def test_two_thousand_hostile_adapters_harm_nobody(tmp_path: Path) -> None:
    """Harmful is what passes the exam and then kills an engine, is refused by llama.cpp, or spoils an answer."""
    blobs = tmp_path / "blobs"
    store = ModelStore(tmp_path / "models")
    base = smuggle(store, TINY)
    layout = read_layout(TINY)
    examiner = LlamaExaminer(store, blobs, memory_bytes_max=MEMORY_BYTES_MAX)
    engine = LlamaEngine(store, adapters_directory=blobs, memory_bytes_max=MEMORY_BYTES_MAX)
    said: Counter[str] = Counter()
    harmful: list[tuple[int, str, str]] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(examiner.run)
        await nursery.start(engine.run)
        bare = await answer(engine, ask(base))
        await examiner.examine(base, None, [])
        children = (examiner.child_pid, engine.child_pid)

        for seed in range(COUNT):
            attack, data = hostile(seed, layout)
            digest, path = keep(blobs, data)
            try:
                await examiner.examine(base, digest, [])
            except BadAdapter as error:
                said[
                    "refused by the trial" if "computes numbers" in str(error) else "refused by the checker"
                ] += 1
            else:
                said["accepted"] += 1
                try:
                    await engine.load_adapter(base, digest, path)
                    await answer(engine, replace(ask(base), adapter=digest))
                except EngineError as error:
                    harmful.append((seed, attack, str(error)))
                engine.unload_adapter(digest)
            path.unlink()

        assert (examiner.child_pid, engine.child_pid) == children
        assert await answer(engine, ask(base)) == bare
        nursery.cancel_scope.cancel()

    assert harmful == []
    assert said.total() == COUNT
    assert said["accepted"] > 100  # a checker that refuses everything passes nothing on to this test
    assert said["refused by the checker"] > 1_000


async def test_the_engine_refuses_by_itself_what_the_checker_refuses(tmp_path: Path) -> None:
    """It does not rely on somebody having held an exam."""
    blobs = tmp_path / "blobs"
    store = ModelStore(tmp_path / "models")
    base = smuggle(store, TINY)
    layout = read_layout(TINY)
    engine = LlamaEngine(store, adapters_directory=blobs, memory_bytes_max=MEMORY_BYTES_MAX)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        bare = await answer(engine, ask(base))
        pid = engine.child_pid
        for seed in range(5 * len(ATTACKS)):
            _, data = hostile(seed, layout)
            if not _is_in_order(data):
                with pytest.raises(AdapterRefused):
                    await engine.load_adapter(base, *keep(blobs, data))

        assert engine.adapters == {}
        assert engine.child_pid == pid
        assert await answer(engine, ask(base)) == bare
        nursery.cancel_scope.cancel()


def _is_in_order(data: bytes) -> bool:
    try:
        check(data, read_layout(TINY))
    except BadAdapter:
        return False
    return True
