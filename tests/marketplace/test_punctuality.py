"""Who is waited for."""

from marketplace.punctuality import Punctuality
from protocol import limits
from protocol.identity import PeerId
from tests.marketplace.parties import ANN, BOB


def test_a_seller_that_missed_two_windows_in_a_row_is_not_awaited() -> None:
    record = Punctuality()

    record.missed(ANN)
    assert record.awaited([ANN, BOB]) == {ANN, BOB}

    record.missed(ANN)
    assert record.awaited([ANN, BOB]) == {BOB}


def test_one_answer_in_time_makes_good_for_all_silence() -> None:
    record = Punctuality()
    for _ in range(10):
        record.missed(ANN)

    record.answered(ANN)
    record.missed(ANN)

    assert record.is_awaited(ANN)


def test_flooding_with_silent_keys_keeps_the_table_bounded() -> None:
    record = Punctuality()

    for number in range(limits.SENDERS_MAX + 10):
        record.missed(PeerId(f"peer {number}"))

    assert len(record._missed) == limits.SENDERS_MAX
