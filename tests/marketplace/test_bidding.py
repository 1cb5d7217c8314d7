"""A seller's answer: an honest bid, or the first reason why not."""

from dataclasses import replace
from typing import Any

import pytest

from marketplace.bidding import SellerState, SellerTerms, quote
from marketplace.pricing import Prices
from protocol.messages import Bid, Decline
from tests.marketplace.parties import request

TERMS = SellerTerms(owner="alice", base=Prices(10, 20))
STATE = SellerState(
    buyer_owner="alice",
    is_adapter_ready=True,
    context_tokens=2_048,
    is_memory_enough=True,
    slots=1,
    slots_free=1,
    queued=0,
    battery_percent=-1,
    is_charging=False,
    load_percent=0,
    tokens_per_ks=50_000,
    prompt_tokens_per_ks=500_000,
    balance_micro=0,
    held_micro=0,
    credit_line_micro=10_000,
    unsettled_micro=0,
)


def test_a_free_seller_bids_its_price_and_what_its_measured_speed_promises() -> None:
    """100 prompt tokens at 500 tokens/s are 200 ms."""
    assert quote(request(), TERMS, STATE) == Bid(
        request=request().id, prompt_micro=10, completion_micro=20, ttft_ms=200, tokens_per_ks=50_000
    )


@pytest.mark.parametrize(
    ("reason", "wanted", "terms", "state"),
    [
        ("not_admitted", {}, {}, {"buyer_owner": None}),
        ("price", {"total_micro_max": 4_999}, {}, {}),
        ("memory", {}, {}, {"is_memory_enough": False}),
        ("model_missing", {}, {}, {"context_tokens": None}),
        ("model_missing", {"adapter": b"a" * 32}, {}, {"is_adapter_ready": False}),
        ("context", {}, {}, {"context_tokens": 299}),
        ("battery", {}, {}, {"battery_percent": 29}),
        ("policy", {"privacy": "local"}, {}, {}),
        ("policy", {"privacy": "owner"}, {}, {"buyer_owner": "bob"}),
        ("busy", {}, {}, {"slots_free": 0}),
        ("credit", {}, {}, {"held_micro": 5_001}),
        ("unsettled", {}, {}, {"unsettled_micro": 1_000_001}),
    ],
)
def test_every_decline_carries_its_reason(
    reason: str, wanted: dict[str, Any], terms: dict[str, Any], state: dict[str, Any]
) -> None:
    answer = quote(request(**wanted), replace(TERMS, **terms), replace(STATE, **state))

    assert isinstance(answer, Decline)
    assert (answer.request, answer.reason) == (request(**wanted).id, reason)
    assert answer.detail


@pytest.mark.parametrize(
    ("wanted", "terms", "state"),
    [
        ({"total_micro_max": 5_000}, {}, {}),
        ({}, {}, {"context_tokens": 300}),
        ({}, {}, {"battery_percent": 30}),
        ({}, {}, {"battery_percent": 5, "is_charging": True}),
        ({"privacy": "mesh"}, {}, {"buyer_owner": "bob"}),
        ({}, {}, {"held_micro": 5_000}),
        ({}, {}, {"unsettled_micro": 1_000_000}),
    ],
)
def test_just_inside_each_bound_it_bids(
    wanted: dict[str, Any], terms: dict[str, Any], state: dict[str, Any]
) -> None:
    answer = quote(request(**wanted), replace(TERMS, **terms), replace(STATE, **state))

    assert isinstance(answer, Bid)


def test_stranger_learns_nothing_but_that_it_is_not_admitted() -> None:
    flat = replace(STATE, buyer_owner=None, battery_percent=3, context_tokens=None, unsettled_micro=10**9)

    assert quote(request(total_micro_max=0), TERMS, flat) == Decline(
        request=request(total_micro_max=0).id, reason="not_admitted", detail="the buyer is not a member here"
    )


def test_a_seller_that_measured_nothing_promises_nothing() -> None:
    answer = quote(request(), TERMS, replace(STATE, tokens_per_ks=0, prompt_tokens_per_ks=0))

    assert isinstance(answer, Bid)
    assert (answer.ttft_ms, answer.tokens_per_ks) == (0, 0)


def test_own_devices_are_served_free_only_when_so_configured() -> None:
    answer = quote(request(), replace(TERMS, owner_percent=0), STATE)

    assert isinstance(answer, Bid)
    assert (answer.prompt_micro, answer.completion_micro) == (0, 0)
