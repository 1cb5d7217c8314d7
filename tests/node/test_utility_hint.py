"""What an owner is told before any privacy is spent follows what was measured."""

import pytest

from node.utility_hint import Outlook, utility_hint


def test_the_training_that_learned_is_said_to_learn() -> None:
    """Sigma 0.5, 8,192 records, 360 steps: epsilon 9.45, accuracy .98."""
    assert utility_hint(8_192, 9_450, batch=64, steps=360).outlook is Outlook.LEARNS


def test_the_training_that_learned_nothing_is_said_to_teach_nothing() -> None:
    """Sigma 0.8, 2,048 records, 120 steps: epsilon 4.8, accuracy .00."""
    assert utility_hint(2_048, 4_800, batch=64, steps=120).outlook is Outlook.NOTHING


@pytest.mark.parametrize(("samples", "budget_milli"), [(1, 100), (50, 8_000), (200, 4_000), (500, 8_000)])
def test_a_small_set_under_a_small_epsilon_is_said_to_teach_nothing(samples: int, budget_milli: int) -> None:
    hint = utility_hint(samples, budget_milli)

    assert hint.outlook is Outlook.NOTHING
    assert f"{samples} record" in hint.text
    assert "most likely teach nothing" in hint.text


def test_more_of_anything_never_makes_the_outlook_worse() -> None:
    ranks = [Outlook.NOTHING, Outlook.UNCERTAIN, Outlook.LEARNS]
    by_samples = [
        ranks.index(utility_hint(each, 4_000).outlook) for each in (100, 1_000, 8_192, 20_000, 80_000)
    ]
    by_budget = [ranks.index(utility_hint(4_096, each).outlook) for each in (500, 2_000, 8_000, 40_000)]
    by_cohort = [
        ranks.index(utility_hint(4_096, 4_000, batch=32, steps=100, cohort=each).outlook)
        for each in (1, 4, 32)
    ]

    for row in (by_samples, by_budget, by_cohort):
        assert row == sorted(row)
        assert row[0] < row[-1]


def test_without_a_budget_the_price_is_named() -> None:
    assert utility_hint(100, 0).text == (
        "without differential privacy nothing is lost to noise, and updates may give single records away"
    )


def test_a_budget_that_promises_little_is_called_so() -> None:
    assert "promises a single record little" in utility_hint(8_192, 9_450).text
    assert "promises" not in utility_hint(8_192, 8_000).text
