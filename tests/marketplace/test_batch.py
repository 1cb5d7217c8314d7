"""The batch lane: who enlists, in what company, what a member's award is, and what a round's receipt says."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from marketplace.batch import (
    NO_RUN,
    RoundWork,
    TrainerState,
    TrainerTerms,
    check_award,
    check_round_receipt,
    cohort_size,
    draft_award,
    draft_round_receipt,
    enlist,
    hold_micro,
    round_job_id,
    run_job_id,
    why_no_cohort,
)
from marketplace.ledger import Ledger
from marketplace.receipt import Mismatch
from protocol.envelope import Sealed
from protocol.identity import PeerId
from protocol.messages import (
    NO_HASH,
    Accept,
    Award,
    Countersignature,
    Decline,
    Enlistment,
    LoraShape,
    Receipt,
    Recipe,
    RunAnnouncement,
)
from tests.marketplace.parties import ANN, BOB, BUYER, CAT, MESH, MODEL, sealed

RUN = b"r" * 16
RECIPE = Recipe(
    shape=LoraShape(rank=8, alpha=16, targets=("attn_q",)),
    seed=7,
    is_a_frozen=True,
    rounds=4,
    steps=30,
    batch=16,
    learning_rate_ppm=5_000,
    replay_percent=50,
    strategy="default",
    parameters=(),
)
TERMS = TrainerTerms(owner="ann", step_micro=100)
STATE = TrainerState(
    announcer_owner="bea",
    samples=400,
    why_no_budget="",
    epsilon_milli=4_000,
    is_base_held=True,
    why_not="",
    is_busy=False,
    load_percent=0,
    battery_percent=-1,
    is_charging=False,
    steps_per_ks=9_000,
    spendable_micro=1_000_000,
    unsettled_micro=0,
)


def announcement(**changes: Any) -> Sealed[RunAnnouncement]:
    """Four rounds of 30 steps, for three to eight members, at most 200 a step."""
    fields = {
        "run": RUN,
        "line": "tiny",
        "base": MODEL,
        "data": "heat",
        "replay": NO_HASH,
        "replay_bytes": 0,
        "start": NO_HASH,
        "start_bytes": 0,
        "parent": NO_RUN,
        "recipe": RECIPE,
        "cohort_min": 3,
        "cohort_max": 8,
        "round_ms": 60_000,
        "step_micro_max": 200,
        "window_ms": 10_000,
    }
    return sealed(BUYER, RunAnnouncement(**(fields | changes)))


def enlistment(peer: str, to: Sealed[RunAnnouncement] | None = None, **changes: Any) -> Sealed[Enlistment]:
    fields = {
        "announcement": (to or announcement()).id,
        "samples": 400,
        "step_micro": 100,
        "steps_per_ks": 9_000,
        "epsilon_milli": 4_000,
    }
    return sealed(peer, Enlistment(**(fields | changes)))


def award(**changes: Any) -> Sealed[Award]:
    drafted = draft_award(announcement(), enlistment(ANN), index=0, prev=NO_HASH)
    return sealed(changes.pop("signer", BUYER), msgspec.structs.replace(drafted, **changes))


def work(of: Sealed[Award] | None = None, **changes: Any) -> RoundWork:
    fields = {
        "award": of or award(),
        "run": RUN,
        "round": 2,
        "recipe": RECIPE,
        "state": b"s" * 32,
        "payload": b"p" * 32,
        "steps": 30,
    }
    return RoundWork(**(fields | changes))


def receipt(of: RoundWork, *, signer: str = ANN, **changes: Any) -> Sealed[Receipt]:
    drafted = draft_round_receipt(of, chargeable_micro=12_000, index=1, prev=NO_HASH)
    return sealed(signer, msgspec.structs.replace(drafted, **changes))


# --- who enlists ------------------------------------------------------------------------------------------------------
def test_who_holds_the_data_and_can_train_bids() -> None:
    asked = announcement()

    assert enlist(asked, TERMS, STATE) == Enlistment(
        announcement=asked.id, samples=400, step_micro=100, steps_per_ks=9_000, epsilon_milli=4_000
    )


@pytest.mark.parametrize(
    ("reason", "wanted", "terms", "state"),
    [
        ("not_admitted", {}, {}, {"announcer_owner": None}),
        ("data", {}, {}, {"samples": None}),
        ("policy", {}, {}, {"why_not": "torch is not installed"}),
        ("model_missing", {}, {}, {"is_base_held": False}),
        ("cohort", {"cohort_min": 2, "cohort_max": 2}, {}, {}),
        ("budget", {}, {}, {"why_no_budget": "epsilon would be 9, its budget is 8"}),
        ("battery", {}, {}, {"battery_percent": 29}),
        ("busy", {}, {}, {"is_busy": True}),
        ("price", {"step_micro_max": 99}, {}, {}),
        ("credit", {}, {}, {"spendable_micro": 11_999}),
        ("unsettled", {}, {"exposure_micro_max": 10}, {"unsettled_micro": 11}),
    ],
)
def test_each_reason_to_decline(
    reason: str, wanted: dict[str, Any], terms: dict[str, Any], state: dict[str, Any]
) -> None:
    answer = enlist(announcement(**wanted), replace(TERMS, **terms), replace(STATE, **state))

    assert isinstance(answer, Decline)
    assert answer.reason == reason


def test_a_stranger_learns_nothing_but_that_it_is_none() -> None:
    answer = enlist(announcement(), TERMS, replace(STATE, announcer_owner=None, samples=None, is_busy=True))

    assert isinstance(answer, Decline)
    assert answer.reason == "not_admitted"


def test_a_charging_device_trains_however_empty_it_is() -> None:
    answer = enlist(announcement(), TERMS, replace(STATE, battery_percent=5, is_charging=True))

    assert isinstance(answer, Enlistment)


def test_a_busy_device_asks_more_and_the_owners_own_less() -> None:
    loaded = enlist(announcement(), TERMS, replace(STATE, load_percent=50))
    own = enlist(
        announcement(), replace(TERMS, owner="bea", owner_percent=10), replace(STATE, load_percent=50)
    )

    assert isinstance(loaded, Enlistment)
    assert isinstance(own, Enlistment)
    assert (loaded.step_micro, own.step_micro) == (150, 10)


# --- the cohort -------------------------------------------------------------------------------------------------------
OWNERS = {PeerId(ANN): "ann", PeerId(BOB): "bob", PeerId(CAT): "cat"}
COHORT = (enlistment(ANN), enlistment(BOB), enlistment(CAT))


def refusal(
    cohort: tuple[Sealed[Enlistment], ...] = COHORT,
    *,
    owners: dict[PeerId, str] = OWNERS,
    cohort_min: int = 3,
) -> str:
    return why_no_cohort(announcement(), cohort, mine=COHORT[0].id, owners=owners, cohort_min=cohort_min)


def test_three_owners_train_together() -> None:
    assert refusal() == ""


def test_a_cohort_smaller_than_the_owner_accepts_is_refused() -> None:
    assert refusal(cohort_min=4) == "cohort of 3, at least 4 wanted"


def test_invented_companions_are_no_members() -> None:
    """Keys are free: a coordinator could surround one member with its own."""
    assert refusal(owners={PeerId(ANN): "ann"}) == f"{BOB} of the cohort is no member"


def test_one_owner_behind_two_devices_counts_once() -> None:
    """What both of its devices sent, that owner knows; the rest of the sum is the third member's."""
    owners = {**OWNERS, PeerId(CAT): "bob"}

    assert refusal(owners=owners) == "cohort of 2, at least 3 wanted"


def test_devices_of_one_owner_have_nobody_to_hide_from() -> None:
    assert cohort_size(["ann", "ann", "ann"]) == 3
    assert cohort_size(["ann", "ann", "bob"]) == 2


def test_the_same_device_twice_is_refused() -> None:
    assert refusal((*COHORT, enlistment(BOB, samples=3))) == "one device stands twice in the cohort"


def test_an_enlistment_to_another_run_is_no_company() -> None:
    other = enlistment(CAT, announcement(run=b"o" * 16))

    assert refusal((*COHORT[:2], other)) == "an enlistment of the cohort answers another announcement"


def test_a_cohort_without_its_reader_is_refused() -> None:
    assert refusal(COHORT[1:]) == "the cohort does not contain this device's own enlistment"


def test_fewer_than_announced_are_refused() -> None:
    asked = announcement(cohort_min=4)
    cohort = tuple(enlistment(peer, asked) for peer in (ANN, BOB, CAT))

    said = why_no_cohort(asked, cohort, mine=cohort[0].id, owners=OWNERS, cohort_min=3)

    assert said == "cohort of 3, announced were 4 to 8"


# --- the award --------------------------------------------------------------------------------------------------------
def test_an_award_holds_every_step_of_every_round() -> None:
    assert award().message.hold_micro == hold_micro(announcement().message, 100) == 4 * 30 * 100
    assert check_award(award(), announcement(), enlistment(ANN)) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"hold_micro": 11_999},
        {"completion_micro": 99},
        {"prompt_micro": 1},
        {"lease_ms": 0},
        {"job_id": b"j" * 16},
        {"bid": b"b" * 32},
        {"request": b"q" * 32},
        {"model": b"m" * 32},
        {"seller": BOB},
        {"attempt": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_award_that_differs_in_anything_is_refused(changes: dict[str, Any]) -> None:
    fault = check_award(award(**changes), announcement(), enlistment(ANN))

    assert isinstance(fault, Mismatch)
    assert fault.field == next(iter(changes))


def test_an_award_by_another_than_the_announcer_is_refused() -> None:
    fault = check_award(award(signer=CAT), announcement(), enlistment(ANN))

    assert fault is not None
    assert fault.field == "signer"


def test_job_ids_are_each_members_and_each_rounds_own() -> None:
    ids = {run_job_id(RUN, PeerId(peer)) for peer in (ANN, BOB)}
    ids |= {round_job_id(RUN, PeerId(peer), number) for peer in (ANN, BOB) for number in (1, 2)}
    ids |= {round_job_id(b"o" * 16, PeerId(ANN), 1)}

    assert len(ids) == 7
    assert {len(each) for each in ids} == {16}


# --- the receipt ------------------------------------------------------------------------------------------------------
def test_the_receipt_of_a_round_is_paid_out_of_the_awards_hold() -> None:
    ledger = Ledger(MESH)
    won, done = award(), work()
    accepted = Accept(index=0, prev=NO_HASH, award=won.id, buyer=BUYER, job_id=won.message.job_id, attempt=1)
    claimed = receipt(done)

    assert check_round_receipt(claimed, done) is None
    for entry in (won, sealed(ANN, accepted), claimed):
        assert ledger.apply(entry) is None
    assert ledger.may_post(claimed) is None
    paid = Countersignature(index=1, prev=NO_HASH, receipt=claimed.raw)
    assert ledger.apply(sealed(BUYER, paid)) is None

    assert ledger.balances() == {PeerId(BUYER): -3_000, PeerId(ANN): 3_000}
    assert ledger.total_micro() == 0
    assert ledger.remaining_micro(won.id) == 9_000


def test_four_rounds_use_the_hold_up_and_a_fifth_is_refused() -> None:
    ledger = Ledger(MESH)
    won = award()
    ledger.apply(won)

    outcomes = []
    for number in range(1, 6):
        claimed = receipt(work(round=number))
        ledger.apply(claimed)
        outcomes.append(ledger.may_post(claimed) is None)
        ledger.apply(sealed(BUYER, Countersignature(index=number, prev=NO_HASH, receipt=claimed.raw)))

    assert outcomes == [True] * 4 + [False]
    assert ledger.balance_micro(PeerId(ANN)) == 12_000


@pytest.mark.parametrize(
    "changes",
    [
        {"completion_tokens": 31},
        {"amount_micro": 3_001},
        {"prompt_tokens": 1},
        {"output": b"o" * 32},
        {"prompt": b"q" * 32},
        {"seed": 3},
        {"sampling": b"x" * 32},
        {"job_id": round_job_id(RUN, PeerId(ANN), 3)},
        {"award": b"a" * 32},
        {"payer": CAT},
        {"adapter": b"d" * 32},
        {"attempt": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_receipt_that_lies_about_a_round_is_not_countersigned(changes: dict[str, Any]) -> None:
    fault = check_round_receipt(receipt(work(), **changes), work())

    assert isinstance(fault, Mismatch)
    assert fault.field == next(iter(changes))


def test_a_receipt_signed_by_another_member_is_not_countersigned() -> None:
    fault = check_round_receipt(receipt(work(), signer=BOB), work())

    assert fault is not None
    assert fault.field == "signer"


def test_a_member_may_charge_less_and_takes_as_long_as_it_says() -> None:
    assert check_round_receipt(receipt(work(), amount_micro=10, duration_ms=99), work()) is None
