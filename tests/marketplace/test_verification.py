"""Which settled answers are checked, and what gaps come to."""

from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.verification import (
    BARRED_S,
    LATER_SHARE,
    NEWCOMERS_JOBS,
    Verdict,
    default_tolerance,
    is_drawn,
    judge,
    why_unverifiable,
)
from protocol.messages import SamplingTerms

GREEDY = SamplingTerms()
gaps = st.lists(st.integers(0, 2**31 - 1), max_size=400)


@given(st.integers(0, NEWCOMERS_JOBS - 1), st.floats(0, 1))
def test_each_of_a_new_sellers_first_twenty_is_drawn_whatever_the_lot(judged: int, lot: float) -> None:
    assert is_drawn(judged, lot)


@pytest.mark.parametrize(
    ("lot", "drawn"), [(0.0, True), (0.069, True), (LATER_SHARE, False), (0.5, False), (1.0, False)]
)
def test_from_the_twenty_first_on_the_lot_decides(lot: float, drawn: bool) -> None:
    assert is_drawn(NEWCOMERS_JOBS, lot) is drawn
    assert is_drawn(10_000, lot) is drawn


def test_about_seven_in_a_hundred_of_the_later_ones_are_drawn() -> None:
    rng = Random(1)

    drawn = sum(is_drawn(NEWCOMERS_JOBS, rng.random()) for _ in range(10_000))

    assert 600 < drawn < 800


def test_a_greedy_answer_can_be_checked() -> None:
    assert why_unverifiable("chat", GREEDY) == ""
    assert why_unverifiable("completion", GREEDY) == ""


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"temperature_ppm": 1}, "its tokens were drawn by chance"),
        ({"repeat_penalty_ppm": 1_100_000}, "repetition was penalised"),
        ({"frequency_penalty_ppm": -1}, "repetition was penalised"),
        ({"presence_penalty_ppm": 1}, "repetition was penalised"),
        ({"logit_bias": ((5, 1_000),)}, "its logits were biased"),
        ({"schema": '{"type":"object"}'}, "its form was constrained"),
        ({"grammar": 'root ::= "a"'}, "its form was constrained"),
    ],
)
def test_what_moved_the_choice_away_from_the_likeliest_cannot_be_checked(
    changed: dict[str, object], reason: str
) -> None:
    """The gaps of the raw logits would accuse an honest seller."""
    assert why_unverifiable("chat", msgspec.structs.replace(GREEDY, **changed)) == reason


@pytest.mark.parametrize(
    "changed",
    [
        {"top_k": 1},
        {"top_p_ppm": 1},
        {"min_p_ppm": 1},
        {"seed": 7},
        {"logprobs": True},
        {"repeat_penalty_ppm": 0},
    ],
)
def test_what_leaves_the_likeliest_where_it_is_can_be_checked(changed: dict[str, object]) -> None:
    assert why_unverifiable("chat", msgspec.structs.replace(GREEDY, **changed)) == ""


@pytest.mark.parametrize("task", ["embedding", "check"])
def test_a_task_that_only_reads_is_not_checked(task: str) -> None:
    assert why_unverifiable(task, GREEDY) == f"a task of kind {task} writes no text"  # type: ignore[arg-type]


def test_rounding_passes_and_another_models_token_does_not() -> None:
    honest = judge([0] * 60 + [130, 0, 270, 0], 500)
    cheated = judge([0] * 63 + [501], 500)

    assert honest == Verdict(tokens=64, strays=0, worst_milli=270)
    assert honest.is_passed
    assert cheated == Verdict(tokens=64, strays=1, worst_milli=501)
    assert not cheated.is_passed


@given(gaps, st.integers(0, 2**31))
def test_a_verdict_passes_when_at_most_one_token_in_a_hundred_strays(
    found: list[int], tolerance: int
) -> None:
    verdict = judge(found, tolerance)

    strays = [gap for gap in found if gap > tolerance]
    assert verdict.is_passed is (len(strays) <= len(found) // 100)
    assert (verdict.tokens, verdict.strays) == (len(found), len(strays))
    assert verdict.worst_milli == max(found, default=0)


@given(gaps, st.integers(0, 2**31), st.randoms())
def test_the_order_of_the_tokens_changes_nothing(found: list[int], tolerance: int, rng: Random) -> None:
    shuffled = rng.sample(found, len(found))

    assert judge(shuffled, tolerance) == judge(found, tolerance)


@given(gaps, st.integers(0, 2**30), st.integers(0, 2**30))
def test_who_passes_passes_with_a_wider_tolerance_too(found: list[int], tolerance: int, more: int) -> None:
    if judge(found, tolerance).is_passed:
        assert judge(found, tolerance + more).is_passed


@given(st.integers(1, 2**31), st.integers(1, 500))
def test_the_likeliest_token_everywhere_always_passes(tolerance: int, tokens: int) -> None:
    assert judge([0] * tokens, tolerance).is_passed


def test_a_verdict_says_what_was_found() -> None:
    assert judge([0, 0, 1_250], 500).to_text() == (
        "1 of 3 tokens stray, the worst 1.25 logits below the likeliest"
    )
    assert (
        judge([0, 20, 0], 500).to_text() == "0 of 3 tokens stray, the worst 0.02 logits below the likeliest"
    )
    assert default_tolerance(bytes(32)) == 750
    assert BARRED_S == 24 * 3600
