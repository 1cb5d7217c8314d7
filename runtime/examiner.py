"""The Examiner port: what a model with an adapter really answers, before anybody is served by it.

Behind it stand llama.cpp in a sandboxed child of its own (`runtime/llama/examiner.py`), so that what is measured is what
will be served and a hostile adapter kills nothing else, and `ToyExaminer` (`runtime/toy_examiner.py`), the honest fake.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from protocol.errors import AgoraError
from runtime.engine import Digest


@dataclass(frozen=True)
class Question:
    """One example of an evaluation set: what a user says, and the one answer that counts as right."""

    domain: str
    prompt: str
    response: str


@dataclass(frozen=True)
class DomainResult:
    """How the model did in one domain, answering greedily.

    Attributes:
        right: answers equal to the expected one to the letter.
        loss: mean negative log-likelihood per token of the expected answers, in nats.
        precision, recall, f1: means over the domain of the word overlap between given and expected answers, as SQuAD
            scores answers (Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1); 1 where they are equal.
    """

    domain: str
    total: int
    right: int
    loss: float
    precision: float
    recall: float
    f1: float


class BadAdapter(AgoraError):
    """The adapter is not one of this base, breaks a rule of the strict checker, or killed or poisoned its trial."""


class ExaminerError(AgoraError):
    """No exam could be held (no memory, the base is not here); the adapter is not to blame."""


class Examiner(Protocol):
    """Holds exams, one at a time; a second one waits. The child lives on for a while between them."""

    async def examine(
        self,
        base: Digest,
        adapter: Digest | None,
        questions: Sequence[Question],
        on_progress: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> tuple[DomainResult, ...]:
        """Check the adapter's file strictly, load it in a child, ask it canary prompts, then every question.

        Args:
            base: a model of this device.
            adapter: a blob of this device that holds a GGUF adapter; None: the bare base.
            questions: asked in order of their domains' first appearance; results come in that order.
            on_progress: told (questions done, all).

        Raises:
            BadAdapter: it must never be loaded; the message says which rule it broke.
            ExaminerError: try again later.
        """
