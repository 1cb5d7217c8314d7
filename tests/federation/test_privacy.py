"""The accountant against the two that everybody trusts, and the laws that any accountant must keep."""

import logging
import math
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation import privacy
from federation.privacy import EPSILON_MILLI_CAP, StepsTaken, delta_for, epsilon_milli, noise_for

CASES = [
    [StepsTaken(500, 7_812, 360)],
    [StepsTaken(800, 31_250, 120)],
    [StepsTaken(1_000, 4_000, 480)],
    [StepsTaken(1_200, 125_000, 64)],
    [StepsTaken(3_000, 500_000, 30)],
    [StepsTaken(8_000, 62_500, 5_000)],
    [StepsTaken(1_000, 1_000, 120)],
    [StepsTaken(700, 31_250, 30), StepsTaken(1_500, 8_000, 360), StepsTaken(4_000, 500_000, 2)],
    [StepsTaken(2_000, 1_000_000, 7)],
]


def opacus(taken: list[StepsTaken], delta: float) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says when the best order is the largest it tries
        from opacus.accountants import RDPAccountant  # noqa: PLC0415 - takes seconds

        accountant = RDPAccountant()
        accountant.history = [(some.noise_milli / 1e3, some.rate_ppm / 1e6, some.steps) for some in taken]
        return float(accountant.get_epsilon(delta))


def google(taken: list[StepsTaken], delta: float) -> float:
    import dp_accounting  # noqa: PLC0415 - takes a second
    from dp_accounting.rdp import RdpAccountant  # noqa: PLC0415

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # it says which orders it left out
    accountant = RdpAccountant()
    for some in taken:
        step = dp_accounting.GaussianDpEvent(some.noise_milli / 1e3)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(some.rate_ppm / 1e6, step), some.steps)
    return float(accountant.get_epsilon(delta))


@pytest.mark.slow
@pytest.mark.parametrize("samples", [64, 500, 8_192])
@pytest.mark.parametrize("taken", CASES)
def test_epsilon_is_that_of_opacus_and_of_dp_accounting_and_never_below(
    taken: list[StepsTaken], samples: int
) -> None:
    """Where the two differ (by half a percent, in how they sum a series), the larger one counts."""
    delta = delta_for(samples)

    ours = epsilon_milli(taken, delta) / 1e3

    theirs = max(opacus(taken, delta), google(taken, delta))
    assert theirs <= ours <= 1.01 * theirs + 0.001  # it is rounded up to a thousandth


def test_a_known_run_costs_what_was_measured_elsewhere() -> None:
    """Opacus 1.6 gives 9.27 and dp-accounting 9.31 for sigma .5, q 1/128, 360 steps and a delta of 1/81,920."""
    assert epsilon_milli([StepsTaken(500, 7_812, 360)], delta_for(8_192)) == 9_314


def test_no_steps_cost_nothing() -> None:
    assert epsilon_milli([], 1e-5) == 0
    assert epsilon_milli([StepsTaken(1_000, 10_000, 0)], 1e-5) == 0


def test_hardly_any_noise_is_no_privacy_and_no_overflow() -> None:
    assert epsilon_milli([StepsTaken(1, 1_000_000, 10**9)], 1e-5) == EPSILON_MILLI_CAP


@pytest.mark.parametrize(
    "wrong", [StepsTaken(0, 1, 1), StepsTaken(1, 0, 1), StepsTaken(1, 1_000_001, 1), StepsTaken(1, 1, -1)]
)
def test_steps_that_cannot_have_been_taken_are_not_composed(wrong: StepsTaken) -> None:
    """Negative steps would give back what was spent."""
    with pytest.raises(ValueError, match="cannot be composed"):
        epsilon_milli([StepsTaken(1_000, 10_000, 5), wrong], 1e-5)


def test_one_epsilon_takes_less_than_50_ms_even_where_series_are_slow() -> None:
    privacy._log_moment.cache_clear()

    begun = time.thread_time()
    epsilon_milli([StepsTaken(733, 61_111, 1_000), StepsTaken(911, 7_777, 1_000)], 1e-5)

    assert time.thread_time() - begun < 0.05


KINDS = st.builds(
    StepsTaken,
    noise_milli=st.integers(300, 20_000),
    rate_ppm=st.integers(100, 1_000_000),
    steps=st.integers(1, 5_000),
)
DELTAS = st.integers(16, 10**6).map(delta_for)


@given(KINDS, st.integers(1, 1_000), DELTAS)
@settings(max_examples=40, deadline=None)
def test_more_steps_never_cost_less(taken: StepsTaken, more: int, delta: float) -> None:
    longer = StepsTaken(taken.noise_milli, taken.rate_ppm, taken.steps + more)

    assert epsilon_milli([taken], delta) <= epsilon_milli([longer], delta)


@given(KINDS, st.integers(1, 5_000), DELTAS)
@settings(max_examples=60, deadline=None)
def test_more_noise_never_costs_more(taken: StepsTaken, more: int, delta: float) -> None:
    noisier = StepsTaken(taken.noise_milli + more, taken.rate_ppm, taken.steps)

    assert epsilon_milli([noisier], delta) <= epsilon_milli([taken], delta)


@given(st.lists(KINDS, min_size=1, max_size=4), st.randoms(use_true_random=False), DELTAS)
@settings(max_examples=40, deadline=None)
def test_what_was_spent_depends_on_the_steps_alone_and_not_on_how_they_were_told(
    taken: list[StepsTaken], rng: object, delta: float
) -> None:
    """Two entries of n and m steps are one of n + m, in any order."""
    split = [
        StepsTaken(some.noise_milli, some.rate_ppm, part)
        for some in taken
        for part in (some.steps // 3, some.steps - some.steps // 3)
    ]
    rng.shuffle(split)  # type: ignore[attr-defined]

    assert epsilon_milli(split, delta) == epsilon_milli(taken, delta)


@given(st.lists(KINDS, max_size=3), DELTAS, st.integers(500, 10_000))
@settings(max_examples=15, deadline=None)
def test_the_least_noise_keeps_the_budget_and_a_little_less_would_not(
    spent: list[StepsTaken], delta: float, more_milli: int
) -> None:
    budget = epsilon_milli(spent, delta) + more_milli

    noise = noise_for(budget, spent, 20_000, 120, delta)

    if noise is None:
        assert epsilon_milli([*spent, StepsTaken(privacy.NOISE_MILLI_MAX, 20_000, 120)], delta) > budget
    else:
        assert epsilon_milli([*spent, StepsTaken(noise, 20_000, 120)], delta) <= budget
        assert noise == privacy.NOISE_MILLI_MIN or (
            epsilon_milli([*spent, StepsTaken(noise - 1, 20_000, 120)], delta) > budget
        )


def test_a_spent_budget_buys_no_step_with_any_noise() -> None:
    spent = [StepsTaken(1_000, 100_000, 1_000)]

    assert noise_for(epsilon_milli(spent, 1e-5) - 1, spent, 10_000, 10, 1e-5) is None


def test_delta_is_a_tenth_of_one_records_share() -> None:
    assert math.isclose(delta_for(2_000), 1 / 20_000)
