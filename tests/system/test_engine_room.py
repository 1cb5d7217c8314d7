"""Many requests, one child: who comes when, what is promised of it, and what a death leaves."""

import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from runtime.engine import (
    Digest,
    EngineBusy,
    EngineDied,
    EngineError,
    Phase,
    Progress,
    Tokens,
)
from runtime.llama.backend import LlamaEngine
from runtime.model_store import ModelStore
from tests.gguf_files import large_model, slow_model, tiny_model
from tests.system.engines import (
    MEMORY_BYTES_MAX,
    answer,
    ask,
    first_tokens,
    occupied,
    running,
    smuggle,
)

pytestmark = pytest.mark.system

SLOTS = 4


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@asynccontextmanager
async def one_slot(store: ModelStore, queue_max: int = 8) -> AsyncIterator[LlamaEngine]:
    engine = LlamaEngine(store, queue_max=queue_max, memory_bytes_max=MEMORY_BYTES_MAX)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        yield engine
        nursery.cancel_scope.cancel()


# --- turns -----------------------------------------------------------------------------------------------------------


async def test_payers_take_turns(store: ModelStore, tmp_path: Path) -> None:
    model = smuggle(store, slow_model(tmp_path / "slow.gguf"))
    ended: list[str] = []

    async def go(name: str) -> None:
        await answer(engine, replace(ask(model, tokens_max=8), payer=name[0]))
        ended.append(name)

    async with one_slot(store) as engine, trio.open_nursery() as nursery, occupied(engine, model):
        for name in ("a1", "a2", "a3", "b1", "a4", "c1"):
            nursery.start_soon(go, name)
            await trio.testing.wait_all_tasks_blocked()

    assert ended == ["a1", "b1", "c1", "a2", "a3", "a4"]


async def test_a_flood_of_one_payer_leaves_room_for_the_next_one(store: ModelStore, tmp_path: Path) -> None:
    """The newest request of the flood is cut short; whoever comes late with as many is refused."""
    model = smuggle(store, slow_model(tmp_path / "slow.gguf"))
    outcomes: dict[str, str] = {}

    async def go(name: str) -> None:
        try:
            await answer(engine, replace(ask(model, tokens_max=8), payer=name[0]))
            outcomes[name] = "answered"
        except EngineBusy as error:
            outcomes[name] = str(error)

    async with (
        one_slot(store, queue_max=3) as engine,
        trio.open_nursery() as nursery,
        occupied(engine, model),
    ):
        for name in ("a1", "a2", "a3", "b1", "a4"):
            nursery.start_soon(go, name)
            await trio.testing.wait_all_tasks_blocked()

    busy = "3 requests wait already, expected fewer than 3"
    assert outcomes == {"a1": "answered", "a2": "answered", "a3": busy, "b1": "answered", "a4": busy}


async def test_a_full_engine_says_how_long_one_more_would_wait(store: ModelStore, tmp_path: Path) -> None:
    model = smuggle(store, slow_model(tmp_path / "slow.gguf"))
    async with one_slot(store) as engine:
        assert engine.status(model).load_s > 0
        await answer(engine, ask(model, tokens_max=200))
        idle = engine.status(model)
        waits: list[float] = []
        async with aclosing(engine.generate(ask(model, tokens_max=200))) as generation:
            async for frame in generation:
                now = engine.status(model)
                if isinstance(frame, Tokens) and not now.slots_free:
                    waits.append(now.wait_s)
                    assert now.queue_free == 8

    assert (idle.wait_s, idle.load_s, idle.queue_free) == (0.0, 0.0, 8)
    assert waits == sorted(waits, reverse=True)
    # What was promised at the beginning is about what 200 tokens take alone.
    assert waits[0] == pytest.approx(200 / idle.tokens_per_s, rel=0.2)


async def test_one_more_stream_is_promised_the_speed_beside_the_others(
    store: ModelStore, tmp_path: Path
) -> None:
    model = smuggle(store, slow_model(tmp_path / "slow.gguf"))
    async with running(store, slots=SLOTS) as engine:
        await answer(engine, ask(model, tokens_max=100))
        alone = engine.status(model).tokens_per_s
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(answer, engine, ask(model, f"Story {number}", tokens_max=100))
            await trio.testing.wait_all_tasks_blocked()
            beside_three = engine.status(model).tokens_per_s

    assert 0 < beside_three < alone


# --- deaths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
async def test_a_child_killed_under_eight_requests_loses_only_those_it_was_running(
    store: ModelStore, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    model = smuggle(store, slow_model(tmp_path / "slow.gguf"))
    outcomes: list[str] = []
    tokens_seen = 0
    kill_at = rng.choice([0, 1, rng.randrange(2, 100), rng.randrange(100, 400)])
    killed_at = 0.0

    async def go(number: int) -> None:
        nonlocal tokens_seen, killed_at
        request = replace(ask(model, f"Story {number}", tokens_max=60), payer=f"buyer {number % 3}")
        length = 0
        try:
            async with aclosing(engine.generate(request)) as generation:
                async for frame in generation:
                    if isinstance(frame, Tokens):
                        length += len(frame.ids)
                        tokens_seen += len(frame.ids)
                    is_due = tokens_seen >= kill_at and len(engine._scheduler.running) == SLOTS
                    if is_due and not killed_at:
                        killed_at = trio.current_time()
                        os.kill(engine.child_pid, signal.SIGKILL)
                    elif killed_at and length and engine.child_pid != struck:
                        back_s.append(trio.current_time() - killed_at)
            outcomes.append("whole" if length == 60 else f"{length} tokens")
        except EngineDied:  # also if it was just rendering that one's chat: no template strikes from outside
            outcomes.append("died")

    back_s: list[float] = []
    async with running(store, slots=SLOTS) as engine:
        await answer(engine, ask(model))
        struck = engine.child_pid
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(go, number)
        state = engine.status(model)

    assert sorted(outcomes) == ["died"] * SLOTS + ["whole"] * 4
    assert min(back_s) < 5
    assert (state.slots_free, state.queued) == (SLOTS, 0)


async def test_a_child_killed_while_it_loads_keeps_the_requests_of_others(
    store: ModelStore, tmp_path: Path
) -> None:
    first = smuggle(store, tiny_model(tmp_path / "tiny.gguf"))
    large = smuggle(store, large_model(tmp_path / "large.gguf"))
    outcomes: dict[str, str] = {}

    loading = trio.Event()

    async def go(name: str, model: Digest) -> None:
        try:
            async with aclosing(engine.generate(replace(ask(model, tokens_max=2), payer=name))) as generation:
                async for frame in generation:
                    if isinstance(frame, Progress) and frame.phase is Phase.LOADING and frame.done:
                        loading.set()
            outcomes[name] = "answered"
        except EngineError as error:
            outcomes[name] = type(error).__name__

    async with running(store, slots=SLOTS) as engine, trio.open_nursery() as nursery:
        for name, model in (("large 1", large), ("large 2", large), ("small", first)):
            nursery.start_soon(go, name, model)
            await trio.testing.wait_all_tasks_blocked()
        await loading.wait()
        os.kill(engine.child_pid, signal.SIGKILL)

    assert outcomes == {"large 1": "EngineDied", "large 2": "answered", "small": "answered"}


async def test_bad_requests_of_others_leave_a_batch_alone(store: ModelStore, tmp_path: Path) -> None:
    """A prompt over the context is refused in the child, beside a stream that goes on."""
    model = smuggle(store, slow_model(tmp_path / "slow.gguf"))
    async with running(store, slots=SLOTS) as engine:
        alone = await answer(engine, ask(model, tokens_max=60))
        under_way = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first_tokens, engine, ask(model, tokens_max=400), under_way)
            await under_way.wait()
            for _ in range(3):
                with pytest.raises(EngineError, match=r"\d{4}.*expected fewer than 4096"):
                    await answer(engine, ask(model, "word " * 1_000))
            assert engine.status(model).slots_free == SLOTS - 1

        assert await answer(engine, ask(model, tokens_max=60)) == alone
