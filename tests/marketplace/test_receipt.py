"""What a seller may claim, and what a payer compares before it signs."""

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from marketplace.receipt import (
    Mismatch,
    accepted_ids,
    amount_micro,
    check_countersignature,
    check_receipt,
    draft_receipt,
    output_digest,
    prompt_digest,
    prompt_tokens_max,
    sampling_digest,
)
from protocol.envelope import Sealed
from protocol.messages import NO_HASH, Accepted, Award, Receipt, SamplingTerms, Turn
from tests.marketplace.parties import ANN, BOB, BUYER, JOB, MODEL, award, countersigned, receipt, sealed, work

IDS = (5, 6, 70_000)


def draft(of: Sealed[Award] | None = None, chargeable_micro: int = 5_000, **changes: Any) -> Receipt:
    """20 prompt tokens at 2 and 3 completion tokens at 10: 70."""
    sold = of or award()
    message = draft_receipt(
        sold,
        work(sold),
        ids=IDS,
        prompt_tokens=20,
        ttft_ms=100,
        duration_ms=900,
        chargeable_micro=chargeable_micro,
        index=4,
        prev=b"v" * 32,
    )
    return replace(message, **changes)


def test_a_receipt_binds_award_parties_model_sampling_prompt_and_output() -> None:
    assert draft() == Receipt(
        index=4,
        prev=b"v" * 32,
        award=award().id,
        job_id=JOB,
        attempt=1,
        payer=BUYER,
        payee=ANN,
        model=MODEL,
        adapter=NO_HASH,
        sampling=sampling_digest(SamplingTerms(temperature_ppm=700_000, seed=7)),
        seed=7,
        prompt=prompt_digest([Turn(role="user", content="what is an agora?")]),
        output=output_digest(IDS),
        prompt_tokens=20,
        completion_tokens=3,
        ttft_ms=100,
        duration_ms=900,
        amount_micro=70,
    )


def test_the_payer_finds_nothing_wrong_with_an_honest_receipt() -> None:
    assert check_receipt(sealed(ANN, draft()), award(), work(award()), IDS) is None


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("payee", {"payee": BOB}),
        ("payer", {"payer": BOB}),
        ("award", {"award": b"x" * 32}),
        ("job_id", {"job_id": b"x" * 16}),
        ("attempt", {"attempt": 2}),
        ("model", {"model": b"x" * 32}),
        ("adapter", {"adapter": b"x" * 32}),
        ("sampling", {"sampling": b"x" * 32}),
        ("seed", {"seed": 8}),
        ("prompt", {"prompt": b"x" * 32}),
        ("output", {"output": b"x" * 32}),
        ("completion_tokens", {"completion_tokens": 4, "amount_micro": 80}),
        ("prompt_tokens", {"prompt_tokens": 290}),
        ("amount_micro", {"amount_micro": 71}),
    ],
)
def test_receipt_with_one_thing_changed_is_not_countersigned(field: str, changes: dict[str, Any]) -> None:
    found = check_receipt(sealed(ANN, draft(**changes)), award(), work(award()), IDS)

    assert isinstance(found, Mismatch)
    assert found.field == field


def test_an_answer_with_the_bare_base_is_not_paid_as_the_patched_one_that_was_awarded() -> None:
    """Serving another adapter than was bought is cheaper to do by far: nothing has to be loaded."""
    sold = award(adapter=b"a" * 32)

    assert draft(sold).adapter == b"a" * 32
    assert check_receipt(sealed(ANN, draft(sold)), sold, work(sold), IDS) is None
    assert check_receipt(sealed(ANN, draft(sold, adapter=NO_HASH)), sold, work(sold), IDS) == Mismatch(
        "adapter", "000000000000", "616161616161"
    )


def test_receipt_signed_by_another_than_the_seller_is_not_countersigned() -> None:
    assert check_receipt(sealed(BOB, draft()), award(), work(award()), IDS) == Mismatch("signer", BOB, ANN)


def test_receipt_for_tokens_that_did_not_arrive_is_not_countersigned() -> None:
    found = check_receipt(sealed(ANN, draft()), award(), work(award()), IDS[:2])

    assert found == Mismatch("completion_tokens", "3", "2")


def test_the_amount_stops_at_what_is_left_of_the_hold() -> None:
    """The prompt may turn out longer than the buyer's estimate; the hold is all it promised."""
    capped = draft(chargeable_micro=60)

    assert capped.amount_micro == 60
    assert check_receipt(sealed(ANN, capped), award(), work(award()), IDS) is None


def test_receipt_over_its_awards_hold_is_not_countersigned() -> None:
    small = award(hold_micro=60)

    found = check_receipt(sealed(ANN, draft(small)), small, work(small), IDS)

    assert found == Mismatch("amount_micro", "70", "60 or less")


def test_prompt_farming_earns_nothing() -> None:
    """A seller that reads prompts and never answers is not paid for reading."""
    assert amount_micro(award().message, prompt_tokens=1_000, completion_tokens=0) == 0
    assert amount_micro(award().message, prompt_tokens=1_000, completion_tokens=1) == 2_010


def test_no_prompt_has_more_tokens_than_bytes_and_its_templates_marks() -> None:
    turns = (Turn(role="user", content="ζῷον"), Turn(role="assistant", content="ok"))

    assert prompt_tokens_max(turns) == 9 + 2 + 2 * 16 + 256


def test_a_countersignature_settles_exactly_the_receipt_that_was_sent() -> None:
    sent, other = receipt(award()), receipt(award(), amount_micro=1)

    assert check_countersignature(countersigned(sent), sent) is None
    assert check_countersignature(countersigned(sent, signer=BOB), sent) == Mismatch("signer", BOB, BUYER)
    found = check_countersignature(countersigned(other), sent)
    assert found is not None
    assert found.field == "receipt"


@pytest.mark.parametrize("count", [0, 2, 3])
def test_after_a_broken_stream_the_accepted_tokens_are_a_prefix_of_the_sent(count: int) -> None:
    said = Accepted(job_id=JOB, attempt=1, completion_tokens=count, output=output_digest(IDS[:count]))

    assert accepted_ids(IDS, said) == IDS[:count]


@pytest.mark.parametrize(("count", "output"), [(4, output_digest(IDS)), (2, output_digest(IDS))])
def test_buyer_that_claims_other_tokens_than_were_sent_is_caught(count: int, output: bytes) -> None:
    said = Accepted(job_id=JOB, attempt=1, completion_tokens=count, output=output)

    assert isinstance(accepted_ids(IDS, said), Mismatch)


def test_the_output_digest_is_over_little_endian_u32_ids() -> None:
    assert output_digest([1, 258]) == hashlib.sha256(bytes([1, 0, 0, 0, 2, 1, 0, 0])).digest()


TURNS = st.lists(
    st.builds(Turn, role=st.sampled_from(["system", "user", "assistant"]), content=st.text(max_size=8)),
    max_size=4,
)


@settings(derandomize=True, deadline=None)
@given(first=TURNS, second=TURNS)
def test_two_chats_share_a_digest_only_if_they_are_the_same(first: list[Turn], second: list[Turn]) -> None:
    assert (prompt_digest(first) == prompt_digest(second)) == (first == second)


def test_text_moved_from_one_turn_to_the_next_changes_the_prompt_digest() -> None:
    one = [Turn(role="user", content="ab"), Turn(role="user", content="c")]
    two = [Turn(role="user", content="a"), Turn(role="user", content="bc")]

    assert prompt_digest(one) != prompt_digest(two)
