"""Who trades in these tests, and the messages they sign, each with defaults that a test changes one at a time."""

from typing import Any, TypeVar

from protocol.envelope import Sealed, seal
from protocol.identity import Identity
from protocol.messages import (
    NO_HASH,
    Accept,
    Award,
    Bid,
    Countersignature,
    Decline,
    Income,
    Message,
    Receipt,
    Request,
    SamplingTerms,
    Turn,
    Work,
)

M = TypeVar("M", bound=Message)

MESH = b"m" * 32
MODEL = b"g" * 32
JOB = b"j" * 16
SESSION = b"s" * 32

BUYER_KEY, ANN_KEY, BOB_KEY, CAT_KEY = (Identity(bytes([seed]) * 32) for seed in (1, 2, 3, 4))
BUYER, ANN, BOB, CAT = (key.peer_id for key in (BUYER_KEY, ANN_KEY, BOB_KEY, CAT_KEY))
KEYS = {key.peer_id: key for key in (BUYER_KEY, ANN_KEY, BOB_KEY, CAT_KEY)}


def sealed(sender: str, message: M, *, at_ms: int = 1_000) -> Sealed[M]:
    return seal(message, KEYS[sender], mesh=MESH, seq=(1, 1), time_ms=at_ms)


def request(**changes: Any) -> Sealed[Request]:
    """100 prompt tokens and at most 200 more, for at most 10,000."""
    fields = {
        "job_id": JOB,
        "attempt": 1,
        "model": MODEL,
        "adapter": NO_HASH,
        "prompt_tokens": 100,
        "completion_tokens_max": 200,
        "total_micro_max": 10_000,
        "privacy": "owner",
        "session": NO_HASH,
        "head": None,
    }
    return sealed(BUYER, Request(**(fields | changes)))


def bid(
    seller: str, price_micro: int, to: Sealed[Request] | None = None, *, ttft_ms: int = 100
) -> Sealed[Bid]:
    """The same price for each token, so that the total of the default request is 300 times it."""
    return sealed(
        seller,
        Bid(
            request=(to or request()).id,
            prompt_micro=price_micro,
            completion_micro=price_micro,
            ttft_ms=ttft_ms,
            tokens_per_ks=50_000,
        ),
    )


def decline(seller: str, reason: Any = "busy") -> Sealed[Decline]:
    return sealed(seller, Decline(request=request().id, reason=reason, detail="all slots in use"))


def award(*, buyer: str = BUYER, at_ms: int = 1_000, **changes: Any) -> Sealed[Award]:
    """To Ann, at 2 per prompt token and 10 per completion token, for a lease that holds 5,000."""
    fields = {
        "index": 0,
        "prev": NO_HASH,
        "request": request().id,
        "bid": b"b" * 32,
        "job_id": JOB,
        "attempt": 1,
        "seller": ANN,
        "model": MODEL,
        "adapter": NO_HASH,
        "hold_micro": 5_000,
        "prompt_micro": 2,
        "completion_micro": 10,
        "lease_ms": 600_000,
        "session": SESSION,
    }
    return sealed(buyer, Award(**(fields | changes)), at_ms=at_ms)


def accept(of: Sealed[Award], *, seller: str | None = None, **changes: Any) -> Sealed[Accept]:
    fields = {
        "index": 0,
        "prev": NO_HASH,
        "award": of.id,
        "buyer": of.sender,
        "job_id": of.message.job_id,
        "attempt": of.message.attempt,
    }
    return sealed(seller or of.message.seller, Accept(**(fields | changes)))


def work(of: Sealed[Award], **changes: Any) -> Work:
    fields = {
        "award": of.id,
        "job_id": of.message.job_id,
        "attempt": of.message.attempt,
        "turns": (Turn(role="user", content="what is an agora?"),),
        "completion_tokens_max": 200,
        "sampling": SamplingTerms(temperature_ppm=700_000, seed=7),
        "stop": (),
        "received": (),
    }
    return Work(**(fields | changes))


def receipt(of: Sealed[Award], *, signer: str | None = None, **changes: Any) -> Sealed[Receipt]:
    """For 50 prompt and 20 completion tokens: 300."""
    fields = {
        "index": 0,
        "prev": NO_HASH,
        "award": of.id,
        "job_id": of.message.job_id,
        "attempt": of.message.attempt,
        "payer": of.sender,
        "payee": of.message.seller,
        "model": MODEL,
        "adapter": NO_HASH,
        "sampling": b"a" * 32,
        "seed": 7,
        "prompt": b"p" * 32,
        "output": b"o" * 32,
        "prompt_tokens": 50,
        "completion_tokens": 20,
        "ttft_ms": 100,
        "duration_ms": 900,
        "amount_micro": 300,
    }
    return sealed(signer or of.message.seller, Receipt(**(fields | changes)))


def countersigned(
    of: Sealed[Receipt], *, signer: str | None = None, at_ms: int = 2_000
) -> Sealed[Countersignature]:
    message = Countersignature(index=1, prev=NO_HASH, receipt=of.raw)
    return sealed(signer or of.message.payer, message, at_ms=at_ms)


def income(of: Sealed[Award], paid: Sealed[Countersignature], *, by: str | None = None) -> Sealed[Income]:
    message = Income(index=2, prev=NO_HASH, award=of.raw, countersignature=paid.raw)
    return sealed(by or of.message.seller, message)
