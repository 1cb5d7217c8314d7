"""Strategies by name: what there is, what each takes, and which one so many updates get."""

from collections.abc import Mapping

import msgspec
import pytest

from federation.strategy import (
    Rule,
    Strategy,
    UnknownStrategy,
    parameters_of,
    proximal_mu,
    rule_for,
    strategies,
    strategy_of,
)
from protocol.messages import Recipe
from tests.federation.members import RECIPE


def recipe(strategy: str, parameters: Mapping[str, float] | None = None) -> Recipe:
    return msgspec.structs.replace(RECIPE, strategy=strategy, parameters=parameters_of(parameters or {}))


def test_five_members_get_multikrum_and_four_the_clipped_mean_which_protects_nobody() -> None:
    default = strategy_of(recipe("default"))

    assert rule_for(default, 5) == Rule(
        "multikrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 4}, True
    )
    assert rule_for(default, 9) == Rule(
        "multikrum", {"num_malicious_nodes": 3, "num_nodes_to_select": 6}, True
    )
    assert rule_for(default, 4) == Rule("clipped-mean", {}, False)


@pytest.mark.parametrize(
    ("name", "enough"), [("krum", 5), ("multikrum", 5), ("bulyan", 7), ("fedmedian", 3), ("fedtrimmedavg", 5)]
)
def test_a_robust_rule_with_too_few_updates_gives_way_and_says_that_it_protects_nobody(
    name: str, enough: int
) -> None:
    strategy = strategy_of(recipe(name))

    assert rule_for(strategy, enough - 1) == Rule("clipped-mean", {}, False)
    assert (rule_for(strategy, enough).name, rule_for(strategy, enough).has_byzantine_protection) == (
        name,
        True,
    )


def test_two_bad_members_want_seven_updates() -> None:
    strategy = strategy_of(recipe("multikrum", {"num_malicious_nodes": 2, "num_nodes_to_select": 3}))

    assert not rule_for(strategy, 6).has_byzantine_protection
    assert rule_for(strategy, 7).parameters == {"num_malicious_nodes": 2, "num_nodes_to_select": 3}


@pytest.mark.parametrize("name", ["mean", "fedadam", "fedprox"])
def test_an_average_is_never_called_protection(name: str) -> None:
    assert not rule_for(strategy_of(recipe(name)), 30).has_byzantine_protection


def test_flowers_own_name_for_the_mean_is_understood() -> None:
    assert strategy_of(recipe("FedAvg")) == Strategy("mean", {})


def test_what_is_not_given_is_filled_in() -> None:
    assert strategy_of(recipe("fedavgm", {"server_momentum": 0.5})).parameters == {
        "server_learning_rate": 1,
        "server_momentum": 0.5,
    }


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (recipe("fedfoo"), "no strategy 'fedfoo'; there are default, mean, clipped-mean, "),
        (recipe("qfedavg"), "no strategy 'qfedavg'"),  # it would want losses on private data
        (recipe("mean", {"eta": 1}), "strategy 'mean' has no parameter 'eta'; there are none"),
        (recipe("fedavgm", {"momentum": 1}), "there are server_learning_rate, server_momentum"),
        (
            recipe("fedtrimmedavg", {"beta": 0.5}),
            "'beta' of strategy 'fedtrimmedavg' is 0.5, expected 0.01 to 0.49",
        ),
        (recipe("krum", {"num_malicious_nodes": -1}), "is -1, expected 0 to 15"),
    ],
)
def test_what_there_is_not_is_refused_in_one_line(asked: Recipe, line: str) -> None:
    with pytest.raises(UnknownStrategy) as refused:
        strategy_of(asked)

    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_only_fedprox_holds_members_back() -> None:
    assert proximal_mu(recipe("fedprox", {"proximal_mu": 0.25})) == 0.25
    assert proximal_mu(recipe("default")) == 0


def test_every_strategy_says_in_one_line_what_it_does() -> None:
    assert all(0 < len(kind.summary) < 80 and "\n" not in kind.summary for kind in strategies().values())
