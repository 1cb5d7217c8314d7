"""What every trainer keeps to, whether torch works in a child or a toy does arithmetic."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import msgspec
import numpy as np
import pytest
import trio

from federation import codec, lora
from federation.defaults import DEFAULT_RECIPE
from federation.lora import State
from node.blobs import not_here
from protocol.limits import PROGRESS_INTERVAL_S
from runtime.engine import Digest
from runtime.gguf_header import read_layout
from runtime.model_store import ModelStore
from runtime.toy_trainer import ToyData, ToyTrainer, toy_shapes
from runtime.trainer import (
    BadPayload,
    Fit,
    FitFrame,
    FitProgress,
    Fitted,
    NoisePlan,
    Prepared,
    Trainer,
    TrainerError,
)
from runtime.training.backend import TorchTrainer
from tests.contracts.virtual_time import on_virtual_time

TINY = Path(__file__).parents[2] / "examples" / "tiny_model"
RECIPE = msgspec.structs.replace(DEFAULT_RECIPE, rounds=4, steps=4, batch=4)
DATA = Digest(b"\x11" * 32)
BUSY_S = 1.0  # by which a frame may be late on a busy machine


@dataclass
class Workplace:
    """A trainer, and what belongs to it."""

    trainer: Trainer
    base: Digest
    replay: Digest | None
    shapes: dict[str, tuple[int, int]]
    keep: Callable[[bytes], Digest]

    def first(self) -> Fit:
        """The first round's task."""
        state = lora.seed_state(RECIPE, self.shapes)
        return Fit(
            base=self.base,
            data=DATA,
            replay=self.replay,
            recipe=RECIPE,
            round=1,
            since=None,
            payload=codec.change(state, state),
            state=Digest(codec.digest(state)),
            noise=None,
            seed=7,
        )

    def seed(self) -> State:
        return lora.seed_state(RECIPE, self.shapes)


@pytest.fixture(scope="module")
def torch_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """One child for all of these tests: it is made to live long."""
    home = tmp_path_factory.mktemp("torch")
    store = ModelStore(home / "models")
    base = trio.run(store.add, TINY / "tiny-q8_0.gguf")
    (home / "data" / DATA.hex()).mkdir(parents=True)
    lines = (TINY / "data" / "heat_pump.train.jsonl").read_bytes().splitlines(keepends=True)
    (home / "data" / DATA.hex() / "train.jsonl").write_bytes(b"".join(lines[:40]))
    (home / "blobs").mkdir()

    def keep(data: bytes) -> Digest:
        digest = Digest(hashlib.sha256(data).digest())
        (home / "blobs" / digest.hex()).write_bytes(data)
        return digest

    replayed = (TINY / "data" / "appliances.train.jsonl").read_bytes().splitlines(keepends=True)[:40]
    trainer = TorchTrainer(store, home / "data", home / "blobs", niceness=0)
    layout = read_layout(store.path(base.digest))
    shapes = {name.removesuffix(".weight"): shape for name, shape in layout.shapes.items()}
    yield Workplace(trainer, base.digest, keep(b"".join(replayed)), shapes, keep)
    trio.run(trainer.rest)


@pytest.fixture
def toy_place() -> Workplace:
    blobs: dict[Digest, bytes] = {}

    def keep(data: bytes) -> Digest:
        digest = Digest(hashlib.sha256(data).digest())
        blobs[digest] = data
        return digest

    async def read(digest: Digest) -> bytes:
        await trio.lowlevel.checkpoint()
        if digest not in blobs:
            raise not_here(digest)
        return blobs[digest]

    trainer = ToyTrainer(
        {DATA: ToyData("heat_pump", 40)}.__getitem__,
        read,
        Random(1),
        codec=codec,
        seed_state=lora.seed_state,
        round_s=0.6,
        steps_usual=RECIPE.steps,
    )
    return Workplace(trainer, Digest(bytes(32)), None, toy_shapes(RECIPE), keep)


@pytest.fixture(params=["toy", pytest.param("torch", marks=pytest.mark.system)])
def place(request: pytest.FixtureRequest) -> Workplace:
    if request.param == "toy":
        on_virtual_time(request)
    place: Workplace = request.getfixturevalue(f"{request.param}_place")
    return place


async def fitted(place: Workplace, task: Fit) -> Fitted:
    """Return the last frame, which is the only `Fitted`."""
    async with aclosing(place.trainer.fit(task)) as frames:
        seen = [frame async for frame in frames]
    *others, last = seen
    assert isinstance(last, Fitted)
    assert [frame for frame in others if not isinstance(frame, FitProgress)] == [Prepared()]
    return last


async def failed(place: Workplace, task: Fit, match: str | None = None) -> None:
    """Have a task refused before the trainer is prepared: nothing has been spent on it then."""
    seen: list[FitFrame] = []

    async def follow() -> None:
        async with aclosing(place.trainer.fit(task)) as frames:
            async for frame in frames:
                seen.append(frame)  # noqa: PERF401  (a comprehension would lose what came before the error)

    with pytest.raises(BadPayload, match=match):
        await follow()
    assert Prepared() not in seen


async def test_a_device_that_can_train_says_so(place: Workplace) -> None:
    assert place.trainer.why_not == ""


async def test_a_fit_is_progress_and_one_change_to_the_tasks_own_state(place: Workplace) -> None:
    task = place.first()

    end = await fitted(place, task)

    assert hashlib.sha256(end.state).digest() == task.state
    assert (end.steps, end.samples) == (RECIPE.steps, 40)
    new = codec.apply(place.seed(), end.payload)
    assert any(matrix.any() for matrix in new.values())
    assert place.trainer.steps_per_s > 0


async def test_who_takes_no_frame_after_the_prepared_one_has_let_nothing_be_learnt(place: Workplace) -> None:
    async with aclosing(place.trainer.fit(place.first())) as frames:
        async for frame in frames:
            if isinstance(frame, Prepared):
                break

    again = await fitted(place, place.first())

    assert again.steps == RECIPE.steps


async def test_frames_come_at_least_twice_a_second(place: Workplace) -> None:
    heard_at, longest_s = trio.current_time(), 0.0
    async with aclosing(place.trainer.fit(place.first())) as frames:
        async for _ in frames:
            now = trio.current_time()
            heard_at, longest_s = now, max(longest_s, now - heard_at)

    assert longest_s < PROGRESS_INTERVAL_S + BUSY_S


async def test_the_steps_that_are_told_never_fall_and_never_pass_the_recipes(place: Workplace) -> None:
    async with aclosing(place.trainer.fit(place.first())) as frames:
        steps = [frame.step async for frame in frames if isinstance(frame, FitProgress)]

    assert steps == sorted(steps)
    assert all(0 <= step <= RECIPE.steps for step in steps)


async def test_the_next_round_goes_on_from_a_kept_state(place: Workplace) -> None:
    first = place.first()
    end = await fitted(place, first)
    seed = place.seed()
    state = codec.apply(seed, end.payload)
    second = replace(
        first,
        round=2,
        since=place.keep(end.state),
        payload=codec.change(seed, state),
        state=Digest(codec.digest(state)),
    )

    next_end = await fitted(place, second)

    assert codec.state_from(next_end.state).keys() == state.keys()
    assert all(
        np.array_equal(matrix, state[name]) for name, matrix in codec.state_from(next_end.state).items()
    )


async def test_a_round_of_no_steps_changes_nothing(place: Workplace) -> None:
    task = replace(place.first(), recipe=msgspec.structs.replace(RECIPE, steps=0))

    end = await fitted(place, task)

    assert end.steps == 0
    assert not any(matrix.any() for matrix in codec.apply(place.seed(), end.payload).values())


async def test_a_private_round_gives_a_change_too(place: Workplace) -> None:
    end = await fitted(place, replace(place.first(), noise=NoisePlan(noise_milli=800, rate_ppm=100_000)))

    assert any(matrix.any() for matrix in codec.apply(place.seed(), end.payload).values())


@pytest.mark.parametrize(
    "payload",
    [b"", b"\x01garbage", b"\x02", bytes(1_000)],
    ids=["nothing", "garbage", "another version", "zeros"],
)
async def test_a_hostile_change_is_refused_and_the_next_fit_is_served(
    place: Workplace, payload: bytes
) -> None:
    await failed(place, replace(place.first(), payload=payload))

    await fitted(place, place.first())


async def test_a_change_to_another_state_than_was_named_is_refused(place: Workplace) -> None:
    await failed(place, replace(place.first(), state=Digest(bytes(32))), "another state")


async def test_a_state_of_other_tensors_is_refused(place: Workplace) -> None:
    other = {"blk.0.attn_q.lora_b": np.ones((3, 3), np.float32)}
    task = replace(
        place.first(),
        since=place.keep(codec.state_bytes(other)),
        payload=codec.change(other, other),
        state=Digest(codec.digest(other)),
    )

    await failed(place, task)


async def test_data_that_is_not_here_is_named(place: Workplace) -> None:
    with pytest.raises(TrainerError, match="no data set 22222222"):
        await fitted(place, replace(place.first(), data=Digest(b"\x22" * 32)))


async def test_a_closed_fit_gives_its_place_to_the_next(place: Workplace) -> None:
    endless = replace(place.first(), recipe=msgspec.structs.replace(RECIPE, steps=10_000))
    async with aclosing(place.trainer.fit(endless)) as frames:
        async for frame in frames:
            if isinstance(frame, FitProgress) and frame.step > 0:
                break

    with trio.fail_after(30):
        await fitted(place, place.first())


async def test_a_second_fit_waits_for_the_first(place: Workplace) -> None:
    ends: list[str] = []
    began = trio.Event()

    async def one(name: str, *, is_first: bool) -> None:
        async with aclosing(place.trainer.fit(place.first())) as frames:
            async for frame in frames:
                if is_first and isinstance(frame, FitProgress):
                    began.set()
                if isinstance(frame, FitProgress) and frame.step > 0 and not is_first:
                    assert ends == ["first"]
        ends.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: one("first", is_first=True))
        await began.wait()
        nursery.start_soon(lambda: one("second", is_first=False))

    assert ends == ["first", "second"]


async def test_after_rest_it_trains_again(place: Workplace) -> None:
    await place.trainer.rest()

    await fitted(place, place.first())
