"""A spot auction: who wins, when it ends, and what changes nothing."""

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from marketplace.auction import (
    Absent,
    Answer,
    Auction,
    Declined,
    NoSale,
    Won,
    bid_overtime_s,
    bid_window_s,
    lot,
    winner,
)
from protocol.identity import PeerId
from tests.marketplace.parties import ANN, BOB, BUYER, CAT, bid, decline, request, sealed

ALL = (ANN, BOB, CAT)


def auction(asked: tuple[PeerId, ...] = ALL, awaited: tuple[PeerId, ...] | None = None) -> Auction:
    """Opened at 100 with a window of 0.2 s."""
    return Auction(request(), asked=asked, awaited=frozenset(awaited or asked), window_s=0.2, now=100.0)


def test_the_cheapest_bid_wins_as_soon_as_all_awaited_have_answered() -> None:
    """First price: the winner is paid what it bid, not what the second bid."""
    sale = auction()

    assert sale.handle_message(ANN, bid(ANN, 30), 100.01) == []
    assert sale.handle_message(BOB, bid(BOB, 20), 100.02) == []
    assert sale.handle_message(CAT, decline(CAT), 100.03) == [Won(BOB, bid(BOB, 20), 6_000)]
    assert sale.deadline is None


def test_at_the_window_the_cheapest_bid_so_far_wins() -> None:
    sale = auction()

    sale.handle_message(ANN, bid(ANN, 30), 100.01)

    assert sale.deadline == pytest.approx(100.2)
    assert sale.handle_timeout(100.2) == [Won(ANN, bid(ANN, 30), 9_000)]
    assert sale.missed == (BOB, CAT)


def test_a_seller_that_is_asked_but_not_awaited_does_not_hold_up_the_sale() -> None:
    """It missed windows before; its bid counts if it comes in time all the same."""
    sale = auction(asked=(ANN, BOB), awaited=(ANN,))

    assert sale.handle_message(ANN, bid(ANN, 30), 100.01) == [Won(ANN, bid(ANN, 30), 9_000)]
    assert sale.missed == ()


def test_an_unawaited_seller_wins_with_the_cheaper_bid() -> None:
    sale = auction(asked=(ANN, BOB), awaited=(ANN,))

    assert sale.handle_message(BOB, bid(BOB, 10), 100.01) == []
    assert sale.handle_message(ANN, bid(ANN, 30), 100.02) == [Won(BOB, bid(BOB, 10), 3_000)]


def test_nobody_left_to_answer_and_no_bid_is_no_sale_at_once() -> None:
    sale = auction()

    sale.handle_message(ANN, decline(ANN, "policy"), 100.01)
    sale.handle_message(BOB, Absent("unreachable", "no connection"), 100.02)

    assert sale.handle_message(CAT, decline(CAT), 100.03) == [
        NoSale(
            (
                Declined(ANN, "policy", "all slots in use"),
                Declined(BOB, "unreachable", "no connection"),
                Declined(CAT, "busy", "all slots in use"),
            ),
            silent=(),
        )
    ]


def test_without_a_bid_the_window_grows_to_a_second_and_the_next_bid_wins() -> None:
    """Better a slow seller than none."""
    sale = auction()
    sale.handle_message(ANN, decline(ANN), 100.01)

    assert sale.handle_timeout(100.2) == []
    assert sale.deadline == 101.0
    assert sale.handle_message(CAT, bid(CAT, 30), 100.7) == [Won(CAT, bid(CAT, 30), 9_000)]
    assert sale.missed == (BOB, CAT)


def test_after_a_second_of_silence_it_is_no_sale() -> None:
    sale = auction(asked=(ANN, BOB))
    sale.handle_message(ANN, decline(ANN), 100.01)

    sale.handle_timeout(100.2)

    assert sale.handle_timeout(101.0) == [NoSale((Declined(ANN, "busy", "all slots in use"),), silent=(BOB,))]


def test_an_auction_that_asks_nobody_ends_at_once() -> None:
    sale = auction(asked=())

    assert sale.deadline == 100.0
    assert sale.handle_timeout(100.0) == [NoSale((), ())]


def test_a_timeout_before_the_deadline_changes_nothing() -> None:
    sale = auction()

    assert sale.handle_timeout(100.19) == []
    assert sale.deadline == pytest.approx(100.2)


def test_a_bid_that_comes_with_the_deadline_is_late() -> None:
    """The window decides, not which of the two the driver happens to handle first."""
    sale = auction(asked=(ANN, BOB))
    sale.handle_message(ANN, bid(ANN, 30), 100.01)

    assert sale.handle_message(BOB, bid(BOB, 1), 100.2) == [Won(ANN, bid(ANN, 30), 9_000)]


def test_late_bid_changes_nothing() -> None:
    sale = auction(asked=(ANN,))
    sale.handle_message(ANN, bid(ANN, 30), 100.01)
    before = sale.answers

    assert sale.handle_message(BOB, bid(BOB, 1), 100.02) == []
    assert sale.handle_timeout(100.5) == []
    assert sale.answers == before


def test_second_bid_of_one_seller_is_refused() -> None:
    """Sealed bids: whoever could bid again after seeing a rival would always bid last."""
    sale = auction(asked=(ANN, BOB))
    sale.handle_message(ANN, bid(ANN, 30), 100.01)

    sale.handle_message(ANN, bid(ANN, 1), 100.02)

    assert sale.handle_message(BOB, bid(BOB, 20), 100.03) == [Won(BOB, bid(BOB, 20), 6_000)]


def test_bid_for_another_request_is_refused() -> None:
    """An old, cheap bid of the same seller must not be played again."""
    sale = auction(asked=(ANN, BOB))
    other = request(attempt=2)

    assert sale.handle_message(ANN, bid(ANN, 1, to=other), 100.01) == []
    assert sale.answers == ()


def test_bid_relayed_by_another_peer_is_refused() -> None:
    sale = auction(asked=(ANN, BOB))

    assert sale.handle_message(BOB, bid(ANN, 1), 100.01) == []
    assert sale.answers == ()


def test_bid_of_a_peer_that_was_not_asked_is_refused() -> None:
    sale = auction(asked=(ANN,))

    assert sale.handle_message(CAT, bid(CAT, 1), 100.01) == []
    assert sale.answers == ()


def test_bid_over_the_reserve_cannot_win_and_is_not_waited_for() -> None:
    """It is an answer, so a dishonest seller cannot stretch the auction to its window either."""
    sale = auction(asked=(ANN,))

    assert sale.handle_message(ANN, bid(ANN, 34), 100.01) == [
        NoSale((Declined(ANN, "price", "bid 10200, at most 10000 allowed"),), silent=())
    ]


def test_every_answer_keeps_its_time() -> None:
    sale = auction(asked=(ANN, BOB))

    sale.handle_message(ANN, bid(ANN, 30), 100.25 - 0.125)
    sale.handle_message(BOB, Absent("unreachable"), 100.1875)

    assert sale.answers == (
        Answer(ANN, 0.125, bid(ANN, 30)),
        Answer(BOB, 0.1875, Absent("unreachable")),
    )


def test_an_answer_after_the_decision_is_still_punctual_inside_the_window() -> None:
    """So that a seller nobody waits for any more can make good for its silence."""
    sale = auction(asked=(ANN, BOB), awaited=(ANN,))
    sale.handle_message(ANN, bid(ANN, 30), 100.01)

    assert sale.is_in_window(100.1)
    assert not sale.is_in_window(100.3)


def test_a_tie_goes_to_the_lowest_lot_that_anybody_can_recompute() -> None:
    lots = {peer: hashlib.sha256(request().id + peer.encode()).digest() for peer in ALL}

    assert {peer: lot(request().id, peer) for peer in ALL} == lots
    best = winner(request(), [bid(peer, 10) for peer in ALL])
    assert best == bid(min(ALL, key=lots.__getitem__), 10)


def test_a_tie_goes_to_the_soonest_first_token() -> None:
    """A warm seller answers sooner than one that has to read the prompt."""
    sale = auction()

    sale.handle_message(ANN, bid(ANN, 20, ttft_ms=800), 100.01)
    sale.handle_message(BOB, bid(BOB, 20, ttft_ms=90), 100.02)

    assert sale.handle_message(CAT, bid(CAT, 20, ttft_ms=7), 100.03) == [
        Won(CAT, bid(CAT, 20, ttft_ms=7), 6_000)
    ]


def test_who_promises_no_time_comes_behind_the_quick_and_before_those_that_wait() -> None:
    """A new device has measured nothing. Always last, it would stay so, idle beside a device with a queue."""
    quick, silent, waiting = (
        bid(seller, 20, ttft_ms=ttft) for seller, ttft in ((ANN, 90), (BOB, 0), (CAT, 4_000))
    )

    assert winner(request(), [waiting, silent, quick]) == quick
    assert winner(request(), [waiting, silent]) == silent


def test_a_cheaper_bid_wins_whatever_it_promises() -> None:
    assert winner(request(), [bid(ANN, 21, ttft_ms=1), bid(BOB, 20, ttft_ms=0)]) == bid(BOB, 20, ttft_ms=0)


def test_a_bid_that_asks_for_the_words_of_a_reading_cannot_win() -> None:
    """What a reading answers is known before, and paid with its prompt: such a bid is as one over the reserve."""
    wanted = request(task="embedding")
    greedy, honest = (
        bid(ANN, 1, wanted),
        sealed(BOB, replace(bid(BOB, 2, wanted).message, completion_micro=0)),
    )

    assert winner(wanted, [greedy, honest]) == honest
    assert winner(wanted, [greedy]) is None
    sale = Auction(wanted, asked=(ANN,), awaited=frozenset({ANN}), window_s=0.2, now=100.0)
    assert sale.handle_message(ANN, greedy, 100.01) == [
        NoSale((Declined(ANN, "price", "bid 1 per word of the task 'embedding', 0 allowed"),), silent=())
    ]


def test_there_is_no_winner_without_a_bid() -> None:
    assert winner(request(), []) is None


@settings(derandomize=True, deadline=None)
@given(prices=st.lists(st.integers(0, 40), min_size=3, max_size=3), seed=st.integers())
def test_the_winner_does_not_depend_on_the_order_of_the_bids(prices: list[int], seed: int) -> None:
    bids = [bid(peer, price) for peer, price in zip(ALL, prices, strict=True)]
    shuffled = random.Random(seed).sample(bids, 3)

    best = winner(request(), shuffled)

    assert best == winner(request(), bids)
    affordable = [price for price in prices if 300 * price <= 10_000]
    assert (best.message.prompt_micro if best else None) == (min(affordable) if affordable else None)


@settings(derandomize=True, deadline=None)
@given(
    events=st.lists(
        st.tuples(
            st.sampled_from([ANN, BOB, CAT, BUYER]),
            st.one_of(st.integers(0, 40), st.just("busy"), st.just(None)),
            st.floats(0, 0.5),
        ),
        max_size=12,
    )
)
def test_every_auction_ends_exactly_once_whatever_comes(
    events: list[tuple[PeerId, int | str | None, float]],
) -> None:
    sale, now, actions = auction(), 100.0, []

    for peer, said, wait_s in events:
        now += wait_s
        message = (
            Absent("unreachable") if said is None else decline(peer) if said == "busy" else bid(peer, said)
        )
        actions += sale.handle_message(peer, message, now)
    while sale.deadline is not None:
        now = max(now, sale.deadline)
        actions += sale.handle_timeout(now)

    assert len(actions) == 1
    assert now <= 101.0 + 12 * 0.5


@pytest.mark.parametrize(
    ("round_trips_s", "window_s"),
    [
        ([0.001, 0.002], 0.05),
        ([0.02] * 9 + [0.4], 0.06),
        ([0.02] * 8 + [0.1, 0.1], 0.3),
        ([2.0], 1.0),
        ([], 1.0),
    ],
)
def test_the_window_is_three_times_the_p90_round_trip_within_bounds(
    round_trips_s: list[float], window_s: float
) -> None:
    """One far peer of ten does not set everybody's pace."""
    assert bid_window_s(round_trips_s) == pytest.approx(window_s)


@pytest.mark.parametrize(
    ("round_trips", "seconds"),
    [([], 1.0), ([0.02, 0.03], 1.0), ([0.6], 1.8), ([0.02] * 9 + [5.0], 1.0), ([2.0, 2.0], 3.0)],
)
def test_an_auction_without_a_bid_waits_longer_where_links_are_slow(
    round_trips: list[float], seconds: float
) -> None:
    """Over a satellite two round trips take more than a second, and its user wants to chat as well."""
    assert bid_overtime_s(round_trips) == pytest.approx(seconds)
