"""What a buyer knows first-hand of each seller: whether jobs were settled, and whether promised speeds were kept.

Nobody else's word counts, since keys are free. A newcomer stands in the middle: behind everybody proven, so that a bad
seller that takes a new key has to prove itself again.

Of promises the median of the last five counts. Two bad answers of five, a burst or somebody's video call, change nothing;
the third tells a liar from bad luck. Of one job the promise that was kept worst counts: a time to the first token that is
a lie would else win every tie, made good by an honest speed.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace
from statistics import median

from marketplace.verification import BARRED_S
from protocol import limits
from protocol.identity import PeerId

WEIGHT = 0.2  # of the newest outcome: about five jobs change an opinion
NEUTRAL = 0.5
PROMISES_KEPT = 5  # of the newest jobs: how well each one's promise was kept
TTFT_GRACE_MS = (
    250  # the net's part of a first token, which no seller can promise: two round trips of a slow link
)


@dataclass(frozen=True)
class Record:
    """One seller's past, as far as it was mine.

    Attributes:
        settled, failed: jobs paid, attempts broken off.
        reliability: of the outcomes, newest weigh most; 0 to 1.
        promises: delivered ÷ promised of the newest jobs, the newest last; 0 to 1.
        judged: of its answers, how many were checked with a result.
        caught: how many of those were not by the model that was paid for.
        caught_ms: when the last of them was found, Unix time; 0: never.
    """

    settled: int = 0
    failed: int = 0
    reliability: float = NEUTRAL
    promises: tuple[float, ...] = (NEUTRAL,) * PROMISES_KEPT
    judged: int = 0
    caught: int = 0
    caught_ms: int = 0

    def is_barred(self, utc_ms: int) -> bool:
        """Whether it was caught so lately that it is not asked at all."""
        return self.caught > 0 and utc_ms - self.caught_ms < 1000 * BARRED_S

    @property
    def kept(self) -> float:
        """How well it keeps its promises, 0 to 1."""
        return median(self.promises)

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
        share = kept_share(
            promised_ttft_ms=promised_ttft_ms,
            ttft_ms=ttft_ms,
            promised_tokens_per_ks=promised_tokens_per_ks,
            tokens_per_ks=tokens_per_ks,
        )
        reliability = _towards(record.reliability, 1.0)
        record = replace(record, settled=record.settled + 1, reliability=reliability)
        self._note(seller, record if share is None else _with_promise(record, share))

    def declined(self, seller: PeerId) -> None:
        """It bid, and would not take the award: a slot is not promised, so that is bad luck; time after time it is a lie."""
        self._note(seller, _with_promise(self.of(seller), 0.0))

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


def kept_share(
    *, promised_ttft_ms: int, ttft_ms: int, promised_tokens_per_ks: int, tokens_per_ks: int
) -> float | None:
    """Return how much of a job's promises was kept, 0 to 1: of the worse one; None: nothing was promised."""
    shares = []
    if promised_ttft_ms:
        shares.append((promised_ttft_ms + TTFT_GRACE_MS) / max(1, ttft_ms))
    if promised_tokens_per_ks:
        shares.append(tokens_per_ks / promised_tokens_per_ks)
    return min(1.0, *shares) if shares else None


def _with_promise(record: Record, share: float) -> Record:
    return replace(record, promises=(*record.promises, share)[-PROMISES_KEPT:])


def _towards(value: float, target: float) -> float:
    return value + WEIGHT * (target - value)
