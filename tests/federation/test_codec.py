"""States and changes as bytes: exact where it matters, small where it travels, and strict about strangers' bytes."""

import hashlib
import json
import struct

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.codec import BadState, apply, change, digest, state_bytes, state_from
from federation.defaults import DEFAULT_RECIPE
from federation.lora import State, seed_state
from tests.federation.members import RECIPE, SHAPES

# of examples/tiny_model: hidden 128, ffn 384, 2 of 4 heads share keys and values
_LAYER = {
    "attn_q": (128, 128),
    "attn_k": (64, 128),
    "attn_v": (64, 128),
    "attn_output": (128, 128),
    "ffn_gate": (384, 128),
    "ffn_up": (384, 128),
    "ffn_down": (128, 384),
}
TINY = {f"blk.{layer}.{name}": shape for layer in range(4) for name, shape in _LAYER.items()}


def drawn(seed: int, like: State, scale: float = 0.01) -> State:
    rng = np.random.default_rng(seed)
    return {
        name: matrix + rng.normal(scale=scale, size=matrix.shape).astype(np.float32)
        for name, matrix in like.items()
    }


SEED = seed_state(RECIPE, SHAPES)
OLD, NEW = drawn(1, SEED), drawn(2, SEED)


def test_a_state_is_read_back_to_the_bit_and_safetensors_reads_it_too() -> None:
    data = state_bytes(NEW)

    theirs = safetensors.numpy.load(data)
    for read in (state_from(data), theirs):
        assert read.keys() == NEW.keys()
        for name, matrix in NEW.items():
            np.testing.assert_array_equal(read[name], matrix)


def test_one_state_has_one_digest_in_whatever_order_it_was_made() -> None:
    backwards = dict(reversed(NEW.items()))

    assert digest(backwards) == digest(NEW) == hashlib.sha256(state_bytes(NEW)).digest()
    assert digest(OLD) != digest(NEW)


def _with_header(header: object, data: bytes = b"") -> bytes:
    said = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    said += b" " * (-len(said) % 8)
    return struct.pack("<Q", len(said)) + said + data


@pytest.mark.parametrize(
    ("attack", "data"),
    [
        ("nothing", b""),
        ("a header longer than the file", struct.pack("<Q", 2**63) + b"{}"),
        ("a header of 10 MB", struct.pack("<Q", 10**7) + b" " * 10**7),
        ("a list", _with_header([])),
        ("nested without end", _with_header(b"[" * 100_000)),
        ("a shape of one number", _with_header({"a": {"shape": [3]}}, bytes(12))),
        ("a negative shape", _with_header({"a": {"shape": [-1, -1]}}, bytes(4))),
        ("a shape of text", _with_header({"a": {"shape": "11"}}, bytes(4))),
        ("a shape beyond memory", _with_header({"a": {"shape": [2**40, 2**40]}}, bytes(4))),
        ("bytes after the end", state_bytes(NEW) + b"\0"),
        ("an end too early", state_bytes(NEW)[:-1]),
        ("two entries of one name", state_bytes(NEW).replace(b"attn_q", b"attn_k")),
        ("another type", state_bytes(NEW).replace(b"F32", b"I32")),
        ("overlapping tensors", state_bytes(NEW).replace(b"[24,72]", b"[00,48]")),
        ("a nan", state_bytes({"a": np.full((1, 1), np.nan, np.float32)})),
        ("an infinity", state_bytes({"a": np.full((1, 1), np.inf, np.float32)})),
        ("too large a value", state_bytes({"a": np.full((1, 1), 17, np.float32)})),
    ],
)
def test_bytes_that_are_no_state_in_its_one_form_are_refused(attack: str, data: bytes) -> None:
    assert data != state_bytes(NEW), attack
    with pytest.raises(BadState):
        state_from(data)


@given(st.integers(0, len(state_bytes(NEW)) - 1), st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_a_flipped_byte_gives_another_state_or_none(position: int, flip: int) -> None:
    data = bytearray(state_bytes(NEW))
    data[position] ^= flip

    try:
        read = state_from(bytes(data))
    except BadState:
        return
    assert digest(read) == hashlib.sha256(data).digest() != digest(NEW)


def test_a_change_leads_from_the_old_state_to_within_half_a_scale_of_the_new_one() -> None:
    reached = apply(OLD, change(OLD, NEW))

    for name, matrix in NEW.items():
        scale = np.abs(matrix - OLD[name]).max() / 127
        assert np.abs(reached[name] - matrix).max() <= scale * 0.5001 + 1e-7


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 3))
@settings(max_examples=50, deadline=None)
def test_the_error_of_a_change_is_at_most_half_a_scale_at_any_size(seed: int, size: float) -> None:
    new = drawn(seed, OLD, size)

    reached = apply(OLD, change(OLD, new))

    for name, matrix in new.items():
        scale = np.abs(matrix - OLD[name]).max() / 127
        # and what float32 itself cannot say of such values
        assert np.abs(reached[name] - matrix).max() <= scale * 0.5001 + 4 * np.spacing(np.abs(matrix).max())


def test_what_one_change_cannot_say_is_part_of_the_next() -> None:
    """The coordinator's state is what its members reconstruct, so errors do not add up over rounds."""
    held = SEED
    for _ in range(4):
        held = apply(held, change(held, NEW))

    assert max(float(np.abs(held[name] - NEW[name]).max()) for name in NEW) < 1e-7


def test_no_change_changes_nothing_to_the_bit() -> None:
    assert digest(apply(NEW, change(NEW, NEW))) == digest(NEW)


def test_a_state_that_is_not_finite_or_not_of_this_run_is_not_encoded() -> None:
    name = min(NEW)
    with pytest.raises(ValueError, match="not finite"):
        change(OLD, {**NEW, name: NEW[name] * np.float32(np.nan)})
    with pytest.raises(ValueError, match="is \\(1, 2\\), expected \\(3, 2\\)"):
        change(OLD, {**NEW, name: NEW[name][:1]})
    with pytest.raises(ValueError, match="same tensors"):
        change(OLD, {name: NEW[name]})


def test_a_round_costs_a_member_at_most_15_percent_of_both_matrices_as_floats_both_ways() -> None:
    """With changes as dense as noise, which deflates worst: all seven linears of the tiny model, r = 8."""
    seed = seed_state(DEFAULT_RECIPE, TINY)
    first, second = drawn(1, seed), drawn(2, seed)
    both_as_floats = 2 * sum(4 * 8 * (height + width) for height, width in TINY.values())

    down, up = len(change(seed, first)), len(change(first, second))

    assert down + up <= 0.15 * both_as_floats
