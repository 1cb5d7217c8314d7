"""What a rule of the market answers when it will not do something: values, since they are expected."""

from dataclasses import dataclass
from typing import Literal

from protocol.envelope import Sealed
from protocol.identity import PeerId
from protocol.messages import Entry

RefusalReason = Literal[
    "credit",  # the account would fall below its credit line
    "award_unknown",
    "parties",  # signed by, or made out to, somebody whom the award does not name
    "job",  # not the job, or not the model, that the award is for
    "price",  # more than the counts come to at the price that was bid
    "hold",  # more than what is left of the award's hold
    "paid",  # another receipt of this job and attempt was paid
    "void",  # its hold was given back
    "malformed",
    "replayed",  # this attempt was begun before
    "fenced",  # a later attempt of this job was begun
]


@dataclass(frozen=True)
class Refused:
    """It changes nothing, and why; `detail` says what was found and what was expected."""

    reason: RefusalReason
    detail: str


@dataclass(frozen=True)
class Contradiction:
    """Two entries of one key that cannot both be honest: evidence for everybody. The first one stands.

    It is not undone: a buyer could otherwise take back a payment by signing a second one.
    """

    author: PeerId
    first: Sealed[Entry]
    second: Sealed[Entry]
