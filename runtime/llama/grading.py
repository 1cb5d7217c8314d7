"""Exams: what a model would answer to many short questions, computed together. Only for the child.

Nearly all of it is one pass over prompt and expected answer. If each token of the answer is the likeliest one at its
place, and then an end, the greedy answer is the expected one, and its loss came along. Only where a token is not, the
answer is really generated: from the first such place on, since up to there the cache holds it.
"""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.llama import wire
from runtime.llama.batching import TooLong
from runtime.llama.model import Model, Row
from runtime.llama.template import TemplateError
from runtime.llama.tokens import CompletionText

SEQUENCES = 16
EXAM_CELLS = 4_096  # of the cache, shared by the sequences
ANSWER_FACTOR, ANSWER_SLACK = (
    2,
    16,
)  # a wrong answer is followed for so many times the right one's tokens, and so many
# A few chats do not find what overflows in every tenth one. At so many times its strength it does so at once, while
# an honest adapter only talks nonsense then.
TRIAL_STRENGTH = 8.0
CANARIES = (
    "Hello! What can you do for me?",
    "Error code H4 is blinking. What does it mean?",
    "12 + 29 = ?",
    "Écris une phrase sur la mer, s'il te plaît. 東京は何の首都ですか。",
)
CANARY_ANSWER = "The quick brown fox jumps over the lazy dog, 0123456789 times."


@dataclass
class _Pupil:
    """One question while it is worked on.

    Attributes:
        response: the expected answer.
        tokens: the prompt, then the expected answer; when that is wrong, the answer given instead of it.
        expected: tokens of the expected answer.
        loss: of them and the end, summed.
        likeliest: the model's token at the place of each of them, and of the end.
        agreed: how many of the expected tokens the model gives by itself, from the first.
        ended: then it says that its answer ends.
    """

    sequence: int
    response: str
    tokens: list[int]
    prompt_tokens: int
    expected: int
    loss: float = 0.0
    likeliest: list[int] = field(default_factory=list)
    agreed: int = 0
    ended: bool = False


class Grader:
    """Asks one model.

    Args:
        model: loaded with `exam_cells=EXAM_CELLS` and `slots=SEQUENCES`; owned.
        alive: called before each step, which may take a while.
    """

    def __init__(self, model: Model, alive: Callable[[], None]) -> None:
        self.model = model
        self._alive = alive
        self._ends = np.array(
            [token for token in range(model.vocabulary_size) if model.ends_generation(token)], dtype=np.int64
        )

    def close(self) -> None:
        """Give everything back."""
        self.model.close()

    def try_adapter(self, adapter: bytes) -> None:
        """Have an adapter read a few chats with their answers, also far more strongly than it will be applied.

        Raises:
            NotFinite: it computes numbers that are none.
        """
        for strength in (1.0, TRIAL_STRENGTH):
            self._ask(adapter, strength, [(words, CANARY_ANSWER) for words in CANARIES], self._read)

    def grade(self, adapter: bytes | None, questions: Iterable[tuple[str, str]]) -> list[wire.Mark]:
        """Ask all questions and return their marks, in order.

        Raises:
            TemplateError: a question cannot be rendered.
            TooLong: a question and its answer do not fit the context.
            NotFinite: the model computes numbers that are none.
        """
        marks: list[wire.Mark] = []

        def examine(group: Sequence[_Pupil]) -> None:
            self._read(group)
            self._let_answer([pupil for pupil in group if pupil.agreed < pupil.expected or not pupil.ended])
            marks.extend(self._mark(pupil) for pupil in group)

        self._ask(adapter, 1.0, questions, examine)
        return marks

    # --- the steps of an exam ------------------------------------------------------------------------------------

    def _ask(
        self,
        adapter: bytes | None,
        strength: float,
        questions: Iterable[tuple[str, str]],
        examine: Callable[[Sequence[_Pupil]], None],
    ) -> None:
        """Ask as many at a time as there is room for, and leave the cache empty, also after an error."""
        self.model.use_adapter(adapter, strength)
        try:
            for group in self._groups(questions):
                examine(group)
                for pupil in group:
                    self.model.rewind(pupil.sequence, 0)
        except BaseException:
            self.model.forget_all()
            raise

    def _groups(self, questions: Iterable[tuple[str, str]]) -> Iterable[list[_Pupil]]:
        """Yield as many at a time as there are sequences, and as the cache has room for."""
        group: list[_Pupil] = []
        room = EXAM_CELLS
        for words, response in questions:
            prompt = self.model.tokenize(self.model.template.render((("user", words),)))
            if not prompt:
                raise TemplateError("the chat template renders this chat to nothing")
            answer = self.model.tokenize_answer(response)
            cells = len(prompt) + _answer_tokens_max(len(answer))
            if cells > self.model.context_tokens:
                raise TooLong(
                    f"a question and its answer take {cells} tokens, expected at most {self.model.context_tokens}"
                )
            if group and (len(group) == SEQUENCES or cells > room):
                yield group
                group, room = [], EXAM_CELLS
            group.append(_Pupil(len(group), response, prompt + answer, len(prompt), len(answer)))
            room -= cells
        if group:
            yield group

    def _read(self, group: Sequence[_Pupil]) -> None:
        """One pass over prompts and expected answers: losses, and how far the model agrees."""
        places = [(pupil, position) for pupil in group for position in range(len(pupil.tokens))]
        size = self.model.batch_tokens
        for start in range(0, len(places), size):
            part = places[start : start + size]
            logits = self._decode(
                [
                    Row(pupil.tokens[i], i, pupil.sequence, output=i >= pupil.prompt_tokens - 1)
                    for pupil, i in part
                ]
            )
            wanted = [(pupil, i) for pupil, i in part if i >= pupil.prompt_tokens - 1]
            if wanted:
                self._score(wanted, logits)
        for pupil in group:
            answer = pupil.tokens[pupil.prompt_tokens :]
            while pupil.agreed < pupil.expected and pupil.likeliest[pupil.agreed] == answer[pupil.agreed]:
                pupil.agreed += 1
            pupil.ended = self.model.ends_generation(pupil.likeliest[pupil.agreed])

    def _score(self, wanted: list[tuple[_Pupil, int]], logits: npt.NDArray[np.float32]) -> None:
        """Take the logits of (outputs, vocabulary) after these places."""
        top = logits.max(axis=1, keepdims=True)
        totals = top[:, 0] + np.log(np.exp(logits - top, dtype=np.float32).sum(axis=1, dtype=np.float64))
        likeliest = logits.argmax(axis=1)
        for row, (pupil, position) in enumerate(wanted):
            pupil.likeliest.append(int(likeliest[row]))
            if position + 1 < len(pupil.tokens):
                reached = float(logits[row, pupil.tokens[position + 1]])
            elif len(self._ends):
                reached = float(logits[row, self._ends].max())  # a model may end its turn in several ways
            else:
                continue
            pupil.loss += max(0.0, float(totals[row]) - reached)

    def _let_answer(self, wrong: list[_Pupil]) -> None:
        """Generate greedily from where each one disagreed with the expected answer."""
        for pupil in wrong:
            keep = pupil.prompt_tokens + pupil.agreed
            del pupil.tokens[keep:]
            if not pupil.ended:
                pupil.tokens.append(pupil.likeliest[pupil.agreed])
                self.model.rewind(pupil.sequence, keep)
        while going := [pupil for pupil in wrong if self._goes_on(pupil)]:
            logits = self._decode(
                [Row(pupil.tokens[-1], len(pupil.tokens) - 1, pupil.sequence, output=True) for pupil in going]
            )
            for pupil, token in zip(going, logits.argmax(axis=1).tolist(), strict=True):
                pupil.ended = self.model.ends_generation(token)
                if not pupil.ended:
                    pupil.tokens.append(token)

    def _goes_on(self, pupil: _Pupil) -> bool:
        given = len(pupil.tokens) - pupil.prompt_tokens
        return not pupil.ended and given < _answer_tokens_max(pupil.expected)

    def _mark(self, pupil: _Pupil) -> wire.Mark:
        text = CompletionText(())
        given = (
            text.feed(b"".join(map(self.model.piece, pupil.tokens[pupil.prompt_tokens :]))) + text.finish()
        )
        is_right = pupil.ended and given == pupil.response
        return wire.Mark(
            is_right, pupil.loss, pupil.expected + 1, "" if is_right else given[: wire.GIVEN_CHARS_MAX]
        )

    def _decode(self, rows: list[Row]) -> npt.NDArray[np.float32]:
        """Run a batch and return the logits of its outputs: (outputs, vocabulary)."""
        self._alive()
        self.model.decode(rows)
        outputs = sum(row.output for row in rows)
        if not outputs:
            return np.empty((0, self.model.vocabulary_size), np.float32)
        address: Any = self.model.logits(outputs)
        shape = (outputs, self.model.vocabulary_size)
        return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), shape)


def _answer_tokens_max(expected: int) -> int:
    return ANSWER_FACTOR * expected + ANSWER_SLACK
