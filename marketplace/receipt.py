"""The receipt: what a seller may claim for one attempt, and what a payer checks before it countersigns.

A receipt binds the award, the job and attempt, both parties, the model and its adapter, how tokens were drawn, the prompt and the
delivered token ids by their digests, and the price. The payer compares every one of them with what it asked for and
what arrived; one difference and it does not sign. Only the times are the seller's word.

An attempt without one delivered token costs nothing: a seller could otherwise live on prompts that it never answers. Of a
task that only reads, prompt tokens are claimed in the share in which its words came (`tokens_charged`).
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from marketplace.pricing import Prices
from marketplace.prompt import Prompt, tokens_charged
from protocol.envelope import Sealed, encode
from protocol.messages import Accepted, Award, Countersignature, Receipt, SamplingTerms, Work


@dataclass(frozen=True)
class Mismatch:
    """A receipt, a countersignature or a claim says something else than what is known; nothing is signed."""

    field: str
    found: str
    expected: str


def amount_micro(award: Award, prompt_tokens: int, completion_tokens: int) -> int:
    """Return what an attempt costs at the first price: the award's, as bid. No token, no pay."""
    if completion_tokens == 0:
        return 0
    return Prices(award.prompt_micro, award.completion_micro).total_micro(prompt_tokens, completion_tokens)


def draft_receipt(
    award: Sealed[Award],
    work: Work,
    *,
    ids: Sequence[int],
    prompt_tokens: int,
    ttft_ms: int,
    duration_ms: int,
    chargeable_micro: int,
    index: int,
    prev: bytes,
) -> Receipt:
    """Return the seller's receipt for one attempt.

    Args:
        award: the one that the work names.
        work: as it was received.
        ids: the token ids delivered in this attempt; after a broken stream, those of `accepted_ids`.
        prompt_tokens: as the engine counted them.
        ttft_ms: from the work's arrival to the first token.
        duration_ms: from the work's arrival to the last.
        chargeable_micro: what is left of the hold (`Ledger.chargeable_micro`); a receipt never asks for more.
        index: its place in the seller's log.
        prev: the id of the entry before it there.
    """
    terms = award.message
    charged = tokens_charged(work, prompt_tokens, len(ids))
    return Receipt(
        index=index,
        prev=prev,
        award=award.id,
        job_id=work.job_id,
        attempt=work.attempt,
        payer=award.sender,
        payee=terms.seller,
        model=terms.model,
        adapter=terms.adapter,
        sampling=sampling_digest(work.sampling),
        seed=work.sampling.seed,
        prompt=Prompt.of(work).digest(),
        output=output_digest(ids),
        prompt_tokens=charged,
        completion_tokens=len(ids),
        ttft_ms=ttft_ms,
        duration_ms=duration_ms,
        amount_micro=min(amount_micro(terms, charged, len(ids)), chargeable_micro),
    )


def check_receipt(
    receipt: Sealed[Receipt], award: Sealed[Award], work: Work, ids: Sequence[int]
) -> Mismatch | None:
    """Return the first thing in a receipt that the payer must not countersign; None when it is right.

    What only the ledger knows (is the hold used up, is the attempt paid) is `Ledger.may_post`.

    Args:
        receipt: the seller's.
        award: the payer's own.
        work: what the payer sent in this attempt.
        ids: the token ids that arrived in this attempt, in order.
    """
    found, terms = receipt.message, award.message
    bound: tuple[tuple[str, object, object], ...] = (
        # field              the receipt says            the payer knows
        ("signer", receipt.sender, terms.seller),
        ("payee", found.payee, terms.seller),
        ("payer", found.payer, award.sender),
        ("award", found.award, award.id),
        ("job_id", found.job_id, work.job_id),
        ("attempt", found.attempt, work.attempt),
        ("model", found.model, terms.model),
        ("adapter", found.adapter, terms.adapter),
        ("sampling", found.sampling, sampling_digest(work.sampling)),
        ("seed", found.seed, work.sampling.seed),
        ("prompt", found.prompt, Prompt.of(work).digest()),
        ("completion_tokens", found.completion_tokens, len(ids)),
        ("output", found.output, output_digest(ids)),
    )
    for name, said, known in bound:
        if said != known:
            return Mismatch(name, _shown(said), _shown(known))
    tokens_max = tokens_charged(work, Prompt.of(work).tokens_max, len(ids))
    if found.prompt_tokens > tokens_max:
        return Mismatch("prompt_tokens", str(found.prompt_tokens), f"{tokens_max} or fewer")
    # Less is the seller's right: it charges less when the hold runs out.
    most = min(amount_micro(terms, found.prompt_tokens, found.completion_tokens), terms.hold_micro)
    if found.amount_micro > most:
        return Mismatch("amount_micro", str(found.amount_micro), f"{most} or less")
    return None


def check_countersignature(entry: Sealed[Countersignature], receipt: Sealed[Receipt]) -> Mismatch | None:
    """Return what is wrong with the payer's countersignature of this very receipt; None when it settles it."""
    if entry.sender != receipt.message.payer:
        return Mismatch("signer", entry.sender, receipt.message.payer)
    if entry.message.receipt != receipt.raw:
        return Mismatch("receipt", "other bytes than the receipt's", "the receipt as it was sent")
    return None


def accepted_ids(sent: Sequence[int], accepted: Accepted) -> tuple[int, ...] | Mismatch:
    """Return the token ids that a buyer accepted of a broken attempt: a prefix of what was sent, or it lies."""
    if accepted.completion_tokens > len(sent):
        return Mismatch("completion_tokens", str(accepted.completion_tokens), f"{len(sent)} or fewer")
    prefix = tuple(sent[: accepted.completion_tokens])
    if accepted.output != output_digest(prefix):
        return Mismatch("output", _shown(accepted.output), _shown(output_digest(prefix)))
    return prefix


def output_digest(ids: Iterable[int]) -> bytes:
    """Return the SHA-256 of token ids, each as unsigned 32 bits little-endian."""
    return hashlib.sha256(b"".join(struct.pack("<I", token) for token in ids)).digest()


def sampling_digest(terms: SamplingTerms) -> bytes:
    """Return the SHA-256 of the sampling terms' MessagePack form."""
    return hashlib.sha256(encode(terms)).digest()


def _shown(value: object) -> str:
    return value.hex()[:12] if isinstance(value, bytes) else str(value)
