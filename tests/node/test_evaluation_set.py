"""A line's public set: a stranger's bytes until they are read."""

import json
from collections import Counter
from math import inf, nan

import pytest

from node.evaluation_set import BadEvaluationSet, canaries, read_questions, scores_of
from protocol.limits import DOMAINS_MAX, EVALUATION_SAMPLES_MAX
from protocol.messages import Score
from runtime.examiner import DomainResult, Question


def line(domain: str = "sums", prompt: str = "1 + 1", response: str = "2") -> bytes:
    return json.dumps({"domain": domain, "prompt": prompt, "response": response}).encode() + b"\n"


def test_questions_are_read_in_their_order_and_empty_lines_are_none() -> None:
    assert read_questions(line("b", "x", "y") + b"\n" + line("a", "ä", "ö")) == (
        Question("b", "x", "y"),
        Question("a", "ä", "ö"),
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "0 domains"),
        (b"\n\n", "0 domains"),
        (line() + b"{}", "line 2"),
        (b"\xff\xfe", "line 1"),
        (b'{"domain": "a", "prompt": "x", "response": 3}', "line 1"),
        (b'{"domain": "a b", "prompt": "x", "response": "y"}', "line 1"),
        (b'{"domain": "a", "prompt": "", "response": "y"}', "line 1"),
        (b'{"domain": "a", "prompt": "x", "response": "y", "more": 1}', "line 1"),
        (b"[" * 100_000, "line 1"),
        (line(prompt="x" * 20_000), "line 1 is longer than"),
        (line() * (EVALUATION_SAMPLES_MAX + 1), f"over {EVALUATION_SAMPLES_MAX} questions"),
        (b"".join(line(f"d{number}") for number in range(DOMAINS_MAX + 1)), f"{DOMAINS_MAX + 1} domains"),
    ],
    ids=range(12),
)
def test_what_is_no_evaluation_set_is_refused_whole(data: bytes, said: str) -> None:
    with pytest.raises(BadEvaluationSet, match=said):
        read_questions(data)


def test_canaries_are_spread_over_each_domain() -> None:
    questions = [
        Question(domain, str(number), "")
        for domain, count in (("a", 100), ("b", 3))
        for number in range(count)
    ]

    chosen = canaries(questions, 4)

    assert Counter(question.domain for question in chosen) == {"a": 4, "b": 3}
    assert [int(question.prompt) for question in chosen if question.domain == "a"] == [0, 25, 50, 75]


def test_scores_are_whole_numbers_whatever_an_examiner_measured() -> None:
    found = [
        DomainResult("a", total=10, right=9, loss=0.1234, precision=1, recall=1, f1=1),
        DomainResult("b", total=10, right=0, loss=inf, precision=0, recall=0, f1=0),
        DomainResult("c", total=10, right=0, loss=nan, precision=0, recall=0, f1=0),
    ]

    assert scores_of(found) == (
        Score(domain="a", right=9, total=10, loss_milli=123),
        Score(domain="b", right=0, total=10, loss_milli=1_000_000),
        Score(domain="c", right=0, total=10, loss_milli=1_000_000),
    )
