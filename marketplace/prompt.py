"""The prompt of a job: what its seller is given to read, whatever the task; how large it is, and what it is bound by.

    task        turns      inputs              claimed     is answered by
    chat        1 or more  none                none        text
    completion  none       1: the raw text     none        text
    embedding   none       1 or more           none        words: the coordinates of each input's vector
    check       1 or more, or else 1 input     1 or more   words: the gap of each claimed token

Anything else is malformed. A task that is answered by words only reads: it is paid by its prompt alone, since what its
answer takes is known before.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from marketplace.pricing import estimated_tokens
from protocol.messages import SamplingTerms, Task, Turn, Work

READINGS: Final[frozenset[Task]] = frozenset({"embedding", "check"})
WORD_MAX: Final = {"embedding": 2_000_000, "check": 2**31 - 1}  # a coordinate of 1, and the cap of a gap

TEMPLATE_TOKENS_MAX = 256  # a chat template's own words: a default system prompt, the date
TURN_TOKENS_MAX = 16  # and its marks around each turn


@dataclass(frozen=True)
class Prompt:
    """What is to be read. See `protocol.messages.Work` for its parts."""

    turns: tuple[Turn, ...] = ()
    task: Task = "chat"
    inputs: tuple[str, ...] = ()
    claimed: tuple[int, ...] = ()

    @classmethod
    def of(cls, work: Work) -> Self:
        """Return the prompt of a work."""
        return cls(work.turns, work.task, work.inputs, work.claimed)

    @property
    def texts(self) -> tuple[str, ...]:
        """All that is read as text."""
        return (*(turn.content for turn in self.turns), *self.inputs)

    @property
    def size_bytes(self) -> int:
        """Of all its texts in UTF-8."""
        return sum(len(text.encode()) for text in self.texts)

    @property
    def estimated_tokens(self) -> int:
        """About how many tokens are to be read, each input like a turn; the claimed ones are known."""
        as_turns = (Turn(role="user", content=text) for text in self.texts)
        return estimated_tokens(as_turns) + len(self.claimed)

    @property
    def tokens_max(self) -> int:
        """More tokens than any tokenizer makes of it: one per byte, and what a template adds.

        The payer need not hold the model, so it cannot count; this bounds what a seller may claim to have read.
        """
        return self.size_bytes + TURN_TOKENS_MAX * len(self.texts) + TEMPLATE_TOKENS_MAX + len(self.claimed)

    @property
    def fault(self) -> str:
        """What is wrong with its form: what was found, and what its task takes; empty: nothing."""
        turns, inputs, claimed = len(self.turns), len(self.inputs), len(self.claimed)
        found = f"{turns} turns, {inputs} inputs and {claimed} claimed tokens"
        match self.task:
            case "chat":
                is_right, expected = turns > 0 and not inputs and not claimed, "turns alone"
            case "completion":
                is_right, expected = not turns and inputs == 1 and not claimed, "one input alone"
            case "embedding":
                is_right, expected = not turns and inputs > 0 and not claimed, "inputs alone"
            case "check":
                is_right = (turns > 0) + inputs == 1 and claimed > 0
                expected = "turns or one input, and claimed tokens"
        return "" if is_right else f"{found} for the task {self.task!r}, expected {expected}"

    def digest(self) -> bytes:
        """Return the SHA-256 of the task, the turns (role and text each), the inputs and the claimed tokens.

        Each text stands in UTF-8 after its length, and each list after its number of members, as u32 little-endian like
        the tokens themselves: two different prompts have no encoding in common.
        """
        digest = hashlib.sha256()
        lists: tuple[Sequence[str], ...] = (
            (self.task,),
            tuple(text for turn in self.turns for text in (turn.role, turn.content)),
            self.inputs,
        )
        for texts in lists:
            digest.update(struct.pack("<I", len(texts)))
            for text in texts:
                data = text.encode()
                digest.update(struct.pack("<I", len(data)) + data)
        digest.update(struct.pack("<I", len(self.claimed)))
        digest.update(b"".join(struct.pack("<I", token) for token in self.claimed))
        return digest.digest()


def only_reads(task: Task) -> bool:
    """Whether a task is answered by words, and paid by its prompt alone."""
    return task in READINGS


def unfit(task: Task, dimensions: int) -> str:
    """Return why a model cannot do a task; empty: it can.

    Args:
        task: that is asked for.
        dimensions: of the model's vectors; 0: it is one that writes.
    """
    if task == "embedding" and not dimensions:
        return "the model writes and does not embed; an embedding takes an embedding model"
    if task != "embedding" and dimensions:
        return f"the model embeds and does not write; a {task} takes a model that writes"
    return ""


def context_wanted(task: Task, prompt_tokens: int, completion_tokens_max: int) -> int:
    """Return the context that a request needs, as far as its seller can tell before it has read the prompt.

    Inputs to be embedded are read one by one, so their sum says nothing; claimed tokens are counted in the prompt.
    """
    if task == "embedding":
        return 0
    return prompt_tokens if task == "check" else prompt_tokens + completion_tokens_max


def work_fault(work: Work, dimensions: int) -> str:
    """Return why no honest buyer sends this work: what was found, and what its task takes; empty: it is well formed.

    Args:
        work: as it came.
        dimensions: of the vectors of the model that it is for; 0: it writes, or is not held.
    """
    prompt = Prompt.of(work)
    if fault := prompt.fault or _reading_fault(work):
        return fault
    if work.sampling.schema and work.sampling.grammar:
        return "a schema and a grammar, expected one of them"
    words = {"embedding": dimensions * len(work.inputs), "check": len(work.claimed)}.get(work.task, 0)
    if words and work.completion_tokens_max != words:
        return f"{work.completion_tokens_max} words asked for, expected {words}"
    return ""


def _reading_fault(work: Work) -> str:
    if not only_reads(work.task):
        return ""
    if work.sampling != SamplingTerms() or work.stop:
        return f"sampling terms for the task {work.task!r}, expected none"
    if len(work.received) >= work.completion_tokens_max:
        return f"{work.completion_tokens_max} words asked for, and {len(work.received)} of them received"
    return ""


def tokens_charged(work: Work, prompt_tokens: int, delivered: int) -> int:
    """Return the prompt tokens that an attempt is paid for, of those that were read.

    All of them; of a task that only reads, the share whose words came, rounded up. Its words are all that its client
    keeps of a seller that failed: paid in full they would make it worth failing after the first one, and not paid at all
    they would let a buyer hang up before the last one and read for nothing.

    Args:
        work: as it was sent in this attempt.
        prompt_tokens: as the engine counted them, or the most that there can be.
        delivered: tokens or words of this attempt.
    """
    if not only_reads(work.task):
        return prompt_tokens
    asked = max(1, work.completion_tokens_max - len(work.received))
    return -(-prompt_tokens * min(delivered, asked) // asked)
