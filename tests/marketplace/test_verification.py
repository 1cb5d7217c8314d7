"""Which settled answers are checked, and what a reading of one comes to."""

from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.verification import (
    BARRED_S,
    DIFFERENCE_MILLI_MAX,
    DRIFT_TOKENS_MIN,
    LATER_SHARE,
    NEWCOMERS_JOBS,
    TOLERANCE_DEFAULT,
    Reading,
    Tolerance,
    Verdict,
    default_tolerance,
    do_agree,
    drift,
    is_drawn,
    is_greedy,
    judge,
    why_unverifiable,
)
from protocol.messages import SamplingTerms

GREEDY = SamplingTerms()
TOLERANCE = Tolerance(gap_milli=500, drift_milli=200)
MOST = 2**31 - 1
gaps = st.lists(st.integers(0, MOST), max_size=400)
contrasts = st.integers(-MOST, MOST)
pairs = st.lists(st.tuples(contrasts, contrasts), max_size=100)


def judged(found: list[int], tolerance_milli: int = 500) -> Verdict:
    """A greedy answer whose seller has stated what is read of it."""
    stated = list(range(len(found)))
    return judge(Reading(found, stated), stated, Tolerance(tolerance_milli, 0), is_greedy=True)


def drifted(by_milli: int, tokens: int = 64, *, greedy: bool = True) -> Verdict:
    """An answer of the likeliest tokens, each of which is stated by so much otherwise than it is read."""
    read = [100 * (token % 7) for token in range(tokens)]
    stated = [each + by_milli * (-1) ** place for place, each in enumerate(read)]
    return judge(Reading([0] * tokens, read), stated, TOLERANCE, is_greedy=greedy)


# --- the lot ------------------------------------------------------------------------------------------------------------
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


# --- what can be checked ------------------------------------------------------------------------------------------------
OTHERWISE = [
    {"temperature_ppm": 1},
    {"repeat_penalty_ppm": 1_100_000},
    {"frequency_penalty_ppm": -1},
    {"presence_penalty_ppm": 1},
    {"logit_bias": ((5, 1_000),)},
    {"schema": '{"type":"object"}'},
    {"grammar": 'root ::= "a"'},
]


@pytest.mark.parametrize("task", ["chat", "completion"])
def test_an_answer_can_be_checked_however_its_tokens_were_chosen(task: str) -> None:
    for changed in ({}, *OTHERWISE):
        assert why_unverifiable(task, msgspec.structs.replace(GREEDY, **changed), 8) == ""  # type: ignore[arg-type]


@pytest.mark.parametrize("changed", OTHERWISE)
def test_what_moved_the_choice_away_from_the_likeliest_is_not_greedy_and_not_checked_when_short(
    changed: dict[str, object],
) -> None:
    """The gaps of the raw logits would accuse an honest seller, and a mean over few tokens is no mean."""
    terms = msgspec.structs.replace(GREEDY, **changed)

    assert not is_greedy(terms)
    assert why_unverifiable("chat", terms, DRIFT_TOKENS_MIN - 1) == (
        "it has 7 tokens, which need not be the likeliest; such answers are checked from 8 tokens on"
    )


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"top_k": 1},
        {"top_p_ppm": 1},
        {"min_p_ppm": 1},
        {"seed": 7},
        {"logprobs": True},
        {"repeat_penalty_ppm": 0},
        {"repeat_penalty_ppm": 1_000_000},
    ],
)
def test_what_leaves_the_likeliest_where_it_is_is_greedy_and_checked_from_its_first_token_on(
    changed: dict[str, object],
) -> None:
    terms = msgspec.structs.replace(GREEDY, **changed)

    assert is_greedy(terms)
    assert why_unverifiable("chat", terms, 1) == ""


@pytest.mark.parametrize("task", ["embedding", "check"])
def test_a_task_that_only_reads_is_not_checked(task: str) -> None:
    assert why_unverifiable(task, GREEDY, 100) == f"a task of kind {task} writes no text"  # type: ignore[arg-type]


def test_a_seller_that_wrote_nothing_is_not_judged_by_what_others_wrote() -> None:
    assert why_unverifiable("chat", GREEDY, 0) == "it has no tokens"
    assert Reading([900] * 5, [1] * 5).last(0) == Reading([], [])


# --- gaps ---------------------------------------------------------------------------------------------------------------
def test_rounding_passes_and_another_models_token_does_not() -> None:
    honest = judged([0] * 60 + [130, 0, 270, 0])
    cheated = judged([0] * 63 + [501])

    assert honest == Verdict(64, is_greedy=True, strays=0, worst_milli=270, drift_milli=0, is_drifted=False)
    assert honest.is_passed
    assert cheated == Verdict(64, is_greedy=True, strays=1, worst_milli=501, drift_milli=0, is_drifted=False)
    assert not cheated.is_passed


@given(gaps, st.integers(0, 2**31))
def test_a_greedy_verdict_passes_when_at_most_one_token_in_a_hundred_strays(
    found: list[int], tolerance: int
) -> None:
    verdict = judged(found, tolerance)

    strays = [gap for gap in found if gap > tolerance]
    assert verdict.is_passed is (len(strays) <= len(found) // 100)
    assert (verdict.tokens, verdict.strays) == (len(found), len(strays))
    assert verdict.worst_milli == max(found, default=0)


@given(gaps, st.integers(0, 2**31))
def test_where_other_tokens_may_be_chosen_no_gap_accuses(found: list[int], tolerance: int) -> None:
    stated = [0] * len(found)

    assert judge(Reading(found, stated), stated, Tolerance(tolerance, 0), is_greedy=False).is_passed


@given(gaps, st.integers(0, 2**30), st.integers(0, 2**30))
def test_who_passes_passes_with_a_wider_tolerance_too(found: list[int], tolerance: int, more: int) -> None:
    if judged(found, tolerance).is_passed:
        assert judged(found, tolerance + more).is_passed


@given(st.integers(1, 2**31), st.integers(1, 500))
def test_the_likeliest_token_everywhere_always_passes(tolerance: int, tokens: int) -> None:
    assert judged([0] * tokens, tolerance).is_passed


# --- drift --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("greedy", [True, False])
def test_four_bits_whose_text_is_the_honest_one_are_caught(greedy: bool) -> None:
    """The attack: a coarser quantisation says the same tokens. No gap shows it; each of its contrasts is a little off."""
    honest, coarse = drifted(90, greedy=greedy), drifted(350, greedy=greedy)

    assert (honest.is_passed, honest.drift_milli, honest.strays) == (True, 90, 0)
    assert (coarse.is_passed, coarse.drift_milli, coarse.strays) == (False, 350, 0)


def test_the_drift_of_few_tokens_accuses_nobody() -> None:
    assert drifted(3_000, DRIFT_TOKENS_MIN - 1) == Verdict(
        7, is_greedy=True, strays=0, worst_milli=0, drift_milli=None, is_drifted=False
    )
    assert not drifted(3_000, DRIFT_TOKENS_MIN).is_passed


def test_one_wild_token_of_an_honest_seller_condemns_no_long_answer() -> None:
    read = [0] * 64
    stated = [90] * 63 + [1_000_000]

    found = judge(Reading([0] * 64, read), stated, TOLERANCE, is_greedy=True)

    assert found.drift_milli == -(-(63 * 90 + DIFFERENCE_MILLI_MAX) // 64)
    assert found.is_passed


@given(pairs)
def test_drift_is_a_bounded_mean_that_is_the_same_from_both_sides(found: list[tuple[int, int]]) -> None:
    one, other = [each for each, _ in found], [each for _, each in found]

    between = drift(one, other)

    assert (between is None) is (len(found) < DRIFT_TOKENS_MIN)
    if between is not None:
        assert drift(other, one) == between
        assert 0 <= between <= DIFFERENCE_MILLI_MAX
        assert (between == 0) is (one == other)


@given(pairs, st.randoms(), st.booleans())
def test_the_order_of_the_tokens_changes_nothing(
    found: list[tuple[int, int]], rng: Random, greedy: bool
) -> None:
    def verdict(tokens: list[tuple[int, int]]) -> Verdict:
        read = Reading([abs(stated) for stated, _ in tokens], [each for _, each in tokens])
        return judge(read, [stated for stated, _ in tokens], TOLERANCE, is_greedy=greedy)

    assert verdict(rng.sample(found, len(found))) == verdict(found)


@given(pairs, st.integers(0, 5_000), st.integers(0, 5_000))
def test_who_has_not_drifted_has_not_with_a_wider_tolerance(
    found: list[tuple[int, int]], allowed: int, more: int
) -> None:
    reading = Reading([0] * len(found), [each for _, each in found])
    stated = [each for each, _ in found]

    strict = judge(reading, stated, Tolerance(0, allowed), is_greedy=True)
    wider = judge(reading, stated, Tolerance(0, allowed + more), is_greedy=True)

    assert strict.is_drifted or not wider.is_drifted


def test_another_number_of_statements_than_tokens_is_a_fault_of_ours() -> None:
    """Reception and readers have refused it long before."""
    with pytest.raises(ValueError, match="zip"):
        judge(Reading([0] * 9, [0] * 9), [0] * 8, TOLERANCE, is_greedy=True)


# --- two readers --------------------------------------------------------------------------------------------------------
def read_as(*contrasts_milli: int) -> Reading:
    return Reading([0] * len(contrasts_milli), contrasts_milli)


def test_two_readers_agree_when_they_are_as_near_as_honest_engines() -> None:
    values = tuple(100 * each for each in range(-20, 20))
    near, far = (
        read_as(*(each + 200 for each in values)),
        read_as(*(each + 201 for each in values)),
    )

    assert do_agree(read_as(*values), near, TOLERANCE)
    assert not do_agree(read_as(*values), far, TOLERANCE)


def test_two_lazy_readers_of_zeros_do_not_agree() -> None:
    """The attack: they have read nothing, and find alike that nobody has computed what it sold."""
    assert not do_agree(read_as(*[0] * 24), read_as(*[0] * 24), TOLERANCE)
    assert not do_agree(read_as(*[5] * 24), read_as(*range(24)), TOLERANCE)


def test_readers_of_a_short_answer_agree_on_its_strays_alone() -> None:
    assert do_agree(read_as(0, 0, 0), read_as(900, 900, 900), TOLERANCE)


# --- words --------------------------------------------------------------------------------------------------------------
def test_a_verdict_says_what_was_found() -> None:
    assert judged([0, 0, 1_250]).to_text() == (
        "1 of 3 tokens stray, the worst 1.25 logits below the likeliest"
    )
    assert drifted(40).to_text() == (
        "0 of 64 tokens stray, the worst 0.00 logits below the likeliest, a mean drift of 0.04 logits"
    )
    assert drifted(350, greedy=False).to_text() == "64 tokens have a mean drift of 0.35 logits"
    assert default_tolerance(bytes(32)) == TOLERANCE_DEFAULT
    assert BARRED_S == 24 * 3600
