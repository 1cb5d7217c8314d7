"""What a seller may claim, and what a payer compares before it signs."""

import hashlib
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from marketplace.prompt import Prompt
from marketplace.receipt import (
    Mismatch,
    accepted_ids,
    amount_micro,
    check_countersignature,
    check_receipt,
    draft_receipt,
    output_digest,
    sampling_digest,
)
from protocol.envelope import Sealed
from protocol.messages import NO_HASH, Accepted, Award, Receipt, SamplingTerms, Turn, Work
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
        prompt=Prompt((Turn(role="user", content="what is an agora?"),)).digest(),
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


# --- tasks that only read ---------------------------------------------------------------------------------------------
def embedding(of: Sealed[Award], **changes: Any) -> Work:
    """Two texts of 4 dimensions each: 8 words."""
    fields = {
        "task": "embedding",
        "turns": (),
        "inputs": ("warm", "cold"),
        "sampling": SamplingTerms(),
        "completion_tokens_max": 8,
    }
    return work(of, **{**fields, **changes})


def test_a_reading_is_paid_by_its_prompt_alone() -> None:
    """Sellers bid nothing for its words: 20 prompt tokens at 2."""
    sold = award(completion_micro=0)
    message = draft_receipt_of(embedding(sold), sold, ids=range(8))

    assert (message.prompt_tokens, message.completion_tokens, message.amount_micro) == (20, 8, 40)
    assert check_receipt(sealed(ANN, message), sold, embedding(sold), range(8)) is None


@pytest.mark.parametrize(("words", "tokens", "amount"), [(0, 0, 0), (1, 3, 6), (4, 10, 20), (7, 18, 36)])
def test_a_reading_that_broke_off_is_paid_in_the_share_that_came(
    words: int, tokens: int, amount: int
) -> None:
    """In full, a seller would fail after the first word; not at all, a buyer would hang up before the last."""
    sold = award(completion_micro=0)
    message = draft_receipt_of(embedding(sold), sold, ids=range(words))

    assert (message.prompt_tokens, message.amount_micro) == (tokens, amount)


def test_a_reading_that_broke_off_and_claims_its_whole_prompt_is_not_countersigned() -> None:
    """One word of eight came; the bound on what may have been read is cut to the same share: 296 of bytes and marks."""
    sold = award(completion_micro=0)
    greedy = replace(draft_receipt_of(embedding(sold), sold, ids=(5,)), prompt_tokens=38, amount_micro=76)

    found = check_receipt(sealed(ANN, greedy), sold, embedding(sold), (5,))

    assert found == Mismatch("prompt_tokens", "38", "37 or fewer")


def draft_receipt_of(done: Work, sold: Sealed[Award], ids: Sequence[int]) -> Receipt:
    return draft_receipt(
        sold,
        done,
        ids=ids,
        prompt_tokens=20,
        ttft_ms=100,
        duration_ms=900,
        chargeable_micro=5_000,
        index=4,
        prev=b"v" * 32,
    )
