"""What every engine keeps to beside chats: raw completions, vectors, checks, constraints and log-probabilities."""

import json
import math
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from node.bench import random_gguf
from runtime.echo import EchoEngine, echo_card
from runtime.engine import (
    BadRequest,
    ChatMessage,
    Digest,
    Engine,
    Finished,
    FinishReason,
    Generation,
    Progress,
    PromptTooLong,
    Sampling,
    TokenLogprob,
    Tokens,
)
from runtime.llama.backend import LlamaEngine
from runtime.model_store import ModelStore
from tests.contracts.virtual_time import on_virtual_time

TINY = Path(__file__).parents[2] / "examples" / "tiny_model" / "tiny-q8_0.gguf"
ONE = 1_000_000
STORY = "Tell me a story about a brown dog and a café, please."
RECORD = '{"name": "dog", "age": 7}'
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 1, "maximum": 99},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)
SLOTS = 2


@pytest.fixture(params=["echo", pytest.param("llama", marks=pytest.mark.system)])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "echo":
        on_virtual_time(request)
    return str(request.param)


@pytest.fixture
async def engine(backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    if backend == "echo":
        cards = (
            echo_card(context_tokens=512),
            echo_card(Digest(bytes(31) + b"v"), "vectors", context_tokens=64, dimensions=64),
        )
        yield EchoEngine(cards, seconds_per_token=0.002, prompt_seconds_per_token=0.002, slots=SLOTS)
        return
    directory = tmp_path_factory.getbasetemp() / "engine-tasks"
    store = ModelStore(directory)
    if not store.models:  # the first of these tests
        await store.add(TINY)
        await store.add(random_gguf.write_encoder(tmp_path_factory.getbasetemp() / "encoder.gguf"))
    llama = LlamaEngine(store, slots=SLOTS, context_tokens=512, memory_bytes_max=2 << 30)
    async with trio.open_nursery() as nursery:
        await nursery.start(llama.run)
        yield llama
        nursery.cancel_scope.cancel()


def model(engine: Engine, *, embeds: bool = False) -> Digest:
    return next(digest for digest, card in engine.models.items() if bool(card.dimensions) == embeds)


def chat(engine: Engine, content: str = STORY, tokens_max: int = 48) -> Generation:
    return Generation(model(engine), (ChatMessage("user", content),), tokens_max)


def completion(engine: Engine) -> Generation:
    return replace(chat(engine), task="completion", messages=(), inputs=("Once upon a time",))


def embedding(engine: Engine, *inputs: str) -> Generation:
    digest = model(engine, embeds=True)
    words = len(inputs) * engine.models[digest].dimensions
    return Generation(digest, (), words, task="embedding", inputs=inputs)


def check(request: Generation, claimed: list[int]) -> Generation:
    return replace(request, task="check", claimed=tuple(claimed), tokens_max=len(claimed))


async def frames_of(engine: Engine, request: Generation) -> tuple[list[Tokens], Finished]:
    async with aclosing(engine.generate(request)) as generation:
        frames = [frame async for frame in generation if not isinstance(frame, Progress)]
    *tokens, end = frames
    assert isinstance(end, Finished)
    assert all(isinstance(frame, Tokens) for frame in tokens)
    return [frame for frame in tokens if isinstance(frame, Tokens)], end


async def ids_of(engine: Engine, request: Generation) -> list[int]:
    return [id_ for frame in (await frames_of(engine, request))[0] for id_ in frame.ids]


async def text_of(engine: Engine, request: Generation) -> str:
    frames, end = await frames_of(engine, request)
    return "".join(frame.text for frame in frames) + end.text


# --- completions of raw texts ----------------------------------------------------------------------------------------


async def test_a_raw_text_is_gone_on_from_without_a_template(engine: Engine) -> None:
    as_chat = await frames_of(engine, chat(engine, "Once upon a time"))

    frames, end = await frames_of(engine, completion(engine))

    assert frames
    assert end.completion_tokens == sum(len(frame.ids) for frame in frames)
    assert 0 < end.prompt_tokens < as_chat[1].prompt_tokens


async def test_an_interrupted_completion_goes_on_exactly(engine: Engine) -> None:
    request = completion(engine)
    frames, _ = await frames_of(engine, request)
    whole = await text_of(engine, request)

    for cut in range(0, len(frames) + 1, 3):
        received = tuple(id_ for frame in frames[:cut] for id_ in frame.ids)
        rest = await text_of(engine, replace(request, received=received))
        assert "".join(frame.text for frame in frames[:cut]) + rest == whole


# --- vectors ---------------------------------------------------------------------------------------------------------


async def test_a_text_becomes_a_vector_of_length_one(engine: Engine) -> None:
    request = embedding(engine, "a brown dog", "a brown dog", "something else!")
    size = len(await ids_of(engine, embedding(engine, "a brown dog")))

    frames, end = await frames_of(engine, request)

    words = [id_ for frame in frames for id_ in frame.ids]
    vectors = [
        [word / ONE - 1 for word in words[start : start + size]] for start in range(0, len(words), size)
    ]
    assert size == engine.models[request.model].dimensions
    assert (len(words), len(vectors), end.reason, end.completion_tokens) == (
        3 * size,
        3,
        FinishReason.STOP,
        3 * size,
    )
    assert "".join(frame.text for frame in frames) + end.text == ""
    assert all(math.isclose(math.hypot(*vector), 1, abs_tol=1e-4) for vector in vectors)
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-4)
    assert math.dist(vectors[0], vectors[2]) > 0.05


async def test_interrupted_vectors_go_on_where_they_ended(engine: Engine) -> None:
    """The client has some words of another engine, perhaps in the midst of a vector."""
    request = embedding(engine, "a brown dog", "something else!")
    words = await ids_of(engine, request)

    for cut in (1, 63, 64, 65, 127, 128):
        rest = await ids_of(engine, replace(request, received=tuple(words[:cut])))
        assert rest == pytest.approx(words[cut:], abs=200)


async def test_a_text_over_the_context_is_not_embedded(engine: Engine) -> None:
    with pytest.raises(PromptTooLong, match=r"\d{3,}.*64"):
        await frames_of(engine, embedding(engine, "short", "word " * 200))

    assert engine.status(model(engine, embeds=True)).slots_free == SLOTS


async def test_each_model_does_its_own_tasks_only(engine: Engine) -> None:
    writer, embedder = model(engine), model(engine, embeds=True)

    with pytest.raises(BadRequest, match="task is 'embedding', expected 'chat' or 'completion'"):
        await frames_of(engine, replace(embedding(engine, "a"), model=writer))
    for request in (chat(engine), completion(engine), check(chat(engine), [1])):
        with pytest.raises(
            BadRequest, match=f"task is '{request.task}', expected 'embedding': .* 64 dimensions"
        ):
            await frames_of(engine, replace(request, model=embedder))

    assert engine.status(writer).slots_free == engine.status(embedder).slots_free == SLOTS


# --- checks ----------------------------------------------------------------------------------------------------------


async def test_what_the_engine_says_itself_has_no_gap(engine: Engine) -> None:
    for request in (chat(engine), completion(engine)):
        claimed = await ids_of(engine, request)

        frames, end = await frames_of(engine, check(request, claimed))

        assert [id_ for frame in frames for id_ in frame.ids] == [0] * len(claimed)
        assert (end.reason, end.completion_tokens) == (FinishReason.STOP, len(claimed))
        assert end.prompt_tokens >= (await frames_of(engine, request))[1].prompt_tokens


async def test_what_it_would_not_say_has_a_gap_at_its_place(engine: Engine) -> None:
    claimed = await ids_of(engine, chat(engine))
    other = claimed[:]
    other[3] = claimed[0]

    gaps = await ids_of(engine, check(chat(engine), other))

    assert gaps[:3] == [0, 0, 0]
    assert gaps[3] > 1_000


async def test_an_interrupted_check_goes_on_where_it_ended(engine: Engine) -> None:
    claimed = await ids_of(engine, chat(engine))
    claimed[3] = claimed[0]
    request = check(chat(engine), claimed)
    gaps = await ids_of(engine, request)

    for cut in (1, 3, 4, len(claimed)):
        rest = await ids_of(engine, replace(request, received=tuple(gaps[:cut])))
        assert rest == pytest.approx(gaps[cut:], abs=100)


async def test_a_check_over_the_context_is_refused_with_the_numbers(engine: Engine) -> None:
    token = (await ids_of(engine, chat(engine)))[0]

    with pytest.raises(PromptTooLong, match="500 claimed ones, expected fewer than 512"):
        await frames_of(engine, check(chat(engine), [token] * 500))

    assert engine.status(model(engine)).slots_free == SLOTS


# --- contrasts -------------------------------------------------------------------------------------------------------

APART_MILLI = 400  # of one token, however it was computed: pieces of other lengths round otherwise


async def contrasts_of(engine: Engine, request: Generation) -> list[int]:
    """Return the contrasts; each frame has one for each of its ids."""
    frames, _ = await frames_of(engine, request)
    assert all(len(frame.contrasts) == len(frame.ids) for frame in frames)
    return [each for frame in frames for each in frame.contrasts]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature_ppm=800_000, seed=3),
        Sampling(temperature_ppm=ONE, seed=5, top_k=20, top_p_ppm=900_000, min_p_ppm=10_000),
        Sampling(repeat_penalty_ppm=1_300_000, frequency_penalty_ppm=500_000),
        Sampling(logit_bias=(((1 << 24) + 0x646F67, 2_000),)),
        Sampling(logprobs=True, top_logprobs=3),
    ],
    ids=["greedy", "chance", "chance among few", "penalties", "bias", "logprobs"],
)
async def test_whoever_reads_an_answer_states_what_its_writer_did(engine: Engine, sampling: Sampling) -> None:
    """Whatever was made of the logits before one was drawn: what is stated is what the model computed."""
    if not isinstance(engine, EchoEngine) and sampling.logit_bias:
        sampling = Sampling(logit_bias=((300, 9_000), (5, -9_000)))
    request = replace(chat(engine), sampling=sampling)
    frames, _ = await frames_of(engine, request)

    stated = [each for frame in frames for each in frame.contrasts]
    claimed = [id_ for frame in frames for id_ in frame.ids]
    read = await contrasts_of(engine, check(chat(engine), claimed))

    assert len(stated) == len(claimed) > 8
    assert read == pytest.approx(stated, abs=APART_MILLI)
    assert len(set(stated)) > len(stated) / 2


async def test_a_constrained_answer_states_what_the_model_computed(engine: Engine) -> None:
    request = replace(chat(engine, RECORD, 64), sampling=Sampling(schema=SCHEMA))
    claimed = await ids_of(engine, request)

    read = await contrasts_of(engine, check(chat(engine, RECORD), claimed))

    assert read == pytest.approx(await contrasts_of(engine, request), abs=APART_MILLI)


async def test_a_successor_states_contrasts_of_its_own_tokens_alone(engine: Engine) -> None:
    request = chat(engine)
    claimed, stated = await ids_of(engine, request), await contrasts_of(engine, request)

    rest = await contrasts_of(engine, replace(request, received=tuple(claimed[:7])))

    assert rest == pytest.approx(stated[7:], abs=APART_MILLI)


async def test_an_interrupted_check_goes_on_with_the_contrasts_that_are_missing(engine: Engine) -> None:
    request = check(chat(engine), await ids_of(engine, chat(engine)))
    gaps, contrasts = await ids_of(engine, request), await contrasts_of(engine, request)

    for cut in (1, 4, len(gaps)):
        rest = await contrasts_of(engine, replace(request, received=tuple(gaps[:cut])))
        assert rest == pytest.approx(contrasts[cut:], abs=APART_MILLI)


async def test_a_token_at_another_place_has_another_contrast(engine: Engine) -> None:
    claimed = await ids_of(engine, chat(engine))

    read = await contrasts_of(engine, check(chat(engine), claimed))
    moved = await contrasts_of(engine, check(chat(engine), claimed[1:]))

    apart = [abs(one - other) for one, other in zip(read[1:], moved, strict=True)]
    assert sum(apart) / len(apart) > 1_000


async def test_vectors_have_no_contrasts(engine: Engine) -> None:
    frames, _ = await frames_of(engine, embedding(engine, "a brown dog"))

    assert {frame.contrasts for frame in frames} == {()}


# --- log-probabilities -----------------------------------------------------------------------------------------------


async def test_each_token_has_its_log_probability_if_that_was_asked_for(engine: Engine) -> None:
    plain, _ = await frames_of(engine, chat(engine))
    whole = await text_of(engine, chat(engine))

    frames, _ = await frames_of(
        engine, replace(chat(engine), sampling=Sampling(logprobs=True, top_logprobs=3))
    )

    logprobs = [logprob for frame in frames for logprob in frame.logprobs]
    assert all(frame.logprobs == () for frame in plain)
    assert all(len(frame.logprobs) == len(frame.ids) for frame in frames)
    assert b"".join(logprob.text for logprob in logprobs).decode(errors="ignore") == whole
    assert all(_is_likely(logprob) for logprob in logprobs)


def _is_likely(logprob: TokenLogprob) -> bool:
    """Greedy: it was the likeliest; and the likeliest ones are in order and together not over 1."""
    micronats = [each for _, each in logprob.top]
    total = sum(math.exp(-each / ONE) for each in micronats)
    return (
        logprob.top[0] == (logprob.text, logprob.micronats)
        and micronats == sorted(micronats)
        and total <= 1.0001
    )


async def test_received_tokens_have_no_log_probabilities(engine: Engine) -> None:
    request = replace(chat(engine), sampling=Sampling(logprobs=True))
    frames, _ = await frames_of(engine, request)
    ids = [id_ for frame in frames for id_ in frame.ids]
    logprobs = [logprob for frame in frames for logprob in frame.logprobs]

    rest, _ = await frames_of(engine, replace(request, received=tuple(ids[:5])))

    found = [logprob for frame in rest for logprob in frame.logprobs]
    assert [each.text for each in found] == [each.text for each in logprobs[5:]]
    assert [each.micronats for each in found] == pytest.approx(
        [each.micronats for each in logprobs[5:]], abs=1_000
    )


# --- constraints -----------------------------------------------------------------------------------------------------

CONSTRAINTS = [
    Sampling(schema=SCHEMA),
    Sampling(grammar=r'root ::= "{" ["a-z:, 0-9]{2,60} "}"'),
    Sampling(schema=SCHEMA, temperature_ppm=ONE, seed=7, repeat_penalty_ppm=1_200_000, top_k=50),
]


async def test_a_schema_makes_json_of_the_text(engine: Engine) -> None:
    text = await text_of(engine, replace(chat(engine, RECORD, 64), sampling=Sampling(schema=SCHEMA)))

    found = json.loads(text)
    assert list(found) == ["name", "age"]
    assert len(found["name"]) <= 12
    assert 1 <= found["age"] <= 99


@pytest.mark.parametrize("sampling", CONSTRAINTS)
async def test_an_interrupted_constrained_text_goes_on_exactly(engine: Engine, sampling: Sampling) -> None:
    """The states of grammar and penalties are rebuilt from the ids, at every cut."""
    request = replace(chat(engine, RECORD, 64), sampling=sampling)
    frames, end = await frames_of(engine, request)
    ids = [frame.ids for frame in frames]
    whole = "".join(frame.text for frame in frames) + end.text

    for cut in range(len(frames) + 1):
        received = tuple(id_ for each in ids[:cut] for id_ in each)
        rest = await text_of(engine, replace(request, received=received))
        assert "".join(frame.text for frame in frames[:cut]) + rest == whole


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(grammar="root ::= ("), "grammar line 1: found 'the end', expected"),
        (Sampling(grammar="root ::= " + "(" * 9_000), "grammar nests parentheses deeper than 32"),
        (Sampling(grammar='root ::= root "a" | "b"'), "begins with itself"),
        (Sampling(schema='{"type": "strin"}'), "schema at #/type is 'strin', expected one of"),
        (Sampling(schema='{"$ref": "http://example.org/x"}'), "expected a place in the schema itself"),
        (Sampling(schema="{}", grammar="root ::= x"), "expected one of them at most"),
        (Sampling(logit_bias=((2**31 - 1, 5),)), "logit_bias names token 2147483647"),
    ],
)
async def test_what_cannot_be_kept_is_refused_and_the_others_go_on(
    engine: Engine, sampling: Sampling, message: str
) -> None:
    expected = await ids_of(engine, chat(engine))
    ids: list[int] = []

    async with aclosing(engine.generate(chat(engine))) as generation:
        async for frame in generation:
            if isinstance(frame, Tokens):
                if not ids:
                    with pytest.raises(BadRequest, match=message):
                        await frames_of(engine, replace(chat(engine), sampling=sampling))
                ids += frame.ids

    assert ids == expected
    assert engine.status(model(engine)).slots_free == SLOTS
