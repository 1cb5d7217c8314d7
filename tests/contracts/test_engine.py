"""What every engine keeps to, whether it runs llama.cpp in a child or says the user's words again."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from runtime.echo import EchoEngine, echo_card
from runtime.engine import (
    BadRequest,
    ChatMessage,
    Digest,
    Engine,
    EngineBusy,
    Finished,
    FinishReason,
    Generation,
    Progress,
    PromptTooLong,
    Tokens,
    UnknownAdapter,
    UnknownModel,
)
from runtime.llama.backend import LlamaEngine
from runtime.model_store import ModelStore
from tests.adapter_files import keep, random_adapter
from tests.contracts.virtual_time import on_virtual_time

TINY = Path(__file__).parents[2] / "examples" / "tiny_model" / "tiny-q8_0.gguf"
QUESTION = (ChatMessage("user", "Tell me a story about a brown dog and a café, please."),)
QUEUE_MAX = 2


@pytest.fixture(params=["echo", pytest.param("llama", marks=pytest.mark.system)])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "echo":
        on_virtual_time(request)
    return str(request.param)


@pytest.fixture
async def engine(backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    if backend == "echo":
        yield EchoEngine(
            (echo_card(context_tokens=512),),
            seconds_per_token=0.002,
            prompt_seconds_per_token=0.002,
            queue_max=QUEUE_MAX,
        )
        return
    adapters = tmp_path_factory.getbasetemp() / "engine-adapters"
    store = ModelStore(tmp_path_factory.getbasetemp() / "engine-models")
    if not store.models:  # the first of these tests
        await store.add(TINY)
    llama = LlamaEngine(
        store,
        adapters_directory=adapters,
        queue_max=QUEUE_MAX,
        context_tokens=512,
        memory_bytes_max=2 << 30,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(llama.run)
        yield llama
        nursery.cancel_scope.cancel()


def chat(engine: Engine, messages: tuple[ChatMessage, ...] = QUESTION, tokens_max: int = 48) -> Generation:
    return Generation(next(iter(engine.models)), messages, tokens_max)


async def collect(engine: Engine, request: Generation) -> tuple[list[int], str, Finished]:
    """Return ids, text and the last frame, which is the only `Finished`."""
    async with aclosing(engine.generate(request)) as generation:
        frames = [frame async for frame in generation]
    *others, last = frames
    assert isinstance(last, Finished)
    assert not any(isinstance(frame, Finished) for frame in others)
    tokens = [frame for frame in others if isinstance(frame, Tokens)]
    ids = [token for frame in tokens for token in frame.ids]
    return ids, "".join(frame.text for frame in tokens) + last.text, last


async def test_a_generation_is_tokens_and_one_end(engine: Engine) -> None:
    ids, text, end = await collect(engine, chat(engine))

    assert text
    assert end.completion_tokens == len(ids) > 0
    assert end.prompt_tokens == await engine.count_tokens(chat(engine).model, QUESTION)
    assert end.prefill_s >= 0
    assert end.decode_s >= 0


async def test_a_greedy_generation_is_the_same_each_time(engine: Engine) -> None:
    first = await collect(engine, chat(engine))
    second = await collect(engine, chat(engine))

    assert first[:2] == second[:2]


async def test_a_model_card_says_what_the_engine_runs(engine: Engine) -> None:
    digest, card = next(iter(engine.models.items()))

    assert (card.digest, card.context_tokens, len(digest)) == (digest, 512, 32)


async def test_the_cap_ends_a_generation(engine: Engine) -> None:
    ids, _, end = await collect(engine, chat(engine, tokens_max=5))

    assert (len(ids), end.reason) == (5, FinishReason.LENGTH)


async def test_a_generation_of_no_tokens_reads_the_prompt_only(engine: Engine) -> None:
    ids, text, end = await collect(engine, chat(engine, tokens_max=0))

    assert (ids, text, end.reason, end.completion_tokens) == ([], "", FinishReason.LENGTH, 0)


async def test_a_stop_sequence_ends_the_text_before_it(engine: Engine) -> None:
    _, whole, _ = await collect(engine, chat(engine))
    stop = whole[8:12]

    _, text, end = await collect(engine, replace(chat(engine), stop=(stop,)))

    assert text == whole[: whole.index(stop)]
    assert end.reason is FinishReason.STOP


async def test_a_beginning_of_a_stop_sequence_is_not_lost(engine: Engine) -> None:
    _, whole, _ = await collect(engine, chat(engine))

    _, text, _ = await collect(engine, replace(chat(engine), stop=(whole[-4:] + "never",)))

    assert text == whole


async def test_an_interrupted_greedy_generation_goes_on_exactly(engine: Engine) -> None:
    """Failover: the client has seen some tokens of another engine and must not see a seam."""
    frames = [frame async for frame in engine.generate(chat(engine)) if isinstance(frame, Tokens)]
    ids, whole, end = await collect(engine, chat(engine))

    for cut in sorted({0, 1, 2, len(frames) // 2, len(frames) - 1, len(frames)}):
        received = tuple(token for frame in frames[:cut] for token in frame.ids)
        seen = "".join(frame.text for frame in frames[:cut])
        rest, text, rest_end = await collect(engine, replace(chat(engine), received=received))

        assert [*received, *rest] == ids
        assert seen + text == whole
        assert (rest_end.reason, rest_end.completion_tokens) == (end.reason, end.completion_tokens)


async def test_a_stop_sequence_over_the_seam_is_seen(engine: Engine) -> None:
    frames = [frame async for frame in engine.generate(chat(engine)) if isinstance(frame, Tokens)]
    _, whole, _ = await collect(engine, chat(engine))
    request = replace(chat(engine), stop=(whole[6:14],))
    _, expected, _ = await collect(engine, request)

    for cut in range(1, 8):
        received = tuple(token for frame in frames[:cut] for token in frame.ids)
        part, end = "", None
        async with aclosing(engine.generate(replace(request, received=received))) as generation:
            async for frame in generation:
                part += "" if isinstance(frame, Progress) else frame.text
                end = frame
        assert isinstance(end, Finished)
        assert expected.endswith(part)
        assert end.reason is FinishReason.STOP


async def test_a_completion_that_was_received_whole_only_ends(engine: Engine) -> None:
    ids, _, _ = await collect(engine, chat(engine, tokens_max=6))

    rest, _, end = await collect(engine, replace(chat(engine, tokens_max=6), received=tuple(ids)))

    assert (rest, end.reason, end.completion_tokens) == ([], FinishReason.LENGTH, 6)


async def test_an_unknown_model_is_named(engine: Engine) -> None:
    unknown = Digest(b"\7" * 32)

    with pytest.raises(UnknownModel, match="07070707"):
        engine.status(unknown)
    with pytest.raises(UnknownModel):
        await engine.count_tokens(unknown, QUESTION)
    with pytest.raises(UnknownModel):
        await collect(engine, replace(chat(engine), model=unknown))


async def test_a_prompt_over_the_context_is_refused_with_both_numbers(engine: Engine) -> None:
    long = (ChatMessage("user", "word " * 2_000),)

    with pytest.raises(PromptTooLong, match=r"\d{3,}.*512"):
        await collect(engine, chat(engine, long))

    await collect(engine, chat(engine))
    assert engine.status(chat(engine).model).slots_free == 1


async def test_a_cap_that_has_no_room_beside_the_prompt_is_refused_if_it_must_fit(engine: Engine) -> None:
    """Who named it would get a shorter answer and not know why; the others' requests go on."""
    prompt = await engine.count_tokens(chat(engine).model, QUESTION)
    told = f"max_tokens is 512, expected {512 - prompt} at most: the prompt has {prompt} tokens of the context's 512"

    with pytest.raises(BadRequest) as caught:
        await collect(engine, replace(chat(engine, tokens_max=512), tokens_wanted=512))

    assert str(caught.value) == told
    await collect(engine, replace(chat(engine, tokens_max=1), tokens_wanted=512 - prompt))
    assert engine.status(chat(engine).model).slots_free == 1


async def test_a_full_context_ends_a_generation(engine: Engine) -> None:
    prompt = await engine.count_tokens(chat(engine).model, QUESTION)

    ids, _, end = await collect(engine, chat(engine, tokens_max=100_000))

    assert end.reason is FinishReason.STOP or prompt + len(ids) == 512


async def test_closing_a_generation_frees_its_slot(engine: Engine) -> None:
    async with aclosing(engine.generate(chat(engine, tokens_max=400))) as generation:
        async for frame in generation:
            if isinstance(frame, Tokens):
                break

    with trio.fail_after(5):
        await collect(engine, chat(engine, tokens_max=1))
    assert engine.status(chat(engine).model).queued == 0


async def test_requests_over_the_queue_are_refused(engine: Engine) -> None:
    """A buyer that waits in a long queue is worse off than one that asks another seller."""
    model = chat(engine).model
    async with trio.open_nursery() as nursery:
        for _ in range(1 + QUEUE_MAX):  # the first one takes the slot, and its model has yet to be loaded
            nursery.start_soon(collect, engine, chat(engine, tokens_max=1))
            await trio.testing.wait_all_tasks_blocked()

        assert (engine.status(model).slots_free, engine.status(model).queued) == (0, QUEUE_MAX)
        with pytest.raises(EngineBusy, match="2 requests wait already"):
            await collect(engine, chat(engine))

    assert (engine.status(model).slots_free, engine.status(model).queued) == (1, 0)


async def test_status_says_how_long_one_more_would_wait_and_how_many_may(engine: Engine) -> None:
    """Bids are made of it: an engine that promises what it cannot keep loses its reputation."""
    model = chat(engine).model
    await collect(engine, chat(engine))
    idle = engine.status(model)
    async with (
        trio.open_nursery() as nursery,
        aclosing(engine.generate(chat(engine, tokens_max=400))) as generation,
    ):
        await anext(generation)
        running = engine.status(model)
        nursery.start_soon(collect, engine, chat(engine, tokens_max=1))
        await trio.testing.wait_all_tasks_blocked()
        waiting = engine.status(model)

    assert (idle.wait_s, idle.load_s, idle.queue_free) == (0, 0, QUEUE_MAX)
    assert idle.prompt_tokens_per_s > 0
    assert idle.tokens_per_s > 0
    assert (running.slots_free, running.queue_free, waiting.queue_free) == (0, QUEUE_MAX, QUEUE_MAX - 1)
    assert 0 < running.wait_s < waiting.wait_s
    assert engine.status(model).wait_s == 0


async def test_a_request_that_is_closed_while_it_waits_leaves_the_queue(engine: Engine) -> None:
    model = chat(engine).model
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, engine, chat(engine))
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as impatient:
            async with trio.open_nursery() as waiting:
                waiting.start_soon(collect, engine, chat(engine))
                await trio.testing.wait_all_tasks_blocked()
                assert engine.status(model).queued == 1

                impatient.cancel()

        assert engine.status(model).queued == 0
    await collect(engine, chat(engine, tokens_max=1))


# --- adapters --------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Digest, Path]]:
    """Two files, strong enough to change what is said."""
    directory = tmp_path_factory.getbasetemp() / "engine-adapters"
    directory.mkdir(exist_ok=True)
    return [keep(directory, random_adapter(TINY, seed=seed, strength=1.0)) for seed in (1, 2)]


async def test_an_adapter_changes_the_answer_and_leaves_the_base_as_it_was(
    engine: Engine, adapters: list[tuple[Digest, Path]]
) -> None:
    request = chat(engine)
    before = (await collect(engine, request))[:2]
    for digest, path in adapters:
        await engine.load_adapter(request.model, digest, path)

    adapted = [(await collect(engine, replace(request, adapter=digest)))[:2] for digest, _ in adapters]
    again = [(await collect(engine, replace(request, adapter=digest)))[:2] for digest, _ in adapters]
    after = (await collect(engine, request))[:2]

    assert dict(engine.adapters) == {digest: request.model for digest, _ in adapters}
    assert len({text for _, text in (before, *adapted)}) == 3
    assert again == adapted
    assert after == before


async def test_an_adapter_that_is_not_loaded_is_named(
    engine: Engine, adapters: list[tuple[Digest, Path]]
) -> None:
    request = chat(engine)
    (digest, path), _ = adapters

    with pytest.raises(UnknownAdapter, match=digest.hex()[:8]):
        await collect(engine, replace(request, adapter=digest))
    with pytest.raises(UnknownModel, match="07070707"):
        await engine.load_adapter(Digest(b"\7" * 32), digest, path)

    assert engine.adapters == {}
    assert engine.status(request.model).slots_free == 1


async def test_an_unloaded_adapter_takes_no_more_requests_and_ends_those_it_has(
    engine: Engine, adapters: list[tuple[Digest, Path]]
) -> None:
    """Nobody is dropped: what was accepted ends with the adapter it began with."""
    request = replace(chat(engine, tokens_max=12), adapter=adapters[0][0])
    for digest, path in adapters:
        await engine.load_adapter(request.model, digest, path)
    expected = (await collect(engine, request))[:2]

    async with aclosing(engine.generate(request)) as generation:
        frames = []
        async for frame in generation:
            frames.append(frame)
            if isinstance(frame, Tokens):
                engine.unload_adapter(adapters[0][0])

    ids = [token for frame in frames if isinstance(frame, Tokens) for token in frame.ids]
    assert ids == expected[0]
    assert dict(engine.adapters) == {adapters[1][0]: request.model}
    with pytest.raises(UnknownAdapter):
        await collect(engine, request)
    await engine.load_adapter(request.model, *adapters[0])
    assert (await collect(engine, request))[:2] == expected


async def test_an_adapter_is_loaded_beside_a_generation(
    engine: Engine, adapters: list[tuple[Digest, Path]]
) -> None:
    request = chat(engine)
    expected = (await collect(engine, request))[:2]
    ids: list[int] = []

    async with aclosing(engine.generate(request)) as generation:
        async for frame in generation:
            if isinstance(frame, Tokens):
                ids += frame.ids
                await engine.load_adapter(request.model, *adapters[0])

    assert ids == expected[0]
    assert dict(engine.adapters) == {adapters[0][0]: request.model}


async def test_an_interrupted_generation_goes_on_exactly_with_its_adapter(
    engine: Engine, adapters: list[tuple[Digest, Path]]
) -> None:
    request = replace(chat(engine), adapter=adapters[0][0])
    await engine.load_adapter(request.model, *adapters[0])
    ids, _, _ = await collect(engine, request)
    await collect(engine, replace(request, adapter=None))  # leaves another cache for the same prompt

    rest, _, _ = await collect(engine, replace(request, received=tuple(ids[:3])))

    assert ids[:3] + rest == ids


async def test_unloading_what_is_not_loaded_changes_nothing(engine: Engine) -> None:
    engine.unload_adapter(Digest(b"\7" * 32))

    assert engine.adapters == {}
