"""Each attempt begins once, and none behind a newer one."""

from marketplace.fence import FENCES_MAX, Fence
from marketplace.refusal import Refused
from tests.marketplace.parties import BUYER, CAT, JOB


def test_attempts_begin_in_rising_order_with_gaps_allowed() -> None:
    """The attempts between went to other sellers."""
    fence = Fence()
    fence.begin(BUYER, JOB, 1)

    assert fence.refusal(BUYER, JOB, 3) is None


def test_replayed_work_is_refused() -> None:
    fence = Fence()
    fence.begin(BUYER, JOB, 2)

    assert fence.refusal(BUYER, JOB, 2) == Refused("replayed", "attempt 2 was begun before")


def test_delayed_older_attempt_is_fenced() -> None:
    fence = Fence()
    fence.begin(BUYER, JOB, 2)

    assert fence.refusal(BUYER, JOB, 1) == Refused("fenced", "attempt 1 came, attempt 2 was begun before")


def test_copied_job_id_of_another_buyer_fences_nothing() -> None:
    fence = Fence()
    fence.begin(CAT, JOB, 5)

    assert fence.refusal(BUYER, JOB, 1) is None


def test_flooding_with_jobs_keeps_the_table_bounded() -> None:
    fence = Fence()

    for number in range(FENCES_MAX + 10):
        fence.begin(BUYER, b"%016d" % number, 1)

    assert len(fence._newest) == FENCES_MAX
