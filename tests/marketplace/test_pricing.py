"""Prices: integer, rounded up, never falling with the load."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.pricing import Prices, asked, lease_hold_micro, reserve_micro

MONEY = st.integers(0, 2**40)


def test_a_total_is_tokens_times_their_prices() -> None:
    assert Prices(3, 7).total_micro(100, 10) == 370


@pytest.mark.parametrize(
    ("load_percent", "is_on_battery", "prices"),
    [
        (0, False, Prices(10, 21)),
        (24, False, Prices(10, 21)),
        (25, False, Prices(13, 27)),
        (50, False, Prices(15, 32)),
        (100, False, Prices(20, 42)),
        (900, False, Prices(20, 42)),
        (0, True, Prices(15, 32)),
        (100, True, Prices(25, 53)),
    ],
)
def test_load_and_battery_make_it_dearer(load_percent: int, is_on_battery: bool, prices: Prices) -> None:
    assert asked(Prices(10, 21), load_percent=load_percent, is_on_battery=is_on_battery) == prices


def test_own_devices_pay_the_configured_share_whatever_the_load() -> None:
    price = asked(Prices(10, 21), load_percent=90, is_on_battery=True, is_same_owner=True, owner_percent=50)

    assert price == Prices(5, 11)


@settings(derandomize=True, deadline=None)
@given(base=MONEY, low=st.integers(-5, 200), high=st.integers(-5, 200), battery=st.booleans())
def test_the_price_never_falls_when_the_load_rises(base: int, low: int, high: int, battery: bool) -> None:
    low, high = min(low, high), max(low, high)

    calm = asked(Prices(base, base), load_percent=low, is_on_battery=battery)
    busy = asked(Prices(base, base), load_percent=high, is_on_battery=battery)

    assert base <= calm.prompt_micro <= busy.prompt_micro
    assert calm.completion_micro <= busy.completion_micro


@settings(derandomize=True, deadline=None)
@given(base=st.integers(1, 2**40), percent=st.integers(1, 100))
def test_a_price_above_zero_never_rounds_to_free(base: int, percent: int) -> None:
    price = asked(
        Prices(base, base), load_percent=0, is_on_battery=False, is_same_owner=True, owner_percent=percent
    )

    assert price.prompt_micro >= 1


@pytest.mark.parametrize(("spendable_micro", "reserve"), [(10_000, 1_300), (1_000, 1_000), (-5, 0)])
def test_the_reserve_is_what_the_buyer_would_pay_and_can(spendable_micro: int, reserve: int) -> None:
    assert (
        reserve_micro(
            Prices(3, 10), prompt_tokens=100, completion_tokens_max=100, spendable_micro=spendable_micro
        )
        == reserve
    )


@pytest.mark.parametrize(("spendable_micro", "hold"), [(100_000, 8_000), (3_500, 3_500), (1_000, 1_000)])
def test_a_lease_holds_several_requests_or_what_the_account_allows(spendable_micro: int, hold: int) -> None:
    assert lease_hold_micro(1_000, spendable_micro=spendable_micro) == hold
