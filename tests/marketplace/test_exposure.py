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

    exposure.settle(BUYER, JOB, 1)
    exposure.settle(BUYER, JOB, 1)

    assert exposure.micro(BUYER) == 50


def test_restarting_the_seller_forgives_nobody() -> None:
    assert Exposure([receipt(award())]).micro(BUYER) == 300


def test_settled_buyers_leave_no_trace_in_memory() -> None:
    exposure = Exposure()
    exposure.owe(BUYER, JOB, 1, 100)

    exposure.settle(BUYER, JOB, 1)
    exposure.settle(CAT, JOB, 1)

    assert len(exposure._open) == 0
