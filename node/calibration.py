"""Calibration: how far honest computations of one model are apart on this device, so that checks accuse nobody of rounding.

The same answers are made in every way in which a seller may make them, and read in every way in which a checker may:

    made    one at a time │ together with others │ from the middle on, with the first half received
    read    one at a time │ together with others, with the beginning in the cache

The gaps of honest answers are one measure. They are nearly all zero, since engines rarely disagree on the likeliest token.
So a second measure uses places where the claimed token is close to the likeliest: there two readings of one gap show at
every token by how much they differ. The larger of the two counts.

Contrasts show at every token anyway. What counts is the answer that drifts most, of all answers made and read in all ways.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from random import Random
from typing import Final, TypeVar

import trio

from marketplace.verification import Reading, drift
from node.tolerances import Calibration
from runtime.engine import ChatMessage, Digest, Engine, Generation, Tokens

TOKENS: Final = 64  # of each answer
SWAPPED_EVERY: Final = (
    4  # tokens; it makes the text strange, and margins small, which is where rounding shows
)
NEAR_MILLI: Final = (
    2_000  # a token further down is the likeliest one to no honest engine, however that rounds
)
# Open questions: what a model knows by heart it says with a margin that no rounding reaches.
QUESTIONS: Final = (
    "Tell me a story about a lighthouse and a lost key.",
    "Why is the sky blue?",
    "List five things that one might find in a garden shed.",
    "Write a short letter to a friend who has moved away.",
    "What is the difference between a river and a canal?",
    "Explain to a child how a clock works.",
    "Describe a market in the early morning.",
    "How would you repair a chair with a broken leg?",
    "What could the word 'harbour' mean in a poem?",
    "Compare tea and coffee.",
    "Give me three reasons to learn to swim.",
    "Continue: the train had already left when",
)
Say = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """An answer as its buyer has it.

    Attributes:
        ids: of all its tokens.
        stated: the contrasts of those that its last seller wrote.
    """

    ids: tuple[int, ...]
    stated: tuple[int, ...]


async def calibrate(
    engine: Engine, model: Digest, *, now_s: float, say: Say = lambda _text: None
) -> Calibration:
    """Measure a model that the engine holds and that writes.

    Args:
        engine: running; best with nothing else to do.
        model: its digest.
        now_s: Unix seconds, for the record.
        say: told what goes on.

    Raises:
        EngineError: the engine cannot.
    """
    prompts = [(ChatMessage("user", question),) for question in QUESTIONS]
    slots = max(1, engine.status(model).slots)
    say("writing, one answer at a time")
    alone = [await _write(engine, model, prompt) for prompt in prompts]
    say("writing, all answers together")
    together = await _at_once(slots, [partial(_write, engine, model, prompt) for prompt in prompts])
    say("writing from the middle on")
    resumed = [
        await _write(engine, model, prompt, answer.ids[: len(answer.ids) // 2])
        for prompt, answer in zip(prompts, alone, strict=True)
    ]
    say("reading the answers")
    made = [*zip(prompts * 3, (*alone, *together, *resumed), strict=True)]
    honest = [await _read(engine, model, prompt, answer.ids) for prompt, answer in made]
    beside = await _at_once(
        slots, [partial(_read, engine, model, prompt, answer.ids) for prompt, answer in made]
    )
    say("reading strange answers in two ways")
    strange = [*zip(prompts, _swapped([answer.ids for answer in alone]), strict=True)]
    first = [await _read(engine, model, prompt, ids) for prompt, ids in strange]
    again = [await _read(engine, model, prompt, ids) for prompt, ids in strange]
    crowded = await _at_once(slots, [partial(_read, engine, model, prompt, ids) for prompt, ids in strange])
    gaps = [gap for reading in honest for gap in reading.gaps_milli]
    apart = [
        abs(one - other)
        for others in (again, crowded)
        for reading, another in zip(first, others, strict=True)
        for one, other in zip(reading.gaps_milli, another.gaps_milli, strict=True)
        if min(one, other) <= NEAR_MILLI
    ]
    drifts = [
        drift(answer.stated, reading.last(len(answer.stated)).contrasts_milli)
        for readings in (honest, beside)
        for (_, answer), reading in zip(made, readings, strict=True)
    ]
    drifts += [
        drift(reading.contrasts_milli, another.contrasts_milli)
        for others in (again, crowded)
        for reading, another in zip(first, others, strict=True)
    ]
    return Calibration(
        tokens=len(gaps) + len(apart),
        apart_milli=max((*gaps, *apart), default=0),
        drift_milli=max((each for each in drifts if each is not None), default=None),
        measured_at=now_s,
    )


async def _write(
    engine: Engine, model: Digest, prompt: tuple[ChatMessage, ...], received: tuple[int, ...] = ()
) -> Answer:
    """Return the greedy answer, those tokens that were received counted in."""
    wanted = Generation(model, prompt, tokens_max=TOKENS, received=received)
    ids, stated = await _said(engine, wanted)
    return Answer((*received, *ids), stated)


async def _read(
    engine: Engine, model: Digest, prompt: tuple[ChatMessage, ...], claimed: tuple[int, ...]
) -> Reading:
    """Return what the engine says of each claimed token."""
    if not claimed:
        return Reading((), ())
    wanted = Generation(model, prompt, tokens_max=len(claimed), task="check", claimed=claimed)
    return Reading(*await _said(engine, wanted))


async def _said(engine: Engine, wanted: Generation) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids, or the words, and the contrasts of a generation."""
    ids: list[int] = []
    contrasts: list[int] = []
    async with aclosing(engine.generate(wanted)) as frames:
        async for frame in frames:
            if isinstance(frame, Tokens):
                ids.extend(frame.ids)
                contrasts.extend(frame.contrasts)
    return tuple(ids), tuple(contrasts)


async def _at_once(slots: int, calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Make calls together, so many at a time, and return their results in order."""
    results: dict[int, T] = {}
    limit = trio.CapacityLimiter(slots)

    async def make(number: int) -> None:
        async with limit:
            results[number] = await calls[number]()

    async with trio.open_nursery() as nursery:
        for number in range(len(calls)):
            nursery.start_soon(make, number)
    return [results[number] for number in range(len(calls))]


def _swapped(answers: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return the answers with tokens of each other strewn in."""
    rng = Random(0)  # noqa: S311  # the same ones each time, so that two devices can be compared
    known = sorted(set(chain.from_iterable(answers)))
    return [
        tuple(
            rng.choice(known) if place % SWAPPED_EVERY == SWAPPED_EVERY - 1 else token
            for place, token in enumerate(answer)
        )
        for answer in answers
    ]
