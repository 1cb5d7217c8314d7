"""Calibration: how far honest computations of one model are apart on this device, so that checks accuse nobody of rounding.

The same answers are made in every way in which a seller may make them, and read in every way in which a checker may:

    made    one at a time │ together with others │ from the middle on, with the first half received
    read    one at a time │ together with others │ again, with the beginning in the cache

The gaps of honest answers are one measure. They are nearly all zero, since engines rarely disagree on the likeliest token.
So a second measure uses places where the claimed token is close to the likeliest: there two readings of one gap show at
every token by how much they differ. The larger of the two counts.
"""

from collections.abc import Callable, Sequence
from contextlib import aclosing
from itertools import chain
from random import Random
from typing import Final

import trio

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
    say("writing, one answer at a time")
    alone = [await _write(engine, model, prompt) for prompt in prompts]
    say("writing, all answers together")
    together = await _at_once(engine, model, [(_write, (prompt,)) for prompt in prompts])
    say("writing from the middle on")
    resumed = [
        await _write(engine, model, prompt, answer[: len(answer) // 2])
        for prompt, answer in zip(prompts, alone, strict=True)
    ]
    say("reading the answers")
    honest: list[int] = []
    for answers in (alone, together, resumed):
        for prompt, answer in zip(prompts, answers, strict=True):
            honest += await _read(engine, model, prompt, answer)
    say("reading strange answers in two ways")
    strange = _swapped(alone)
    first = [
        await _read(engine, model, prompt, answer) for prompt, answer in zip(prompts, strange, strict=True)
    ]
    again = [
        await _read(engine, model, prompt, answer) for prompt, answer in zip(prompts, strange, strict=True)
    ]
    crowded = await _at_once(
        engine, model, [(_read, (prompt, answer)) for prompt, answer in zip(prompts, strange, strict=True)]
    )
    apart = [
        abs(one - other)
        for others in (again, crowded)
        for one, other in zip(chain.from_iterable(first), chain.from_iterable(others), strict=True)
        if min(one, other) <= NEAR_MILLI
    ]
    return Calibration(
        tokens=len(honest) + len(apart),
        apart_milli=max((*honest, *apart), default=0),
        measured_at=now_s,
    )


async def _write(
    engine: Engine, model: Digest, prompt: tuple[ChatMessage, ...], received: tuple[int, ...] = ()
) -> tuple[int, ...]:
    """Return the greedy answer's tokens, those received counted in."""
    wanted = Generation(model, prompt, tokens_max=TOKENS, received=received)
    return (*received, *await _words(engine, wanted))


async def _read(
    engine: Engine, model: Digest, prompt: tuple[ChatMessage, ...], claimed: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the gap of each claimed token."""
    if not claimed:
        return ()
    wanted = Generation(model, prompt, tokens_max=len(claimed), task="check", claimed=claimed)
    return await _words(engine, wanted)


async def _words(engine: Engine, wanted: Generation) -> tuple[int, ...]:
    words: list[int] = []
    async with aclosing(engine.generate(wanted)) as frames:
        async for frame in frames:
            if isinstance(frame, Tokens):
                words.extend(frame.ids)
    return tuple(words)


async def _at_once(
    engine: Engine, model: Digest, calls: Sequence[tuple[Callable[..., object], tuple[object, ...]]]
) -> list[tuple[int, ...]]:
    """Make calls together, as many at a time as the engine has slots, and return their results in order."""
    results: list[tuple[int, ...]] = [()] * len(calls)
    limit = trio.CapacityLimiter(max(1, engine.status(model).slots))

    async def make(number: int) -> None:
        function, arguments = calls[number]
        async with limit:
            results[number] = await function(engine, model, *arguments)  # type: ignore[misc]

    async with trio.open_nursery() as nursery:
        for number in range(len(calls)):
            nursery.start_soon(make, number)
    return results


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
