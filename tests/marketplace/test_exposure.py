"""What a seller has at risk with each buyer."""

from marketplace.exposure import Exposure
from tests.marketplace.parties import BUYER, CAT, JOB, award, receipt

OTHER_JOB = b"k" * 16


def test_deliveries_count_until_they_are_countersigned() -> None:
    exposure = Exposure()
    exposure.owe(BUYER, JOB, 1, 100)
    exposure.owe(BUYER, JOB, 1, 300)
    exposure.owe(BUYER, OTHER_JOB, 1, 50)
    assert (exposure.micro(BUYER), exposure.micro(CAT)) == (350, 0)

    exposure.settle(BUYER, JOB, 1, 300)
    exposure.settle(BUYER, JOB, 1, 300)

    assert exposure.micro(BUYER) == 50


def test_restarting_the_seller_forgives_nobody() -> None:
    assert Exposure([receipt(award())]).micro(BUYER) == 300


def test_settled_buyers_leave_no_trace_in_memory() -> None:
    exposure = Exposure()
    exposure.owe(BUYER, JOB, 1, 100)

    exposure.settle(BUYER, JOB, 1, 100)
    exposure.settle(CAT, JOB, 1, 100)

    assert (len(exposure._open), len(exposure._doubt)) == (0, 0)


def test_denying_what_was_delivered_leaves_it_in_doubt_until_as_much_is_paid() -> None:
    """A buyer that says nothing arrived would otherwise have every answer for nothing."""
    exposure = Exposure()
    exposure.owe(BUYER, JOB, 1, 100)
    exposure.settle(BUYER, JOB, 1, 20)
    assert exposure.micro(BUYER) == 60

    exposure.owe(BUYER, OTHER_JOB, 1, 60)
    exposure.settle(BUYER, OTHER_JOB, 1, 60)

    assert exposure.micro(BUYER) == 0
