"""A line's public evaluation set, out of its blob: JSON lines of `{"domain", "prompt", "response"}`.

Anybody on the roll may have made it, so it is read as a stranger's bytes: bounded, strictly typed, and refused whole.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Annotated

import msgspec
from msgspec import Meta

from protocol import limits
from protocol.errors import AgoraError
from protocol.messages import Name, Score
from runtime.examiner import DomainResult, Question

QUESTION_BYTES_MAX = 16 * limits.KIB  # with its answer: more than an examiner's context takes
LOSS_MILLI_MAX = 1_000_000  # a thousand nats a token: infinite for whoever reads it


class BadEvaluationSet(AgoraError):
    """The blob is no evaluation set; the message says which line is wrong and how."""


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    domain: Name
    prompt: Annotated[str, Meta(min_length=1)]
    response: Annotated[str, Meta(min_length=1)]


def read_questions(data: bytes) -> tuple[Question, ...]:
    """Return the questions of an evaluation set, in its order.

    Raises:
        BadEvaluationSet: it is none, or has more questions or domains than voters are asked to answer.
    """
    questions: list[Question] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        if len(questions) == limits.EVALUATION_SAMPLES_MAX:
            raise BadEvaluationSet(f"over {limits.EVALUATION_SAMPLES_MAX} questions")
        try:
            read = _DECODER.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadEvaluationSet(
                f"line {number}: {error}, expected one {{domain, prompt, response}}"
            ) from None
        question = Question(read.domain, read.prompt, read.response)
        if not is_askable(question):
            raise BadEvaluationSet(f"line {number} is longer than {QUESTION_BYTES_MAX} bytes")
        questions.append(question)
    domains = len({question.domain for question in questions})
    if not 0 < domains <= limits.DOMAINS_MAX:
        raise BadEvaluationSet(f"{domains} domains, expected 1 to {limits.DOMAINS_MAX}")
    return tuple(questions)


def is_askable(question: Question) -> bool:
    """Whether a question and its answer are of a length that examiners take."""
    return len(question.prompt.encode()) + len(question.response.encode()) <= QUESTION_BYTES_MAX


def canaries(questions: Sequence[Question], per_domain: int) -> tuple[Question, ...]:
    """Return a part of a set that is spread evenly over each domain; the same for everybody."""
    total = Counter(question.domain for question in questions)
    seen: Counter[str] = Counter()
    chosen = []
    for question in questions:
        all_, at = total[question.domain], seen[question.domain]
        seen[question.domain] += 1
        wanted = min(per_domain, all_)
        if at * wanted // all_ != (at - 1) * wanted // all_:  # where a step of all/wanted begins
            chosen.append(question)
    return tuple(chosen)


def scores_of(results: Iterable[DomainResult]) -> tuple[Score, ...]:
    """Return an exam's results as manifests and votes carry them."""
    return tuple(
        Score(
            domain=result.domain,
            right=result.right,
            total=result.total,
            loss_milli=_milli(result.loss),
        )
        for result in results
    )


def _milli(loss: float) -> int:
    return round(min(max(loss, 0.0) * 1000, LOSS_MILLI_MAX)) if isfinite(loss) else LOSS_MILLI_MAX


_DECODER = msgspec.json.Decoder(_Line)
