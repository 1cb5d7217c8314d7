"""From token bytes to text that is certain: unfinished characters and possible stop sequences are held back.

The text is a function of the bytes of all tokens so far, whatever the way they were cut. So a successor that is
given the ids of an interrupted completion rebuilds the same state and goes on exactly where the text ended.
"""

import codecs
from enum import Enum


class State(Enum):
    """Whether the completion goes on."""

    OPEN = "open"
    STOPPED = "stopped"  # a stop sequence came: no more text, ever


class CompletionText:
    """The text of one completion as it grows.

    Args:
        stop: texts that end the completion and are not part of it; empty ones mean nothing. Of two that occur, the
            one that ends first counts, then the longer one.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = tuple(text for text in stop if text)
        self._longest = max((len(text) for text in self._stop), default=0)
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.state = State.OPEN

    def feed(self, piece: bytes) -> str:
        """Take the bytes of the next token and return the text that has become certain."""
        if self.state is State.STOPPED:
            return ""
        self._held += self._characters.decode(piece)
        found = min(
            ((start + len(text), start) for text in self._stop if (start := self._held.find(text)) >= 0),
            default=None,
        )
        if found is not None:
            self.state = State.STOPPED
            certain, self._held = self._held[: found[1]], ""
            return certain
        keep = self._open_length()
        cut = len(self._held) - keep
        certain, self._held = self._held[:cut], self._held[cut:]
        return certain

    def finish(self) -> str:
        """Return what was held back for a stop sequence that never came. An unfinished character is dropped."""
        rest, self._held = self._held, ""
        return rest

    def _open_length(self) -> int:
        """Return how many characters at the end may still become a stop sequence."""
        for length in range(min(self._longest - 1, len(self._held)), 0, -1):
            if any(text.startswith(self._held[-length:]) for text in self._stop):
                return length
        return 0
