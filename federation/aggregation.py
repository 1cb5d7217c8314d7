"""From a round's contributions to the next state: Flower's strategies, driven without Flower's processes.

`configure_train` and `aggregate_train` do no I/O. The cohort is ours (Flower would sample with the global generator):
the grid it is given knows exactly the members whose contributions are there. Strategies see *changes*, around a state of
zeros, rather than whole states: their sums and distances are then as exact as float32 can be, and a stale change is
added to the newest state like any other.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
)

from federation.client import ARRAYS, WEIGHT, arrays, reply, state_of
from federation.codec import VALUE_MAX
from federation.flower import config_record
from federation.gate import Contribution
from federation.lora import Matrix, State
from federation.strategy import CLIPPED_MEAN, MEAN, MULTIKRUM, Rule, Strategy, rule_for
from protocol.errors import AgoraError

WEIGHT_RATIO_MAX = 4  # a member weighs no more than so many median ones, whatever it says it holds


class NotAggregable(AgoraError):
    """The strategy made nothing of these updates; the message is one line for the user."""


@dataclass(frozen=True)
class Outcome:
    """A round's result, and what made it.

    Attributes:
        state: not yet quantised; what counts from here on is what members reconstruct from its change.
        rule: what was done with the updates that there were.
    """

    state: State
    rule: Rule


class ClippedMean(FedAvg):
    """The weighted mean of changes, none of them longer than the median one.

    A member that scales its change gains nothing beyond the median length; one that turns its sign still pulls the mean
    its way. Source: Sun et al. 2019, arXiv:1911.07963, section 4 (norm thresholding).
    """

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Shorten what is too long, then do as FedAvg does."""
        given = list(replies)
        changes = [state_of(message) for message in given]
        norms = [_norm(change) for change in changes]
        bound = median(norms)
        for message, change, norm in zip(given, changes, norms, strict=True):
            if norm > bound:
                shorter = {name: matrix * np.float32(bound / norm) for name, matrix in change.items()}
                message.content[ARRAYS] = arrays(shorter)
        return super().aggregate_train(server_round, given)


class Aggregator:
    """A run's strategy over all of its rounds; those with momentum remember the rounds before."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._made: dict[str, FedAvg] = {}

    def aggregate(self, number: int, state: State, contributions: Sequence[Contribution]) -> Outcome:
        """Return the next state, made of these contributions and nothing else.

        Args:
            number: of the round, from 1.
            state: the newest; stale contributions are added to it as well.
            contributions: past the gate, at most one of each member.

        Raises:
            NotAggregable: there are none, or the strategy came to no result.
        """
        if not contributions:
            raise NotAggregable(f"round {number} has no update")
        if len({each.peer for each in contributions}) < len(contributions):
            raise ValueError("two contributions of one member in one aggregate")
        given = sorted(contributions, key=lambda each: each.peer)
        rule = rule_for(self._strategy, len(given))
        key = f"{rule.name} {sorted(rule.parameters.items())}"
        flower = self._made.setdefault(key, _make(rule))
        total = _run(flower, number, state, given)
        if total.keys() != state.keys() or not all(np.isfinite(matrix).all() for matrix in total.values()):
            raise NotAggregable(f"strategy {rule.name!r} came to no finite result in round {number}")
        return Outcome({name: _bounded(state[name] + total[name]) for name in sorted(state)}, rule)


def weights_of(contributions: Sequence[Contribution]) -> list[int]:
    """Return what each contribution weighs: its samples, but no more than `WEIGHT_RATIO_MAX` median ones."""
    most = int(WEIGHT_RATIO_MAX * median(each.samples for each in contributions))
    return [max(1, min(each.samples, most)) for each in contributions]


class _Cohort:
    """As much of Flower's `Grid` as `configure_train` asks for: who is there."""

    def __init__(self, size: int) -> None:
        self._size = size

    def get_node_ids(self) -> Iterable[int]:
        return range(1, self._size + 1)


def _run(flower: FedAvg, number: int, state: State, given: Sequence[Contribution]) -> State:
    """Let Flower configure the round for this cohort, hand it the answers, and return the change it makes of them."""
    if isinstance(flower, FedAvgM):
        # it would go on from its own last result, but changes start from zero in each round
        flower.current_arrays = None
    zeros = {name: np.zeros_like(matrix) for name, matrix in state.items()}
    grid = cast("Grid", _Cohort(len(given)))
    asked = flower.configure_train(number, arrays(zeros), config_record({}), grid)
    in_order = sorted(asked, key=lambda message: message.metadata.dst_node_id)
    replies = [
        reply(message, each.change, {WEIGHT: weight})
        for message, each, weight in zip(in_order, given, weights_of(given), strict=True)
    ]
    record, _ = flower.aggregate_train(number, replies)
    if record is None:
        raise NotAggregable(f"strategy {type(flower).__name__} needs more than {len(given)} updates")
    return {name: array.numpy().astype(np.float32) for name, array in record.items()}


def _bounded(matrix: Matrix) -> Matrix:
    return np.clip(matrix, -VALUE_MAX, VALUE_MAX)


def _norm(change: State) -> float:
    return float(np.sqrt(sum(float(np.square(matrix, dtype=np.float64).sum()) for matrix in change.values())))


def _make(rule: Rule) -> FedAvg:
    """Return Flower's object for a rule. It waits for ever until enough nodes are there; ours are there already."""
    given: dict[str, Any] = {
        name: int(value) if name.startswith("num_") else value for name, value in rule.parameters.items()
    }
    return _FLOWER[rule.name](min_train_nodes=1, min_available_nodes=1, **given)


_FLOWER: Mapping[str, type[FedAvg]] = {
    MEAN: FedAvg,
    CLIPPED_MEAN: ClippedMean,
    "fedavgm": FedAvgM,
    "fedprox": FedProx,
    "fedadam": FedAdam,
    "fedadagrad": FedAdagrad,
    "fedyogi": FedYogi,
    "fedmedian": FedMedian,
    "fedtrimmedavg": FedTrimmedAvg,
    "krum": Krum,
    MULTIKRUM: MultiKrum,
    "bulyan": Bulyan,
}
