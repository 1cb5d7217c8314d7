"""A buyer's own limits on what it spends, per job and per UTC day; none unless its owner sets them.

Holds count as spent, so that requests under way together cannot overrun a limit that each of them keeps. A request that
does not fit is answered by the buyer itself, with the reason `budget`.
"""

from dataclasses import dataclass
from typing import Literal

Limit = Literal["job", "day"]


@dataclass(frozen=True)
class Budget:
    """Limits in micro-credits; None: no limit."""

    job_micro_max: int | None = None
    day_micro_max: int | None = None


@dataclass(frozen=True)
class OverBudget:
    """The request is not asked for; the decline's reason is `budget`."""

    limit: Limit
    wanted_micro: int
    left_micro: int


def check_budget(
    budget: Budget, *, wanted_micro: int, job_spent_micro: int, day_spent_micro: int, held_micro: int
) -> OverBudget | None:
    """Return the limit that a hold would break; None when it fits.

    Args:
        budget: the owner's limits.
        wanted_micro: what is to be held.
        job_spent_micro: what earlier attempts at this job were paid (`Ledger.job_spent_micro`).
        day_spent_micro: what was paid today (`Ledger.day_spent_micro`).
        held_micro: what is held already, for whatever.
    """
    for limit, left in _left_micro(budget, job_spent_micro, day_spent_micro + held_micro).items():
        if wanted_micro > left:
            return OverBudget(limit, wanted_micro, max(0, left))
    return None


def budget_left_micro(
    budget: Budget, *, job_spent_micro: int, day_spent_micro: int, held_micro: int
) -> int | None:
    """Return the largest hold that breaks no limit; None when there is no limit. Arguments as in `check_budget`."""
    left = _left_micro(budget, job_spent_micro, day_spent_micro + held_micro)
    return max(0, min(left.values())) if left else None


def _left_micro(budget: Budget, job_used_micro: int, day_used_micro: int) -> dict[Limit, int]:
    left: dict[Limit, int] = {}
    if budget.job_micro_max is not None:
        left["job"] = budget.job_micro_max - job_used_micro
    if budget.day_micro_max is not None:
        left["day"] = budget.day_micro_max - day_used_micro
    return left
