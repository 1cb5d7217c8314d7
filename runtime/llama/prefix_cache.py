"""Which sequence of the KV cache holds what, so that a beginning that several prompts share is computed once.

There are more sequences than jobs. One without a job keeps what was computed last in it, for whoever comes with the
same beginning: the next turn of a session, another chat under the same system prompt. A job takes over the idle
sequence that it continues; what any other holds, a running one's too, is copied: the copy shares the cells, it costs
some microseconds and no memory.

The bound is the context's cells. Shared ones are counted for each sequence, so that what is counted is never too
little; idle sequences are forgotten when running ones need their cells, the one that was used least recently first.

Every chat of a user begins with the same tokens of the template: its *opening*. That is a piece of its own, computed once
when the model is loaded, and chunks are counted from its end. It tells nobody anything of another's prompt.

What was computed with one adapter, or with none, serves that one only. A recurrent model's state cannot be cut, so
nothing of it is shared. Where numbers were not finite, everything is forgotten.
"""

from dataclasses import dataclass, field
from typing import Protocol

# Rows computed beside an idle sequence that cost as much as computing it again, with llama.cpp as it is released. A 1B
# model on a CPU: about 1 µs for each idle cell and row, 10 ms for a token of a prompt. With our patch it is a third.
IDLE_ROWS_MAX = 10_000


class Memory(Protocol):
    """What llama.cpp does to the KV cache; a test counts cells instead."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Let an empty sequence begin with the first tokens of another."""

    def rewind(self, sequence: int, position: int) -> bool:
        """Forget a sequence from `position` on; False if only all of it could be forgotten, and was."""

    def forget_all(self) -> None:
        """Forget all sequences, and overwrite what they left."""


@dataclass(eq=False)
class Sequence:
    """One sequence of the KV cache.

    Attributes:
        number: llama.cpp's id.
        cached: the tokens it holds, by position.
        exact_tokens: how many of them, from the first, were computed as a cold run alone computes a prompt.
        adapter: what they were computed with.
        is_taken: a job computes in it.
        used: when it was given back; the clock counts computed rows.
    """

    number: int
    cached: list[int] = field(default_factory=list)
    exact_tokens: int = 0
    adapter: bytes | None = None
    is_taken: bool = False
    used: int = 0


class PrefixCache:
    """The sequences of one context.

    Args:
        memory: what they are in.
        sequences: how many; those without a job hold what was computed before.
        cells: tokens that all of them hold together at most; running jobs never need more.
        chunk_tokens: a cold run computes a prompt in pieces that begin at multiples of it…
        opening: …counted from the end of this, where a prompt begins with it and no adapter is used.
        can_share: False for models whose state cannot be cut: nothing is reused then.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        sequences: int,
        cells: int,
        chunk_tokens: int,
        opening: tuple[int, ...] = (),
        can_share: bool,
    ) -> None:
        self._memory = memory
        self._cells = cells
        self._chunk = chunk_tokens
        self.opening = list(opening) if can_share else []
        self._can_share = can_share
        self._clock = 0
        self.sequences = [Sequence(number) for number in range(sequences)]

    def take(self, tokens: list[int], prompt_tokens: int, adapter: bytes | None) -> Sequence:
        """Give a job a sequence that holds as much of its beginning as is anywhere; at least one must be idle.

        At least the job's last token is left to compute, for its logits.

        Args:
            tokens: the prompt, and what follows it already.
            prompt_tokens: how many of them are the prompt.
            adapter: what they are computed with.
        """
        source, keep = self._longest(tokens, adapter)
        if source and not source.is_taken and self._is_superseded(source, tokens):
            target = source
        else:
            idle = (each for each in self.sequences if not each.is_taken)
            target = min(idle, key=lambda each: (bool(each.cached), each.used))
        target.is_taken = True
        self._fill(target, source, keep, prompt_tokens, adapter)
        return target

    def refill(self, sequence: Sequence, tokens: list[int], prompt_tokens: int) -> None:
        """Look once more: another sequence may hold more of a taken one's beginning by now."""
        source, keep = self._longest(tokens, sequence.adapter)
        if source is not sequence and keep > len(sequence.cached):
            self._fill(sequence, source, keep, prompt_tokens, sequence.adapter)

    def shareable(self, tokens: list[int], others: list[int], adapter: bytes | None) -> int:
        """Return how many tokens a job can have from a sequence that holds `others` as a cold run computed them."""
        if not self._can_share:
            return 0
        keep = min(common_length(tokens, others), len(tokens) - 1)
        return self._whole_pieces(keep, self._first_chunk(tokens, adapter))

    def piece_left(self, sequence: Sequence, tokens: list[int]) -> int:
        """Return how many more of a job's tokens belong to the piece that a cold run would be in now."""
        begun, first_chunk = len(sequence.cached), self._first_chunk(tokens, sequence.adapter)
        return (
            first_chunk - begun if begun < first_chunk else self._chunk - (begun - first_chunk) % self._chunk
        )

    def release(self, sequence: Sequence) -> None:
        """Take a sequence back from its job; what it holds waits for the next one."""
        sequence.is_taken, sequence.used = False, self._clock
        for other in self.sequences:
            if other is not sequence and not other.is_taken and self._is_beginning_of(other, sequence):
                self.forget(other)

    def make_room(self, tokens: int) -> None:
        """Forget idle sequences that do not pay, and the least recently used others until so many more tokens fit."""
        self._clock += tokens
        for sequence in self.sequences:
            if sequence.cached and not sequence.is_taken and self._clock - sequence.used > IDLE_ROWS_MAX:
                self.forget(sequence)
        over = sum(len(each.cached) for each in self.sequences) + tokens - self._cells
        while over > 0:
            idle = (each for each in self.sequences if each.cached and not each.is_taken)
            oldest = min(idle, key=lambda each: each.used)
            over -= len(oldest.cached)
            self.forget(oldest)

    def computed(self, sequence: Sequence, tokens: list[int], *, is_exact: bool) -> None:
        """Note that a step has put these tokens into the cache; `is_exact` if it computed nothing else."""
        if not is_exact:
            sequence.exact_tokens = min(sequence.exact_tokens, len(sequence.cached))
        sequence.cached += tokens

    def take_back(self, sequence: Sequence) -> None:
        """Remove from the cache what a step that did not end may have put there."""
        if not self._memory.rewind(sequence.number, len(sequence.cached)):
            sequence.cached.clear()

    def forget(self, sequence: Sequence) -> None:
        """Empty a sequence."""
        self._memory.rewind(sequence.number, 0)
        sequence.cached.clear()

    def forget_all(self) -> None:
        """Empty all sequences, and overwrite what they left: numbers that are not finite stay so under every mask."""
        self._memory.forget_all()
        for sequence in self.sequences:
            sequence.cached.clear()
            sequence.exact_tokens = 0

    # --- helpers -------------------------------------------------------------------------------------------------

    def _longest(self, tokens: list[int], adapter: bytes | None) -> tuple[Sequence | None, int]:
        """Return the sequence that shares most with `tokens`, an idle one if it can be, and how much to keep of it."""
        best, most = None, 0
        first_chunk = self._first_chunk(tokens, adapter)
        for sequence in self.sequences if self._can_share else ():
            if sequence.adapter != adapter:
                continue
            common = common_length(sequence.cached, tokens)
            keep = min(common, len(tokens) - 1)
            # What was computed as a cold run would is cut where a cold run begins a piece, to stay exact. And who does
            # not go on from all of it gets whole pieces: else the time to the first token would tell a stranger, one
            # token after the other, how another's prompt goes on.
            if keep <= sequence.exact_tokens or common < len(sequence.cached):
                keep = self._whole_pieces(keep, first_chunk)
            if keep > most or (keep == most > 0 and best and best.is_taken and not sequence.is_taken):
                best, most = sequence, keep
        return best, most

    def _first_chunk(self, tokens: list[int], adapter: bytes | None) -> int:
        """Return where a cold run begins to count chunks: behind the opening, or at once."""
        length = len(self.opening)
        return length if adapter is None and tokens[:length] == self.opening else 0

    def _whole_pieces(self, count: int, first_chunk: int) -> int:
        return count - (count - first_chunk) % self._chunk if count >= first_chunk else 0

    def _fill(
        self,
        target: Sequence,
        source: Sequence | None,
        keep: int,
        prompt_tokens: int,
        adapter: bytes | None,
    ) -> None:
        exact_tokens = source.exact_tokens if source and keep else 0
        if source is target:
            if keep < len(target.cached) and not self._memory.rewind(target.number, keep):
                keep = 0
            del target.cached[keep:]
        else:
            if target.cached:
                self.forget(target)
            if source and keep:
                self._memory.copy(source.number, target.number, keep)
                target.cached = source.cached[:keep]
        # What is computed from here on is exact if what is kept is; a step that is not says so in `computed`.
        target.exact_tokens = prompt_tokens if keep <= exact_tokens else exact_tokens
        target.adapter = adapter

    def _is_superseded(self, sequence: Sequence, tokens: list[int]) -> bool:
        """Whether nothing is lost if these tokens take a sequence's place: it is continued, or was asked the same."""
        common = common_length(sequence.cached, tokens)
        return common >= min(len(sequence.cached), len(tokens) - 1)

    def _is_beginning_of(self, sequence: Sequence, other: Sequence) -> bool:
        return (
            0 < len(sequence.cached) <= len(other.cached)
            and sequence.adapter == other.adapter
            and sequence.cached == other.cached[: len(sequence.cached)]
        )


def common_length(left: list[int], right: list[int]) -> int:
    """Return the length of the longest common beginning."""
    low, high = 0, min(len(left), len(right))
    while low < high:  # halves are compared in C: 20 times as fast as a loop over the tokens
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
