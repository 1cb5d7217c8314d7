"""A buyer's own limits."""

import pytest

from marketplace.budget import Budget, OverBudget, budget_left_micro, check_budget


@pytest.mark.parametrize(
    ("budget", "wanted_micro", "found"),
    [
        (Budget(), 10**12, None),
        (Budget(job_micro_max=1_000), 700, None),
        (Budget(job_micro_max=1_000), 701, OverBudget("job", 701, 700)),
        (Budget(day_micro_max=5_000), 2_500, None),
        (Budget(day_micro_max=5_000), 2_501, OverBudget("day", 2_501, 2_500)),
        (Budget(day_micro_max=1_000), 1, OverBudget("day", 1, 0)),
        (Budget(job_micro_max=1_000, day_micro_max=5_000), 3_000, OverBudget("job", 3_000, 700)),
    ],
)
def test_spent_held_and_wanted_stay_within_job_and_day(
    budget: Budget, wanted_micro: int, found: OverBudget | None
) -> None:
    """300 went into earlier attempts of this job, 2,000 were paid today, 500 are held."""
    answer = check_budget(
        budget, wanted_micro=wanted_micro, job_spent_micro=300, day_spent_micro=2_000, held_micro=500
    )

    assert answer == found


@pytest.mark.parametrize(
    ("budget", "left_micro"),
    [
        (Budget(), None),
        (Budget(job_micro_max=1_000), 700),
        (Budget(job_micro_max=1_000, day_micro_max=2_600), 100),
        (Budget(day_micro_max=1_000), 0),
    ],
)
def test_what_is_left_is_the_smaller_of_both(budget: Budget, left_micro: int | None) -> None:
    """A lease holds as much as that, instead of being refused for the jobs that may follow."""
    left = budget_left_micro(budget, job_spent_micro=300, day_spent_micro=2_000, held_micro=500)

    assert left == left_micro
