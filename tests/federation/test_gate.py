"""The gate: what hostile members send, one test for each attack, and what of it gets in: nothing."""

import hashlib
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.codec import apply, change
from federation.gate import Contribution, Gate, Refused, why_unfit
from federation.lora import State, seed_state
from protocol.envelope import Sealed
from protocol.identity import PeerId
from protocol.messages import NO_HASH, RoundTask, RoundUpdate
from tests.federation.members import (
    ANN,
    BOB,
    COORDINATOR,
    EVE,
    RECIPE,
    RUN,
    SHAPES,
    round_update,
    sealed,
)

STATE = seed_state(RECIPE, SHAPES)
HONEST = {name: matrix + np.float32(0.01) for name, matrix in STATE.items()}
PAYLOAD = change(STATE, HONEST)


def task(member: str) -> Sealed[RoundTask]:
    return sealed(
        COORDINATOR,
        RoundTask(
            run=RUN,
            round=2,
            award=hashlib.sha256(member.encode()).digest(),
            since=NO_HASH,
            state=b"s" * 32,
            payload=b"p" * 32,
            payload_bytes=1,
            left_ms=60_000,
        ),
    )


def gate() -> Gate:
    """Round 2; Ann and Bob were asked, each enlisted with 500 samples, for 10 steps."""
    tasks = {PeerId(member): task(member) for member in (ANN, BOB)}
    return Gate(STATE, tasks, samples_max={PeerId(ANN): 500, PeerId(BOB): 500}, steps_max=10)


def update(
    sender: str = ANN, payload: bytes = PAYLOAD, number: int = 2, **changes: Any
) -> Sealed[RoundUpdate]:
    signed = {
        "task": task(sender).id,
        "payload": hashlib.sha256(payload).digest(),
        "payload_bytes": len(payload),
    }
    return round_update(sender, number, **(signed | changes))


def raw(scales: list[float], steps: bytes) -> bytes:
    """A change as no honest member writes it."""
    return b"\x01" + zlib.compress(struct.pack(f"<{len(scales)}f", *scales) + steps)


SIZE = sum(matrix.size for matrix in STATE.values())


def test_an_honest_update_contributes_its_change() -> None:
    found = gate().examine(ANN, update(), PAYLOAD)

    assert isinstance(found, Contribution)
    assert (found.peer, found.round, found.samples) == (ANN, 2, 500)
    assert found.change.keys() == STATE.keys()
    for name, matrix in found.change.items():
        np.testing.assert_array_equal(matrix, apply(STATE, PAYLOAD)[name] - STATE[name])


@pytest.mark.parametrize(
    ("attack", "payload"),
    [
        ("nan", raw([float("nan"), 1.0], bytes(SIZE))),
        ("infinity", raw([float("inf"), 1.0], bytes(SIZE))),
        ("negative scale", raw([-1.0, 1.0], bytes(SIZE))),
        ("scale beyond any adapter", raw([1e30, 1.0], b"\x7f" * SIZE)),
        ("values beyond any adapter", raw([1.0, 1.0], b"\x7f" * SIZE)),
        ("wrong shape", raw([1.0, 1.0], bytes(SIZE + 1))),
        ("a tensor missing", raw([1.0], bytes(12))),
        ("a tensor too many", raw([1.0, 1.0, 1.0], bytes(SIZE + 4))),
        ("a step that no encoder writes", raw([1e-3, 1e-3], b"\x80" * SIZE)),
        ("a bomb", b"\x01" + zlib.compress(bytes(50_000_000))),
        ("two streams", PAYLOAD + PAYLOAD[1:]),
        ("cut short", PAYLOAD[:-5]),
        ("another version", b"\x02" + PAYLOAD[1:]),
        ("nothing", b""),
        ("noise", b"\x01" + hashlib.shake_256(b"noise").digest(200)),
    ],
)
def test_hostile_bytes_are_refused_and_their_sender_may_still_send_good_ones(
    attack: str, payload: bytes
) -> None:
    guard = gate()

    assert isinstance(guard.examine(ANN, update(payload=payload), payload), Refused), attack
    assert isinstance(guard.examine(ANN, update(), PAYLOAD), Contribution)


def test_an_absurd_weight_is_refused() -> None:
    """The weight of 10^12 samples would make one member the whole mean; it enlisted with 500."""
    assert gate().examine(ANN, update(samples=10**12), PAYLOAD) == Refused(
        "a weight of 1000000000000 samples, 500 enlisted"
    )


def test_more_steps_than_were_asked_for_are_refused() -> None:
    """They would be paid for."""
    assert gate().examine(ANN, update(steps=11), PAYLOAD) == Refused("11 steps, 10 were asked for")


def test_a_second_update_of_a_round_is_refused() -> None:
    guard = gate()
    guard.examine(ANN, update(), PAYLOAD)

    assert guard.examine(ANN, update(samples=400), PAYLOAD) == Refused("the second of this round")


def test_an_update_by_a_stranger_is_refused() -> None:
    assert gate().examine(EVE, update(EVE), PAYLOAD) == Refused("by a device that was not asked")


def test_an_update_passed_on_by_another_member_is_refused() -> None:
    guard = gate()

    assert guard.examine(BOB, update(ANN), PAYLOAD) == Refused("signed by another than who sent it")
    assert isinstance(guard.examine(ANN, update(ANN), PAYLOAD), Contribution)


@pytest.mark.parametrize(
    "changed", [{"task": b"x" * 32}, {"run": b"x" * 16}, {"number": 1}, {"task": task(BOB).id}]
)
def test_an_answer_to_another_task_is_refused(changed: dict[str, Any]) -> None:
    """An update of an older round, said again, would pull the state back to it."""
    assert gate().examine(ANN, update(**changed), PAYLOAD) == Refused(
        "not the answer to the task that this member was given"
    )


def test_a_payload_that_was_not_signed_is_refused() -> None:
    other = change(STATE, {name: matrix - np.float32(0.01) for name, matrix in STATE.items()})

    assert gate().examine(ANN, update(), other) == Refused("a payload that is not the one it signed")


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_no_bytes_raise_or_get_in(noise: bytes) -> None:
    for payload in (noise, b"\x01" + noise, b"\x01" + zlib.compress(noise)):
        found = gate().examine(ANN, update(payload=payload), payload)
        assert isinstance(found, Refused)


def test_arrays_that_do_not_fit_are_named() -> None:
    def with_q(matrix: object) -> dict[str, object]:
        return {**HONEST, "blk.0.attn_q.lora_b": matrix}

    good: State = HONEST
    bad = HONEST["blk.0.attn_q.lora_b"].copy()
    bad[0, 0] = np.nan

    assert why_unfit(STATE, good) == ""
    assert why_unfit(STATE, {**HONEST, "extra": bad}) == "1 tensors too many or missing"
    assert why_unfit(STATE, with_q(bad)) == "a value of blk.0.attn_q.lora_b is not finite"
    assert why_unfit(STATE, with_q(bad[:1])) == "blk.0.attn_q.lora_b is (1, 2), expected (6, 2)"
    assert why_unfit(STATE, with_q(bad.astype(np.float64))) == "blk.0.attn_q.lora_b is not of float32"
    assert why_unfit(STATE, with_q([[0.0] * 2] * 6)) == "blk.0.attn_q.lora_b is not of float32"
    assert (
        why_unfit(STATE, with_q(np.full((6, 2), 17, np.float32)))
        == "a value of blk.0.attn_q.lora_b is over 16"
    )
