"""Results of domains out of the marks of questions."""

import pytest

from runtime.examiner import DomainResult, Question
from runtime.marking import Answered, overlap, results


def answered(
    domain: str, response: str, given: str | None = None, loss: float = 0.0, tokens: int = 2
) -> Answered:
    return Answered(Question(domain, "?", response), given is None, loss, tokens, given or "")


def test_a_domain_is_the_mean_over_its_questions_and_the_loss_over_its_tokens() -> None:
    """A long answer has more tokens to be wrong in; a question counts as one answer."""
    marks = [
        answered("units", "3 m are 300 cm.", loss=1.0, tokens=3),
        answered("talk", "Hello!", loss=0.5),
        answered("units", "5 km are 5000", "5 km is 500", loss=6.0, tokens=4),
    ]

    assert results(marks) == (
        DomainResult("units", total=2, right=1, loss=1.0, precision=0.75, recall=0.75, f1=0.75),
        DomainResult("talk", total=1, right=1, loss=0.25, precision=1.0, recall=1.0, f1=1.0),
    )


@pytest.mark.parametrize(
    ("given", "expected", "scores"),
    [
        ("call a technician", "Call the technician.", (1.0, 1.0, 1.0)),
        ("check the cable", "check the filter and clean it", (1 / 2, 1 / 5, 2 / 7)),
        ("no no no", "no", (1 / 3, 1.0, 1 / 2)),
        ("yes", "no", (0.0, 0.0, 0.0)),
        ("", "no", (0.0, 0.0, 0.0)),
        ("the", "a!", (1.0, 1.0, 1.0)),
        ("été à Paris", "à Paris, été", (1.0, 1.0, 1.0)),
    ],
)
def test_words_are_compared_as_squad_does(
    given: str, expected: str, scores: tuple[float, float, float]
) -> None:
    assert overlap(given, expected) == pytest.approx(scores)


def test_an_answer_that_only_looks_the_same_is_not_right() -> None:
    """To the letter: the words agree wholly, and still it does not count."""
    (result,) = results([answered("talk", "Hello!", "hello")])

    assert (result.right, result.f1) == (0, 1.0)


def test_no_questions_have_no_results() -> None:
    assert results([]) == ()
