"""Whom to ask."""

import random
from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.choosing import NEWCOMER_SCORE, Candidate, best, without_bait
from protocol.identity import PeerId
from tests.marketplace.parties import ANN, BOB, CAT

SELLER = Candidate(peer=ANN, total_micro=1_000, slots_free=1, is_connected=True, is_warm=False, score=0.5)


def crowd(count: int, *, score: float = 0.25) -> list[Candidate]:
    return [replace(SELLER, peer=PeerId(f"peer {number}"), score=score) for number in range(count)]


def test_all_are_asked_when_there_are_few_the_best_first() -> None:
    dear = replace(SELLER, peer=BOB, total_micro=3_000)
    full = replace(SELLER, peer=CAT, slots_free=0)

    assert best([full, dear, SELLER], random.Random(1)) == (ANN, BOB, CAT)


def test_a_warm_session_comes_before_a_somewhat_cheaper_seller() -> None:
    warm = replace(SELLER, peer=BOB, is_warm=True)
    cheap = replace(SELLER, total_micro=700)

    assert best([cheap, warm], random.Random(1)) == (BOB, ANN)


def test_a_proven_seller_comes_before_an_equal_newcomer() -> None:
    proven = replace(SELLER, peer=BOB, score=0.9)

    assert best([SELLER, proven], random.Random(1)) == (BOB, ANN)


def test_a_free_mesh_is_ranked_by_the_rest() -> None:
    free = replace(SELLER, total_micro=0)

    assert best([free, replace(free, peer=BOB, score=0.9)], random.Random(1)) == (BOB, ANN)


def test_nobody_known_is_nobody_asked() -> None:
    assert best([], random.Random(1)) == ()


def test_one_place_is_drawn_by_lot_so_that_everybody_is_asked_some_day() -> None:
    """Ann is proven; the other place of two goes round among twenty newcomers."""
    candidates = [replace(SELLER, score=0.9), *crowd(20)]
    rng = random.Random(7)

    asked = Counter(peer for _ in range(500) for peer in best(candidates, rng, k=2))

    assert asked[ANN] == 500
    assert all(asked[each.peer] > 0 for each in candidates)


def test_sybil_swarm_wins_one_place_and_no_more() -> None:
    proven = [replace(each, peer=PeerId(f"proven {each.peer}"), score=0.9) for each in crowd(7)]
    swarm = crowd(1_000)

    chosen = best([*swarm, *proven], random.Random(3), k=8)

    assert set(chosen[:7]) == {each.peer for each in proven}
    assert chosen[7] in {each.peer for each in swarm}


def test_who_let_us_down_is_asked_by_one_request_in_eight_whatever_its_price() -> None:
    """Whoever is asked and bids lowest wins, so a swarm that never delivers must not be asked while others are there."""
    honest = replace(SELLER, score=0.25)
    swarm = [replace(each, total_micro=1) for each in crowd(5, score=0.24)]
    rng = random.Random(5)

    chosen = [best([honest, *swarm], rng) for _ in range(800)]

    assert all(ANN in sellers and len(sellers) <= 2 for sellers in chosen)
    assert 70 < sum(len(sellers) == 2 for sellers in chosen) < 130
    asked = Counter(peer for sellers in chosen for peer in sellers)
    assert all(asked[each.peer] > 0 for each in swarm)


def test_when_everybody_let_us_down_all_are_asked() -> None:
    swarm = crowd(5, score=0.1)

    assert set(best(swarm, random.Random(1))) == {each.peer for each in swarm}


def test_a_single_place_goes_to_the_best_nearly_always() -> None:
    candidates = [replace(SELLER, score=0.9), *crowd(20)]
    rng = random.Random(7)

    asked = Counter(best(candidates, rng, k=1) for _ in range(400))

    assert 300 < asked[(ANN,)] < 400


@settings(derandomize=True, deadline=None)
@given(
    totals=st.lists(st.integers(0, 10**9), max_size=30),
    slots=st.integers(0, 2),
    k=st.integers(0, 10),
    seed=st.integers(),
)
def test_no_seller_is_asked_twice_and_never_more_than_k(
    totals: list[int], slots: int, k: int, seed: int
) -> None:
    candidates = [
        replace(SELLER, peer=PeerId(f"peer {number}"), total_micro=total, slots_free=slots)
        for number, total in enumerate(totals)
    ]

    chosen = best(candidates, random.Random(seed), k)

    assert len(set(chosen)) == len(chosen) == min(k, len(candidates))


def test_a_connected_seller_is_asked_before_one_that_must_be_dialled() -> None:
    near = Candidate(ANN, 100, 1, is_connected=True, is_warm=False, score=0.5)
    afar = Candidate(BOB, 100, 1, is_connected=False, is_warm=False, score=0.5)

    assert best([afar, near], random.Random(1), k=2) == (near.peer, afar.peer)


def test_bait_is_left_out_and_a_proven_bargain_is_not() -> None:
    """Five baits in a row would use up all attempts of a job: price is what they need not care for."""
    usual = [replace(each, score=NEWCOMER_SCORE) for each in crowd(5)]
    bait = replace(SELLER, peer=BOB, total_micro=1, score=NEWCOMER_SCORE)
    bargain = replace(SELLER, peer=CAT, total_micro=1, score=0.9)

    assert without_bait([*usual, bait, bargain]) == [*usual, bargain]
    assert without_bait([bait]) == [bait]
    assert without_bait([]) == []
