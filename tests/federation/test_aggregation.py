"""From contributions to the next state: the algebra of each strategy, and what attackers get out of it."""

import random
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
import pytest

from federation.aggregation import Aggregator, NotAggregable, weights_of
from federation.codec import VALUE_MAX, change
from federation.gate import Contribution, why_unfit
from federation.lora import State, seed_state
from federation.strategy import parameters_of, strategies, strategy_of
from protocol.identity import PeerId
from tests.federation.members import ANN, BOB, CAT, DAN, EVE, FAY, RECIPE

PEERS = [PeerId(peer) for peer in (ANN, BOB, CAT, DAN, EVE, FAY)]
WIDE = {"blk.0.attn_q": (64, 32), "blk.0.attn_k": (32, 32)}
ZERO = seed_state(RECIPE, WIDE)
Attack = Callable[[State], State]


def drawn(seed: int, scale: float = 0.01) -> State:
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(scale=scale, size=matrix.shape).astype(np.float32) for name, matrix in ZERO.items()
    }


def plus(one: State, other: State, factor: float = 1.0) -> State:
    return {name: one[name] + np.float32(factor) * other[name] for name in one}


START = drawn(99, 0.1)


def contributions(changes: Sequence[State], samples: Sequence[int] | None = None) -> list[Contribution]:
    weights = samples or [100] * len(changes)
    return [
        Contribution(peer, 1, weight, each)
        for peer, weight, each in zip(PEERS, weights, changes, strict=False)
    ]


def aggregator(name: str, **parameters: float) -> Aggregator:
    recipe = msgspec.structs.replace(RECIPE, strategy=name, parameters=parameters_of(parameters))
    return Aggregator(strategy_of(recipe))


def aggregate(name: str, changes: Sequence[State], samples: Sequence[int] | None = None) -> State:
    return aggregator(name).aggregate(1, START, contributions(changes, samples)).state


def distance(one: State, other: State) -> float:
    return float(np.sqrt(sum(float(np.square(one[name] - other[name]).sum()) for name in one)))


def overlapping(count: int) -> list[State]:
    """Changes of members whose data overlap: one direction, and half as much noise of each one's own."""
    return [plus(drawn(0), drawn(seed), 0.5) for seed in range(1, count + 1)]


def mean_of(changes: Sequence[State]) -> State:
    return {name: np.mean([each[name] for each in changes], axis=0, dtype=np.float64) for name in ZERO}


# --- algebra -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name",
    [
        "default",
        "mean",
        "clipped-mean",
        "fedprox",
        "fedmedian",
        "fedtrimmedavg",
        "krum",
        "multikrum",
        "bulyan",
    ],
)
@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_of_equal_changes_every_averaging_strategy_makes_that_change(name: str, count: int) -> None:
    same = drawn(1)

    result = aggregate(name, [same] * count)

    assert distance(result, plus(START, same)) < 1e-5


def test_the_mean_is_weighted_by_samples() -> None:
    result = aggregate("mean", [drawn(1), drawn(2)], samples=[300, 100])

    expected = plus(plus(START, drawn(1), 0.75), drawn(2), 0.25)
    assert distance(result, expected) < 1e-5


def test_the_mean_of_two_opposite_changes_is_no_change() -> None:
    assert distance(aggregate("mean", [drawn(1), plus(ZERO, drawn(1), -1)]), START) < 1e-6


def test_nobody_weighs_more_than_four_median_members() -> None:
    """A member that enlists with a billion samples would be the whole mean."""
    given = contributions([drawn(seed) for seed in range(5)], samples=[10**9, 100, 100, 200, 50])

    assert weights_of(given) == [400, 100, 100, 200, 50]


def test_the_clipped_mean_shortens_only_what_is_longer_than_the_median_change() -> None:
    short, middle, long = (plus(ZERO, drawn(1), factor) for factor in (0.5, 1.0, 30.0))

    result = aggregate("clipped-mean", [short, middle, long])

    assert distance(result, plus(START, drawn(1), (0.5 + 1.0 + 1.0) / 3)) < 1e-5


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedadagrad", "fedyogi"])
def test_strategies_with_a_server_optimizer_move_the_way_that_members_do_and_remember_it(name: str) -> None:
    """The second round's step differs from the first's although the members' changes are the same."""
    runner = aggregator(name)

    first = runner.aggregate(1, START, contributions([drawn(1)] * 3)).state
    second = runner.aggregate(2, first, contributions([drawn(1)] * 3)).state

    for name_, matrix in drawn(1).items():
        assert float((matrix * (first[name_] - START[name_])).sum()) > 0
        assert float((matrix * (second[name_] - first[name_])).sum()) > 0
    assert distance(plus(second, first, -1), plus(first, START, -1)) > 1e-4


def test_momentum_carries_on_by_as_much_as_it_is_set_to() -> None:
    runner = aggregator("fedavgm", server_momentum=0.5)

    first = runner.aggregate(1, START, contributions([drawn(1)] * 2)).state
    second = runner.aggregate(2, first, contributions([drawn(1)] * 2)).state

    assert distance(second, plus(first, drawn(1), 1.5)) < 1e-5


@pytest.mark.parametrize("name", sorted(strategies()))
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_whatever_the_strategy_and_the_cohort_the_next_state_fits_the_codec(name: str, count: int) -> None:
    outcome = aggregator(name).aggregate(1, START, contributions(overlapping(count)))

    assert why_unfit(START, outcome.state) == ""
    assert change(START, outcome.state)


def test_the_order_in_which_updates_came_changes_no_bit() -> None:
    given = contributions(overlapping(6), samples=[5, 10, 20, 40, 80, 160])

    one = aggregator("default").aggregate(1, START, given).state
    other = aggregator("default").aggregate(1, START, given[::-1]).state

    for name, matrix in one.items():
        np.testing.assert_array_equal(matrix, other[name])


def test_a_large_step_ends_at_the_bound_of_what_an_adapter_may_hold() -> None:
    result = aggregate("mean", [plus(ZERO, {name: np.full_like(m, 20) for name, m in ZERO.items()})])

    assert max(float(matrix.max()) for matrix in result.values()) == VALUE_MAX


def test_nothing_to_aggregate_is_said_and_two_of_one_member_is_our_own_bug() -> None:
    with pytest.raises(NotAggregable, match="round 3 has no update"):
        aggregator("mean").aggregate(3, START, [])
    with pytest.raises(ValueError, match="two contributions of one member"):
        aggregator("mean").aggregate(1, START, contributions([drawn(1)])[:1] * 2)


def test_what_flower_draws_from_the_global_generator_changes_no_result() -> None:
    results = []
    for seed in (1, 2):
        random.seed(seed)
        results.append(aggregate("default", overlapping(5)))

    assert distance(*results) == 0


# --- attacks -------------------------------------------------------------------------------------------------------
ATTACKS: Mapping[str, Attack] = {
    "sign flip": lambda honest: plus(ZERO, honest, -1),
    "sign flip x3": lambda honest: plus(ZERO, honest, -3),
    "scale x30": lambda honest: plus(ZERO, honest, 30),
    "the opposite x30": lambda honest: plus(ZERO, honest, -30),
    "noise": lambda _: drawn(1_234, 0.05),
    "nothing at all": lambda _: ZERO,
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("place", range(5))
def test_one_attacker_of_five_does_not_turn_the_default_strategy(attack: str, place: int) -> None:
    """Whoever it is: the result stays nearer to the honest mean than any single honest member is."""
    honest = overlapping(5)
    sent = [ATTACKS[attack](each) if number == place else each for number, each in enumerate(honest)]
    wanted = plus(START, mean_of([each for number, each in enumerate(honest) if number != place]))

    outcome = aggregator("default").aggregate(1, START, contributions(sent))

    assert outcome.rule.has_byzantine_protection
    nearest = min(
        distance(plus(START, each), wanted) for number, each in enumerate(honest) if number != place
    )
    assert distance(outcome.state, wanted) < nearest


def test_the_plain_mean_is_turned_by_one_attacker_of_five() -> None:
    """What the default protects against: the test above must be able to fail."""
    honest = overlapping(5)
    sent = [*honest[:4], ATTACKS["the opposite x30"](honest[4])]

    harm = distance(aggregate("mean", sent), aggregate("mean", honest[:4]))

    assert harm > 5 * distance(plus(START, honest[0]), aggregate("mean", honest[:4]))


def test_an_attacker_that_claims_the_weight_of_all_others_does_not_turn_the_default_strategy() -> None:
    honest = overlapping(5)
    sent = [*honest[:4], ATTACKS["sign flip"](honest[4])]

    result = aggregate("default", sent, samples=[100, 100, 100, 100, 10**12])

    wanted = plus(START, mean_of(honest[:4]))
    assert distance(result, wanted) < distance(plus(START, honest[0]), wanted)


def test_one_of_four_that_scales_its_change_gains_no_more_than_the_median_length() -> None:
    """No Byzantine protection, and yet no single member drags the mean away."""
    honest = overlapping(4)
    sent = [*honest[:3], ATTACKS["scale x30"](honest[3])]

    outcome = aggregator("default").aggregate(1, START, contributions(sent))

    assert not outcome.rule.has_byzantine_protection
    assert distance(outcome.state, aggregate("mean", honest)) < 0.1 * distance(
        START, aggregate("mean", honest)
    )
