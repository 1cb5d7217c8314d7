"""A lease: which award serves a session, for how long, and what a seller will not begin."""

from collections.abc import Callable
from typing import Any

import pytest

from marketplace.fence import Fence
from marketplace.lease import LEASES_MAX, Lease, Leases, Session, may_work
from marketplace.refusal import Refused
from protocol.messages import Work
from tests.marketplace.parties import ANN, BOB, BUYER, CAT, JOB, MODEL, SESSION, award, work

CHAT = Session(SESSION, MODEL, "owner")
OTHER_JOB = b"k" * 16


def left(micro: int) -> Callable[[bytes], int]:
    return lambda _award_id: micro


def find(
    leases: Leases, session: Session = CHAT, *, now: float, remaining_micro: int = 5_000
) -> Lease | None:
    """For 100 prompt tokens at 2 and at most 20 more at 10: 400."""
    return leases.find(
        session, prompt_tokens=100, completion_tokens_max=20, remaining_micro=left(remaining_micro), now=now
    )


# --- the buyer's side -----------------------------------------------------------------------------------------------


def test_a_session_goes_straight_to_the_seller_that_served_it() -> None:
    leases = Leases()
    lease = leases.open(award(), 100.0, CHAT)

    assert find(leases, now=700.0) == lease
    assert (lease.seller, lease.prices.prompt_micro, lease.prices.completion_micro) == (ANN, 2, 10)


def test_a_lease_ends_when_idle_for_as_long_as_its_award_says() -> None:
    leases = Leases()
    leases.open(award(lease_ms=10_000), 100.0, CHAT)
    leases.begin(award(lease_ms=10_000).id, JOB, 1, total_micro=400, now=105.0)

    assert leases.expire(200.0) == (), "a job is under way"
    leases.finish(award(lease_ms=10_000).id, JOB, 1, now=200.0)

    assert find(leases, now=210.0) is not None
    assert find(leases, now=210.1) is None
    assert leases.expire(210.1) == (award(lease_ms=10_000).id,)
    assert len(leases) == 0


def test_a_lease_without_enough_hold_for_the_next_job_must_be_renewed() -> None:
    leases = Leases()
    leases.open(award(), 100.0, CHAT)

    assert find(leases, now=101.0, remaining_micro=399) is None
    assert find(leases, now=101.0, remaining_micro=400) is not None


def test_jobs_under_way_use_up_the_hold_too() -> None:
    """Two requests of one session at once must not promise the same credit."""
    leases = Leases()
    leases.open(award(), 100.0, CHAT)
    leases.begin(award().id, JOB, 1, total_micro=400, now=100.0)

    assert find(leases, now=101.0, remaining_micro=799) is None
    leases.finish(award().id, JOB, 1, now=101.0)
    assert find(leases, now=101.0, remaining_micro=799) is not None


@pytest.mark.parametrize(
    "session",
    [
        Session(b"x" * 32, MODEL, "owner"),
        Session(SESSION, b"x" * 32, "owner"),
        Session(SESSION, MODEL, "mesh"),
        Session(SESSION, MODEL, "owner", b"a" * 32),
    ],
)
def test_another_session_model_adapter_or_privacy_class_does_not_ride_on_it(session: Session) -> None:
    leases = Leases()
    leases.open(award(), 100.0, CHAT)

    assert find(leases, session, now=101.0) is None


def test_a_newer_lease_takes_the_session_and_the_older_ends_after_its_jobs() -> None:
    leases = Leases()
    old, new = award(), award(attempt=2, seller=BOB)
    leases.open(old, 100.0, CHAT)
    leases.begin(old.id, JOB, 1, total_micro=400, now=100.0)

    lease = leases.open(new, 101.0, CHAT)

    assert find(leases, now=102.0) == lease
    assert leases.expire(102.0) == ()
    leases.finish(old.id, JOB, 1, now=103.0)
    assert leases.expire(103.0) == (old.id,)
    assert find(leases, now=103.0) == lease


def test_a_retired_lease_serves_no_further_job() -> None:
    """Its seller is lost, say. The other leases go on."""
    leases = Leases()
    other = award(job_id=OTHER_JOB, seller=BOB)
    leases.open(award(), 100.0, CHAT)
    leases.open(other, 100.0, Session(b"x" * 32, MODEL, "owner"))

    leases.retire(award().id)

    assert find(leases, now=101.0) is None
    assert leases.expire(101.0) == (award().id,)
    assert leases.get(other.id) is not None


def test_an_award_without_a_session_is_a_lease_of_one_job() -> None:
    """So every hold is voided from one place."""
    leases = Leases()
    single = award(lease_ms=0)
    leases.open(single, 100.0)
    leases.begin(single.id, JOB, 1, total_micro=400, now=100.0)

    assert leases.expire(150.0) == ()
    leases.finish(single.id, JOB, 1, now=150.0)
    leases.finish(single.id, JOB, 1, now=151.0)

    assert leases.expire(150.1) == (single.id,)


def test_a_lease_of_one_job_is_over_the_moment_that_job_is() -> None:
    """Its hold would otherwise weigh on the buyer until some later job ends."""
    leases = Leases()
    single = award(lease_ms=0)
    leases.open(single, 100.0)
    leases.begin(single.id, JOB, 1, total_micro=100, now=100.0)

    leases.finish(single.id, JOB, 1, now=107.0)

    assert leases.expire(107.0) == (single.id,)


def test_flooding_with_sessions_retires_the_one_used_least_recently() -> None:
    leases = Leases()
    awards = [award(job_id=b"%016d" % number) for number in range(LEASES_MAX + 1)]
    for number, each in enumerate(awards[:-1]):
        leases.open(each, 100.0, Session(b"%032d" % number, MODEL, "owner"))
    leases.begin(awards[0].id, JOB, 1, total_micro=0, now=101.0)

    leases.open(awards[-1], 102.0, CHAT)

    assert leases.expire(102.0) == (awards[1].id,)
    assert len(leases) == LEASES_MAX


# --- the seller's side ----------------------------------------------------------------------------------------------


def refusal(
    leases: Leases,
    asked: Work,
    *,
    fence: Fence | None = None,
    buyer: str = BUYER,
    now: float = 101.0,
    **changes: Any,
) -> Refused | None:
    amounts = {"total_micro": 400, "chargeable_micro": 5_000} | changes
    return may_work(asked, buyer, leases=leases, fence=fence or Fence(), now=now, **amounts)


def serving(**changes: Any) -> Leases:
    leases = Leases()
    leases.open(award(**changes), 100.0)
    return leases


def test_a_leases_jobs_may_work() -> None:
    assert refusal(serving(), work(award())) is None
    assert refusal(serving(), work(award(), job_id=OTHER_JOB)) is None


def test_work_under_an_unknown_award_is_refused() -> None:
    answer = refusal(Leases(), work(award()))

    assert isinstance(answer, Refused)
    assert answer.reason == "award_unknown"


def test_work_under_another_buyers_award_is_refused() -> None:
    assert refusal(serving(), work(award()), buyer=CAT) == Refused("parties", "the award is another buyer's")


def test_replayed_work_under_a_live_lease_is_refused() -> None:
    fence = Fence()
    fence.begin(BUYER, JOB, 1)

    answer = refusal(serving(), work(award()), fence=fence)

    assert answer == Refused("replayed", "attempt 1 was begun before")


def test_second_job_under_an_award_for_one_is_refused() -> None:
    answer = refusal(serving(lease_ms=0), work(award(lease_ms=0), job_id=OTHER_JOB), now=100.0)

    assert answer == Refused("job", "the award is for one job, and this is another")


def test_work_under_an_expired_lease_is_refused() -> None:
    assert refusal(serving(), work(award()), now=701.0) == Refused("void", "the lease is over")


def test_work_under_a_retired_lease_is_refused() -> None:
    leases = serving()

    leases.retire(award().id)

    assert refusal(leases, work(award())) == Refused("void", "the lease is over")


def test_work_that_the_hold_cannot_pay_is_refused() -> None:
    leases = serving()
    leases.begin(award().id, OTHER_JOB, 1, total_micro=300, now=100.0)

    assert refusal(leases, work(award()), chargeable_micro=699) == Refused(
        "hold", "400 and 300 under way, 699 left of the hold"
    )
    assert refusal(leases, work(award()), chargeable_micro=700) is None
