"""The llama.cpp child dies, hangs and is fed hostile files; the daemon lives, says what happened, and serves again."""

import os
import select
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import trio
import trio.testing

from runtime.engine import (
    BadTemplate,
    ChatMessage,
    Digest,
    EngineDied,
    EngineError,
    Generation,
    ModelSetAside,
    Sampling,
)
from runtime.llama import wire
from runtime.llama.backend import LlamaEngine
from runtime.llama.process import LlamaChild
from runtime.model_store import ModelStore
from tests.gguf_files import LOOP_BOMB, MEMORY_BOMB, poison, set_number, slow_model, tiny_model
from tests.system.engines import MEMORY_BYTES_MAX, TINY, TINY_F16, answer, ask, first_tokens, running, smuggle

pytestmark = pytest.mark.system

GREEDY = wire.SamplingParameters(0, 1_000_000, 0, 0, 1_000_000, 0, 0, 0)
LONG = "Once there was a fox who counted: " + " ".join(str(number) for number in range(60))


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


# --- death and recovery ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
async def test_a_child_that_is_struck_down_is_replaced(
    store: ModelStore, tmp_path: Path, blow: signal.Signals
) -> None:
    """A stopped child is as bad as a dead one: the buyer waits either way."""
    slow = smuggle(store, slow_model(tmp_path / "slow.gguf"))
    async with running(store) as engine:
        struck = engine.child_pid
        assert struck is not None
        under_way = trio.Event()
        with pytest.RaisesGroup(pytest.RaisesExc(EngineDied)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first_tokens, engine, ask(slow, tokens_max=3_000), under_way)
                await under_way.wait()
                os.kill(struck, blow)

        with trio.fail_after(5):
            ids, _ = await answer(engine, ask(slow))

        assert len(ids) == 16
        assert engine.child_pid != struck
        assert not psutil.pid_exists(struck)


async def test_waiting_requests_outlive_the_child(store: ModelStore, tmp_path: Path) -> None:
    """Only what the child was working on is lost."""
    slow = smuggle(store, slow_model(tmp_path / "slow.gguf"))
    answers: list[tuple[int, ...]] = []

    async def wait_for_answer() -> None:
        ids, _ = await answer(engine, ask(slow))
        answers.append(ids)

    async with running(store) as engine, trio.open_nursery() as nursery:
        under_way = trio.Event()
        with pytest.RaisesGroup(pytest.RaisesExc(EngineDied)):
            async with trio.open_nursery() as doomed:
                doomed.start_soon(first_tokens, engine, ask(slow, tokens_max=3_000), under_way)
                await under_way.wait()
                nursery.start_soon(wait_for_answer)
                await trio.testing.wait_all_tasks_blocked()
                assert engine.status(slow).queued == 1
                assert engine.child_pid is not None
                os.kill(engine.child_pid, signal.SIGKILL)

    assert [len(ids) for ids in answers] == [16]


def test_the_child_ends_when_the_daemon_is_killed(tmp_path: Path) -> None:
    """An orphan would hold the model's memory for ever."""
    code = (
        "import sys, trio\n"
        "from pathlib import Path\n"
        "from runtime.model_store import ModelStore\n"
        "from tests.system.engines import running\n"
        "async def main():\n"
        "    async with running(ModelStore(Path(sys.argv[1]))) as engine:\n"
        "        print(engine.child_pid, flush=True)\n"
        "        await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, env={"PYTHONPATH": str(root)}) as daemon:
        assert daemon.stdout is not None
        child = os.pidfd_open(int(daemon.stdout.readline()))
        daemon.kill()

    ended, _, _ = select.select([child], [], [], 10)
    os.close(child)

    assert ended


# --- hostile models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [0, 1_000_000])
async def test_a_model_that_kills_its_child_leaves_the_others_alone(
    store: ModelStore,
    tmp_path: Path,
    layers: int,
) -> None:
    """llama.cpp aborts on these counts. (The store refuses such a file; this one came past it.)"""
    good = smuggle(store, tiny_model(tmp_path / "good.gguf"))
    bad = smuggle(store, set_number(tiny_model(tmp_path / "bad.gguf", seed=1), "llama.block_count", layers))
    async with running(store) as engine:
        before = await answer(engine, ask(good))
        with pytest.raises(EngineError):
            await answer(engine, ask(bad))

        with trio.fail_after(5):
            assert await answer(engine, ask(good)) == before


async def test_a_model_that_kills_again_and_again_is_set_aside(store: ModelStore, tmp_path: Path) -> None:
    good = smuggle(store, tiny_model(tmp_path / "good.gguf"))
    slow = smuggle(store, slow_model(tmp_path / "slow.gguf"))
    async with running(store) as engine:
        await answer(engine, ask(good))
        for _ in range(5):
            await _kill_under(engine, slow)

        with pytest.raises(ModelSetAside, match=r"set aside after 5 deaths: the engine's child was killed"):
            engine.status(slow)
        assert list(engine.models) == [good]
        with trio.fail_after(5):
            await answer(engine, ask(good))


async def _kill_under(engine: LlamaEngine, model: Digest) -> None:
    under_way = trio.Event()
    with pytest.RaisesGroup(pytest.RaisesExc(EngineDied)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first_tokens, engine, ask(model, tokens_max=3_000), under_way)
            await under_way.wait()
            os.kill(engine.child_pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("bomb", "message"),
    [(LOOP_BOMB, "ran for over"), (MEMORY_BOMB, "of memory"), ("{{ [].x.y }}", "UndefinedError")],
)
async def test_a_template_bomb_is_a_bad_template(
    store: ModelStore, tmp_path: Path, bomb: str, message: str
) -> None:
    """It compiles, and goes off at the first chat; the child survives it."""
    model = smuggle(store, tiny_model(tmp_path / "bomb.gguf", template=bomb))
    async with running(store) as engine:
        for _ in range(2):
            with pytest.raises(BadTemplate, match=message):
                await answer(engine, ask(model))
        pid = engine.child_pid
        with pytest.raises(BadTemplate, match=message):
            await engine.count_tokens(model, (ChatMessage("user", "Hi"),))

        assert engine.child_pid == pid
        assert engine.status(model).slots_free == 1


async def test_numbers_that_are_not_finite_are_an_error_and_no_token(
    store: ModelStore, tmp_path: Path
) -> None:
    """A sampler would take token 0 for the likeliest, and a grammar would abort."""
    model = smuggle(store, poison(tiny_model(tmp_path / "nan.gguf")))
    async with running(store) as engine:
        for sampling in (Sampling(), Sampling(temperature_ppm=800_000, top_k=40, top_p_ppm=900_000)):
            with pytest.raises(EngineError, match="not finite"):
                await answer(engine, replace(ask(model), sampling=sampling))


# --- cancelling ------------------------------------------------------------------------------------------------------


async def test_a_cancelled_prompt_is_read_no_further(store: ModelStore, tmp_path: Path) -> None:
    """By the order of events: the prompt has dozens of chunks, and the next request is served before they could end."""
    slow = smuggle(store, slow_model(tmp_path / "slow.gguf"))
    words = "word " * 600  # 3,000 tokens, some seconds
    async with running(store) as engine:
        alone = await answer(engine, ask(slow))
        stages: list[str] = []

        async def read_long_prompt() -> None:
            await answer(engine, ask(slow, words))
            stages.append("the long prompt was answered")

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_long_prompt)
                while engine.status(slow).slots_free == 1:
                    await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert await answer(engine, ask(slow)) == alone
        stages.append("the next one was answered")

    assert stages == ["the next one was answered"]


# --- failover --------------------------------------------------------------------------------------------------------

SAMPLINGS = {
    "greedy": Sampling(),
    "greedy with penalties": Sampling(repeat_penalty_ppm=1_200_000, frequency_penalty_ppm=200_000),
    "random": Sampling(temperature_ppm=900_000, top_k=20, top_p_ppm=950_000, min_p_ppm=20_000, seed=7),
    "random with penalties": Sampling(temperature_ppm=1_200_000, presence_penalty_ppm=500_000, seed=-3),
}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("path", [TINY, TINY_F16], ids=["q8_0", "f16"])
async def test_a_completion_cut_anywhere_goes_on_exactly_on_a_cold_successor(
    store: ModelStore,
    path: Path,
    sampling: Sampling,
) -> None:
    """Same build, same threads, one slot: the same ids and the same text, wherever the first seller was lost."""
    model = smuggle(store, path)
    whole = Generation(model, (ChatMessage("user", LONG),), 40, sampling, stop=("xyzzy",))
    async with running(store) as first:
        ids, text = await answer(first, whole)
        assert await first.count_tokens(model, whole.messages) > 128  # several chunks

    async with running(store) as successor:
        for cut in sorted({1, 2, len(ids) // 3, len(ids) // 2, len(ids) - 1, len(ids)} - {0}):
            await answer(
                successor, ask(model, "Something else: what is 3 plus 4?")
            )  # the cache is cold for it
            rest, rest_text = await answer(successor, replace(whole, received=ids[:cut]))

            assert ids[:cut] + rest == ids
            assert text.endswith(rest_text)


async def test_seeds_decide(store: ModelStore) -> None:
    model = smuggle(store, TINY)
    async with running(store) as engine:

        async def draw(seed: int) -> tuple[int, ...]:
            ids, _ = await answer(engine, replace(ask(model), sampling=Sampling(2_000_000, seed=seed)))
            return ids

        assert await draw(1) == await draw(1)
        assert len({await draw(seed) for seed in range(5)}) > 1


# --- many ------------------------------------------------------------------------------------------------------------


async def test_models_take_turns_in_memory(store: ModelStore, tmp_path: Path) -> None:
    models = [smuggle(store, tiny_model(tmp_path / f"{seed}.gguf", seed=seed)) for seed in range(3)]
    async with running(store, memory_bytes_max=2 << 30) as engine:
        first = [await answer(engine, ask(model)) for model in models]
        again = [await answer(engine, ask(model)) for model in reversed(models)]

    assert again == first[::-1]
    assert len(set(first)) == 3


async def test_slots_run_at_once(store: ModelStore, tmp_path: Path) -> None:
    """Both are under way before either ends, and both end with all their tokens."""
    slow = smuggle(store, slow_model(tmp_path / "slow.gguf"))
    async with running(store, slots=2) as engine:
        started = [trio.Event(), trio.Event()]
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for event, words in zip(started, ("One", LONG), strict=True):
                    nursery.start_soon(first_tokens, engine, ask(slow, words, tokens_max=150), event)
                for event in started:
                    await event.wait()
                assert engine.status(slow).slots_free == 0


async def test_cancelling_one_slot_leaves_the_other_running(store: ModelStore, tmp_path: Path) -> None:
    """The abort stops the step of both; the other one's part is computed again."""
    slow = smuggle(store, slow_model(tmp_path / "slow.gguf"))
    async with running(store, slots=2) as engine:
        lengths: list[int] = []

        async def read_whole() -> None:
            ids, _ = await answer(engine, ask(slow, tokens_max=150))
            lengths.append(len(ids))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_whole)
            for _ in range(3):
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as others:
                        under_way = trio.Event()
                        others.start_soon(first_tokens, engine, ask(slow, LONG, tokens_max=3_000), under_way)
                        await under_way.wait()
                        scope.cancel()

    assert lengths == [150]


async def test_a_continued_session_reads_only_what_is_new(tmp_path: Path) -> None:
    """The second turn's prompt begins with the first one's and its answer: they are in the cache."""
    path = tiny_model(tmp_path / "tiny.gguf")
    ends: list[wire.Done] = []
    ended = trio.Event()

    def handle(message: object) -> None:
        if isinstance(message, wire.Done):
            ends.append(message)
            ended.set()

    turns: tuple[tuple[str, str], ...] = (("user", LONG),)
    child = LlamaChild((path,), MEMORY_BYTES_MAX, handle)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(child.run)
        await child.ask(wire.Load(1, bytes(32), str(path), 2_048, 1, 1, MEMORY_BYTES_MAX, 100.0))
        for call in (2, 3, 4):
            ended = trio.Event()
            child.begin(wire.Generate(call, bytes(32), turns, 8, GREEDY, (), ()))
            await ended.wait()
            turns = (*turns, ("assistant", "so"), ("user", "And then?")) if call == 2 else turns
        nursery.cancel_scope.cancel()

    first, second, same = ends
    assert 128 < first.prefill_tokens == first.prompt_tokens - 2  # the template's opening was there
    assert second.prompt_tokens > first.prompt_tokens
    assert second.prefill_tokens < 64 + second.prompt_tokens - first.prompt_tokens
    assert 0 < same.prefill_tokens <= 64  # exact repetition: back to where a cold run begins a chunk


async def test_speeds_are_measured(store: ModelStore) -> None:
    model = smuggle(store, TINY)
    async with running(store) as engine:
        unknown = engine.status(model)
        await answer(engine, ask(model))
        known = engine.status(model)

    assert (unknown.prompt_tokens_per_s, unknown.tokens_per_s) == (0, 0)
    assert known.prompt_tokens_per_s > known.tokens_per_s > 0
    assert known.sandbox in ("S1", "S2", "S3")
