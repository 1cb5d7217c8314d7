"""Double entry: nothing is created, nothing is lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.accounts import DAY_MS, Accounts
from protocol.errors import LocalProtocolError
from tests.marketplace.parties import ANN, BOB, CAT


def test_a_payment_debits_one_account_credits_another_and_shrinks_the_hold() -> None:
    accounts = Accounts()
    accounts.hold(b"h", ANN, 500)

    accounts.post(b"h", ANN, BOB, 300, at_ms=0)

    assert accounts.balances() == {ANN: -300, BOB: 300}
    assert (accounts.held_micro(ANN), accounts.left_micro(b"h")) == (200, 200)


def test_a_void_gives_back_what_is_left_and_keeps_what_was_paid() -> None:
    accounts = Accounts()
    accounts.hold(b"h", ANN, 500)
    accounts.post(b"h", ANN, BOB, 300, at_ms=0)

    accounts.void(b"h")
    accounts.void(b"h")

    assert (accounts.balance_micro(ANN), accounts.held_micro(ANN), accounts.is_held(b"h")) == (-300, 0, False)


def test_a_hold_is_made_once() -> None:
    accounts = Accounts()
    accounts.hold(b"h", ANN, 500)

    with pytest.raises(LocalProtocolError):
        accounts.hold(b"h", ANN, 1)

    assert accounts.held_micro(ANN) == 500


def test_spending_is_counted_by_utc_day() -> None:
    accounts = Accounts()

    accounts.post(b"h", ANN, BOB, 300, at_ms=DAY_MS - 1)
    accounts.post(b"h", ANN, BOB, 40, at_ms=DAY_MS)

    assert accounts.spent_micro(ANN, 5) == 300
    assert accounts.spent_micro(ANN, DAY_MS + 5) == 40
    assert accounts.spent_micro(BOB, 5) == 0


@settings(derandomize=True, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["hold", "post", "void"]),
            st.integers(0, 4),
            st.permutations([ANN, BOB, CAT]),
            st.integers(0, 1_000),
        ),
        max_size=40,
    )
)
def test_whatever_is_held_posted_and_voided_the_sum_is_zero(
    steps: list[tuple[str, int, list[str], int]],
) -> None:
    accounts = Accounts()

    for step, number, (payer, payee, _), amount in steps:
        hold_id = b"%d" % number
        if step == "hold" and not accounts.is_held(hold_id):
            accounts.hold(hold_id, payer, amount)
        elif step == "post" and not accounts.is_held(hold_id):
            accounts.post(hold_id, payer, payee, amount, at_ms=0)
        elif step == "void":
            accounts.void(hold_id)

    assert accounts.total_micro() == sum(accounts.balances().values()) == 0
    held = {peer: accounts.held_micro(peer) for peer in (ANN, BOB, CAT)}
    assert sum(held.values()) == sum(accounts.left_micro(b"%d" % number) for number in range(5))
