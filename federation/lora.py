"""The state of a run: the LoRA matrices that its members train together, as float32 arrays by name.

A LoRA adapter adds (alpha / r) B A to a weight of shape (out, in): A is (r, in), B is (out, r). By default A is frozen
(FFA-LoRA, Sun et al. 2024, arXiv:2403.12313) and only B is trained and sent, since the mean of B A over members is then
exactly (mean of B) A; with both trained it is not (FLoRA, arXiv:2409.05976).

Everybody draws the same A from the recipe's seed, so it never travels. The draw is made of SHAKE-256 and exact float
arithmetic alone: no library's generator has to stay as it is for two devices to agree.

Layout is that of Hugging Face: rows of q and k are not permuted. Names are `blk.N.TARGET.lora_a` and `….lora_b`.
"""

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from protocol.errors import AgoraError
from protocol.messages import Recipe

Matrix = npt.NDArray[np.float32]
State = dict[str, Matrix]
Shapes = Mapping[str, tuple[int, int]]  # "blk.0.attn_q" -> (out, in) of the base's weight

A, B = ".lora_a", ".lora_b"


class NoSuchTarget(AgoraError):
    """The recipe adapts a kind of weight that the base model does not have."""


def adapted(recipe: Recipe, shapes: Shapes) -> dict[str, tuple[int, int]]:
    """Return the weights that the recipe's targets name, sorted by name.

    Raises:
        NoSuchTarget: a target that no tensor of the base has.
    """
    targets = set(recipe.shape.targets)
    chosen = {name: shapes[name] for name in sorted(shapes) if _target(name) in targets}
    if missing := targets - {_target(name) for name in chosen}:
        raise NoSuchTarget(f"the base has no tensor {min(missing)!r}, which the recipe adapts")
    return chosen


def frozen_a(recipe: Recipe, shapes: Shapes) -> State:
    """Return the A matrices that all members of a run draw alike: uniform in ±1/sqrt(in), as peft starts them."""
    return {
        name + A: _uniform(f"agora/lora-a/1/{recipe.seed}/{name}", recipe.shape.rank, width)
        for name, (_, width) in adapted(recipe, shapes).items()
    }


def seed_state(recipe: Recipe, shapes: Shapes) -> State:
    """Return the state that a run begins from: B of zeros, so that the adapter changes nothing yet, and A if trained."""
    zeros = {
        name + B: np.zeros((height, recipe.shape.rank), np.float32)
        for name, (height, _) in adapted(recipe, shapes).items()
    }
    return zeros if recipe.is_a_frozen else zeros | frozen_a(recipe, shapes)


def both_halves(state: State, recipe: Recipe, shapes: Shapes) -> State:
    """Return A and B of every adapted weight, what an adapter file is made of: the frozen A added where only B is sent."""
    return frozen_a(recipe, shapes) | state if recipe.is_a_frozen else dict(state)


def _target(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _uniform(label: str, rank: int, width: int) -> Matrix:
    """Draw (rank, width) floats, uniform in ±1/sqrt(width); 24 bits each are exact in float32."""
    drawn = hashlib.shake_256(label.encode()).digest(4 * rank * width)
    units = (np.frombuffer(drawn, "<u4") >> 8).astype(np.float32) * np.float32(2**-23) - np.float32(1)
    matrix: Matrix = (units * np.float32(1 / math.sqrt(width))).reshape(rank, width)
    return matrix
