"""The engine against llama.cpp's own server, or against the bare library where that is not installed.

Both sides have as many slots, as large a context and as many threads, load the same file of random weights, and take
turns in one run; each round has fresh processes, since where the weights come to lie in memory moves a process's speed
by 10 %.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
import psutil

from node.bench import random_gguf, streams
from node.bench.figure import Figure, at_least, at_most, spread
from node.bench.mesh import THREADS
from node.bench.streams import Question, Stream, Writer, tokens_per_s
from protocol.messages import LoraShape
from runtime import adapter_file, gguf_header

if TYPE_CHECKING:
    from node.bench.figures import Bench

CONTEXT_TOKENS: Final = 256
PROMPT_TOKENS: Final = 32
SHORT_TOKENS: Final = 4
STREAMS: Final = 8
ADAPTERS: Final = 4
RANK: Final = 16
TARGETS: Final = ("attn_q", "attn_v")
WORDS: Final = "the lamp of the old lighthouse turns all night and nobody knows who lit it, "
MB: Final = 1e6

T = TypeVar("T")


def chapter(bench: "Bench") -> Iterator[Figure]:
    """Throughput, waiting beside a long prompt, a session's second turn, adapters, memory."""
    bench.say(f"engine: writing a {bench.sizes.shape_name} model of random weights")
    model = random_gguf.write(bench.directory / "engine.gguf", bench.sizes.shape)
    yield from _throughput(bench, model)
    yield from _beside_a_long_prompt(bench, model)
    yield from _second_turn(bench, model)
    yield from _adapters(bench, model)
    yield from _memory(bench, model)
    model.unlink()


def _throughput(bench: "Bench", model: Path) -> Iterator[Figure]:
    counts, rounds = bench.sizes.engine_streams, bench.sizes.engine_rounds
    ours: dict[int, list[float]] = {count: [] for count in counts}
    theirs: dict[int, list[float]] = {count: [] for count in counts}
    for number in range(rounds):
        with (
            engine_of(bench, model, max(counts), CONTEXT_TOKENS) as engine,
            _peer(model, max(counts), CONTEXT_TOKENS) as peer,
        ):
            for count in counts:
                bench.say(f"engine: {count} streams, round {number + 1} of {rounds}")
                questions = questions_of(f"{number} {count}", count, bench.sizes.engine_tokens)
                mine, other = in_turn(number, engine, peer, questions)
                ours[count].append(tokens_per_s(mine))
                theirs[count].append(tokens_per_s(other))
    for count in counts:
        yield Figure(
            f"engine ÷ {_peer_name()}, {count} streams",
            f"completion tokens/s of {count} streams at once, {PROMPT_TOKENS} prompt and {bench.sizes.engine_tokens} "
            f"completion tokens each, reading the prompts included: the engine with its child ÷ {_peer_name()}; "
            f"{what(bench)}, {max(counts)} slots",
            "",
            [mine / other for mine, other in zip(ours[count], theirs[count], strict=True)],
            target=at_least(1.0),
            note=f"medians: {statistics.median(ours[count]):.1f} tokens/s against "
            f"{statistics.median(theirs[count]):.1f}",
        )


def _beside_a_long_prompt(bench: "Bench", model: Path) -> Iterator[Figure]:
    long_tokens, rounds = bench.sizes.long_prompt_tokens, bench.sizes.long_rounds
    context_tokens = -(-(long_tokens + 64) // CONTEXT_TOKENS) * CONTEXT_TOKENS
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(rounds):
        bench.say(
            f"engine: {STREAMS} streams beside a prompt of {long_tokens}, round {number + 1} of {rounds}"
        )
        long = Question((("user", _text(f"long {number}", long_tokens)),), 1)
        short = questions_of(f"short {number}", STREAMS, SHORT_TOKENS, after_s=bench.sizes.long_head_start_s)
        with (
            engine_of(bench, model, STREAMS + 1, context_tokens) as engine,
            _peer(model, STREAMS + 1, context_tokens) as peer,
        ):
            mine, other = in_turn(number, engine, peer, [long, *short])
        ours.append(_first_p95(mine[1:]))
        theirs.append(_first_p95(other[1:]))
    yield Figure(
        f"first token beside a long prompt, {_peer_name()} ÷ engine",
        f"time to first token, p95 of {STREAMS} streams with prompts of {PROMPT_TOKENS} tokens that are asked "
        f"{bench.sizes.long_head_start_s:g} s after a prompt of {long_tokens}: {_peer_name()}'s ÷ the engine's; "
        f"{what(bench)}, {STREAMS + 1} slots",
        "",
        [other / mine for mine, other in zip(ours, theirs, strict=True)],
        target=at_least(1.5),
        note=f"medians: {statistics.median(ours):.2f} s against {statistics.median(theirs):.2f} s",
    )


def _second_turn(bench: "Bench", model: Path) -> Iterator[Figure]:
    history_tokens, rounds = bench.sizes.history_tokens, bench.sizes.long_rounds
    context_tokens = -(-(history_tokens + 128) // CONTEXT_TOKENS) * CONTEXT_TOKENS
    ratios: list[float] = []
    colds: list[float] = []
    with engine_of(bench, model, 2, context_tokens) as engine:
        for number in range(rounds):
            bench.say(f"engine: second turn of a session, round {number + 1} of {rounds}")
            (cold,) = engine.ask([_two_turns(f"cold {number}", history_tokens)])
            warm_turns = _two_turns(f"warm {number}", history_tokens)
            engine.ask([Question(warm_turns.turns[:1], SHORT_TOKENS)])
            (warm,) = engine.ask([warm_turns])
            colds.append(cold.first_s)
            ratios.append(warm.first_s / cold.first_s)
    yield Figure(
        "second turn of a session, warm ÷ cold",
        f"time to first token of a second turn after {history_tokens} tokens of history that the engine has just read, "
        f"÷ the same with a history that it has not; {what(bench)}",
        "",
        ratios,
        target=at_most(0.15),
        note=f"cold: {statistics.median(colds):.2f} s",
    )


def _adapters(bench: "Bench", model: Path) -> Iterator[Figure]:
    files = _write_adapters(bench.directory, model)
    rounds = bench.sizes.engine_rounds
    ratios: list[float] = []
    speeds: list[float] = []
    with engine_of(bench, model, STREAMS, CONTEXT_TOKENS, files) as engine:
        for number in range(rounds):
            bench.say(f"engine: {ADAPTERS} adapters at once, round {number + 1} of {rounds}")

            def speed(kinds: int, number: int = number) -> float:
                questions = questions_of(
                    f"{kinds} adapters {number}", STREAMS, bench.sizes.engine_tokens, adapters=kinds
                )
                return tokens_per_s(engine.ask(questions))

            mixed, one = _both(number, lambda: speed(ADAPTERS), lambda: speed(1))
            speeds.append(one)
            ratios.append(mixed / one)
    yield Figure(
        f"{ADAPTERS} adapters mixed ÷ one",
        f"completion tokens/s of {STREAMS} streams that use {ADAPTERS} adapters in turn ÷ {STREAMS} streams with one "
        f"(rank {RANK}, {' and '.join(TARGETS)}; a batch has one adapter); {what(bench)}, {STREAMS} slots",
        "",
        ratios,
        target=at_least(0.5),
        note=f"with one adapter {statistics.median(speeds):.1f} tokens/s",
    )


def _memory(bench: "Bench", model: Path) -> Iterator[Figure]:
    slots = 4
    questions = questions_of("memory", slots, bench.sizes.engine_tokens)
    bench.say("engine: memory")
    with engine_of(bench, model, slots, CONTEXT_TOKENS) as engine:
        engine.ask(questions)
        child = psutil.Process(engine.ready["child_pid"]).memory_info().rss
    with streams.bare_batch(model, slots=slots, context_tokens=CONTEXT_TOKENS) as bare:
        bare.ask(questions)
        need = psutil.Process(bare.pid).memory_info().rss - bare.ready["rss_before"]
    yield Figure(
        "memory of the engine's child over llama.cpp's need",
        f"resident memory of the child after {slots} streams, less what a bare process grew by from before it loaded the "
        f"same model until it had answered the same; {what(bench)}, {slots} slots",
        "MB",
        [(child - need) / MB],
        target=at_most(60),
        note=f"{child / MB:,.0f} MB against {need / MB:,.0f} MB",
    )


def in_turn(
    number: int, mine: Writer, other: Writer, questions: Sequence[Question]
) -> tuple[list[Stream], list[Stream]]:
    """Ask both the same, now one first and now the other: neither always has the other's heat before it."""
    return _both(number, lambda: mine.ask(questions), lambda: other.ask(questions))


def _both(number: int, mine: Callable[[], T], other: Callable[[], T]) -> tuple[T, T]:
    if number % 2:
        second = other()
        return mine(), second
    return mine(), other()


def engine_of(
    bench: "Bench", model: Path, slots: int, context_tokens: int, adapters: Sequence[Path] = ()
) -> AbstractContextManager[streams.Helper]:
    """Run the engine; all of them share one store, so that the model is examined once."""
    return streams.engine(
        bench.directory / "engine", model, slots=slots, context_tokens=context_tokens, adapters=adapters
    )


def _peer(model: Path, slots: int, context_tokens: int) -> AbstractContextManager[Writer]:
    if streams.has_server():
        return streams.server(model, slots=slots, context_tokens=context_tokens)
    return streams.bare_batch(model, slots=slots, context_tokens=context_tokens)


def _peer_name() -> str:
    return streams.SERVER if streams.has_server() else "bare library"


def what(bench: "Bench") -> str:
    """Return the conditions that all figures of the engine share."""
    return f"{bench.sizes.shape_name} random-weight Q4_0, greedy, {THREADS} thread(s), without AMX"


def questions_of(
    label: str, count: int, tokens: int, *, after_s: float = 0.0, adapters: int = 0
) -> list[Question]:
    """Return questions that share no beginning, the adapters in turn."""
    return [
        Question(
            (("user", _text(f"{number} {label}", PROMPT_TOKENS)),),
            tokens,
            after_s,
            number % adapters if adapters else -1,
        )
        for number in range(count)
    ]


def _text(label: str, tokens: int) -> str:
    """Return a text of so many tokens (the model's vocabulary is of bytes) that begins as no other label's does.

    Both sides reuse what a slot has read before: digits that count up would be half of a short prompt.
    """
    beginning = sha256(label.encode()).hexdigest()[:8]
    return f"{beginning} {WORDS * (tokens // len(WORDS) + 1)}"[:tokens]


def _two_turns(label: str, history_tokens: int) -> Question:
    history = ("user", _text(label, history_tokens))
    return Question((history, ("assistant", "Nobody."), ("user", "And why not?")), SHORT_TOKENS)


def _first_p95(answers: Sequence[Stream]) -> float:
    return spread([answer.first_s for answer in answers])["p95"]


def _write_adapters(directory: Path, model: Path) -> list[Path]:
    layout = gguf_header.read_layout(model)
    shape = LoraShape(rank=RANK, alpha=2 * RANK, targets=TARGETS)
    files = []
    for seed in range(ADAPTERS):
        rng = np.random.default_rng(seed)
        matrices = {}
        for name, (rows, columns) in layout.shapes.items():
            base = name.removesuffix(".weight")
            if base.split(".")[-1] in TARGETS:
                matrices[f"{base}.lora_a"] = rng.normal(0, columns**-0.5, (RANK, columns)).astype(np.float32)
                matrices[f"{base}.lora_b"] = rng.normal(0, 0.01, (rows, RANK)).astype(np.float32)
        files.append(directory / f"adapter{seed}.gguf")
        files[-1].write_bytes(adapter_file.write(matrices, shape, layout))
    return files
