"""The step loop on the real tiny model: who comes when, and that what is reused changes no answer.

A batch of another shape is rounded otherwise, so answers of jobs that ran beside others are compared by their beginnings.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import pytest

from node.bench import random_gguf
from runtime.llama import wire
from runtime.llama.batching import PASSED_OVER_MAX, SPARE_SEQUENCES, Batcher
from runtime.llama.lowlevel import AbortFlag, FirstError, llama
from runtime.llama.model import PARALLEL_LOGITS_MIN, Model, Row
from runtime.llama.padding import TILE
from runtime.llama.sampling import Sampler
from runtime.llama.template import RenderBounds
from runtime.llama.vocabulary import Vocabulary
from tests.adapter_files import random_adapter
from tests.system.engines import TINY

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

SLOTS = 4
CONTEXT = 512
TOKENS = 12
GREEDY = wire.SamplingParameters(0, 1_000_000, 0, 0, 1_000_000, 0, 0, 0)
STORY = (
    "Tell me a story about the brown dog, the grey teapot, the lighthouse and the small boat that came home. "
)
LONG = STORY * 8
LOG = FirstError()  # C keeps its callback's address for as long as the process lives


@dataclass
class Bench:
    """A batcher, and what it said, by call."""

    batcher: Batcher
    abort: AbortFlag
    adapters: tuple[bytes | None, ...]
    ids: dict[int, list[int]] = field(default_factory=dict)
    ends: dict[int, wire.FromChild] = field(default_factory=dict)
    calls: int = 0

    def admit(self, text: str, *, adapter: bytes | None = None, tokens: int = TOKENS) -> int:
        self.calls += 1
        call = self.calls
        self.ids[call] = []
        request = wire.Generate(call, b"m" * 32, (("user", text),), tokens, GREEDY, (), (), adapter)
        self.hear(self.batcher.admit(request))
        return call

    def step(self) -> None:
        self.hear(self.batcher.step())

    def hear(self, said: list[wire.FromChild]) -> None:
        for message in said:
            if isinstance(message, wire.NewTokens):
                self.ids[message.call] += message.ids
            else:
                self.ends[message.call] = message

    def finish(self) -> None:
        while self.batcher.busy:
            self.step()

    def answer(self, text: str, adapter: bytes | None = None) -> list[int]:
        """Return the answer of a job that runs alone."""
        call = self.admit(text, adapter=adapter)
        self.finish()
        return self.ids[call]

    def cold(self, text: str, adapter: bytes | None = None) -> list[int]:
        self.empty()
        return self.answer(text, adapter)

    def empty(self) -> None:
        """Let the cache hold what it does when a model has just been loaded."""
        self.batcher.cache.forget_all()
        self.batcher.read_opening()

    def computed(self, call: int) -> int:
        """Return how many of a job's prompt tokens were computed for it."""
        done = self.ends[call]
        assert isinstance(done, wire.Done)
        return done.prefill_tokens


@pytest.fixture(scope="module")
def model() -> Iterator[tuple[Batcher, AbortFlag, tuple[bytes | None, ...]]]:
    llama.llama_backend_init()
    abort = AbortFlag()
    loaded = Model(
        str(TINY),
        context_tokens=CONTEXT,
        slots=SLOTS,
        threads=1,
        abort=abort,
        log=LOG,
        bounds=RenderBounds(),
        spare=SPARE_SEQUENCES,
    )
    adapters = []
    for seed in range(2):
        data = random_adapter(TINY, seed=seed, strength=0.02)
        adapters.append(sha256(data).digest())
        loaded.load_adapter(adapters[-1], data)
    batcher = Batcher(loaded, SLOTS)
    yield batcher, abort, (None, *adapters)
    batcher.close()


@pytest.fixture
def bench(model: tuple[Batcher, AbortFlag, tuple[bytes | None, ...]]) -> Iterator[Bench]:
    batcher, abort, adapters = model
    bench = Bench(batcher, abort, adapters)
    bench.empty()
    yield bench
    for job in list(batcher.jobs):
        batcher.cancel(job.call)


def test_a_warm_prompt_is_answered_as_a_cold_one_bit_for_bit(bench: Bench) -> None:
    """One job at a time: whole chunks are kept, so the cache is filled in the same pieces."""
    cold = bench.cold(LONG)

    again = bench.admit(LONG)
    bench.finish()
    longer = bench.admit(f"{LONG} And then?")
    bench.finish()

    assert bench.ids[again] == cold
    assert bench.computed(again) <= bench.batcher.model.chunk_tokens
    assert bench.ids[longer] == bench.cold(f"{LONG} And then?")


def test_the_opening_of_every_chat_is_computed_once_and_changes_no_answer(bench: Bench) -> None:
    """When the model is loaded. Whoever finds it undone, or aborted, computes it first, and as a piece of its own."""
    opening = bench.batcher.cache.opening
    ready = bench.admit(LONG)
    bench.finish()
    bench.batcher.cache.forget_all()
    bench.abort.set()
    bench.batcher.read_opening()
    bench.abort.clear()
    undone = bench.admit(LONG)
    bench.finish()

    assert opening
    assert bench.computed(undone) == bench.computed(ready) + len(opening)
    assert bench.ids[undone] == bench.ids[ready]


def test_a_last_piece_is_made_up_to_a_tile_however_full_the_cache_is(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactness is the same batches everywhere: rows that are added need no cell that another could have taken."""
    model = bench.batcher.model
    decode, sizes = model.decode, list[int]()

    def watched(rows: list[Row]) -> None:
        sizes.append(len(rows))
        decode(rows)

    bench.empty()
    monkeypatch.setattr(model, "decode", watched)
    far = STORY * 10
    cold = bench.answer(far)
    prompt = sizes[: len(sizes) - len(cold) + 1]  # the first token is drawn from its last batch
    bench.empty()
    for number in range(SLOTS):
        bench.answer(f"{number} {far}")
    bench.answer(f"Now: {STORY * 4}")
    bench.answer(f"Then: {STORY}")
    held = sum(len(each.cached) for each in bench.batcher.cache.sequences)
    sizes.clear()

    again = bench.answer(far)

    assert model.cells - held < TILE
    assert prompt == [TILE] * len(prompt)
    assert sizes == [*prompt, *[1] * (len(cold) - 1)]
    assert again == cold


@pytest.mark.parametrize("seed", range(6))
def test_answers_with_reuse_are_the_answers_without(bench: Bench, seed: int) -> None:
    """Shared beginnings, adapters in turn, cancelled jobs, aborted steps, and a cache that is too small for it all."""
    rng = random.Random(seed)
    questions = [f"{STORY * count}{end}" for count in (0, 2, 4) for end in ("Why?", "Who was it?", "Go on.")]
    wanted = {(text, adapter): bench.cold(text, adapter) for text in questions for adapter in bench.adapters}
    bench.empty()
    asked: dict[int, tuple[str, bytes | None]] = {}
    cancelled: set[int] = set()
    reused = 0
    while len(asked) < 60 or bench.batcher.busy:
        if len(asked) < 60 and len(bench.batcher.jobs) < SLOTS and rng.random() < 0.4:
            key = rng.choice(list(wanted))
            asked[bench.admit(key[0], adapter=key[1])] = key
        if not bench.batcher.busy:
            continue
        if rng.random() < 0.05:
            dropped = rng.choice(bench.batcher.jobs)
            cancelled.add(dropped.call)
            bench.batcher.cancel(dropped.call)
            continue
        if rng.random() < 0.1:
            bench.abort.set()
        bench.step()
        bench.abort.clear()
        reused += sum(job.reused_tokens for job in bench.batcher.jobs)

    assert reused > 0
    assert cancelled
    for call, key in asked.items():
        if call not in cancelled:
            assert bench.ids[call][:TOKENS] == wanted[key][:TOKENS], (call, key)


def test_twins_that_come_together_compute_what_they_share_once(bench: Bench) -> None:
    calls = [bench.admit(f"{LONG}{end}") for end in ("Why?", "Who?", "When?", "Where?")]

    bench.finish()

    chunk = bench.batcher.model.chunk_tokens
    first, *others = sorted((bench.computed(call) for call in calls), reverse=True)
    assert first > 3 * chunk
    assert all(count <= chunk for count in others)


def test_a_twin_whose_leader_is_cancelled_goes_on_from_what_it_left(bench: Bench) -> None:
    leader = bench.admit(f"{LONG}Why?")
    twin = bench.admit(f"{LONG}Who?")
    bench.step()

    bench.batcher.cancel(leader)
    bench.finish()

    prompt = bench.ends[twin]
    assert isinstance(prompt, wire.Done)
    had = len(bench.batcher.cache.opening) + bench.batcher.model.chunk_tokens
    assert bench.computed(twin) == prompt.prompt_tokens - had
    assert bench.ids[twin] == bench.cold(f"{LONG}Who?")


def test_twins_with_other_adapters_share_nothing(bench: Bench) -> None:
    calls = [bench.admit(LONG, adapter=adapter) for adapter in bench.adapters]

    bench.finish()

    base, *others = [bench.computed(call) for call in calls]
    assert set(others) == {base + len(bench.batcher.cache.opening)}
    assert base > bench.batcher.model.chunk_tokens


def test_tokens_drawn_in_threads_are_those_drawn_one_after_another(tmp_path: Path) -> None:
    """With a vocabulary that is worth it; each with its own seed and penalties."""
    shape = replace(random_gguf.TINY, vocabulary=PARALLEL_LOGITS_MIN // 2)
    model = Model(
        str(random_gguf.write(tmp_path / "many-words.gguf", shape)),
        context_tokens=64,
        slots=SLOTS,
        threads=1,
        abort=AbortFlag(),
        log=LOG,
        bounds=RenderBounds(),
    )
    rows = [Row(number + 5, 0, number, output=True) for number in range(SLOTS)]

    def drawn(*, in_threads: bool) -> list[list[int]]:
        samplers = [sampler(model, number) for number in range(SLOTS)]
        draws = [(each.chain, row) for row, each in enumerate(samplers)]
        tokens = []
        for _ in range(3):
            many = model.sample_all(draws) if in_threads else [model.sample(*draw) for draw in draws]
            tokens.append(many)
            for each in samplers:
                each.drawn()
        for each in samplers:
            each.close()
        return tokens

    try:
        model.decode(rows)
        one_by_one, in_threads = drawn(in_threads=False), drawn(in_threads=True)
    finally:
        model.close()

    assert in_threads == one_by_one
    assert len({token for tokens in one_by_one for token in tokens}) > SLOTS


def sampler(model: Model, seed: int) -> Sampler:
    parameters = wire.SamplingParameters(1_000_000, 1_000_000, 0, 0, 1_100_000, 0, 0, seed)
    return Sampler(
        parameters, model.vocabulary_size, 8, lambda: Vocabulary(0, lambda _: b"", lambda _: False)
    )


def test_a_short_prompt_is_not_stuck_behind_a_long_one(bench: Bench) -> None:
    long = bench.admit(LONG)
    bench.step()

    short = bench.admit("Why?")
    bench.step()

    assert len(bench.ids[short]) == 1
    assert bench.ids[long] == []


def test_a_long_prompt_is_read_however_many_short_ones_come(bench: Bench) -> None:
    long = bench.admit(LONG)
    chunks = -(-bench.batcher.jobs[0].prompt_tokens // bench.batcher.model.chunk_tokens)
    steps = 0
    while not bench.ids[long]:
        while len(bench.batcher.jobs) < SLOTS:
            bench.admit(f"{steps} {STORY}", tokens=1)
        bench.step()
        steps += 1

    assert steps <= (chunks + 1) * (PASSED_OVER_MAX + 1)


def test_streams_that_come_together_go_on_in_step(bench: Bench) -> None:
    """Who is first has his first token at once; the second comes when all of them are read."""
    calls = [bench.admit(f"{number} {STORY}") for number in range(SLOTS)]
    while not all(bench.ids[call] for call in calls):
        bench.step()
        assert all(len(bench.ids[call]) <= 1 for call in calls)
    bench.step()

    assert [len(bench.ids[call]) for call in calls] == [2] * SLOTS


def test_a_stream_gets_a_token_with_every_chunk_that_is_read_beside_it(bench: Bench) -> None:
    stream = bench.admit("Tell me a story.", tokens=40)
    bench.step()
    bench.admit(LONG)
    bench.admit(f"Now. {LONG}")

    for number in range(2, 8):
        bench.step()
        assert len(bench.ids[stream]) == number
