"""The teacher-forced check: how far each claimed token is from what the model would have said. Only for the child.

The claimed tokens are read like a prompt, in chunks, and every row of logits tells of the token behind it. Its answer is
words (see `runtime.engine.Generation`), each with the contrast that whoever wrote the token should have stated.
"""

import os
from typing import TYPE_CHECKING

from runtime.llama.contrast import contrast
from runtime.llama.sampling import ONE_THREAD

if TYPE_CHECKING:
    from runtime.llama.model import Model


class Check:
    """One check under way.

    Args:
        prompt_tokens: before the claimed ones.
        claimed: the tokens to check.
        done: how many of their words are known already, to whoever asks.
    """

    def __init__(self, prompt_tokens: int, claimed: tuple[int, ...], done: int) -> None:
        self._first = prompt_tokens - 1  # the row that tells of the first claimed token
        self._claimed = claimed
        self.done = done

    @property
    def is_finished(self) -> bool:
        """Whether all words were said."""
        return self.done >= len(self._claimed)

    def wants(self, position: int) -> bool:
        """Whether the logits behind the token at this position are needed."""
        return position >= self._first + self.done

    def words(
        self, model: "Model", row: int, start: int, count: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the next words and their contrasts, from a step that computed the positions from `start` on.

        Args:
            model: just computed them.
            row: of its batch, where the first of them is.
            start: position in the prompt and the claimed tokens.
            count: positions.

        Raises:
            NotFinite: the logits are no numbers.
        """
        os.environ.setdefault(*ONE_THREAD)
        from runtime.llama import candidates  # noqa: PLC0415  (numpy: 24 MB that most engines do without)

        size = model.vocabulary_size
        words, contrasts = [], []
        for i in range(count):
            if self.wants(start + i):
                token, logits = self._claimed[start + i - self._first], model.row(row + i)
                words.append(candidates.gap(candidates.view(logits, size), token))
                contrasts.append(contrast(logits, size, start + i + 1, token))
        self.done += len(words)
        return tuple(words), tuple(contrasts)
