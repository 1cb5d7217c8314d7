"""Verification: which settled jobs a buyer has checked, and what it makes of the result. First-hand, like reputation.

Answers are never compared as texts, since the same model rounds otherwise in a batch of another shape. A check reads the
prompt with the claimed tokens behind it and says for each token its *gap*: how many thousandths of a logit it lies below
the likeliest one at its place. Greedy decoding by the model that was paid for leaves gaps of rounding alone.

    receipt signed ─▶ why_unverifiable() ─▶ is_drawn() ─▶ gaps ─▶ judge() ─▶ passed │ caught

The lot is thrown when the receipt is signed: a seller cannot know which answers will be looked at, and none of them can be
withheld from its pay any more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from protocol.messages import SamplingTerms, Task

NEWCOMERS_JOBS: Final = 20  # of a seller, until so many were judged, each one is drawn
LATER_SHARE: Final = 0.07  # of those that follow
STRAYS_PERCENT_MAX: Final = 1  # of a job's tokens may lie below the likeliest by more than the tolerance
BARRED_S: Final = 24 * 3600.0  # a seller that was caught is not asked for so long, whoever else is there
# For a model that nobody has calibrated here. Batches of other shapes, threads and caches came to 0.41 logits at worst on a
# trained model, in 29,000 tokens; what another model says is off by several.
TOLERANCE_MILLI_DEFAULT: Final = 750

_NEUTRAL_PPM: Final = (0, 1_000_000)  # of a repeat penalty: not given, or a factor of one


@dataclass(frozen=True)
class Verdict:
    """What the gaps of one seller's tokens come to.

    Attributes:
        tokens: how many were looked at.
        strays: those of them that rounding does not explain.
        worst_milli: the largest gap.
    """

    tokens: int
    strays: int
    worst_milli: int

    @property
    def is_passed(self) -> bool:
        """Whether the model that was paid for may have said this."""
        return 100 * self.strays <= STRAYS_PERCENT_MAX * self.tokens

    def to_text(self) -> str:
        """What a user is told."""
        worst = f"the worst {self.worst_milli / 1000:.2f} logits below the likeliest"
        return f"{self.strays} of {self.tokens} tokens stray, {worst}"


def why_unverifiable(task: Task, terms: SamplingTerms) -> str:
    """Why a job's answer cannot be checked; empty: it can.

    Where chance has drawn, every token is possible; where logits were changed before the likeliest was taken, the gaps of
    the raw ones say nothing.
    """
    if task not in ("chat", "completion"):
        return f"a task of kind {task} writes no text"
    if terms.temperature_ppm:
        return "its tokens were drawn by chance"
    if (
        terms.repeat_penalty_ppm not in _NEUTRAL_PPM
        or terms.frequency_penalty_ppm
        or terms.presence_penalty_ppm
    ):
        return "repetition was penalised"
    if terms.logit_bias:
        return "its logits were biased"
    if terms.schema or terms.grammar:
        return "its form was constrained"
    return ""


def is_drawn(judged: int, lot: float) -> bool:
    """Whether a settled job of a seller is to be checked.

    Args:
        judged: how many of this seller's jobs were judged so far; one that could not be checked counts for nothing.
        lot: from 0 to 1, thrown by the buyer once the receipt is signed.
    """
    return judged < NEWCOMERS_JOBS or lot < LATER_SHARE


def judge(gaps_milli: Sequence[int], tolerance_milli: int) -> Verdict:
    """Return what the gaps of one seller's tokens come to.

    Args:
        gaps_milli: of its own tokens, given everything before them, in thousandths of a logit.
        tolerance_milli: how far honest engines are apart with this model.
    """
    return Verdict(
        tokens=len(gaps_milli),
        strays=sum(gap > tolerance_milli for gap in gaps_milli),
        worst_milli=max(gaps_milli, default=0),
    )


def default_tolerance(_model: bytes) -> int:
    """Return how far honest engines are apart with a model that was not calibrated on this device, in thousandths."""
    return TOLERANCE_MILLI_DEFAULT
