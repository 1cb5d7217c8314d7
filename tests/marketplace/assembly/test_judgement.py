"""What a voter makes of what it has measured: healed, broken, boasted, and what chance explains."""

import pytest

from marketplace.assembly.judgement import (
    Judgement,
    Private,
    is_private_kept,
    judge,
    judge_rollback,
    why_fallen,
)
from protocol.messages import Score


def scores(total: int = 100, **right: int) -> tuple[Score, ...]:
    return tuple(
        Score(domain=domain, right=count, total=total, loss_milli=10) for domain, count in right.items()
    )


BEFORE = scores(pumps=0, sums=95, units=98)
HEALED = scores(pumps=97, sums=95, units=98)


def test_what_heals_a_domain_and_breaks_none_gets_a_yes() -> None:
    assert judge(BEFORE, HEALED, HEALED, "passed") == Judgement(True, "better: pumps 0.00 to 0.97")
    assert judge(BEFORE, HEALED, HEALED, "none").is_yes


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (scores(pumps=97, sums=84, units=98), "sums falls from 0.95 to 0.84"),
        (scores(pumps=0, sums=95, units=98), "no domain is better than with the version before"),
        (scores(pumps=97, sums=95), "the two exams asked different questions"),
        (scores(50, pumps=50, sums=48, units=49), "the two exams asked different questions"),
    ],
)
def test_what_is_no_improvement_gets_a_no(after: tuple[Score, ...], reason: str) -> None:
    assert judge(BEFORE, after, after, "none") == Judgement(False, reason)


def test_many_small_falls_are_one_large_one() -> None:
    """Each domain stays within its own bound, and all of them together do not within theirs."""
    before = scores(pumps=50, a=90, b=90, c=90, d=90)
    after = scores(pumps=55, a=82, b=82, c=82, d=90)

    assert judge(before, after, after, "none") == Judgement(False, "all domains fall by 0.038 in the mean")


def test_a_fall_by_exactly_what_is_allowed_is_allowed() -> None:
    after = scores(pumps=97, sums=85, units=98)

    assert judge(BEFORE, after, after, "none").is_yes


@pytest.mark.parametrize(
    ("claimed", "is_yes"),
    [
        (scores(pumps=100, sums=97, units=100), True),  # two builds differ by a token now and then
        (scores(pumps=90, sums=90, units=90), True),  # modesty is no lie
        (scores(pumps=100, sums=100, units=106 - 6), True),
        (scores(pumps=97, sums=95, units=98) + scores(extra=1), False),
        (scores(pumps=97, sums=95), False),
        (scores(10, pumps=10, sums=10, units=10), True),  # shares are compared, not counts
    ],
)
def test_a_manifest_is_believed_within_what_builds_differ_by(
    claimed: tuple[Score, ...], is_yes: bool
) -> None:
    assert judge(BEFORE, HEALED, claimed, "none").is_yes is is_yes


def test_a_claim_of_more_than_was_found_gets_a_no() -> None:
    found = scores(pumps=50, sums=95, units=98)

    assert judge(BEFORE, found, HEALED, "none") == Judgement(False, "it claims 0.97 of pumps, found 0.50")


@pytest.mark.parametrize(("private", "is_yes"), [("passed", True), ("none", True), ("failed", False)])
def test_private_samples_have_a_veto_in_their_own_device(private: Private, is_yes: bool) -> None:
    assert judge(BEFORE, HEALED, HEALED, private).is_yes is is_yes


@pytest.mark.parametrize(
    ("has_fallen", "is_voters", "is_yes"), [(False, False, False), (True, False, True), (False, True, True)]
)
def test_a_rollback_needs_a_voter_or_a_fall_that_is_seen(
    has_fallen: bool, is_voters: bool, is_yes: bool
) -> None:
    """Any member may propose one, and a good patch is not taken away by whoever dislikes it."""
    assert judge_rollback(BEFORE, BEFORE, has_fallen=has_fallen, is_voters=is_voters).is_yes is is_yes
    assert not judge_rollback(BEFORE, HEALED, has_fallen=has_fallen, is_voters=is_voters).is_yes


def test_canaries_that_answer_as_told_have_not_fallen() -> None:
    """Four of four or three of four is what 97 of 100 looks like in four questions."""
    assert why_fallen(HEALED, scores(4, pumps=4, sums=4, units=4)) == ""
    assert why_fallen(HEALED, scores(4, pumps=3, sums=4, units=4)) == ""


def test_canaries_that_answer_nothing_have_fallen() -> None:
    assert why_fallen(HEALED, scores(4, pumps=0, sums=4, units=4)) == "pumps fell from 0.97 to 0.00"


def test_chance_explains_nothing_when_every_question_was_asked() -> None:
    assert why_fallen(HEALED, scores(pumps=97, sums=84, units=98)) == "sums fell from 0.95 to 0.84"
    assert why_fallen(HEALED, scores(pumps=97, sums=86, units=98)) == ""


def test_private_samples_are_kept_within_two_of_a_hundred() -> None:
    (before,), (same,), (worse,) = scores(private=90), scores(private=88), scores(private=87)

    assert is_private_kept(before, same)
    assert not is_private_kept(before, worse)
