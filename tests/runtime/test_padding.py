"""Rows that mean nothing are added where that was measured to be quicker."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.llama.padding import GROUP, TILE, TRY_OTHER_EVERY, Padding, to_add_to_piece


def grouped(rows: int) -> float:
    """Repacked weights: four rows cost little more than one, odd ones as much each."""
    return 0.1 + 0.03 * (rows // GROUP) + 0.1 * (rows % GROUP)


def even(rows: int) -> float:
    return 0.1 + 0.02 * rows


def run(padding: Padding, rows: int, cost: Callable[[int], float], steps: int) -> list[int]:
    """Return how many rows were added to each of so many batches."""
    added = []
    for _ in range(steps):
        added.append(padding.to_add(rows))
        padding.learn(rows, added[-1], cost(rows + added[-1]))
    return added


@pytest.mark.parametrize("rows", [2, 3, 6, 7, 15])
def test_odd_rows_are_made_up_to_a_group_where_the_kernels_take_groups(rows: int) -> None:
    added = run(Padding(), rows, grouped, 60)

    assert added[40:] == [-rows % GROUP] * 20


def test_nothing_is_added_where_each_row_costs_the_same() -> None:
    added = run(Padding(), 6, even, 60)

    assert added[40:] == [0] * 20


def test_a_whole_group_is_left_as_it_is() -> None:
    assert run(Padding(), 8, grouped, 10) == [0] * 10


def test_what_a_busy_moment_made_look_slow_is_tried_again() -> None:
    padding = Padding()
    before = run(padding, 7, lambda rows: 9.0 if rows == 8 else 1.0, 2 * TRY_OTHER_EVERY)

    after = run(padding, 7, grouped, 2 * TRY_OTHER_EVERY)

    assert before[-10:-1] == [0] * 9
    assert after[-10:-1] == [1] * 9


def test_a_piece_far_into_a_prompt_is_made_up_to_a_tile() -> None:
    assert to_add_to_piece(44, 960) == TILE - 44
    assert to_add_to_piece(20, 4_096) == TILE - 20


def test_a_piece_near_the_beginning_or_of_few_rows_is_made_up_to_a_group() -> None:
    assert to_add_to_piece(41, 64) == 3
    assert to_add_to_piece(3, 960) == 1
    assert to_add_to_piece(8, 960) == 0


@given(rows=st.integers(1, TILE), start=st.integers(0, 200_000))
def test_no_piece_grows_over_a_tile_and_one_row_stays_alone(rows: int, start: int) -> None:
    added = to_add_to_piece(rows, start)

    assert 0 <= added <= TILE - rows
    assert rows > 1 or not added


def test_a_whole_tile_is_left_as_it_is() -> None:
    assert to_add_to_piece(TILE, 0) == to_add_to_piece(TILE, 100_000) == 0
