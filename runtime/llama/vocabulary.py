"""A model's tokens as bytes, and which of them fit a constraint. Made when the first constrained request comes."""

from bisect import bisect_right
from collections.abc import Callable
from operator import itemgetter

from runtime.engine import BadRequest
from runtime.llama.constraint import Constraint

FITTING_MAX = 4_096  # tokens; a place where more fit is no narrow one


class Vocabulary:
    """The bytes of each token.

    Args:
        size: tokens.
        piece: the bytes that a token writes; control tokens write none.
        ends_generation: whether a token means the end.

    Attributes:
        pieces: by token.
        ends: the tokens that end a text.
    """

    def __init__(
        self, size: int, piece: Callable[[int], bytes], ends_generation: Callable[[int], bool]
    ) -> None:
        self.pieces = [piece(token) for token in range(size)]
        self.ends = frozenset(token for token in range(size) if ends_generation(token))
        self._order = sorted(
            (token for token, text in enumerate(self.pieces) if text and token not in self.ends),
            key=self.pieces.__getitem__,
        )
        self._sorted = [self.pieces[token] for token in self._order]

    def fitting(self, constraint: Constraint) -> list[int]:
        """Return the tokens that may come next, or many of them where there are very many.

        Tokens that begin alike are judged together, so a narrow place costs little in a large vocabulary.
        """
        found = list(self.ends) if constraint.is_complete else []
        ranges = [(0, len(self._sorted), 0, constraint.state)]  # tokens that share so many bytes, which fit
        while ranges and len(found) < FITTING_MAX:
            start, end, shared, state = ranges.pop()
            while start < end and len(self._sorted[start]) == shared:
                found.append(self._order[start])
                start += 1
            while start < end:
                byte = self._sorted[start][shared]
                alike = bisect_right(self._sorted, byte, start, end, key=itemgetter(shared))
                following = constraint.follow(state, byte)
                if following is not None:
                    ranges.append((start, alike, shared + 1, following))
                start = alike
        return sorted(found)


class Guide:
    """A text that is written under a constraint, token by token.

    Args:
        vocabulary: of the model that writes.
        constraint: owned.
    """

    def __init__(self, vocabulary: Vocabulary, constraint: Constraint) -> None:
        self._vocabulary = vocabulary
        self._constraint = constraint

    @property
    def is_finished(self) -> bool:
        """Whether the text is complete and nothing may follow."""
        return self._constraint.is_finished

    def fits(self, token: int) -> bool:
        """Whether a token may come next."""
        if token in self._vocabulary.ends:
            return self._constraint.is_complete
        return self._constraint.fits(self._vocabulary.pieces[token])

    def fitting(self) -> list[int]:
        """Return the tokens that may come next, or many of them where there are very many."""
        return self._vocabulary.fitting(self._constraint)

    def accept(self, token: int) -> None:
        """Go on with a token.

        Raises:
            BadRequest: it does not fit.
        """
        if not self._constraint.accept(self._vocabulary.pieces[token]):
            raise BadRequest(f"received token {token} does not fit the grammar or schema")
