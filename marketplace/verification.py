"""Verification: which settled jobs a buyer has checked, and what it makes of the result. First-hand, like reputation.

Answers are never compared as texts, since the same model rounds otherwise in a batch of another shape. A check reads the
prompt with the claimed tokens behind it and says two numbers of each token, in thousandths of a logit:

    its gap        how far it lies below the likeliest one at its place. Greedy decoding by the model that was paid for leaves
                   gaps of rounding alone.
    its contrast   how far it lies above another token, which follows from its place. The seller has stated the same number
                   when it wrote the token: the mean difference is the *drift*. Another computation, a coarser quantisation
                   too, drifts at every token, also where the text is the same, and whatever chance made of the logits.

    receipt signed ─▶ why_unverifiable() ─▶ is_drawn() ─▶ reading ─▶ judge() ─▶ passed │ caught

The lot is thrown when the receipt is signed: a seller cannot know which answers will be looked at, and none of them can be
withheld from its pay any more. What it states comes with each token, before it knows whether anybody will look.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from protocol.messages import SamplingTerms, Task

NEWCOMERS_JOBS: Final = 20  # of a seller, until so many were judged, each one is drawn
LATER_SHARE: Final = 0.07  # of those that follow
STRAYS_PERCENT_MAX: Final = 1  # of a job's tokens may lie below the likeliest by more than the tolerance
BARRED_S: Final = 24 * 3600.0  # a seller that was caught is not asked for so long, whoever else is there
# Over two tokens honest float16 weights drifted by 0.3 logits; over eight the mean is steady.
DRIFT_TOKENS_MIN: Final = 8
# Of one token, at most, in a mean: so that a single wild one of an honest seller does not condemn a long answer.
DIFFERENCE_MILLI_MAX: Final = 4_000

_NEUTRAL_PPM: Final = (0, 1_000_000)  # of a repeat penalty: not given, or a factor of one


@dataclass(frozen=True)
class Tolerance:
    """How far honest engines are apart with a model, in thousandths of a logit.

    Attributes:
        gap_milli: the largest gap of a single token that rounding explains.
        drift_milli: the largest mean difference of an answer's contrasts that it explains.
    """

    gap_milli: int
    drift_milli: int


# For a model that nobody has calibrated here. Batches of other shapes, threads and caches came to 0.41 logits at worst on a
# trained model, in 29,000 tokens; what another model says is off by several. Whole answers drifted by 0.12 at worst, those by
# 4 bits instead of 8 by 0.7 in the median.
TOLERANCE_DEFAULT: Final = Tolerance(gap_milli=750, drift_milli=300)


@dataclass(frozen=True)
class Reading:
    """What somebody who says that they have computed the model says of claimed tokens, one number of each kind for each."""

    gaps_milli: Sequence[int]
    contrasts_milli: Sequence[int]

    def last(self, count: int) -> Self:
        """Return what it says of the last tokens."""
        start = len(self.gaps_milli) - count
        return type(self)(self.gaps_milli[start:], self.contrasts_milli[start:])

    @property
    def is_empty(self) -> bool:
        """Whether it says the same of every token, as nobody does who has computed them."""
        return len(self.contrasts_milli) >= DRIFT_TOKENS_MIN and len(set(self.contrasts_milli)) == 1


@dataclass(frozen=True)
class Verdict:
    """What a reading of one seller's tokens comes to.

    Attributes:
        tokens: how many were looked at.
        is_greedy: whether each of them should have been the likeliest; else gaps say nothing, and none strays.
        strays: those of them that rounding does not explain.
        worst_milli: the largest gap.
        drift_milli: the mean difference of what was stated and read, rounded up; None: too few tokens for one.
        is_drifted: rounding does not explain that either.
    """

    tokens: int
    is_greedy: bool
    strays: int
    worst_milli: int
    drift_milli: int | None
    is_drifted: bool

    @property
    def is_passed(self) -> bool:
        """Whether the model that was paid for may have said this."""
        return 100 * self.strays <= STRAYS_PERCENT_MAX * self.tokens and not self.is_drifted

    def to_text(self) -> str:
        """What a user is told."""
        drift = "" if self.drift_milli is None else f"a mean drift of {self.drift_milli / 1000:.2f} logits"
        if not self.is_greedy:
            return f"{self.tokens} tokens have {drift}"
        worst = f"the worst {self.worst_milli / 1000:.2f} logits below the likeliest"
        return ", ".join(filter(None, (f"{self.strays} of {self.tokens} tokens stray", worst, drift)))


def is_greedy(terms: SamplingTerms) -> bool:
    """Whether each token should be the one with the highest raw logit.

    Where chance has drawn, every token is possible; where logits were changed before the likeliest was taken, the gaps of
    the raw ones say nothing.
    """
    is_penalised = (
        terms.repeat_penalty_ppm not in _NEUTRAL_PPM
        or terms.frequency_penalty_ppm
        or terms.presence_penalty_ppm
    )
    return not (terms.temperature_ppm or is_penalised or terms.logit_bias or terms.schema or terms.grammar)


def why_unverifiable(task: Task, terms: SamplingTerms, tokens: int) -> str:
    """Why a job's answer cannot be checked; empty: it can.

    Args:
        task: what was sold.
        terms: how its tokens were drawn.
        tokens: how many of them its seller wrote.
    """
    if task not in ("chat", "completion"):
        return f"a task of kind {task} writes no text"
    if not tokens:
        return "it has no tokens"
    if tokens < DRIFT_TOKENS_MIN and not is_greedy(terms):
        return (
            f"it has {tokens} tokens, which need not be the likeliest; such answers are checked from "
            f"{DRIFT_TOKENS_MIN} tokens on"
        )
    return ""


def is_drawn(judged: int, lot: float) -> bool:
    """Whether a settled job of a seller is to be checked.

    Args:
        judged: how many of this seller's jobs were judged so far; one that could not be checked counts for nothing.
        lot: from 0 to 1, thrown by the buyer once the receipt is signed.
    """
    return judged < NEWCOMERS_JOBS or lot < LATER_SHARE


def judge(reading: Reading, stated_milli: Sequence[int], tolerance: Tolerance, *, is_greedy: bool) -> Verdict:
    """Return what a reading of one seller's tokens comes to.

    Args:
        reading: of its own tokens, given everything before them.
        stated_milli: the contrasts that it stated of them.
        tolerance: how far honest engines are apart with this model.
        is_greedy: whether the answer was to be the likeliest tokens.
    """
    gaps_milli = reading.gaps_milli
    apart_milli = drift(stated_milli, reading.contrasts_milli)
    return Verdict(
        tokens=len(gaps_milli),
        is_greedy=is_greedy,
        strays=sum(gap > tolerance.gap_milli for gap in gaps_milli) if is_greedy else 0,
        worst_milli=max(gaps_milli, default=0),
        drift_milli=apart_milli,
        is_drifted=apart_milli is not None and apart_milli > tolerance.drift_milli,
    )


def do_agree(one: Reading, other: Reading, tolerance: Tolerance) -> bool:
    """Whether two readings of the same tokens may both be computations of the model: two that say nothing are not."""
    apart_milli = drift(one.contrasts_milli, other.contrasts_milli)
    if apart_milli is None:
        return True  # only greedy answers are so short, and of them both have found strays
    return apart_milli <= tolerance.drift_milli and not (one.is_empty or other.is_empty)


def drift(one_milli: Sequence[int], other_milli: Sequence[int]) -> int | None:
    """Return the mean difference of two lists of contrasts of the same tokens, rounded up; None: they are too few."""
    if len(one_milli) < DRIFT_TOKENS_MIN:
        return None
    pairs = zip(one_milli, other_milli, strict=True)
    total = sum(min(DIFFERENCE_MILLI_MAX, abs(one - other)) for one, other in pairs)
    return -(-total // len(one_milli))


def default_tolerance(_model: bytes) -> Tolerance:
    """Return how far honest engines are apart with a model that was not calibrated on this device."""
    return TOLERANCE_DEFAULT
