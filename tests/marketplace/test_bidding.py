"""A seller's answer: an honest bid, or the first reason why not."""

from dataclasses import replace
from typing import Any

import pytest

from marketplace.bidding import SellerState, SellerTerms, quote
from marketplace.pricing import Prices
from marketplace.room import WAIT_MS_MAX
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
        ("model_missing", {"task": "embedding"}, {}, {}),
        ("model_missing", {"task": "chat"}, {}, {"dimensions": 8}),
        ("context", {}, {}, {"context_tokens": 299}),
        ("battery", {}, {}, {"battery_percent": 29}),
        ("policy", {"privacy": "local"}, {}, {}),
        ("policy", {"privacy": "owner"}, {}, {"buyer_owner": "bob"}),
        ("busy", {}, {}, {"slots_free": 0}),
        ("busy", {}, {}, {"slots_free": 0, "queue_free": 1, "wait_ms": WAIT_MS_MAX + 1}),
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
        ({}, {}, {"slots_free": 0, "queue_free": 1, "wait_ms": WAIT_MS_MAX}),
        ({"task": "check"}, {}, {"context_tokens": 100}),
        ({"task": "embedding"}, {}, {"dimensions": 8, "context_tokens": 1}),
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


# --- what a bid promises ----------------------------------------------------------------------------------------------
def bid_of(state: SellerState, **wanted: Any) -> Bid:
    answer = quote(request(total_micro_max=100_000, **wanted), TERMS, state)
    assert isinstance(answer, Bid)
    return answer


def test_loading_waiting_and_reading_all_come_before_the_first_token() -> None:
    """A bid that left one of them out would win the tie and break its word."""
    full = replace(STATE, slots_free=0, queued=1, queue_free=3, wait_ms=1_500, load_ms=2_000)

    assert bid_of(full).ttft_ms == 2_000 + 1_500 + 200


@pytest.mark.parametrize(("warm_tokens", "ttft_ms"), [(0, 200), (60, 80), (100, 2), (5_000, 2)])
def test_what_is_warm_is_not_read_again(warm_tokens: int, ttft_ms: int) -> None:
    """Of 100 tokens; the last one is always computed, however long the cache is said to be."""
    assert bid_of(replace(STATE, warm_tokens=warm_tokens)).ttft_ms == ttft_ms


def test_a_full_seller_asks_more_than_a_free_one() -> None:
    """Else the cheapest one would keep buyers waiting while others stand idle; its own owner's devices pay as ever."""
    full = replace(STATE, slots=4, slots_free=0, queue_free=1, buyer_owner="bob")
    half = replace(full, slots_free=2)

    assert bid_of(full, privacy="mesh").prompt_micro == 20
    assert bid_of(half, privacy="mesh").prompt_micro == 15
    assert bid_of(replace(full, buyer_owner="alice")).prompt_micro == 10


def test_a_decline_for_want_of_a_slot_says_the_wait() -> None:
    far = replace(STATE, slots=2, slots_free=0, queued=3, queue_free=4, wait_ms=7_340)
    crowded = replace(far, queue_free=0, wait_ms=100)

    details = [quote(request(), TERMS, state) for state in (far, crowded)]

    assert details == [
        Decline(
            request=request().id,
            reason="busy",
            detail="2 slots in use, 3 waiting: free in about 7.3 s, at most 5 s wanted",
        ),
        Decline(
            request=request().id, reason="busy", detail="2 slots in use, 3 waiting, and nobody more may wait"
        ),
    ]


@pytest.mark.parametrize(("task", "dimensions"), [("embedding", 8), ("check", 0)])
def test_a_task_that_only_reads_is_paid_by_its_prompt_alone(task: str, dimensions: int) -> None:
    """And it promises no speed: its words come all at once."""
    answer = bid_of(replace(STATE, dimensions=dimensions), task=task)

    assert (answer.prompt_micro, answer.completion_micro, answer.tokens_per_ks) == (10, 0, 0)
    assert answer.ttft_ms == 200


def test_a_task_for_another_kind_of_model_is_declined_in_words() -> None:
    answer = quote(request(task="embedding"), TERMS, STATE)

    assert isinstance(answer, Decline)
    assert "embedding model" in answer.detail
