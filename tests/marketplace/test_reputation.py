"""First-hand experience, and nothing else."""

import pytest

from marketplace.choosing import NEWCOMER_SCORE
from marketplace.reputation import Record, Reputation, kept_share
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
    newcomer = Reputation().of(ANN)

    assert newcomer == Record(settled=0, failed=0, reliability=0.5)
    assert (newcomer.kept, newcomer.score) == (0.5, NEWCOMER_SCORE)


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
    """Half of the promised speed, or seven times the promised wait with what the net may add."""
    reputation = Reputation()

    settle(reputation, ANN, times=5, speed=25_000)
    settle(reputation, BOB, times=5, ttft_ms=10, speed=90_000)
    settle(reputation, CAT, times=5, ttft_ms=700)

    assert [reputation.of(seller).kept for seller in (ANN, BOB, CAT)] == pytest.approx([0.5, 1.0, 0.5])


def test_what_the_net_adds_to_a_first_token_is_nobodys_broken_promise() -> None:
    assert kept_share(promised_ttft_ms=5, ttft_ms=255, promised_tokens_per_ks=0, tokens_per_ks=0) == 1.0


def test_an_honest_speed_does_not_make_good_a_lie_about_the_first_token() -> None:
    """It would win every tie, and nobody would remember."""
    reputation = Reputation()

    settle(reputation, ANN, ttft_ms=7_000)

    assert reputation.of(ANN).promises[-1] == pytest.approx(0.05)


@pytest.mark.parametrize("proven", [0, 5, 50])
def test_two_slow_answers_under_a_burst_do_not_ruin_a_seller(proven: int) -> None:
    """Not even a newcomer, though the first word came five seconds late: it is asked as before."""
    reputation = Reputation()
    settle(reputation, ANN, times=proven)
    before = reputation.of(ANN)

    settle(reputation, ANN, times=2, ttft_ms=5_100, speed=10_000)

    assert reputation.of(ANN).kept == before.kept
    assert reputation.of(ANN).score >= before.score


@pytest.mark.parametrize("proven", [0, 5, 50])
def test_a_capacity_liar_is_found_out_within_five_jobs(proven: int) -> None:
    """It promised 50 tokens a second and has 5, after whatever past: from then on it is doubted."""
    reputation = Reputation()
    settle(reputation, ANN, times=proven)

    jobs = 0
    while reputation.of(ANN).score >= NEWCOMER_SCORE:
        settle(reputation, ANN, speed=5_000)
        jobs += 1

    assert jobs == 3


def test_who_keeps_its_word_again_is_believed_again() -> None:
    reputation = Reputation()
    settle(reputation, ANN, times=5, speed=5_000)

    settle(reputation, ANN, times=3)

    assert reputation.of(ANN).kept == 1.0


def test_an_award_that_is_not_taken_is_bad_luck_twice_and_a_lie_the_third_time() -> None:
    """A bid promises no slot, and a burst takes the last one; who never takes an award holds up every buyer."""
    reputation = Reputation()
    settle(reputation, ANN)
    scores = []

    for _ in range(3):
        reputation.declined(ANN)
        scores.append(reputation.of(ANN).score)

    assert [score >= NEWCOMER_SCORE for score in scores] == [True, True, False]
    assert reputation.of(ANN).failed == 0


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


def test_a_caught_seller_is_barred_for_a_day_and_remembered_as_caught() -> None:
    reputation = Reputation()

    reputation.judged(ANN, is_passed=True, utc_ms=1_000)
    caught = reputation.judged(ANN, is_passed=False, utc_ms=2_000)

    assert (caught.judged, caught.caught, caught.caught_ms) == (2, 1, 2_000)
    assert caught.is_barred(2_000 + 86_399_999)
    assert not caught.is_barred(2_000 + 86_400_000)
    assert reputation.of(ANN).caught == 1


def test_what_an_earlier_run_found_out_is_taken_in_beside_what_is_known() -> None:
    reputation = Reputation()
    reputation.failed(ANN)

    reputation.remember(ANN, judged=7, caught=1, caught_ms=5)

    record = reputation.of(ANN)
    assert (record.failed, record.judged, record.caught, record.caught_ms) == (1, 7, 1, 5)
