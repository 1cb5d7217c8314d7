"""Several models in one child: loaded beside each other, under one memory budget, without a leak."""

from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import gguf
import psutil
import pytest
import trio
import trio.testing

from node.bench import random_gguf
from runtime.engine import (
    Digest,
    EngineBusy,
    Generation,
    ModelLoading,
    Phase,
    Progress,
    Tokens,
    UnknownModel,
)
from runtime.model_store import ModelStore
from tests.gguf_files import large_model, slow_model, tiny_model
from tests.system.engines import answer, ask, first_tokens, occupied, running, smuggle

pytestmark = pytest.mark.system

ONE_MODEL = 900 << 20  # bytes of address space: a second one has no place beside it


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def tiny(store: ModelStore, tmp_path: Path, seed: int = 0) -> Digest:
    return smuggle(store, tiny_model(tmp_path / f"tiny{seed}.gguf", seed=seed))


async def test_requests_of_a_loaded_model_go_on_while_another_one_is_loaded(
    store: ModelStore, tmp_path: Path
) -> None:
    first = smuggle(store, slow_model(tmp_path / "slow.gguf"))
    large = smuggle(store, large_model(tmp_path / "large.gguf"))
    seen: list[str] = []
    shares: list[float] = []

    async def tell(first_seen: trio.Event) -> None:
        async with aclosing(engine.generate(ask(first, tokens_max=3_000))) as generation:
            async for frame in generation:
                if isinstance(frame, Tokens):
                    first_seen.set()
                    seen.append("token")

    async with running(store, slots=2) as engine, trio.open_nursery() as nursery:
        under_way = trio.Event()
        nursery.start_soon(tell, under_way)
        await under_way.wait()
        seen.append("asked")
        async with aclosing(engine.generate(replace(ask(large, tokens_max=2), payer="b"))) as generation:
            async for frame in generation:
                if isinstance(frame, Progress) and frame.phase is Phase.LOADING and frame.total:
                    shares.append(frame.done / frame.total)
                elif isinstance(frame, Tokens):
                    seen.append("answered")
        nursery.cancel_scope.cancel()

    assert shares == sorted(shares)  # there are none where it is loaded within a beat
    between = seen[seen.index("asked") : seen.index("answered")]
    assert between.count("token") >= 5, between  # two, if they waited for it


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


async def test_a_model_that_embeds_shares_the_memory_with_one_that_writes(
    store: ModelStore, tmp_path: Path
) -> None:
    writer = tiny(store, tmp_path)
    path = random_gguf.write(tmp_path / "embed.gguf", random_gguf.TINY, seed=9, pooling=gguf.PoolingType.MEAN)
    embedder = await store.add(path)
    reading = Generation(embedder.digest, (), embedder.dimensions, task="embedding", inputs=("a heat pump",))
    async with running(store, memory_bytes_max=ONE_MODEL) as engine:
        text, vector = await answer(engine, ask(writer)), await answer(engine, reading)
        assert (engine.status(writer).load_s > 0, engine.status(embedder.digest).load_s) == (True, 0)

        assert (await answer(engine, ask(writer)), await answer(engine, reading)) == (text, vector)

    assert len(vector[0]) == embedder.dimensions == random_gguf.TINY.width
    assert ModelStore(store.directory).models[embedder.digest] == embedder  # also after a restart
