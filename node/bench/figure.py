"""A figure: what was measured, what was promised, and every sample, so that the spread is seen and not only a mean."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Statistic = Literal["min", "p50", "p95", "max"]


@dataclass(frozen=True)
class Target:
    """What the value has to be; a figure without one is only reported."""

    limit: float
    is_upper: bool

    def is_met(self, value: float) -> bool:
        """Whether a value keeps the promise."""
        return value <= self.limit if self.is_upper else value >= self.limit


def at_most(limit: float) -> Target:
    """The value may not be larger."""
    return Target(limit, is_upper=True)


def at_least(limit: float) -> Target:
    """The value may not be smaller."""
    return Target(limit, is_upper=False)


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        name: short, for the table.
        what: what exactly was measured.
        unit: of the samples; "" for a ratio or a count.
        statistic: which of the samples' is the value.
        note: where the time goes, or what else a reader must know; "" for nothing.
    """

    name: str
    what: str
    unit: str
    samples: Sequence[float]
    statistic: Statistic = "p50"
    target: Target | None = None
    note: str = ""

    @property
    def value(self) -> float:
        """The measured value."""
        return spread(self.samples)[self.statistic]

    @property
    def is_met(self) -> bool | None:
        """Whether the promise is kept; None when nothing was promised."""
        return None if self.target is None else self.target.is_met(self.value)


@dataclass(frozen=True)
class Conditions:
    """How the machine was while a chapter ran."""

    load_before: float  # the load average over one minute
    load_after: float
    fsync_p50_ms: float
    took_s: float


@dataclass
class Chapter:
    """The figures of one mesh; `failure` says in one line why there are not more."""

    name: str
    figures: list[Figure] = field(default_factory=list)
    conditions: Conditions | None = None
    failure: str = ""


def spread(samples: Sequence[float]) -> dict[Statistic, float]:
    """Return the smallest, the median, the 95th percentile (nearest rank) and the largest."""
    ordered = sorted(samples)
    return {
        "min": ordered[0],
        "p50": statistics.median(ordered),
        "p95": ordered[math.ceil(0.95 * len(ordered)) - 1],
        "max": ordered[-1],
    }
