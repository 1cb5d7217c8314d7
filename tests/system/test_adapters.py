"""Adapters in the llama.cpp child: what they compute, that nobody else feels them, and what becomes of hostile ones."""

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
import trio
import trio.testing

from runtime.adapter_file import TARGETS, write
from runtime.engine import (
    AdapterRefused,
    AdapterSetAside,
    ChatMessage,
    Digest,
    EngineDied,
    EngineError,
    Generation,
    Tokens,
)
from runtime.gguf_header import read_layout
from runtime.llama import wire
from runtime.llama.adapter_turns import TURN_STEPS
from runtime.llama.backend import LlamaEngine
from runtime.llama.process import LlamaChild
from runtime.model_store import ModelStore
from tests.adapter_files import keep, overflowing_adapter, random_adapter, shape
from tests.gguf_files import slow_model, tiny_model
from tests.system.engines import MEMORY_BYTES_MAX, TINY, TINY_F16, answer, ask, first_tokens, smuggle

pytestmark = pytest.mark.system

GREEDY = wire.SamplingParameters(0, 1_000_000, 0, 0, 1_000_000, 0, 0, 0)
DATA = TINY.parent / "data"
STRONG = 1.0  # a random adapter of this strength says something else than the base does
NEAR_MILLI = 750  # thousandths of a logit: rounding; another adapter's tokens are several off


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    directory = tmp_path / "blobs"
    directory.mkdir()
    return directory


@asynccontextmanager
async def running(store: ModelStore, blobs: Path, **settings: Any) -> AsyncIterator[LlamaEngine]:
    engine = LlamaEngine(store, adapters_directory=blobs, memory_bytes_max=MEMORY_BYTES_MAX, **settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        yield engine
        nursery.cancel_scope.cancel()


# --- what they compute -----------------------------------------------------------------------------------------------


@pytest.mark.timeout(360)  # 15 s of computing, on a machine that may be busy with other tests
@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # peft asks for it
async def test_llama_cpp_says_what_transformers_says_with_the_same_adapter(
    store: ModelStore, blobs: Path, tmp_path: Path
) -> None:
    """One that was trained: on random weights the two would part at the first near tie."""
    model = smuggle(store, TINY_F16)
    questions = [
        json.loads(line)["prompt"]
        for domain, count in (("heat_pump", 40), ("units", 5), ("appliances", 5))
        for line in (DATA / f"{domain}.test.jsonl").read_text().splitlines()[:count]
    ]
    matrices, expected = _train_and_ask(copyfile(TINY_F16, tmp_path / "base.gguf"), questions)
    digest, path = keep(blobs, write(matrices, shape(), read_layout(TINY_F16)))

    async with running(store, blobs) as engine:
        await engine.load_adapter(model, digest, path)
        given, bare = [], []
        for question in questions:
            request = Generation(model, (ChatMessage("user", question),), 80)
            given.append((await answer(engine, replace(request, adapter=digest)))[1])
            bare.append((await answer(engine, request))[1])

    assert given == expected
    assert sum(with_it != without for with_it, without in zip(given, bare, strict=True)) >= 40


def _train_and_ask(model: Path, questions: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Train a LoRA for some seconds with peft; return it, and the greedy answers that transformers gives with it."""
    import torch  # noqa: PLC0415  (seconds to import)
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415

    from runtime.llama.template import RenderBounds  # noqa: PLC0415
    from runtime.training.base_model import LINEARS, BaseModel  # noqa: PLC0415

    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = BaseModel(model, RenderBounds(), torch.device("cpu"))
    config = LoraConfig(r=8, lora_alpha=16, target_modules=[name.split(".")[1] for name in LINEARS.values()])
    adapted: Any = get_peft_model(base.model, config)
    optimiser = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=5e-3)
    records = [json.loads(line) for line in (DATA / "heat_pump.train.jsonl").read_text().splitlines()]
    for step in range(40):
        batch = [base.sample(**record, tokens_max=128) for record in records[step * 8 % 320 :][:8]]
        width = max(len(sample.tokens) for sample in batch if sample)
        tokens = torch.zeros((8, width), dtype=torch.long)
        labels = torch.full((8, width), -100)
        for row, sample in enumerate(batch):
            assert sample is not None
            tokens[row, : len(sample.tokens)] = torch.tensor(sample.tokens)
            labels[row, sample.prompt_tokens : len(sample.tokens)] = torch.tensor(
                sample.tokens[sample.prompt_tokens :]
            )
        optimiser.zero_grad()
        adapted(input_ids=tokens, labels=labels).loss.backward()
        optimiser.step()

    adapted.eval()
    answers = []
    for question in questions:
        sample = base.sample(question, "", tokens_max=1_000)
        assert sample is not None
        prompt = torch.tensor([sample.tokens[: sample.prompt_tokens]])
        with torch.no_grad():
            out = adapted.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=80,
                do_sample=False,
                eos_token_id=sample.tokens[-1],
                pad_token_id=sample.tokens[-1],
            )
        answers.append(base._tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True))
    parameters = dict(adapted.named_parameters())
    matrices = {}
    for layer in range(len(base.layers)):
        for name, where in LINEARS.items():
            for side in "AB":
                key = f"base_model.model.model.layers.{layer}.{where}.lora_{side}.default.weight"
                matrices[f"blk.{layer}.{name}.lora_{side.lower()}"] = parameters[key].detach().numpy()
    assert len(matrices) == 2 * len(TARGETS) * len(base.layers)
    return matrices, answers


async def test_requests_with_several_adapters_run_at_once_and_do_not_mix(
    store: ModelStore, blobs: Path
) -> None:
    """Every token is one that its own adapter finds likeliest, or nearly: neither batch nor cache is shared.

    Nearly: llama.cpp rounds otherwise in a batch of another shape, and a near tie may then fall the other way.
    """
    model = smuggle(store, TINY)
    questions = ["What is 41 plus 27?", "What is 3 m in cm?", "Tell me a story about a fox."]
    async with running(store, blobs, slots=3) as engine:
        adapters: list[Digest | None] = [None]
        for seed in (1, 2):
            digest, path = keep(blobs, random_adapter(TINY, seed=seed, strength=STRONG))
            await engine.load_adapter(model, digest, path)
            adapters.append(digest)
        requests = [
            replace(ask(model, question, tokens_max=24), adapter=adapter)
            for question in questions
            for adapter in adapters
        ]
        together: dict[int, tuple[int, ...]] = {}

        async def run(index: int) -> None:
            together[index], _ = await answer(engine, requests[index])

        async with trio.open_nursery() as nursery:
            for index in range(len(requests)):
                nursery.start_soon(run, index)

        for index, request in enumerate(requests):
            for adapter in adapters:
                gaps_milli, _ = await answer(
                    engine, replace(request, adapter=adapter, task="check", claimed=together[index])
                )
                assert (max(gaps_milli) < NEAR_MILLI) == (adapter == request.adapter), (index, gaps_milli)


async def test_adapters_take_turns_of_a_few_steps(tmp_path: Path, blobs: Path) -> None:
    """Two streams of one adapter and one of another: neither set waits for the other's end."""
    path = slow_model(tmp_path / "slow.gguf")
    digest, adapter_path = keep(blobs, random_adapter(path))
    order: list[int] = []
    ended = {2: trio.Event(), 3: trio.Event(), 4: trio.Event()}

    def handle(message: object) -> None:
        if isinstance(message, wire.NewTokens):
            order.append(message.call)
        elif isinstance(message, wire.Done):
            ended[message.call].set()

    child = LlamaChild((path, blobs), MEMORY_BYTES_MAX, handle)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(child.run)
        await child.ask(wire.Load(1, bytes(32), str(path), 512, 3, 1, MEMORY_BYTES_MAX, 100.0))
        await child.ask(
            wire.LoadAdapter(9, bytes(32), digest, str(adapter_path), str(path), MEMORY_BYTES_MAX)
        )
        for call, adapter in ((2, None), (3, None), (4, digest)):
            child.begin(wire.Generate(call, bytes(32), (("user", "Hi"),), 60, GREEDY, (), (), adapter))
        for event in ended.values():
            await event.wait()
        nursery.cancel_scope.cancel()

    assert sorted(order) == [2] * 60 + [3] * 60 + [4] * 60
    both = order[order.index(4) : max(i for i, call in enumerate(order) if call == 2)]
    steps = "".join("b" if call == 4 else "a" for call in both).replace("aa", "a")
    turns = ["".join(same) for _, same in groupby(steps)]
    assert len(turns) > 60 // TURN_STEPS
    assert max(map(len, turns[1:-1])) <= TURN_STEPS


# --- who dies, and what comes back -----------------------------------------------------------------------------------


async def test_a_new_child_has_the_adapters_of_the_dead_one(store: ModelStore, blobs: Path) -> None:
    model = smuggle(store, TINY)
    digest, path = keep(blobs, random_adapter(TINY, strength=STRONG))
    async with running(store, blobs) as engine:
        await engine.load_adapter(model, digest, path)
        before = await answer(engine, replace(ask(model), adapter=digest))
        struck = engine.child_pid
        assert struck is not None
        os.kill(struck, signal.SIGKILL)

        with trio.fail_after(5):
            while engine.child_pid in (struck, None):
                await trio.testing.wait_all_tasks_blocked()
            after = await answer(engine, replace(ask(model), adapter=digest))

    assert after == before


async def test_an_adapter_is_loaded_although_the_child_dies_meanwhile(store: ModelStore, blobs: Path) -> None:
    """Who waits for it need not know. A stopped child takes the question and never answers."""
    model = smuggle(store, TINY)
    digest, path = keep(blobs, random_adapter(TINY, strength=STRONG))
    async with running(store, blobs) as engine:
        bare = await answer(engine, ask(model))
        struck = engine.child_pid
        assert struck is not None
        os.kill(struck, signal.SIGSTOP)

        with trio.fail_after(20):
            await engine.load_adapter(model, digest, path)

        assert engine.child_pid != struck
        assert engine.adapters == {digest: model}
        assert await answer(engine, replace(ask(model), adapter=digest)) != bare


async def test_an_adapter_that_kills_again_and_again_is_set_aside_and_its_base_is_not(
    store: ModelStore, blobs: Path, tmp_path: Path
) -> None:
    slow = smuggle(store, slow_model(tmp_path / "slow.gguf"))
    digest, path = keep(blobs, random_adapter(store.path(slow)))
    async with running(store, blobs) as engine:
        await engine.load_adapter(slow, digest, path)
        bare = await answer(engine, ask(slow))
        for _ in range(3):
            under_way = trio.Event()
            with pytest.RaisesGroup(pytest.RaisesExc(EngineDied)):
                async with trio.open_nursery() as nursery:
                    doomed = replace(ask(slow, tokens_max=3_000), adapter=digest)
                    nursery.start_soon(first_tokens, engine, doomed, under_way)
                    await under_way.wait()
                    assert engine.child_pid is not None
                    os.kill(engine.child_pid, signal.SIGKILL)

        assert engine.adapters == {}
        for attempt in (
            answer(engine, replace(ask(slow), adapter=digest)),
            engine.load_adapter(slow, digest, path),
        ):
            with pytest.raises(
                AdapterSetAside, match=r"set aside after 3 deaths: the engine's child was killed"
            ):
                await attempt
        with trio.fail_after(5):
            assert await answer(engine, ask(slow)) == bare

        engine.unload_adapter(digest)  # whoever knows better may try again
        await engine.load_adapter(slow, digest, path)
        assert engine.adapters == {digest: slow}


async def test_a_base_that_made_room_comes_back_with_its_adapter(
    store: ModelStore, blobs: Path, tmp_path: Path
) -> None:
    first, second = (smuggle(store, tiny_model(tmp_path / f"{seed}.gguf", seed=seed)) for seed in (1, 2))
    adapted = []
    async with running(store, blobs) as engine:
        for model in (first, second):
            digest, path = keep(blobs, random_adapter(store.path(model), seed=len(adapted), strength=STRONG))
            await engine.load_adapter(model, digest, path)
            adapted.append(replace(ask(model), adapter=digest))

        answers = [await answer(engine, request) for request in adapted * 2]
        bare = [await answer(engine, replace(request, adapter=None)) for request in adapted]

    assert answers[:2] == answers[2:]
    assert len({*answers, *bare}) == 4


async def test_an_adapter_whose_numbers_overflow_harms_only_who_asks_for_it(
    store: ModelStore, blobs: Path
) -> None:
    """All its values are allowed. Its keys overflow the cache, and what is masked by adding minus infinity stays NaN:
    without care every later answer of the base would be spoilt, in the same batch and after it.
    """
    model = smuggle(store, TINY)
    digest, path = keep(blobs, overflowing_adapter(TINY))
    # A long prompt: all but its last piece is computed and cached before anybody looks at a logit.
    poisonous = replace(ask(model, "word " * 150), adapter=digest)
    async with running(store, blobs, slots=2) as engine:
        before = await answer(engine, ask(model, tokens_max=40))
        await engine.load_adapter(model, digest, path)

        with pytest.raises(EngineError, match="not finite"):
            await answer(engine, poisonous)
        assert await answer(engine, ask(model, tokens_max=40)) == before

        beside = []
        async with aclosing(engine.generate(ask(model, tokens_max=40))) as generation:
            async for frame in generation:
                if isinstance(frame, Tokens):
                    beside += frame.ids
                    if len(beside) == 1:
                        with pytest.raises(EngineError, match="not finite"):
                            await answer(engine, poisonous)
        pid = engine.child_pid
        assert tuple(beside) == before[0]
        assert await answer(engine, ask(model, tokens_max=40)) == before
        assert engine.child_pid == pid


# --- what is refused -------------------------------------------------------------------------------------------------


async def test_an_adapter_of_another_base_is_refused_and_nothing_changes(
    store: ModelStore, blobs: Path, tmp_path: Path
) -> None:
    model = smuggle(store, TINY)
    digest, path = keep(blobs, random_adapter(tiny_model(tmp_path / "other.gguf")))
    async with running(store, blobs) as engine:
        before = await answer(engine, ask(model))
        pid = engine.child_pid

        with pytest.raises(AdapterRefused, match="expected to fit"):
            await engine.load_adapter(model, digest, path)

        assert (engine.adapters, engine.child_pid) == ({}, pid)
        assert await answer(engine, ask(model)) == before


async def test_a_file_that_was_exchanged_after_its_exam_is_refused(store: ModelStore, blobs: Path) -> None:
    model = smuggle(store, TINY)
    digest, path = keep(blobs, random_adapter(TINY))
    path.write_bytes(random_adapter(TINY, seed=1))
    async with running(store, blobs) as engine:
        with pytest.raises(EngineError, match="digest"):
            await engine.load_adapter(model, digest, path)

        assert engine.adapters == {}


async def test_a_file_outside_of_the_blobs_is_refused(store: ModelStore, blobs: Path, tmp_path: Path) -> None:
    model = smuggle(store, TINY)
    digest, path = keep(tmp_path, random_adapter(TINY))
    async with running(store, blobs) as engine:
        with pytest.raises(AdapterRefused, match="not where"):
            await engine.load_adapter(model, digest, path)
        with pytest.raises(EngineError, match="cannot be read"):
            await engine.load_adapter(model, digest, blobs / digest.hex())

        assert engine.adapters == {}


async def test_who_stops_waiting_for_an_adapter_leaves_nothing_behind(store: ModelStore, blobs: Path) -> None:
    model = smuggle(store, TINY)
    digest, path = keep(blobs, random_adapter(TINY))
    engine = LlamaEngine(store, adapters_directory=blobs, memory_bytes_max=MEMORY_BYTES_MAX)

    with pytest.raises(EngineDied, match="not running"):
        await engine.load_adapter(model, digest, path)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        with trio.CancelScope() as scope:
            scope.cancel()
            await engine.load_adapter(model, digest, path)
        assert engine.adapters == {}
        await engine.load_adapter(model, digest, path)
        assert engine.adapters == {digest: model}
        nursery.cancel_scope.cancel()
