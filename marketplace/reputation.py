"""What a buyer knows first-hand of each seller: whether jobs were settled, and whether promised speeds were kept.

Nobody else's word counts, since keys are free. A newcomer stands in the middle: behind everybody proven, so that a bad
seller that takes a new key has to prove itself again.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace

from marketplace.verification import BARRED_S
from protocol import limits
from protocol.identity import PeerId

WEIGHT = 0.2  # of the newest outcome: about five jobs change an opinion
NEUTRAL = 0.5


@dataclass(frozen=True)
class Record:
    """One seller's past, as far as it was mine.

    Attributes:
        settled, failed: jobs paid, attempts broken off.
        reliability: of the outcomes, newest weigh most; 0 to 1.
        kept: delivered ÷ promised, for speed and time to first token; 0 to 1.
        judged: of its answers, how many were checked with a result.
        caught: how many of those were not by the model that was paid for.
        caught_ms: when the last of them was found, Unix time; 0: never.
    """

    settled: int = 0
    failed: int = 0
    reliability: float = NEUTRAL
    kept: float = NEUTRAL
    judged: int = 0
    caught: int = 0
    caught_ms: int = 0

    def is_barred(self, utc_ms: int) -> bool:
        """Whether it was caught so lately that it is not asked at all."""
        return self.caught > 0 and utc_ms - self.caught_ms < 1000 * BARRED_S

    @property
    def score(self) -> float:
        """How much a promise of this seller is worth, 0 to 1."""
        return self.reliability * self.kept


class Reputation:
    """Records by seller; the seller heard of least recently is forgotten first."""

    def __init__(self) -> None:
        self._records: OrderedDict[PeerId, Record] = OrderedDict()

    def of(self, seller: PeerId) -> Record:
        """The seller's record; a newcomer's is neutral."""
        return self._records.get(seller, Record())

    def settled(
        self,
        seller: PeerId,
        *,
        promised_ttft_ms: int,
        ttft_ms: int,
        promised_tokens_per_ks: int,
        tokens_per_ks: int,
    ) -> None:
        """A job was paid. What was promised is its bid's (0: nothing was), what was delivered is our own measurement."""
        record = self.of(seller)
        shares = []
        if promised_ttft_ms:
            shares.append(min(1.0, promised_ttft_ms / max(1, ttft_ms)))
        if promised_tokens_per_ks:
            shares.append(min(1.0, tokens_per_ks / promised_tokens_per_ks))
        kept = _towards(record.kept, sum(shares) / len(shares)) if shares else record.kept
        reliability = _towards(record.reliability, 1.0)
        self._note(seller, replace(record, settled=record.settled + 1, reliability=reliability, kept=kept))

    def failed(self, seller: PeerId) -> None:
        """An attempt broke off: the stream, a stall, a receipt that could not be countersigned."""
        record = self.of(seller)
        reliability = _towards(record.reliability, 0.0)
        self._note(seller, replace(record, failed=record.failed + 1, reliability=reliability))

    def judged(self, seller: PeerId, *, is_passed: bool, utc_ms: int) -> Record:
        """An answer of this seller was checked; return what is now known of it."""
        record = self.of(seller)
        record = replace(record, judged=record.judged + 1)
        if not is_passed:
            record = replace(record, caught=record.caught + 1, caught_ms=utc_ms)
        self._note(seller, record)
        return record

    def remember(self, seller: PeerId, *, judged: int, caught: int, caught_ms: int) -> None:
        """Take in what an earlier run found out about a seller's answers."""
        self._note(seller, replace(self.of(seller), judged=judged, caught=caught, caught_ms=caught_ms))

    def _note(self, seller: PeerId, record: Record) -> None:
        self._records.pop(seller, None)
        self._records[seller] = record
        while len(self._records) > limits.SENDERS_MAX:
            self._records.popitem(last=False)


def _towards(value: float, target: float) -> float:
    return value + WEIGHT * (target - value)
