"""`ToyTrainer`: a trainer without a model, for tests and the simulator. Its "model" has one layer for each skill.

It is honest: it takes time (a virtual clock's too), fits one at a time, refuses what does not decode, and what it gives
back is a change by the real codec, so that no coordinator can tell the difference. Training on data named X raises
skill X, by less the nearer it is to the whole; skills that nobody trains stay at zero, and there the base's own counts.
"""

import hashlib
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Protocol

import msgpack
import trio

from protocol.errors import AgoraError
from protocol.limits import PROGRESS_INTERVAL_S
from protocol.messages import Recipe
from runtime.engine import Digest
from runtime.trainer import BadPayload, Fit, FitFrame, FitProgress, Fitted, Prepared, TrainerError

TOY_DOMAINS: Final = ("heat_pump", "appliances", "addition", "units", "talk")
STEPS_PER_LEARNING: Final = 40.0  # after so many steps 63 % of what was missing is learned
UNEVENNESS: Final = 0.01  # by which two members' changes differ: robust strategies compare them
NOISE_HARM: Final = 0.05  # for each unit of the noise multiplier

State = dict[str, Any]  # arrays by name, as `federation.lora` lays them out


class Codec(Protocol):
    """`federation.codec`: the packages are strangers, so whoever composes them hands it in."""

    def state_bytes(self, state: State, /) -> bytes:
        """Return the one form of a state."""

    def state_from(self, data: bytes, /) -> State:
        """Read it, strictly."""

    def change(self, old: State, new: State, /) -> bytes:
        """Return what takes one state to about another."""

    def apply(self, old: State, payload: bytes, /) -> State:
        """Take a change, strictly."""


class SeedState(Protocol):
    """`federation.lora.seed_state`."""

    def __call__(self, recipe: Recipe, shapes: Mapping[str, tuple[int, int]], /) -> State:
        """Return the state that a run begins from."""


@dataclass(frozen=True)
class ToyData:
    """What a toy trainer knows of a private data set: the skill that is its name, and how many records train it."""

    name: str
    samples: int


class ToyTrainer:
    """Fits by arithmetic.

    Args:
        data: a data set of this device by its digest; `KeyError` for none.
        read_blob: the whole of a blob of this device; `AgoraError` for none.
        rng: of this member's unevenness.
        codec: `federation.codec`.
        seed_state: `federation.lora.seed_state`.
        round_s: what a round of `steps_usual` steps takes; other numbers of steps take accordingly.
        pause: sleeps; a world's own, or trio's.
        domains: the skills, in the order of the layers.
    """

    def __init__(
        self,
        data: Callable[[Digest], ToyData],
        read_blob: Callable[[Digest], Awaitable[bytes]],
        rng: Random,
        *,
        codec: Codec,
        seed_state: SeedState,
        round_s: float = 20.0,
        steps_usual: int = 30,
        pause: Callable[[float], Awaitable[None]] = trio.sleep,
        domains: Sequence[str] = TOY_DOMAINS,
    ) -> None:
        self._data = data
        self._read_blob = read_blob
        self._rng = rng
        self._codec = codec
        self._seed_state = seed_state
        self._step_s = round_s / steps_usual
        self._pause = pause
        self._domains = tuple(domains)
        self._turn = trio.Semaphore(1)
        self._steps_per_s = 0.0

    @property
    def why_not(self) -> str:
        """It can always."""
        return ""

    @property
    def steps_per_s(self) -> float:
        """0 before the first fit, like a real one that has not measured."""
        return self._steps_per_s

    async def fit(self, task: Fit) -> AsyncGenerator[FitFrame, None]:
        """Yield the frames of one fit. See the port."""
        steps = task.recipe.steps
        while True:
            with trio.move_on_after(PROGRESS_INTERVAL_S / 2):
                await self._turn.acquire()
                break
            yield FitProgress(0, steps)
        try:
            data = self._find(task.data)
            old = await self._starting_state(task)
            yield Prepared()
            took_s, whole_s = 0.0, steps * self._step_s
            while took_s < whole_s:
                yield FitProgress(int(took_s / self._step_s), steps)
                slice_s = min(PROGRESS_INTERVAL_S, whole_s - took_s)
                await self._pause(slice_s)
                took_s += slice_s
            new = self._trained(old, data.name, task)
            self._steps_per_s = 1 / self._step_s
            yield Fitted(
                payload=self._codec.change(old, new),
                state=self._codec.state_bytes(old),
                steps=steps,
                samples=data.samples,
                seconds=whole_s,
            )
        finally:
            self._turn.release()

    async def rest(self) -> None:
        """It holds nothing."""
        await trio.lowlevel.checkpoint()

    def _find(self, digest: Digest) -> ToyData:
        try:
            return self._data(digest)
        except KeyError:
            raise TrainerError(f"no data set {digest.hex()[:8]} on this device") from None

    async def _read(self, state: Digest) -> bytes:
        try:
            return await self._read_blob(state)
        except AgoraError:
            raise TrainerError(f"no state {state.hex()[:8]} on this device") from None

    async def _starting_state(self, task: Fit) -> State:
        """Return the state that the coordinator's change leads to."""
        seed = self._seed_state(task.recipe, toy_shapes(task.recipe, self._domains))
        try:
            since = seed
            if task.since is not None:
                since = self._codec.state_from(await self._read(task.since))
            state = self._codec.apply(since, task.payload)
        except TrainerError:
            raise
        except AgoraError as error:
            raise BadPayload(str(error)) from error
        shapes = {name: array.shape for name, array in state.items()}
        if shapes != {name: array.shape for name, array in seed.items()}:
            raise BadPayload("the change leads to a state of other tensors than the recipe's")
        if hashlib.sha256(self._codec.state_bytes(state)).digest() != task.state:
            raise BadPayload("the change leads to another state than the task names")
        return state

    def _trained(self, old: State, skill: str, task: Fit) -> State:
        """Raise the skill's layer towards one everywhere; two members differ by a little, and by more with noise."""
        if skill not in self._domains or task.recipe.steps == 0:
            return dict(old)
        learned = 1 - math.exp(-task.recipe.steps / STEPS_PER_LEARNING)
        harm = NOISE_HARM * task.noise.noise_milli / 1_000 if task.noise else 0.0
        layer = f"blk.{self._domains.index(skill)}."
        new = dict(old)
        for name in sorted(old):
            if name.startswith(layer) and name.endswith(".lora_b"):
                unevenness = self._rng.gauss(0.0, UNEVENNESS * learned + harm)
                new[name] = old[name] + (1 - old[name]) * old[name].dtype.type(learned + unevenness)
        return new


def toy_shapes(recipe: Recipe, domains: Sequence[str] = TOY_DOMAINS) -> dict[str, tuple[int, int]]:
    """Return the weights of the toy model: for each skill a layer, in which each target is a single number."""
    return {
        f"blk.{layer}.{target}": (1, 1) for layer in range(len(domains)) for target in recipe.shape.targets
    }


def toy_skills(state: State, domains: Sequence[str] = TOY_DOMAINS) -> dict[str, int]:
    """Return how good the state is at each skill that was ever trained, in millionths."""
    skills = {}
    for layer, domain in enumerate(domains):
        matrices = [
            matrix
            for name, matrix in state.items()
            if name.startswith(f"blk.{layer}.") and name.endswith(".lora_b")
        ]
        if any(matrix.any() for matrix in matrices):
            mean = sum(float(matrix.mean()) for matrix in matrices) / len(matrices)
            skills[domain] = round(1e6 * min(1.0, max(0.0, mean)))
    return skills


def toy_adapter(state: State, domains: Sequence[str] = TOY_DOMAINS) -> bytes:
    """Return the state as the adapter file that toy engines and examiners read."""
    adapter: bytes = msgpack.packb({"toy": 1, "skills": toy_skills(state, domains), "poison": 0})
    return adapter
