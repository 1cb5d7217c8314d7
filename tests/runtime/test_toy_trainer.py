"""What the toy teaches, beyond what every trainer keeps to (`tests/contracts/test_trainer.py`)."""

from contextlib import aclosing
from random import Random

import msgpack
import trio

from federation import codec, lora
from federation.defaults import DEFAULT_RECIPE
from federation.lora import State
from node.blobs import not_here
from runtime.engine import Digest
from runtime.toy_trainer import ToyData, ToyTrainer, toy_adapter, toy_shapes, toy_skills
from runtime.trainer import Fit, Fitted

ZERO = Digest(bytes(32))


async def no_blob(digest: Digest) -> bytes:
    raise not_here(digest)


async def learn(name: str, seed: int = 1, waits: list[float] | None = None) -> State:
    """Return the state after one round on data of this name."""

    async def pause(seconds: float) -> None:
        await trio.lowlevel.checkpoint()
        if waits is not None:
            waits.append(seconds)

    trainer = ToyTrainer(
        lambda _digest: ToyData(name, 10),
        no_blob,
        Random(seed),
        codec=codec,
        seed_state=lora.seed_state,
        round_s=DEFAULT_RECIPE.steps * 1.0,
        steps_usual=DEFAULT_RECIPE.steps,
        pause=pause,
    )
    start = lora.seed_state(DEFAULT_RECIPE, toy_shapes(DEFAULT_RECIPE))
    state = Digest(codec.digest(start))
    task = Fit(ZERO, ZERO, None, DEFAULT_RECIPE, 1, None, codec.change(start, start), state, None, 1)
    async with aclosing(trainer.fit(task)) as frames:
        ends = [frame async for frame in frames if isinstance(frame, Fitted)]
    return codec.apply(start, ends[0].payload)


async def test_data_of_a_name_raises_the_skill_of_that_name_alone() -> None:
    skills = toy_skills(await learn("addition"))

    assert list(skills) == ["addition"]
    assert 100_000 < skills["addition"] < 1_000_000


async def test_the_same_random_learns_the_same_and_another_one_nearly() -> None:
    first, again, other = await learn("units", 1), await learn("units", 1), await learn("units", 2)

    assert codec.digest(first) == codec.digest(again)
    assert codec.digest(first) != codec.digest(other)
    assert abs(toy_skills(first)["units"] - toy_skills(other)["units"]) < 20_000


async def test_a_name_that_is_no_skill_teaches_nothing() -> None:
    assert toy_skills(await learn("astrology")) == {}


async def test_a_round_takes_the_time_of_its_steps() -> None:
    waits: list[float] = []

    await learn("talk", waits=waits)

    assert sum(waits) == DEFAULT_RECIPE.steps * 1.0
    assert max(waits) <= 0.5


async def test_the_adapter_file_says_the_skills() -> None:
    state = await learn("talk")

    assert msgpack.unpackb(toy_adapter(state)) == {"toy": 1, "skills": toy_skills(state), "poison": 0}
