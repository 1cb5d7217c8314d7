"""First-hand experience, and nothing else."""

import pytest

from marketplace.reputation import Record, Reputation
from protocol import limits
from protocol.identity import PeerId
from tests.marketplace.parties import ANN, BOB, CAT


def settle(
    reputation: Reputation, seller: PeerId, *, times: int = 1, ttft_ms: int = 100, speed: int = 50_000
) -> None:
    """100 ms and 50 tokens/s were promised."""
    for _ in range(times):
        reputation.settled(
            seller, promised_ttft_ms=100, ttft_ms=ttft_ms, promised_tokens_per_ks=50_000, tokens_per_ks=speed
        )


def test_a_newcomer_is_neutral() -> None:
    assert Reputation().of(ANN) == Record(settled=0, failed=0, reliability=0.5, kept=0.5)


def test_a_proven_seller_is_better_than_a_newcomer_and_a_bad_one_worse() -> None:
    reputation = Reputation()

    settle(reputation, ANN, times=5)
    reputation.failed(BOB)

    assert reputation.of(BOB).score < Record().score < reputation.of(ANN).score


def test_every_outcome_is_counted() -> None:
    reputation = Reputation()

    settle(reputation, ANN, times=2)
    reputation.failed(ANN)

    record = reputation.of(ANN)
    assert (record.settled, record.failed) == (2, 1)


def test_promises_that_are_not_kept_lower_the_score() -> None:
    """Half the promised speed and twice the time to the first token: half kept."""
    reputation = Reputation()

    settle(reputation, ANN, times=50, ttft_ms=200, speed=25_000)
    settle(reputation, BOB, times=50, ttft_ms=10, speed=90_000)

    assert reputation.of(ANN).kept == pytest.approx(0.5)
    assert reputation.of(BOB).kept == pytest.approx(1.0, abs=1e-4)


def test_a_seller_that_promised_nothing_is_not_measured_by_it() -> None:
    reputation = Reputation()

    reputation.settled(ANN, promised_ttft_ms=0, ttft_ms=9_000, promised_tokens_per_ks=0, tokens_per_ks=1)

    assert reputation.of(ANN).kept == 0.5


def test_old_failures_are_outlived() -> None:
    reputation = Reputation()
    for _ in range(10):
        reputation.failed(ANN)

    settle(reputation, ANN, times=10)

    assert reputation.of(ANN).reliability > 0.85


def test_whitewashing_with_a_new_key_stays_behind_a_single_proven_job() -> None:
    """Keys are free: nothing may be gained by being new."""
    reputation = Reputation()
    for _ in range(20):
        reputation.failed(BOB)
    settle(reputation, ANN)

    fresh_key_of_bob = reputation.of(CAT)

    assert reputation.of(BOB).score < fresh_key_of_bob.score < reputation.of(ANN).score


def test_flooding_with_sellers_keeps_the_table_bounded() -> None:
    reputation = Reputation()

    for number in range(limits.SENDERS_MAX + 10):
        reputation.failed(PeerId(f"peer {number}"))

    assert len(reputation._records) == limits.SENDERS_MAX
