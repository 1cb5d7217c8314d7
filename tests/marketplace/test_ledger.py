"""The ledger: what moves money, what changes nothing, and what is evidence."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.ledger import EARLY_MAX, IDLE_GRACE_MS, Ledger, Payment
from marketplace.refusal import Contradiction, Refused
from protocol.envelope import Sealed, seal
from protocol.messages import Entry, Income
from tests.marketplace.parties import (
    ANN,
    ANN_KEY,
    BOB,
    BUYER,
    CAT,
    JOB,
    MESH,
    accept,
    award,
    countersigned,
    income,
    receipt,
)

OTHER_JOB = b"k" * 16

bounded = settings(derandomize=True, max_examples=50, deadline=None)  # each example signs dozens of entries


def ledger_of(*entries: Sealed[Entry]) -> Ledger:
    ledger = Ledger(MESH)
    for entry in entries:
        assert ledger.apply(entry) is None
    return ledger


def state(ledger: Ledger) -> dict[str, Any]:
    """Everything that a listing shows, to assert that nothing changed."""
    return {
        "balances": ledger.balances(),
        "held": {peer: ledger.held_micro(peer) for peer in (BUYER, ANN, BOB, CAT)},
        "payments": {payment.receipt.id for payment in ledger.payments()},
        "unsettled": {peer: set(map(id_of, ledger.unsettled(peer))) for peer in (BUYER, ANN, BOB, CAT)},
        "total": ledger.total_micro(),
    }


def id_of(entry: Sealed[Any]) -> bytes:
    return entry.id


def test_an_award_holds_and_a_countersigned_receipt_pays_out_of_the_hold() -> None:
    ledger = ledger_of(award())
    assert (ledger.balance_micro(BUYER), ledger.held_micro(BUYER)) == (0, 5_000)

    paid = receipt(award())
    assert ledger.apply(countersigned(paid)) is None

    assert ledger.balances() == {BUYER: -300, ANN: 300}
    assert ledger.held_micro(BUYER) == ledger.remaining_micro(award().id) == 4_700
    assert list(ledger.payments()) == [Payment(paid, countersigned(paid), BUYER, ANN, 300, 2_000)]
    assert ledger.payment(BUYER, JOB, 1) == Payment(paid, countersigned(paid), BUYER, ANN, 300, 2_000)


def test_a_receipt_alone_moves_no_money() -> None:
    """Never credit on one signature; until the payer signs it is the seller's risk."""
    ledger = ledger_of(award(), accept(award()), receipt(award()))

    assert ledger.balances() == {}
    assert ledger.unsettled(ANN) == (receipt(award()),)
    assert ledger.remaining_micro(award().id) == 5_000
    assert ledger.chargeable_micro(award().id) == 4_700


def test_the_countersignature_settles_the_receipt() -> None:
    ledger = ledger_of(award(), receipt(award()), countersigned(receipt(award())))

    assert ledger.unsettled(ANN) == ()
    assert ledger.chargeable_micro(award().id) == 4_700


def test_the_jobs_of_a_lease_share_its_hold() -> None:
    second = receipt(award(), job_id=OTHER_JOB, amount_micro=200)

    ledger = ledger_of(award(), countersigned(receipt(award())), countersigned(second))

    assert ledger.balance_micro(ANN) == 500
    assert ledger.remaining_micro(award().id) == 4_500


def test_all_attempts_at_a_job_count_as_spent_on_it() -> None:
    first, second = award(), award(attempt=2, seller=BOB)

    ledger = ledger_of(first, second, countersigned(receipt(first)), countersigned(receipt(second)))

    assert ledger.job_spent_micro(BUYER, JOB) == 600
    assert ledger.day_spent_micro(BUYER, utc_ms=5_000) == 600
    assert ledger.balances() == {BUYER: -600, ANN: 300, BOB: 300}


def test_the_accept_is_found_by_its_award() -> None:
    ledger = ledger_of(award(), accept(award()))

    assert ledger.award(award().id) == award()
    assert ledger.accept(award().id) == accept(award())


def test_an_earners_own_log_proves_its_income_to_who_never_met_the_payer() -> None:
    """A seller about to extend credit asks for the buyer's log alone: debts without income would starve good members."""
    ledger = Ledger(MESH)

    assert ledger.apply(income(award(), countersigned(receipt(award())))) is None

    assert ledger.balance_micro(ANN) == 300
    assert ledger.total_micro() == 0


def test_income_heard_from_both_sides_counts_once() -> None:
    paid = countersigned(receipt(award()))

    ledger = ledger_of(award(), paid, income(award(), paid))

    assert ledger.balance_micro(ANN) == 300


def test_income_by_an_award_to_another_is_refused() -> None:
    paid = countersigned(receipt(award()))
    ledger = Ledger(MESH)

    assert isinstance(ledger.apply(income(award(), paid, by=BOB)), Refused)
    assert ledger.balances() == {}


def test_income_from_a_key_that_was_never_admitted_is_refused() -> None:
    """Else whoever makes a key can have it pay any sum, and spend that at strangers."""
    ledger = Ledger(MESH, was_admitted=lambda peer: peer != BUYER)

    assert isinstance(ledger.apply(income(award(), countersigned(receipt(award())))), Refused)
    assert ledger.balances() == {}


def test_income_of_garbage_is_refused_as_a_value() -> None:
    garbage = seal(
        Income(index=0, prev=bytes(32), award=b"x", countersignature=b"y"),
        ANN_KEY,
        mesh=MESH,
        seq=(1, 9),
        time_ms=1,
    )

    assert isinstance(Ledger(MESH).apply(garbage), Refused)


# --- holds --------------------------------------------------------------------------------------------------------


def test_a_local_hold_counts_until_it_is_voided() -> None:
    ledger = Ledger(MESH)

    assert ledger.hold(b"key", BUYER, 600, credit_line_micro=1_000) is None
    assert ledger.spendable_micro(BUYER, 1_000) == 400
    assert ledger.hold(b"two", BUYER, 401, credit_line_micro=1_000) == Refused(
        "credit", "401 wanted, 400 spendable"
    )

    ledger.void(b"key")
    assert ledger.spendable_micro(BUYER, 1_000) == 1_000


def test_income_can_be_spent() -> None:
    ledger = ledger_of(award(), countersigned(receipt(award())))

    assert ledger.hold(b"key", ANN, 300, credit_line_micro=0) is None
    assert ledger.hold(b"two", ANN, 1, credit_line_micro=0) == Refused("credit", "1 wanted, 0 spendable")


def test_voiding_an_award_gives_back_its_rest_only() -> None:
    ledger = ledger_of(award(), countersigned(receipt(award())))

    ledger.void(award().id)
    ledger.void(award().id)

    assert (ledger.held_micro(BUYER), ledger.balance_micro(BUYER)) == (0, -300)
    assert ledger.open_awards(BUYER) == ()


def test_an_award_heard_again_after_its_void_stays_void() -> None:
    ledger = ledger_of(award())
    ledger.void(award().id)

    assert ledger.apply(award()) is None

    assert ledger.held_micro(BUYER) == 0


def test_after_a_void_the_payer_does_not_countersign_any_more() -> None:
    ledger = ledger_of(award())
    assert ledger.may_post(receipt(award())) is None

    ledger.void(award().id)

    assert ledger.may_post(receipt(award())) == Refused("void", "the award's hold was given back")


def test_what_both_signed_counts_even_after_a_void() -> None:
    """A void is this node's own view: everybody else would book the payment, so we do."""
    ledger = ledger_of(award())
    ledger.void(award().id)

    assert ledger.apply(countersigned(receipt(award()))) is None

    assert (ledger.balance_micro(ANN), ledger.held_micro(BUYER)) == (300, 0)


def test_the_holds_of_strangers_end_when_their_leases_must_have() -> None:
    used = award(lease_ms=1_000, at_ms=1_000)
    unused = award(lease_ms=1_000, at_ms=1_000, attempt=2)
    ledger = ledger_of(used, unused, countersigned(receipt(used), at_ms=5_000))

    assert ledger.void_idle(2_000 + IDLE_GRACE_MS + 1) == (unused.id,)
    assert ledger.open_awards(BUYER) == (used,)
    assert ledger.void_idle(6_000 + IDLE_GRACE_MS + 1) == (used.id,)


# --- what changes nothing ------------------------------------------------------------------------------------------


def test_replayed_countersignature_pays_once() -> None:
    paid = countersigned(receipt(award()))
    ledger = ledger_of(award(), receipt(award()), paid)
    before = state(ledger)

    assert ledger.apply(paid) is None
    assert ledger.apply(receipt(award())) is None
    assert ledger.apply(countersigned(receipt(award()), at_ms=9_000)) is None

    assert state(ledger) == before


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("parties", {"payee": BOB}),
        ("parties", {"signer": BOB}),
        ("parties", {"signer": BOB, "payee": BOB}),
        ("job", {"model": b"x" * 32}),
        ("price", {"amount_micro": 301}),
        ("price", {"completion_tokens": 0}),
        ("hold", {"prompt_tokens": 3_000, "amount_micro": 5_001}),
    ],
)
def test_receipt_that_its_award_does_not_cover_is_refused_though_both_signed(
    reason: str, changes: dict[str, Any]
) -> None:
    """Two colluding keys must not make money out of signatures."""
    ledger = ledger_of(award())
    before = state(ledger)

    answer = ledger.apply(countersigned(receipt(award(), **changes)))

    assert isinstance(answer, Refused)
    assert answer.reason == reason
    assert state(ledger) == before
    assert ledger.apply(countersigned(receipt(award()))) is None, "a refused one does not block the right one"


@pytest.mark.parametrize("changes", [{"payee": BOB}, {"amount_micro": 301}, {"model": b"x" * 32}])
def test_claim_that_its_award_does_not_cover_is_refused(changes: dict[str, Any]) -> None:
    ledger = ledger_of(award())
    before = state(ledger)

    assert isinstance(ledger.apply(receipt(award(), **changes)), Refused)

    assert state(ledger) == before


def test_countersignature_by_another_than_the_payer_is_refused() -> None:
    """A seller cannot pay itself."""
    ledger = ledger_of(award())
    before = state(ledger)

    answer = ledger.apply(countersigned(receipt(award()), signer=ANN))

    assert isinstance(answer, Refused)
    assert answer.reason == "parties"
    assert state(ledger) == before


def test_countersignature_of_garbage_is_refused_as_a_value() -> None:
    """Its author's log goes on behind it, so it must not raise."""
    ledger = ledger_of(award())
    message = countersigned(receipt(award())).message
    garbled = type(message)(index=1, prev=message.prev, receipt=message.receipt[:-1] + b"x")

    answer = ledger.apply(seal(garbled, ANN_KEY, mesh=MESH, seq=(1, 1), time_ms=0))

    assert isinstance(answer, Refused)
    assert answer.reason == "malformed"


def test_receipts_over_the_hold_are_refused_one_by_one() -> None:
    small = award(hold_micro=500)
    second = receipt(small, job_id=OTHER_JOB)
    ledger = ledger_of(small, countersigned(receipt(small)))

    assert ledger.may_post(second) == Refused("hold", "receipt of 300, 200 left of the hold")
    assert ledger.apply(countersigned(second)) == Refused("hold", "receipt of 300, 200 left of the hold")

    assert ledger.balance_micro(ANN) == 300


def test_receipt_for_another_job_under_an_award_without_a_lease_is_refused() -> None:
    single = award(lease_ms=0)
    ledger = ledger_of(single)

    answer = ledger.apply(countersigned(receipt(single, job_id=OTHER_JOB)))

    assert isinstance(answer, Refused)
    assert answer.reason == "job"
    assert ledger.apply(countersigned(receipt(single))) is None


def test_award_to_oneself_is_refused() -> None:
    ledger = Ledger(MESH)

    assert isinstance(ledger.apply(award(buyer=ANN)), Refused)

    assert ledger.held_micro(ANN) == 0


def test_accept_by_another_seller_is_refused() -> None:
    ledger = ledger_of(award())

    assert isinstance(ledger.apply(accept(award(), seller=BOB)), Refused)
    assert isinstance(ledger.apply(accept(award(), job_id=OTHER_JOB)), Refused)

    assert ledger.accept(award().id) is None


# --- evidence -----------------------------------------------------------------------------------------------------


def test_second_award_for_one_attempt_is_evidence_and_holds_nothing() -> None:
    first, second = award(), award(seller=BOB)
    ledger = ledger_of(first)
    before = state(ledger)

    assert ledger.apply(second) == Contradiction(BUYER, first, second)

    assert state(ledger) == before


def test_second_receipt_for_one_attempt_is_evidence() -> None:
    first, second = receipt(award()), receipt(award(), amount_micro=299)
    ledger = ledger_of(award(), first)
    before = state(ledger)

    assert ledger.apply(second) == Contradiction(ANN, first, second)

    assert state(ledger) == before


def test_second_payment_for_one_attempt_is_evidence_and_does_not_take_back_the_first() -> None:
    """Were both void, a buyer could undo any payment by signing a friend's receipt."""
    first_award, second_award = award(), award(attempt=2, seller=BOB)
    first = countersigned(receipt(first_award))
    second = countersigned(receipt(second_award, attempt=1))
    ledger = ledger_of(first_award, second_award, first)
    before = state(ledger)

    assert ledger.may_post(receipt(second_award, attempt=1)) == Refused(
        "paid", "another receipt of this job and attempt was paid"
    )
    assert ledger.apply(second) == Contradiction(BUYER, first, second)

    assert state(ledger) == before


def test_hidden_debt_behind_an_earlier_unpaid_receipt_is_booked_all_the_same() -> None:
    """The seller's double receipt is evidence, but what both signed is owed."""
    shown, paid = receipt(award(), amount_micro=1), receipt(award())
    ledger = ledger_of(award(), shown)

    assert ledger.apply(countersigned(paid)) == Contradiction(ANN, shown, paid)

    assert ledger.balance_micro(BUYER) == -300


def test_second_accept_of_one_award_is_evidence() -> None:
    first, second = accept(award()), accept(award(), index=7)
    ledger = ledger_of(award(), first)

    assert ledger.apply(second) == Contradiction(ANN, first, second)

    assert ledger.accept(award().id) == first


def test_copied_job_id_does_not_get_an_honest_seller_accused() -> None:
    """Job ids are the buyers' to choose; another buyer's job of the same id is another job."""
    mine, copied = award(), award(buyer=CAT)

    ledger = ledger_of(mine, copied, receipt(mine), receipt(copied), countersigned(receipt(mine)))

    assert ledger.apply(countersigned(receipt(copied))) is None
    assert ledger.balance_micro(ANN) == 600


# --- folding ------------------------------------------------------------------------------------------------------


def test_a_sellers_log_may_be_heard_before_its_buyers() -> None:
    """As after a restore, when the own log comes back first."""
    ledger = Ledger(MESH)

    assert ledger.apply(accept(award())) is None
    assert ledger.apply(receipt(award())) is None
    assert ledger.unsettled(ANN) == ()

    assert ledger.apply(award()) is None
    assert ledger.accept(award().id) == accept(award())
    assert ledger.unsettled(ANN) == (receipt(award()),)


def test_a_countersignature_waits_for_its_award() -> None:
    """A seller keeps what binds it, and may hear the rest of its buyer's log later."""
    ledger = Ledger(MESH)

    assert ledger.apply(countersigned(receipt(award()))) is None
    assert ledger.balances() == {}
    assert ledger.may_post(receipt(award())) == Refused(
        "award_unknown", f"no award {award().id.hex()[:12]} is known"
    )

    assert ledger.apply(award()) is None
    assert ledger.balances() == {BUYER: -300, ANN: 300}


def test_flooding_with_receipts_of_unknown_awards_is_bounded() -> None:
    ledger = Ledger(MESH)

    for number in range(EARLY_MAX + 5):
        ledger._keep_early(_Numbered(b"%d" % number), b"x" * 32)  # type: ignore[arg-type]

    assert len(ledger._early) == EARLY_MAX


class _Numbered:
    """Nothing of an entry but its id: signing thousands would take seconds."""

    def __init__(self, entry_id: bytes) -> None:
        self.id = entry_id


def test_early_entries_that_contradict_each_other_are_told_with_their_award() -> None:
    first, second = receipt(award()), receipt(award(), amount_micro=299)
    ledger = Ledger(MESH)
    ledger.apply(first)
    ledger.apply(second)

    assert ledger.apply(award()) == Contradiction(ANN, first, second)


@bounded
@given(data=st.data())
def test_any_order_gives_the_same_accounts(data: st.DataObject) -> None:
    """Two buyers and two sellers, one of whom buys as well."""
    a, b, c = award(), award(attempt=2, seller=BOB), award(buyer=ANN, seller=BOB)
    entries: list[Sealed[Any]] = [
        *(a, countersigned(receipt(a)), b, countersigned(receipt(b, job_id=OTHER_JOB))),
        *(accept(a), receipt(a), c, countersigned(receipt(c))),
        *(accept(b), receipt(b, job_id=OTHER_JOB), receipt(b), accept(c), receipt(c)),
    ]
    expected = state(ledger_of(*entries))

    ledger = ledger_of(*data.draw(st.permutations(entries)))

    assert state(ledger) == expected
    assert expected["balances"] == {BUYER: -600, ANN: 0, BOB: 600}


@bounded
@given(
    seed=st.integers(0, 2**32),
    lines=st.dictionaries(st.sampled_from([BUYER, ANN, BOB]), st.integers(0, 3_000)),
)
def test_no_account_falls_below_its_credit_line_when_holds_are_asked_for(
    seed: int, lines: dict[str, int]
) -> None:
    """Every award here passes `hold` first; receipts are of any amount. The sum is zero at every step."""
    rng = random.Random(seed)
    ledger = Ledger(MESH)
    for number in range(12):
        buyer, seller = rng.sample([BUYER, ANN, BOB], 2)
        job, amount = b"%016d" % number, rng.randrange(2_000)
        line = lines.get(buyer, 0)
        if ledger.hold(job, buyer, amount, credit_line_micro=line) is not None:
            continue
        sold = award(buyer=buyer, seller=seller, job_id=job, hold_micro=amount)
        ledger.apply(sold)
        ledger.void(job)
        for attempt in (1, 2, 3):
            tokens = rng.randrange(1, 100)
            claim = receipt(sold, attempt=attempt, completion_tokens=tokens, amount_micro=10 * tokens)
            ledger.apply(countersigned(claim))
        if rng.random() < 0.5:
            ledger.void(sold.id)

        assert ledger.total_micro() == 0
        assert all(ledger.spendable_micro(peer, lines.get(peer, 0)) >= 0 for peer in (BUYER, ANN, BOB))
