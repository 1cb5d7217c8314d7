"""Which blobs of this device something still names, so that none of them is dropped.

A line names its public sets, a proposal that is or may come in force its adapter and the set that it was judged by, and a run
its checkpoint. Two may name one blob: every first change to the same shapes is the same bytes, and a run may begin from the
state of another. So whoever needs a blob no more leaves it to this file whether it goes, and does so only when the record
that no longer names it is on disk: after a crash, a record that names what is gone could not be gone on with.
"""

from collections.abc import Callable, Iterable, Iterator

from marketplace.assembly.assembly import Assembly
from node.blobs import Blobs
from node.enlisted import EnlistedBook
from node.runs import RunBook
from node.services.patch_loader import is_lost
from protocol.messages import NO_HASH
from runtime.engine import Digest

NONE = frozenset({b"", NO_HASH})  # these name no blob


class NamedBlobs:
    """Drops what nobody names any more.

    Args:
        blobs: of this device; they are told what is named, for when they need room.
        runs: that this device coordinates.
        enlisted: those that it takes part in.
        assembly: the one of now.
        utc_ms: the members' time.
    """

    def __init__(
        self,
        blobs: Blobs,
        runs: RunBook,
        enlisted: EnlistedBook,
        assembly: Callable[[], Assembly],
        utc_ms: Callable[[], int],
    ) -> None:
        self._blobs = blobs
        self._runs = runs
        self._enlisted = enlisted
        self._assembly = assembly
        self._utc_ms = utc_ms
        blobs.keep_named(self.digests)

    def digests(self) -> set[bytes]:
        """Every blob that is named, whether it is here or not."""
        return {*self._of_runs(), *self._of_the_assembly()} - NONE

    async def drop(self, digests: Iterable[bytes]) -> None:
        """Drop those of some blobs that nothing names."""
        for digest in sorted(set(digests) - NONE):
            if digest not in self.digests():
                await self._blobs.drop(Digest(digest))

    def _of_runs(self) -> Iterator[bytes]:
        for file in self._runs.files():
            yield from (file.since, file.next, file.payload)
        for known in self._enlisted.runs():
            # beside its own coordinator a member's newest state is the coordinator's to keep
            if known.award and known.newest is not None:
                yield known.newest.state

    def _of_the_assembly(self) -> Iterator[bytes]:
        for line in self._assembly().lines().values():
            yield from (line.evaluation, line.replay)
        now_ms = self._utc_ms()
        for ballot in self._assembly().ballots(now_ms):
            if not is_lost(ballot, now_ms):
                yield from (ballot.manifest.message.adapter, ballot.manifest.message.evaluation)
