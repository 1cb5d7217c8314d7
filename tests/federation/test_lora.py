"""The matrices of a run: which there are, how they begin, and that all devices begin alike."""

import hashlib

import msgspec
import numpy as np
import pytest

from federation.codec import digest, state_bytes
from federation.lora import NoSuchTarget, both_halves, frozen_a, seed_state
from protocol.messages import LoraShape
from tests.federation.members import RECIPE, SHAPES

WITH_A = msgspec.structs.replace(RECIPE, is_a_frozen=False)


def test_with_a_frozen_only_b_is_in_the_state_and_the_adapter_begins_by_changing_nothing() -> None:
    state = seed_state(RECIPE, SHAPES)

    assert {name: matrix.shape for name, matrix in state.items()} == {
        "blk.0.attn_k.lora_b": (3, 2),
        "blk.0.attn_q.lora_b": (6, 2),
    }
    assert all(matrix.dtype == np.float32 and not matrix.any() for matrix in state.values())


def test_with_a_trained_both_are_in_the_state() -> None:
    state = seed_state(WITH_A, SHAPES)

    assert state["blk.0.attn_q.lora_a"].shape == (2, 4)
    assert state["blk.0.attn_q.lora_a"].any()
    assert not state["blk.0.attn_q.lora_b"].any()


def test_every_device_draws_the_same_a_for_ever() -> None:
    """Its bytes are fixed: a device with another version of numpy must not train another adapter."""
    drawn = frozen_a(RECIPE, SHAPES)

    assert digest(drawn) == digest(frozen_a(RECIPE, dict(reversed(SHAPES.items()))))
    assert hashlib.sha256(state_bytes(drawn)).hexdigest()[:16] == "6ba84e931a3c3ff4"


def test_another_seed_draws_another_a_and_every_weight_has_its_own() -> None:
    one, other = frozen_a(RECIPE, SHAPES), frozen_a(msgspec.structs.replace(RECIPE, seed=8), SHAPES)

    assert not np.array_equal(one["blk.0.attn_q.lora_a"], other["blk.0.attn_q.lora_a"])
    assert not np.array_equal(one["blk.0.attn_q.lora_a"], one["blk.0.attn_k.lora_a"])


def test_a_is_uniform_within_one_over_the_root_of_its_width() -> None:
    recipe = msgspec.structs.replace(RECIPE, shape=LoraShape(rank=64, alpha=64, targets=("attn_q",)))

    drawn = frozen_a(recipe, {"blk.0.attn_q": (400, 400)})["blk.0.attn_q.lora_a"] * 20

    assert -1 <= drawn.min() < -0.999
    assert 0.999 < drawn.max() <= 1
    assert abs(drawn.mean()) < 0.02
    assert abs(drawn.std() - 3**-0.5) < 0.01


def test_a_target_that_the_base_does_not_have_is_named() -> None:
    recipe = msgspec.structs.replace(RECIPE, shape=LoraShape(rank=2, alpha=4, targets=("attn_q", "attn_x")))

    with pytest.raises(NoSuchTarget, match="'attn_x'"):
        seed_state(recipe, SHAPES)


def test_the_adapter_is_whole_whether_a_was_sent_or_not() -> None:
    frozen = both_halves(seed_state(RECIPE, SHAPES), RECIPE, SHAPES)
    trained = both_halves(seed_state(WITH_A, SHAPES), WITH_A, SHAPES)

    assert digest(frozen) == digest(trained)
    assert len(frozen) == 4


def test_the_mean_of_products_is_the_product_of_the_mean_only_with_a_frozen() -> None:
    """Why A is frozen by default (arXiv:2409.05976)."""
    rng = np.random.default_rng(3)
    a = frozen_a(RECIPE, SHAPES)["blk.0.attn_q.lora_a"]
    first, second = (rng.normal(size=(6, 2)).astype(np.float32) for _ in range(2))
    other_a = a + rng.normal(size=a.shape).astype(np.float32)

    np.testing.assert_allclose((first @ a + second @ a) / 2, (first + second) / 2 @ a, rtol=1e-5)
    assert not np.allclose(
        (first @ a + second @ other_a) / 2, (first + second) / 2 @ ((a + other_a) / 2), rtol=0.1
    )
