"""Slots that slow each other, and what they say of the wait."""

import pytest

from protocol.limits import PROGRESS_INTERVAL_S
from runtime.engine import EngineBusy
from runtime.shared_speed import stream_share
from runtime.slots import Slots, Turn


def work_off(slots: Slots, turn: Turn, alone_s: float) -> float:
    """Return how long so much of a turn's work takes."""
    return sum(slots.pieces(turn, alone_s))


def test_a_free_slot_is_no_wait() -> None:
    slots = Slots(2, queue_max=1)
    slots.take(10.0)

    assert (slots.free, slots.queued, slots.wait_s) == (1, 0, 0.0)


def test_the_wait_is_until_the_first_slot_is_free_behind_those_that_wait_already() -> None:
    """3 s and 8 s of work run in two slots, 4 s wait: the fourth one begins when 7 s of one slot's work are done."""
    slots = Slots(2, queue_max=4)
    for alone_s in (3.0, 8.0):
        slots.take(alone_s)

    assert slots.wait_s == pytest.approx(3.0 / stream_share(2))
    slots.take(4.0)
    assert slots.wait_s == pytest.approx(7.0 / stream_share(2))


def test_the_wait_gets_shorter_as_the_work_is_done() -> None:
    slots = Slots(1, queue_max=1)
    turn = slots.take(3.0)

    assert work_off(slots, turn, 1.2) == pytest.approx(1.2)
    assert slots.wait_s == pytest.approx(1.8)


def test_beside_another_stream_the_same_work_takes_longer() -> None:
    slots = Slots(2, queue_max=1)
    turn = slots.take(3.0)
    slots.take(3.0)

    pieces = list(slots.pieces(turn, 2.0))

    assert sum(pieces) == pytest.approx(2.0 / stream_share(2))
    assert max(pieces) == PROGRESS_INTERVAL_S
    assert turn.left_s == pytest.approx(1.0)


def test_work_of_no_length_is_one_piece() -> None:
    slots = Slots(1, queue_max=0)

    assert list(slots.pieces(slots.take(0.0), 0.0)) == [0.0]


def test_the_first_in_the_queue_inherits_the_slot_and_one_that_left_does_not() -> None:
    slots = Slots(1, queue_max=2)
    first, second, third = (slots.take(1.0) for _ in range(3))

    slots.end(second)
    slots.end(first)

    assert (second.is_ours.is_set(), third.is_ours.is_set()) == (False, True)
    slots.end(third)
    assert (slots.free, slots.queued) == (1, 0)


def test_a_request_over_the_queue_is_refused_and_changes_nothing() -> None:
    slots = Slots(1, queue_max=1)
    slots.take(1.0)
    slots.take(1.0)

    with pytest.raises(EngineBusy, match="1 requests wait already, expected fewer than 1"):
        slots.take(1.0)

    assert (slots.free, slots.queued, slots.queue_free) == (0, 1, 0)
