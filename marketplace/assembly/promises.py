"""What an author may say only once, or only so often: its yes for a version, its proposals in a day.

Both follow from the author's own log alone. So every member refuses the same entry, at the same place, in whatever order
the logs of different authors come; and a log ends where its author broke its word.
"""

from bisect import insort
from collections import ChainMap
from collections.abc import MutableMapping

from protocol import limits
from protocol.envelope import Sealed
from protocol.errors import Equivocation, TooManyProposals
from protocol.identity import PeerId
from protocol.messages import Entry, Manifest, Vote

_DAY_MS = 24 * 3600 * 1000


class Promises:
    """The yes votes and the proposals of every author."""

    def __init__(self) -> None:
        self._yes: MutableMapping[tuple[PeerId, str, int], Sealed[Entry]] = {}
        self._proposed: MutableMapping[PeerId, tuple[int, ...]] = {}

    def fork(self) -> "Promises":
        """Return the same promises, to grow on their own; what is there now is shared."""
        fork = Promises()
        fork._yes = ChainMap({}, self._yes) if self._yes else {}
        fork._proposed = ChainMap({}, self._proposed) if self._proposed else {}
        return fork

    def check(self, entry: Sealed[Entry]) -> None:
        """Check the next entry of an author.

        Raises:
            Equivocation: a second yes, for another manifest of the same line and version.
            TooManyProposals: one more than a day may have.
        """
        match entry.message:
            case Vote(line=line, version=version, is_yes=True, manifest=manifest):
                first = self._yes.get((entry.sender, line, version))
                if (
                    first is not None
                    and isinstance(first.message, Vote)
                    and first.message.manifest != manifest
                ):
                    raise Equivocation(
                        f"{entry.sender} said yes to two manifests for version {version} of {line}",
                        first.raw,
                        entry.raw,
                    )
            case Manifest():
                self._check_proposals(entry)

    def note(self, entry: Sealed[Entry]) -> None:
        """Remember an entry that was taken."""
        match entry.message:
            case Vote(line=line, version=version, is_yes=True):
                self._yes.setdefault((entry.sender, line, version), entry)
            case Manifest():
                self._proposed[entry.sender] = self._with(entry)

    def _with(self, entry: Sealed[Entry]) -> tuple[int, ...]:
        times = list(self._proposed.get(entry.sender, ()))
        insort(times, entry.time_ms)
        return tuple(times)

    def _check_proposals(self, entry: Sealed[Entry]) -> None:
        times = self._with(entry)
        for first, last in zip(times, times[limits.PROPOSALS_PER_DAY_MAX :], strict=False):
            if last - first < _DAY_MS:
                raise TooManyProposals(
                    f"{entry.sender} signed more than {limits.PROPOSALS_PER_DAY_MAX} manifests within 24 h"
                )
