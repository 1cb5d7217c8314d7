"""Many requests, several models, one child: who comes when, what stays in memory, and what a death leaves."""

import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import trio
import trio.testing

from node.bench import random_gguf
from runtime.engine import (
    Digest,
    EngineBusy,
    EngineDied,
    EngineError,
    ModelLoading,
    Phase,
    Progress,
    Tokens,
    UnknownModel,
)
from runtime.llama.backend import LlamaEngine
from runtime.model_store import ModelStore
from tests.gguf_files import slow_model, tiny_model
from tests.system.engines import MEMORY_BYTES_MAX, answer, ask, first_tokens, running, smuggle

pytestmark = pytest.mark.system

SLOTS = 4
ONE_MODEL = 900 << 20  # bytes of address space: a second one has no place beside it
# 100 MB: long enough in loading that others can be seen to go on.
LARGE = random_gguf.Shape(
    width=1_024,
    layers=12,
    heads=8,
    heads_kv=4,
    head_width=128,
    hidden=4_096,
    vocabulary=512,
    context_tokens=2_048,
)


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


def tiny(store: ModelStore, tmp_path: Path, seed: int = 0) -> Digest:
    return smuggle(store, tiny_model(tmp_path / f"tiny{seed}.gguf", seed=seed))


# --- turns -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def occupied(engine: LlamaEngine, model: Digest) -> AsyncIterator[None]:
    """Have somebody's long answer take the slot for the length of the block."""
    async with trio.open_nursery() as nursery:
        under_way = trio.Event()
        nursery.start_soon(first_tokens, engine, replace(ask(model, tokens_max=4_000), payer="z"), under_way)
        await under_way.wait()
        yield
        nursery.cancel_scope.cancel()


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


# --- several models --------------------------------------------------------------------------------------------------


async def test_requests_of_a_loaded_model_go_on_while_another_one_is_loaded(
    store: ModelStore, tmp_path: Path
) -> None:
    first = smuggle(store, slow_model(tmp_path / "slow.gguf"))
    large = smuggle(store, random_gguf.write(tmp_path / "large.gguf", LARGE))
    seen: list[str | float] = []

    async def tell(first_seen: trio.Event) -> None:
        async with aclosing(engine.generate(ask(first, tokens_max=3_000))) as generation:
            async for frame in generation:
                if isinstance(frame, Tokens):
                    first_seen.set()
                    seen.append("token")

    async with running(store, slots=SLOTS) as engine, trio.open_nursery() as nursery:
        under_way = trio.Event()
        nursery.start_soon(tell, under_way)
        await under_way.wait()
        async with aclosing(engine.generate(replace(ask(large, tokens_max=2), payer="b"))) as generation:
            async for frame in generation:
                if isinstance(frame, Progress) and frame.phase is Phase.LOADING and frame.total:
                    share = frame.done / frame.total
                    seen.append(share)
        nursery.cancel_scope.cancel()

    shares = [each for each in seen if isinstance(each, float)]
    assert shares == sorted(shares)
    between = seen[seen.index(shares[0]) : len(seen) - seen[::-1].index(shares[-1])]
    assert between.count("token") > len(shares) > 1


async def test_models_stay_in_memory_until_the_room_is_needed(store: ModelStore, tmp_path: Path) -> None:
    models = [tiny(store, tmp_path, seed) for seed in range(3)]
    async with running(store, memory_bytes_max=2 * ONE_MODEL) as engine:
        for model in (*models[:2], models[0]):
            await answer(engine, ask(model))
        two = [engine.status(model).load_s == 0 for model in models]
        await answer(engine, ask(models[2]))
        after = [engine.status(model).load_s == 0 for model in models]

    assert two == [True, True, False]
    assert after == [True, False, True]  # the one used least recently has gone


async def test_a_model_without_a_place_comes_to_its_turn_under_steady_load(
    store: ModelStore, tmp_path: Path
) -> None:
    """Nobody starves: those in memory take no new requests once somebody else has waited for long enough."""
    busy = smuggle(store, slow_model(tmp_path / "slow.gguf"))
    other = tiny(store, tmp_path)
    async with running(store, slots=2, memory_bytes_max=ONE_MODEL) as engine, trio.open_nursery() as nursery:

        async def ask_for_ever(started: trio.Event) -> None:
            while True:
                await first_tokens(engine, replace(ask(busy, tokens_max=30), payer="a"), started)

        for _ in range(3):
            started = trio.Event()
            nursery.start_soon(ask_for_ever, started)
            await started.wait()
        with trio.fail_after(30):
            ids, _ = await answer(engine, replace(ask(other), payer="b"))
        nursery.cancel_scope.cancel()

    assert len(ids) == 16


async def test_a_load_that_takes_long_is_said_to_the_own_user_and_waited_for_by_a_buyer(
    store: ModelStore, tmp_path: Path
) -> None:
    model, other = tiny(store, tmp_path), tiny(store, tmp_path, seed=1)
    async with running(store, memory_bytes_max=ONE_MODEL) as engine:
        engine._scheduler.records.of(model).load_s = 60.0  # as it took before
        with pytest.raises(ModelLoading, match=r"model 'tiny0' is being loaded: 0% so far, ready in") as told:
            await answer(engine, ask(model))
        assert told.value.done == 0
        assert told.value.retry_after_s == pytest.approx(60, abs=1)

        await engine.load(model)
        ids, _ = await answer(engine, ask(model))
        assert len(ids) == 16

        # It is kept for whoever was told to come back, though another one would need the room.
        with trio.move_on_after(1):
            await answer(engine, replace(ask(other), payer="b"))
        assert engine.status(model).load_s == 0

    async with running(store, memory_bytes_max=ONE_MODEL) as engine:
        engine._scheduler.records.of(model).load_s = 60.0
        ids, _ = await answer(engine, replace(ask(model), payer="b"))
        assert len(ids) == 16


async def test_a_modest_load_takes_nobodys_place(store: ModelStore, tmp_path: Path) -> None:
    model, other = tiny(store, tmp_path), tiny(store, tmp_path, seed=1)
    async with running(store, memory_bytes_max=ONE_MODEL) as engine:
        await engine.load(model)
        with pytest.raises(EngineBusy, match="no place in memory"):
            await engine.load(other, is_modest=True)

        assert (engine.status(model).load_s, engine.status(other).load_s > 0) == (0, True)


async def test_slots_that_share_fewer_cells_wait_for_each_other(store: ModelStore, tmp_path: Path) -> None:
    """Two long answers would fill the cache in mid-step, and both would fail."""
    model = tiny(store, tmp_path)
    kv_bytes = 300_000
    store._entries[model] = replace(store._entries[model], kv_bytes_per_token=kv_bytes)
    most: list[int] = []
    lengths: list[int] = []

    async def go(number: int, tokens_max: int) -> None:
        async with aclosing(
            engine.generate(ask(model, f"Story {number}", tokens_max=tokens_max))
        ) as generation:
            length = 0
            async for frame in generation:
                if isinstance(frame, Tokens):
                    length += len(frame.ids)
                    most.append(len(engine._scheduler.running))
            lengths.append(length)

    async with running(store, slots=2, memory_bytes_max=2 << 30) as engine:
        assert engine.cells(model) == 2_048 < 2 * 2_048
        async with trio.open_nursery() as nursery:
            nursery.start_soon(go, 1, 1_500)
            nursery.start_soon(go, 2, 1_500)
        long_ones, shared = list(lengths), max(most)
        most.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(go, 3, 300)
            nursery.start_soon(go, 4, 300)

    assert (long_ones, shared) == ([1_500, 1_500], 1)
    assert max(most) == 2


async def test_loading_and_unloading_again_and_again_keeps_no_memory(
    store: ModelStore, tmp_path: Path
) -> None:
    """One of 17 MB, one of 72 kB, and room for one of them. The allocator may keep one of them; a leak keeps 40."""
    models = [smuggle(store, slow_model(tmp_path / "slow.gguf")), tiny(store, tmp_path)]
    async with running(store, memory_bytes_max=ONE_MODEL) as engine:

        async def turn_over(times: int) -> int:
            for _ in range(times):
                for model in models:
                    await answer(engine, ask(model, tokens_max=1))
            return psutil.Process(engine.child_pid).memory_info().rss

        early = await turn_over(5)
        late = await turn_over(40)

    assert late - early < 32 << 20


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
    first = tiny(store, tmp_path)
    large = smuggle(store, random_gguf.write(tmp_path / "large.gguf", LARGE))
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


async def test_a_model_that_is_removed_while_somebody_waits_for_it_is_named(
    store: ModelStore, tmp_path: Path
) -> None:
    model, other = smuggle(store, slow_model(tmp_path / "slow.gguf")), tiny(store, tmp_path)
    refusals: list[str] = []

    async def go() -> None:
        try:
            await answer(engine, ask(other))
        except UnknownModel as error:
            refusals.append(str(error))

    async with running(store, memory_bytes_max=ONE_MODEL) as engine, trio.open_nursery() as nursery:
        async with occupied(engine, model):
            nursery.start_soon(go)
            await trio.testing.wait_all_tasks_blocked()
            store.path(other).unlink()
            del store._entries[other]
        await answer(engine, ask(model))

    assert refusals == [f"no model {other.hex()[:8]} on this engine"]
