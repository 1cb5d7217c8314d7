"""Constraints, log-probabilities, vectors and checks in the real child: hostile ones end nobody, exact ones are exact."""

import json
import math
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import trio

from node.bench import random_gguf
from runtime.engine import (
    BadRequest,
    ChatMessage,
    Digest,
    EngineError,
    Finished,
    Generation,
    Progress,
    Sampling,
    Tokens,
)
from runtime.llama.backend import LlamaEngine
from runtime.llama.candidates import draw_fitting
from runtime.llama.constraint import Constraint
from runtime.llama.grammar import parse
from runtime.llama.vocabulary import Guide, Vocabulary
from runtime.model_store import ModelStore
from tests.gguf_files import poison, slow_model

pytestmark = pytest.mark.system

TINY = Path(__file__).parents[2] / "examples" / "tiny_model" / "tiny-q8_0.gguf"
STORY = (ChatMessage("user", "Tell me a story about a brown dog and a café, please."),)
DOUBLING = 'root ::= x\nx ::= "a" x "b" | "a" x "c" | ""'  # twice as many ways with every "a"
ONE = 1_000_000


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[LlamaEngine]:
    store = ModelStore(tmp_path / "models")
    await store.add(TINY)
    async with running(store) as engine:
        yield engine


class running:  # noqa: N801  (read as a word: `async with running(store)`)
    """An engine with two slots, for the length of a block."""

    def __init__(self, store: ModelStore, slots: int = 2, context_tokens: int = 512) -> None:
        self._engine = LlamaEngine(
            store, slots=slots, context_tokens=context_tokens, memory_bytes_max=2 << 30
        )
        self._nursery = trio.open_nursery()

    async def __aenter__(self) -> LlamaEngine:
        self._tasks = await self._nursery.__aenter__()
        await self._tasks.start(self._engine.run)
        return self._engine

    async def __aexit__(self, *error: object) -> None:
        self._tasks.cancel_scope.cancel()
        await self._nursery.__aexit__(None, None, None)


def chat(engine: LlamaEngine, tokens_max: int = 48, **sampling: object) -> Generation:
    return Generation(next(iter(engine.models)), STORY, tokens_max, Sampling(**sampling))  # type: ignore[arg-type]


async def said(engine: LlamaEngine, request: Generation) -> tuple[list[Tokens], str]:
    async with aclosing(engine.generate(request)) as generation:
        frames = [frame async for frame in generation if not isinstance(frame, Progress)]
    tokens = [frame for frame in frames if isinstance(frame, Tokens)]
    assert isinstance(frames[-1], Finished)
    return tokens, "".join(frame.text for frame in tokens) + frames[-1].text


def ids_of(frames: list[Tokens]) -> list[int]:
    return [id_ for frame in frames for id_ in frame.ids]


# --- hostile constraints ---------------------------------------------------------------------------------------------

LETTERS = "abcxyz01"
HOSTILE = [
    *(Sampling(grammar=text) for text in (
        "", "\0", "root", "root ::=", "root ::= \0", "root ::= \ufffe", 'root ::= "\\U00110000"',
        "root ::= " + "(" * 16_000,
        "root ::= " + "[" * 16_000,
        "root ::= " + '"a"?' * 4_000,
        "root ::= " + '("a"*)' * 2_000 + "+",
        "root ::= " + '"a"{2048}' * 1_800,
        "root ::= " + "(" * 30 + '"a"' + "){2048}" * 30,
        "root ::= " + ".{2048} " * 60,
        "root ::= root", "root ::= root root", "root ::= x*\nx ::= y*\ny ::= x*",
        "".join(f"r{i} ::= r{i + 1} r{i + 1}\n" for i in range(600)) + 'root ::= r0\nr600 ::= "a"',
        "".join(f"r{i} ::= r{i + 1}? r{i + 1}?\n" for i in range(300)) + 'root ::= r0\nr300 ::= "a"',
        DOUBLING, 'root ::= x\nx ::= "a" x x | "a"', 'root ::= ("a" | "a" | "aa")*', 'root ::= "\\x00"+', "root ::= [^\\x00-\\U0010FFFF]",
        'root ::= "' + "é" * 8_000 + '"',
        r"root ::= [\U0010FFFF]",
    )),
    *(Sampling(schema=text) for text in (
        "[" * 16_000, '{"a":' * 3_000, "{", "null", "1e999", '{"$ref": "#"}', '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}',
        json.dumps({"anyOf": [{"type": "string", "maxLength": 2_048 - i} for i in range(200)]}),
        json.dumps({"properties": {f"p{i}": {} for i in range(700)}}),
        json.dumps({"enum": ["x" * 7_000, "y" * 7_000]}),
        json.dumps({"type": "string", "pattern": "^" + "(a|aa)*" * 1_000 + "$"}),
        json.dumps({"type": "string", "pattern": "^(a*)*$"}),
        json.dumps({"type": "string", "pattern": "(" * 8_000}),
        json.dumps({"type": "array", "items": {"type": "array", "items": {"type": "array", "minItems": 2_048}, "minItems": 2_048}, "minItems": 2_048}),
        '{"type": "integer", "minimum": ' + "9" * 5_000 + "}",
        '{"const": "\\ud800"}',
    )),
]  # fmt: skip


def random_constraint(rng: random.Random) -> Sampling:
    """A grammar or schema that nearly is one: pieces of real ones, in any order."""
    if rng.random() < 0.5:
        parts = [
            "root ::= ",
            "x ::= ",
            "\n",
            '"a"',
            "[a-z]",
            "[^b]",
            "(",
            ")",
            "|",
            "*",
            "+",
            "?",
            "{2,9}",
            "x",
            "root",
            ".",
            '""',
            " ",
        ]
        text = "root ::= " + "".join(rng.choices(parts, k=rng.randint(1, 40)))
        return Sampling(grammar=text + rng.choice(["", '\nx ::= "b" x? | "c"', "\nx ::= [0-9]{1,3} x"]))

    def schema(depth: int) -> object:
        kind = rng.choice(["object", "array", "string", "integer", "number", "anyOf", "enum", "$ref", "any"])
        if depth == 0 or kind == "any":
            return rng.choice([{}, True, {"type": "null"}, {"type": rng.choice(["string", 3, None])}])
        if kind == "anyOf":
            return {kind: [schema(depth - 1) for _ in range(rng.randint(0, 3))]}
        if kind == "enum":
            return {kind: [rng.choice(["a", 1, None, {"b": [2]}]) for _ in range(rng.randint(0, 3))]}
        if kind == "$ref":
            return {kind: rng.choice(["#", "#/properties/a", "#/items", "#/x"])}
        bounds = {
            name: rng.choice([-1, 0, 2, 30, 5_000])
            for name in ("minItems", "maxLength", "minimum", "maximum")
            if rng.random() < 0.3
        }
        return {"type": kind, **bounds} | ({"properties": {key: schema(depth - 1) for key in "abc"}, "required": ["a"]} if kind == "object" else {}) | (
            {"items": schema(depth - 1)} if kind == "array" else {}
        )  # fmt: skip

    return Sampling(schema=json.dumps(schema(4)))


async def was_refused(engine: LlamaEngine, request: Generation) -> bool:
    try:
        await said(engine, request)
    except BadRequest:
        return True
    return False


async def test_no_constraint_ends_the_child_or_disturbs_the_others(engine: LlamaEngine) -> None:
    """llama.cpp's grammars abort, overflow the stack, crash on NULL and take exponential time; ours only refuse."""
    expected = ids_of((await said(engine, chat(engine)))[0])
    pid = engine.child_pid
    rng = random.Random(5)
    outcomes = []

    for sampling in [*HOSTILE, *(random_constraint(rng) for _ in range(150))]:
        request = replace(chat(engine, tokens_max=24), sampling=replace(sampling, temperature_ppm=ONE))
        with trio.fail_after(20):
            outcomes.append(await was_refused(engine, request))

    assert engine.child_pid == pid
    assert ids_of((await said(engine, chat(engine)))[0]) == expected
    assert min(outcomes.count(True), outcomes.count(False)) > 20


async def test_a_text_that_becomes_too_ambiguous_ends_alone(engine: LlamaEngine) -> None:
    """In mid-text, in a batch with another one."""
    expected = ids_of((await said(engine, chat(engine)))[0])
    refusals: list[BadRequest] = []

    async def ask() -> None:
        bias = tuple((token, 100_000) for token in a_tokens)
        with pytest.raises(BadRequest, match=r"too ambiguous|takes over") as refusal:
            await said(engine, chat(engine, grammar=DOUBLING, logit_bias=bias))
        refusals.append(refusal.value)

    frames, _ = await said(engine, chat(engine, tokens_max=1, grammar='root ::= "a"'))
    a_tokens = ids_of(frames)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        beside, _ = await said(engine, chat(engine))

    assert len(refusals) == 1
    assert (
        ids_of(beside)[:8] == expected[:8]
    )  # later ones may be rounded otherwise in a batch of another shape
    assert engine.status(next(iter(engine.models))).slots_free == 2


# --- drawing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature_ppm=ONE, seed=11, min_p_ppm=20_000, top_p_ppm=950_000, frequency_penalty_ppm=500_000),
        Sampling(repeat_penalty_ppm=1_300_000, presence_penalty_ppm=400_000),
        Sampling(grammar='root ::= (("The " | "A ") [a-z]{2,8} " "){3,9} "."'),
        Sampling(schema='{"type": "array", "items": {"type": "number"}, "minItems": 3}', temperature_ppm=ONE, seed=3),
    ],
)  # fmt: skip
async def test_a_text_cut_at_every_token_goes_on_exactly(engine: LlamaEngine, sampling: Sampling) -> None:
    request = chat(engine, tokens_max=40)
    request = replace(request, sampling=sampling)
    frames, whole = await said(engine, request)
    ids = ids_of(frames)

    for cut in range(len(ids) + 1):
        rest, _ = await said(engine, replace(request, received=tuple(ids[:cut])))
        assert ids[:cut] + ids_of(rest) == ids
    assert len(whole) > 10


async def test_a_constraint_changes_nothing_where_the_text_keeps_it(engine: LlamaEngine) -> None:
    frames, _ = await said(engine, chat(engine))

    free, _ = await said(engine, chat(engine, grammar="root ::= .*"))

    assert ids_of(free) == ids_of(frames)


def test_a_text_that_no_token_goes_on_with_is_refused() -> None:
    """The grammar wants what this vocabulary cannot write; no chain is asked to draw from nothing, which would crash."""
    vocabulary = Vocabulary(3, [b"a", b"b", b""].__getitem__, lambda token: token == 2)
    guide = Guide(vocabulary, Constraint(parse('root ::= "x"')))

    with pytest.raises(BadRequest, match="no token of this model's vocabulary goes on"):
        draw_fitting(None, np.zeros(3, dtype=np.float32), (), guide)


async def test_a_received_token_outside_of_the_constraint_is_refused(engine: LlamaEngine) -> None:
    ids = ids_of((await said(engine, chat(engine)))[0])

    with pytest.raises(BadRequest, match=f"received token {ids[0]} does not fit the grammar or schema"):
        await said(engine, replace(chat(engine, grammar='root ::= "?"+'), received=(ids[0],)))

    assert engine.status(next(iter(engine.models))).slots_free == 2


async def test_a_bias_bans_and_forces_tokens(engine: LlamaEngine) -> None:
    first = ids_of((await said(engine, chat(engine, tokens_max=1)))[0])[0]

    banned = ids_of((await said(engine, chat(engine, tokens_max=8, logit_bias=((first, -100_000),))))[0])
    forced = ids_of((await said(engine, chat(engine, tokens_max=8, logit_bias=((first, 100_000),))))[0])

    assert first not in banned
    assert forced == [first] * 8


async def test_log_probabilities_and_gaps_tell_the_same(engine: LlamaEngine) -> None:
    """Two ways to the same numbers: the likeliest tokens beside each drawn one, and a check that claims the second best."""
    frames, _ = await said(engine, chat(engine, tokens_max=1, logprobs=True, top_logprobs=20))
    ((logprob,),) = [frame.logprobs for frame in frames]
    second = await said(engine, chat(engine, tokens_max=1, logit_bias=((frames[0].ids[0], -100_000),)))
    claimed = tuple(ids_of(second[0]))

    gaps, _ = await said(engine, replace(chat(engine, tokens_max=1), task="check", claimed=claimed))

    (best, best_nats), (_, next_nats) = logprob.top[:2]
    assert (len(logprob.top), best, best_nats) == (20, logprob.text, logprob.micronats)
    assert gaps[0].ids[0] == pytest.approx((next_nats - best_nats) / 1_000, abs=2)
    assert sum(math.exp(-nats / ONE) for _, nats in logprob.top) <= 1.0001


async def test_log_probabilities_are_of_the_raw_distribution(engine: LlamaEngine) -> None:
    plain, _ = await said(engine, chat(engine, tokens_max=1, logprobs=True, top_logprobs=5))

    changed, _ = await said(
        engine,
        chat(
            engine, tokens_max=1, logprobs=True, top_logprobs=5, temperature_ppm=1_900_000, top_k=3,
            logit_bias=((plain[0].ids[0], 3_000),),
        ),
    )  # fmt: skip

    assert changed[0].logprobs[0].top == plain[0].logprobs[0].top


# --- checks and vectors beside others --------------------------------------------------------------------------------


async def test_a_check_yields_to_a_stream(tmp_path: Path) -> None:
    """It is read in chunks, like a prompt: a stream goes on in between."""
    store = ModelStore(tmp_path / "models")
    await store.add(slow_model(tmp_path / "slow.gguf"))
    async with running(store, context_tokens=4_096) as engine:
        order: list[str] = []

        begun = trio.Event()

        async def ask(name: str, request: Generation) -> None:
            async with aclosing(engine.generate(request)) as generation:
                async for frame in generation:
                    if isinstance(frame, Tokens):
                        order.append(name)
                        begun.set()
            nursery.cancel_scope.cancel()

        stream = chat(engine, tokens_max=4_000)
        long_check = replace(stream, task="check", claimed=(40,) * 600, tokens_max=600)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "stream", stream)
            await begun.wait()
            nursery.start_soon(ask, "check", long_check)

    first, last = order.index("check"), len(order) - order[::-1].index("check")
    assert order[first:last].count("stream") >= 5


@pytest.mark.parametrize("task", ["check", "embedding"])
async def test_a_task_that_only_reads_can_be_cancelled(tmp_path: Path, task: str) -> None:
    store = ModelStore(tmp_path / "models")
    pooling = gguf.PoolingType.MEAN if task == "embedding" else None
    await store.add(random_gguf.write(tmp_path / "slow.gguf", random_gguf.SLOW, pooling=pooling))
    async with running(store, slots=1, context_tokens=4_096) as engine:
        digest = Digest(next(iter(engine.models)))
        request = Generation(digest, (), 20 * 512, task="embedding", inputs=("x" * 500,) * 20)
        small = replace(request, inputs=("x",), tokens_max=512)
        if task == "check":
            small = chat(engine, tokens_max=1)
            request = Generation(digest, STORY, 3_900, task="check", claimed=(40,) * 3_900)
        async with aclosing(engine.generate(request)) as generation:
            async for frame in generation:
                if isinstance(frame, Tokens):
                    break

        with trio.fail_after(2):
            await said(engine, small)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
async def test_a_vector_that_is_not_finite_is_refused_where_the_model_is_added(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "damaged.gguf"
    if kind == "encoder":
        random_gguf.write_encoder(path)
    else:
        random_gguf.write(path, random_gguf.TINY, pooling=gguf.PoolingType.LAST)
    store = ModelStore(tmp_path / "models")

    with pytest.raises(EngineError, match="not finite"):
        await store.add(poison(path))

    assert store.models == {}


async def test_a_vector_is_the_same_alone_and_among_others(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    await store.add(random_gguf.write_encoder(tmp_path / "encoder.gguf"))
    texts = tuple(f"text number {i} of some" for i in range(40))
    async with running(store) as engine:
        digest = next(iter(engine.models))
        together, _ = await said(engine, Generation(digest, (), 64 * 40, task="embedding", inputs=texts))
        alone, _ = await said(engine, Generation(digest, (), 64, task="embedding", inputs=texts[33:34]))

    assert ids_of(together)[33 * 64 : 34 * 64] == pytest.approx(ids_of(alone), abs=200)
