"""An author's hash-chained log of durable entries: dense indexes, each entry naming the one before it.

Every author has two logs: `assembly` (few entries, replicated to every member) and `bilateral` (awards, accepts and
receipts, held by the parties). They are chained apart, so that a member can verify a complete assembly log without the
author's private business between its entries (docs/adr/0002).

A log only grows. A gap is `BrokenLog` (ask for what is missing); two different entries at one index are
`Equivocation`, whose two envelopes convince anybody.
"""

from dataclasses import dataclass, field

from protocol.envelope import Sealed
from protocol.errors import BrokenLog, Equivocation
from protocol.identity import PeerId
from protocol.messages import NO_HASH, Entry, Head, LogName


@dataclass
class AuthorLog:
    """One log of one author, as far as it is known here."""

    author: PeerId
    name: LogName
    entries: list[Sealed[Entry]] = field(default_factory=list)

    @property
    def next_index(self) -> int:
        """The index of the entry that is to come."""
        return len(self.entries)

    @property
    def next_prev(self) -> bytes:
        """The `prev` of the entry that is to come."""
        return self.entries[-1].id if self.entries else NO_HASH

    @property
    def head(self) -> Head | None:
        """The newest entry; None while the log is empty."""
        if not self.entries:
            return None
        return Head(author=self.author, log=self.name, index=self.next_index - 1, entry=self.entries[-1].id)

    def fork(self) -> "AuthorLog":
        """Return the same log, to grow on its own."""
        return AuthorLog(self.author, self.name, list(self.entries))

    def append(self, entry: Sealed[Entry]) -> bool:
        """Take the next entry in; return False when it is already there.

        Raises:
            BrokenLog: another author's or log's entry, a gap, or a wrong `prev`.
            Equivocation: another entry stands at its index.
        """
        self.check(entry)
        if entry.message.index < self.next_index:
            return False
        self.entries.append(entry)
        return True

    def check(self, entry: Sealed[Entry]) -> None:
        """Raise what `append` would raise, and change nothing."""
        message = entry.message
        if entry.sender != self.author or message.log != self.name:
            raise BrokenLog(
                f"entry of {entry.sender} ({message.log}) in the {self.name} log of {self.author}"
            )
        if message.index < self.next_index:
            known = self.entries[message.index]
            if known.id != entry.id:
                raise Equivocation(
                    f"{self.author} signed two {self.name} entries with index {message.index}",
                    known.raw,
                    entry.raw,
                )
            return
        if message.index > self.next_index:
            raise BrokenLog(
                f"{self.name} entry {message.index} of {self.author} came, expected {self.next_index}"
            )
        if message.prev != self.next_prev:
            raise BrokenLog(
                f"{self.name} entry {message.index} of {self.author} does not follow the one before it"
            )
