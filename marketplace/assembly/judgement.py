"""Judgement: how a voter turns what it has measured into a yes or a no. Pure: scores in, verdict out.

A patch is judged on every domain of its line's public set, so that one that heals a domain and breaks another is seen
(docs/SECURITY.md, "Manifest"). Its voters measure both sides themselves: the parent's adapter and the new one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

from marketplace.assembly.ballot import BallotView
from protocol.messages import NO_HASH, Manifest, Score

Private = Literal["passed", "failed", "none"]

# Exact match, as shares. Half of each batch is replay, and even then two-digit addition fell by up to .09 when a patch was
# trained; without replay every other domain went to .07 or less.
DOMAIN_FALL_MAX = 0.10
MEAN_FALL_MAX = 0.02
PRIVATE_FALL_MAX = 0.02
# Two builds of one engine may flip a token in a hundred answers; who claims more than that has measured something else.
CLAIM_EXCESS_MAX = 0.05
CLAIM_EXCESS_DOMAIN_MAX = 0.10
ROUNDING = 1e-9  # 0.90 - 0.88 is a little more than 0.02
SAMPLE_DEVIATIONS = 2.0  # what chance alone may take from a part of the questions, in standard deviations


@dataclass(frozen=True)
class Judgement:
    """A voter's mind; `reason` is for humans."""

    is_yes: bool
    reason: str


def judge(
    before: Sequence[Score], after: Sequence[Score], claimed: Sequence[Score], private: Private
) -> Judgement:
    """Judge a patch that is meant to improve its line.

    Args:
        before: as measured here, with the parent's adapter.
        after: as measured here, with the new one.
        claimed: what the manifest says of the new one.
        private: what this device's own samples say; exact scores of them go nowhere.
    """
    if why := _why_incomparable(before, after):
        return Judgement(is_yes=False, reason=why)
    if why := _why_untrue(after, claimed):
        return Judgement(is_yes=False, reason=why)
    if why := _why_worse(before, after):
        return Judgement(is_yes=False, reason=why)
    if private == "failed":
        return Judgement(is_yes=False, reason="worse on private samples of this device")
    better = [
        f"{new.domain} {_share(old):.2f} to {_share(new):.2f}"
        for old, new in zip(before, after, strict=True)
        if _share(new) > _share(old)
    ]
    if not better:
        return Judgement(is_yes=False, reason="no domain is better than with the version before")
    return Judgement(is_yes=True, reason=f"better: {', '.join(better)}")


def judge_rollback(
    after: Sequence[Score], claimed: Sequence[Score], *, has_fallen: bool, is_voters: bool
) -> Judgement:
    """Judge the way back to an adapter that the roll has ratified before.

    Any member may propose one, so a voter agrees only with another voter, or because it sees for itself that the head
    does less than its ballot was told.

    Args:
        after: as measured here, with the adapter of the version that is brought back.
        claimed: what the manifest says of it.
        has_fallen: whether this device's own canaries have fallen with the head.
        is_voters: whether a key on the roll proposes it.
    """
    if why := _why_untrue(after, claimed):
        return Judgement(is_yes=False, reason=why)
    if has_fallen:
        return Judgement(is_yes=True, reason="the version in force does less here than its ballot was told")
    if is_voters:
        return Judgement(is_yes=True, reason="a voter asks for the way back to what the roll has ratified")
    return Judgement(is_yes=False, reason="the version in force does here what its ballot was told")


def is_private_kept(before: Score, after: Score) -> bool:
    """Whether a device's own samples are answered no worse than before."""
    return not _is_over(_share(before) - _share(after), PRIVATE_FALL_MAX)


def why_fallen(told: Sequence[Score], canaries: Sequence[Score]) -> str:
    """Return in what a loaded patch does less than its ballot was told; empty: in nothing that chance does not explain.

    Args:
        told: the scores in the vote or the manifest, of the whole evaluation set.
        canaries: of a part of it, as measured now.
    """
    known = {score.domain: score for score in told}
    for now in canaries:
        before = known.get(now.domain)
        if before is None:
            continue
        if _is_over(_share(before) - _share(now), DOMAIN_FALL_MAX + _chance(before, now)):
            return f"{now.domain} fell from {_share(before):.2f} to {_share(now):.2f}"
    return ""


def proposes_rollback(manifest: Manifest) -> bool:
    """Whether a manifest brings an older adapter back, or none at all."""
    return manifest.rolls_back_to > 0 or manifest.adapter == NO_HASH


def first_to_judge(ballots: Sequence[BallotView]) -> list[BallotView]:
    """Return open ballots in the order in which every voter takes them up.

    There is one yes for each version: of several rollbacks that were proposed at once, all voters had better mean one.
    """
    return sorted(ballots, key=lambda each: (each.manifest.time_ms, each.id))


def _why_incomparable(before: Sequence[Score], after: Sequence[Score]) -> str:
    old, new = [(each.domain, each.total) for each in before], [(each.domain, each.total) for each in after]
    return "" if old == new and new else "the two exams asked different questions"


def _why_untrue(after: Sequence[Score], claimed: Sequence[Score]) -> str:
    said = {score.domain: score for score in claimed}
    if set(said) != {score.domain for score in after}:
        return "the manifest tells of other domains than the evaluation set has"
    excess = [_share(said[found.domain]) - _share(found) for found in after]
    worst = max(range(len(after)), key=excess.__getitem__)
    is_domain_off = _is_over(excess[worst], CLAIM_EXCESS_DOMAIN_MAX)
    if is_domain_off or _is_over(sum(excess) / len(excess), CLAIM_EXCESS_MAX):
        found = after[worst]
        return f"it claims {_share(said[found.domain]):.2f} of {found.domain}, found {_share(found):.2f}"
    return ""


def _why_worse(before: Sequence[Score], after: Sequence[Score]) -> str:
    falls = [_share(old) - _share(new) for old, new in zip(before, after, strict=True)]
    worst = max(range(len(falls)), key=falls.__getitem__)
    if _is_over(falls[worst], DOMAIN_FALL_MAX):
        old, new = before[worst], after[worst]
        return f"{old.domain} falls from {_share(old):.2f} to {_share(new):.2f}"
    if _is_over(mean := sum(falls) / len(falls), MEAN_FALL_MAX):
        return f"all domains fall by {mean:.3f} in the mean"
    return ""


def _chance(told: Score, sample: Score) -> float:
    """How far a part of the questions may lie under the whole by the luck of the draw; none when all were asked."""
    if sample.total >= told.total:
        return 0.0
    share = min(max(_share(told), 1 / (told.total + 1)), 1 - 1 / (told.total + 1))
    return SAMPLE_DEVIATIONS * sqrt(share * (1 - share) / sample.total)


def _is_over(share: float, bound: float) -> bool:
    return share > bound + ROUNDING


def _share(score: Score) -> float:
    return score.right / score.total
