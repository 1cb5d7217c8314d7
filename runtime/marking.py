"""From the marks of single questions to the results of domains. Pure.

A wrong answer is compared word by word with the expected one, as SQuAD does: case, punctuation and articles do not
count, the order neither.

Source: Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from runtime.examiner import DomainResult, Question

_ARTICLES: Final = frozenset({"a", "an", "the"})
_NO_WORD: Final = re.compile(r"[^\w\s]|_")


@dataclass(frozen=True)
class Answered:
    """One question with what came of it: `loss` is a sum over the `tokens` of the expected answer, in nats."""

    question: Question
    is_right: bool
    loss: float
    tokens: int
    given: str  # if it is wrong


def results(answers: Sequence[Answered]) -> tuple[DomainResult, ...]:
    """Return the result of each domain, in the order of their first appearance."""
    domains: dict[str, list[Answered]] = {}
    for answer in answers:
        domains.setdefault(answer.question.domain, []).append(answer)
    return tuple(_result(domain, of_it) for domain, of_it in domains.items())


def overlap(given: str, expected: str) -> tuple[float, float, float]:
    """Return precision, recall and F1 of the words given, each with its number of occurrences."""
    ours, theirs = _words(given), _words(expected)
    shared = (ours & theirs).total()
    if not shared:
        both_empty = float(not ours and not theirs)
        return both_empty, both_empty, both_empty
    precision, recall = shared / ours.total(), shared / theirs.total()
    return precision, recall, 2 * precision * recall / (precision + recall)


def _result(domain: str, answers: list[Answered]) -> DomainResult:
    overlaps = [
        (1.0, 1.0, 1.0) if answer.is_right else overlap(answer.given, answer.question.response)
        for answer in answers
    ]
    precision, recall, f1 = (sum(column) / len(answers) for column in zip(*overlaps, strict=True))
    return DomainResult(
        domain=domain,
        total=len(answers),
        right=sum(answer.is_right for answer in answers),
        loss=sum(answer.loss for answer in answers) / sum(answer.tokens for answer in answers),
        precision=precision,
        recall=recall,
        f1=f1,
    )


def _words(text: str) -> Counter[str]:
    return Counter(word for word in _NO_WORD.sub(" ", text.lower()).split() if word not in _ARTICLES)
