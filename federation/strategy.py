"""How a cohort's changes become one: strategies by name, with their parameters, and which one a cohort gets.

Flower's own classes do the work (`federation/aggregation.py`); this file imports none of them, so that a device can say
what it would train under without loading anything. Parameters travel as millionths.

Left to `default`, five or more members get MultiKrum, which one bad member in five cannot turn, if their data overlap.
Fewer cannot outvote anybody: they get the norm-clipped mean, where a bad member pulls no harder than the median one, and
the user is told that it is no Byzantine protection. The same mean steps in for one round where a robust rule finds too
few updates. Robust rules need overlapping data: members who each hold something of their own look like attackers.

Not here: q-FedAvg, which asks members for the loss on their private data, and nobody budgeted that.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from protocol.errors import AgoraError
from protocol.messages import Recipe

DEFAULT: Final = "default"
MEAN: Final = "mean"
CLIPPED_MEAN: Final = "clipped-mean"
MULTIKRUM: Final = "multikrum"
_MILLION: Final = 1_000_000


class UnknownStrategy(AgoraError):
    """A recipe names a strategy or a parameter that there is not, or gives it a value that it cannot have."""


@dataclass(frozen=True)
class Parameter:
    """A number that a strategy takes, and what it may be. The name is Flower's."""

    default: float
    least: float
    most: float


@dataclass(frozen=True)
class Kind:
    """A strategy as it is offered.

    Attributes:
        summary: one line for the user.
        is_robust: whether it withstands members that send anything, given enough members with overlapping data.
    """

    summary: str
    parameters: Mapping[str, Parameter]
    is_robust: bool = False


@dataclass(frozen=True)
class Strategy:
    """A strategy as a recipe asks for it."""

    name: str
    parameters: Mapping[str, float]


@dataclass(frozen=True)
class Rule:
    """What is done with so many updates.

    Attributes:
        parameters: Flower's, complete, the number of bad members among them worked out.
        has_byzantine_protection: False is shown to the user.
    """

    name: str
    parameters: Mapping[str, float]
    has_byzantine_protection: bool


_BAD = Parameter(0, 0, 15)  # members that may be bad; 0: as many as the rule withstands
_ADAPTIVE = {"eta": Parameter(0.01, 1e-6, 1), "tau": Parameter(1e-3, 1e-6, 1)}
_MOMENTS = {"beta_1": Parameter(0.9, 0, 0.999), "beta_2": Parameter(0.99, 0, 0.999_999)}

_KINDS: Final[Mapping[str, Kind]] = {
    DEFAULT: Kind("MultiKrum with five or more members, else the norm-clipped mean", {}),
    MEAN: Kind("FedAvg: the mean, weighted by samples", {}),
    CLIPPED_MEAN: Kind("the mean of changes clipped to the cohort's median norm", {}),
    "fedavgm": Kind(
        "FedAvg with momentum at the server",
        {"server_learning_rate": Parameter(1, 1e-3, 10), "server_momentum": Parameter(0.9, 0, 0.999)},
    ),
    "fedprox": Kind(
        "FedAvg whose members are held near the round's start", {"proximal_mu": Parameter(0.01, 1e-6, 100)}
    ),
    "fedadam": Kind("Adam at the server", _ADAPTIVE | _MOMENTS),
    "fedadagrad": Kind("Adagrad at the server", _ADAPTIVE),
    "fedyogi": Kind("Yogi at the server", _ADAPTIVE | _MOMENTS),
    "fedmedian": Kind("the median of each value", {}, is_robust=True),
    "fedtrimmedavg": Kind(
        "the mean of each value without its extremes", {"beta": Parameter(0.2, 0.01, 0.49)}, is_robust=True
    ),
    "krum": Kind(
        "the one change that is nearest to its neighbours", {"num_malicious_nodes": _BAD}, is_robust=True
    ),
    MULTIKRUM: Kind(
        "the mean of the changes that are nearest to their neighbours",
        {"num_malicious_nodes": _BAD, "num_nodes_to_select": Parameter(0, 0, 32)},
        is_robust=True,
    ),
    "bulyan": Kind(
        "MultiKrum's choice, trimmed; from seven members on", {"num_malicious_nodes": _BAD}, is_robust=True
    ),
}
_ALIASES: Final = {"fedavg": MEAN}


def strategies() -> Mapping[str, Kind]:
    """Return every strategy by name."""
    return _KINDS


def strategy_of(recipe: Recipe) -> Strategy:
    """Return the strategy that a recipe asks for, its parameters complete.

    Raises:
        UnknownStrategy: with one line that says what there is instead.
    """
    name = _ALIASES.get(recipe.strategy.lower(), recipe.strategy.lower())
    kind = _KINDS.get(name)
    if kind is None:
        raise UnknownStrategy(f"no strategy {recipe.strategy!r}; there are {', '.join(_KINDS)}")
    given = {key: millionths / _MILLION for key, millionths in recipe.parameters}
    for key, value in given.items():
        known = kind.parameters.get(key)
        if known is None:
            there_are = ", ".join(kind.parameters) or "none"
            raise UnknownStrategy(f"strategy {name!r} has no parameter {key!r}; there are {there_are}")
        if not known.least <= value <= known.most:
            raise UnknownStrategy(
                f"parameter {key!r} of strategy {name!r} is {value:g}, expected {known.least:g} to {known.most:g}"
            )
    defaults = {key: known.default for key, known in kind.parameters.items()}
    return Strategy(name, defaults | given)


def parameters_of(values: Mapping[str, float]) -> tuple[tuple[str, int], ...]:
    """Return parameters as a recipe carries them."""
    return tuple((key, round(value * _MILLION)) for key, value in sorted(values.items()))


def proximal_mu(recipe: Recipe) -> float:
    """Return how hard a member's loss pulls it back to the round's state: mu / 2 times the squared distance."""
    return strategy_of(recipe).parameters.get("proximal_mu", 0.0)


def rule_for(strategy: Strategy, updates: int) -> Rule:
    """Return what is done with so many updates: what was asked for, or what steps in where they are too few."""
    name = strategy.name
    if name == DEFAULT:
        name = MULTIKRUM if updates >= 5 else CLIPPED_MEAN
    kind = _KINDS[name]
    parameters = {key: known.default for key, known in kind.parameters.items()}
    if name == strategy.name:
        parameters |= strategy.parameters
    if not kind.is_robust:
        return Rule(name, parameters, has_byzantine_protection=False)
    bad, needed = _bad_and_needed(name, parameters, updates)
    if updates < needed:
        return Rule(CLIPPED_MEAN, {}, has_byzantine_protection=False)
    if "num_malicious_nodes" in parameters:
        parameters["num_malicious_nodes"] = bad
    if name == MULTIKRUM:
        # all but as many as may be bad: an average of more honest members is a better one
        parameters["num_nodes_to_select"] = min(parameters["num_nodes_to_select"] or updates - bad, updates)
    return Rule(name, parameters, has_byzantine_protection=True)


def _bad_and_needed(name: str, parameters: Mapping[str, float], updates: int) -> tuple[int, int]:
    """Return how many bad members a rule is set to withstand, and how many updates it needs for that."""
    asked = int(parameters.get("num_malicious_nodes", 0))
    match name:
        case "bulyan":
            bad = asked or max(1, (updates - 3) // 4)
            return bad, 4 * bad + 3
        case "krum" | "multikrum":
            bad = asked or max(1, (updates - 3) // 2)
            return bad, 2 * bad + 3
        case "fedtrimmedavg":  # it has to cut off at least one on each side
            return 1, math.ceil(1 / parameters["beta"])
        case _:
            return 1, 3
