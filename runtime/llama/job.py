"""One completion under way: what it is made of, and how far it is."""

import time
from dataclasses import dataclass, field

from runtime.llama.checking import Check
from runtime.llama.prefix_cache import Sequence
from runtime.llama.sampling import Sampler
from runtime.llama.tokens import CompletionText


@dataclass(eq=False)
class Job:
    """A sequence of the cache, and the tokens that it is to hold.

    Attributes:
        tokens: prompt, received, drawn.
        chunked_end: tokens before this index are computed in chunks, those after it one by one.
        sequence: what of them is in the cache.
        check: what is done with it instead of drawing.
        leader: an earlier job that is computing the same beginning, and is waited for…
        shared_tokens: …until it has so many tokens.
        passed_over: batches since its prompt had a whole piece in one.
        drawn: tokens that were drawn here.
        is_begun_again: what it had in the cache was lost to numbers that were not finite, and computed once more.
    """

    call: int
    tokens: list[int]
    prompt_tokens: int
    chunked_end: int
    text: CompletionText
    sampler: Sampler
    tokens_max: int
    sequence: Sequence
    adapter: bytes | None = None
    check: Check | None = None
    leader: "Job | None" = None
    shared_tokens: int = 0
    passed_over: int = 0
    drawn: int = 0
    is_begun_again: bool = False
    started: float = field(default_factory=time.perf_counter)
    decode_started: float = 0.0
    reused_tokens: int = 0

    @property
    def completion_tokens(self) -> int:
        """Received and drawn; of a check its words."""
        return self.check.done if self.check else len(self.tokens) - self.prompt_tokens

    @property
    def tokens_ever(self) -> int:
        """What it has at its end, at most."""
        return max(self.prompt_tokens + self.tokens_max, len(self.tokens))

    def wants_logits(self, position: int) -> bool:
        """Whether something is to be drawn or read from behind this token."""
        return self.check.wants(position) if self.check else position == len(self.tokens) - 1

    @property
    def tokens_left(self) -> int:
        """What is still to be computed in chunks."""
        return self.chunked_end - len(self.sequence.cached)
