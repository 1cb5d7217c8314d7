"""Everybody's assembly logs as far as they are known here, and where those of convicts are closed.

Evidence closes the log of the key that it convicts: what stands at or behind the fork, or was signed after the
contradiction, is kept, since others must be able to verify it, and does nothing.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from marketplace.assembly.evidence import Contradiction
from protocol import limits
from protocol.envelope import Sealed
from protocol.errors import BrokenLog
from protocol.identity import PeerId
from protocol.log import AuthorLog
from protocol.messages import Entry, Head


@dataclass(frozen=True)
class _Closing:
    """An author's entries do nothing from this index on, nor when signed later than this."""

    index: int
    at_ms: int


class Logs:
    """The logs, each by its author."""

    def __init__(self) -> None:
        self._logs: dict[PeerId, AuthorLog] = {}
        self._sizes: dict[PeerId, int] = {}
        self._closings: dict[PeerId, _Closing] = {}
        self._fingerprint = b""

    def fork(self) -> "Logs":
        """Return the same logs, to grow on their own."""
        fork = Logs()
        fork._logs = {author: log.fork() for author, log in self._logs.items()}
        fork._sizes = dict(self._sizes)
        fork._closings = dict(self._closings)
        fork._fingerprint = self._fingerprint
        return fork

    def of(self, author: PeerId) -> AuthorLog:
        """Return an author's log; an empty one, which is not kept, when nothing of it is known."""
        return self._logs.get(author) or AuthorLog(author, "assembly")

    def check_room(self, entry: Sealed[Entry]) -> None:
        """Check that an author's log may grow by an entry: every member has to keep it.

        Raises:
            BrokenLog: it is full.
        """
        size = self._sizes.get(entry.sender, 0) + len(entry.raw)
        if size > limits.ASSEMBLY_LOG_BYTES_MAX:
            raise BrokenLog(
                f"assembly log of {entry.sender} is full, at most {limits.ASSEMBLY_LOG_BYTES_MAX} bytes allowed"
            )

    def append(self, entry: Sealed[Entry]) -> bool:
        """Take the next entry of a log in; return False when it was there already.

        Raises:
            BrokenLog, Equivocation: as `AuthorLog.append`.
        """
        log = self.of(entry.sender)
        if not log.append(entry):
            return False
        self._logs[entry.sender] = log
        self._sizes[entry.sender] = self._sizes.get(entry.sender, 0) + len(entry.raw)
        self._fingerprint = b""
        return True

    # --- what still counts --------------------------------------------------------------------------------------
    def close(self, proof: Contradiction) -> bool:
        """Close a convict's log; return whether anything in it ceased to count."""
        open_end = _Closing(limits.ROLL_LOG_ENTRIES_MAX, proof.at_ms)
        known = self._closings.get(proof.accused, open_end)
        index = known.index if proof.fork_index is None else min(known.index, proof.fork_index)
        closing = _Closing(index, min(known.at_ms, proof.at_ms))
        if closing == self._closings.get(proof.accused):
            return False
        self._closings[proof.accused] = closing
        self._fingerprint = b""
        return True

    def counts(self, entry: Sealed[Entry]) -> bool:
        """Whether its author's log was still open there."""
        closing = self._closings.get(entry.sender)
        return closing is None or (entry.message.index < closing.index and entry.time_ms <= closing.at_ms)

    def entries(self) -> Iterator[Sealed[Entry]]:
        """Yield every entry, log by log, whether or not it counts."""
        for log in self._logs.values():
            yield from log.entries

    # --- how far they go ----------------------------------------------------------------------------------------
    def head(self, author: PeerId) -> Head | None:
        """Return the newest entry known of an author; None when there is none."""
        log = self._logs.get(author)
        return log.head if log else None

    def heads(self, rank: Callable[[PeerId], Any]) -> tuple[Head, ...]:
        """Return the newest entry of every author, in the order of their ranks."""
        return tuple(head for author in sorted(self._logs, key=rank) if (head := self._logs[author].head))

    def fingerprint(self) -> bytes:
        """Return one hash over the newest entries of all authors: two that agree on it hold the same logs.

        Of a forked log it is the last one before the fork: of what came behind, each keeps what it heard first.
        """
        if not self._fingerprint:
            heads = sorted((author, *self._end(author)) for author in self._logs)
            text = b"".join(b"%s %d %s\n" % (author.encode(), index, prev) for author, index, prev in heads)
            self._fingerprint = hashlib.sha256(text).digest()
        return self._fingerprint

    def _end(self, author: PeerId) -> tuple[int, bytes]:
        """How long a log is, up to where it was closed, and the id of its last entry there."""
        log, closing = self._logs[author], self._closings.get(author)
        if closing is None or closing.index >= log.next_index:
            return log.next_index, log.next_prev
        return closing.index, log.entries[closing.index].message.prev

    def entries_after(self, author: PeerId, index: int) -> Sequence[Sealed[Entry]]:
        """Return the entries of an author's log behind an index; all of them behind -1."""
        log = self._logs.get(author)
        return log.entries[index + 1 :] if log else ()
