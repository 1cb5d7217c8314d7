"""Who takes part: price, then speed, then a lot; and anybody comes to the same cohort."""

import hashlib
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from federation.cohort import choose_cohort, lot
from tests.federation.members import ANN, BOB, CAT, DAN, EVE, FAY, announcement, enlistment

ALL = (ANN, BOB, CAT, DAN, EVE, FAY)


def test_the_cheapest_come_first_and_among_equals_the_fastest() -> None:
    bids = [
        enlistment(ANN, step_micro=10, steps_per_ks=1_000),
        enlistment(BOB, step_micro=10, steps_per_ks=9_000),
        enlistment(CAT, step_micro=5, steps_per_ks=10),
    ]

    assert [each.sender for each in choose_cohort(announcement(), bids)] == [CAT, BOB, ANN]


def test_no_more_than_the_run_wants_are_taken() -> None:
    bids = [enlistment(peer, step_micro=price) for price, peer in enumerate(ALL)]

    assert [each.sender for each in choose_cohort(announcement(), bids)] == [ANN, BOB, CAT, DAN]


def test_a_bid_over_the_price_does_not_count_towards_the_minimum() -> None:
    bids = [enlistment(ANN), enlistment(BOB, step_micro=101)]

    assert choose_cohort(announcement(), bids) == ()


def test_a_bid_for_another_run_is_not_taken() -> None:
    other = announcement(line="other")

    assert choose_cohort(announcement(), [enlistment(ANN, other), enlistment(BOB, other)]) == ()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=6, max_size=6), st.integers())
@settings(max_examples=50, deadline=None)
def test_the_cohort_does_not_depend_on_the_order_in_which_bids_came(
    bids: list[tuple[int, int]], seed: int
) -> None:
    signed = [
        enlistment(peer, step_micro=price, steps_per_ks=speed)
        for peer, (price, speed) in zip(ALL, bids, strict=True)
    ]
    shuffled = random.Random(seed).sample(signed, len(signed))

    assert choose_cohort(announcement(), shuffled) == choose_cohort(announcement(), signed)


def test_ties_go_to_the_lot_that_anybody_can_recompute() -> None:
    bids = [enlistment(peer) for peer in ALL]
    run = announcement()

    chosen = choose_cohort(run, bids)

    lots = sorted(ALL, key=lambda peer: hashlib.sha256(run.id + peer.encode()).digest())
    assert [each.sender for each in chosen] == lots[:4]
    assert lot(run.id, ANN) == hashlib.sha256(run.id + ANN.encode()).digest()
