"""Which blobs the runs of this device still name, so that none of them is dropped.

Two runs may name one blob: every first change to the same shapes is the same bytes, and a run may begin from the state of
another. So whoever needs a blob no more leaves it to this file whether it goes, and does so only when the record that no
longer names it is on disk: after a crash, a record that names what is gone could not be gone on with.
"""

from collections.abc import Iterable

from node.blobs import Blobs
from node.enlisted import EnlistedBook
from node.runs import RunBook
from protocol.messages import NO_HASH
from runtime.engine import Digest


class NamedBlobs:
    """Drops what nobody names any more."""

    def __init__(self, blobs: Blobs, runs: RunBook, enlisted: EnlistedBook) -> None:
        self._blobs = blobs
        self._runs = runs
        self._enlisted = enlisted

    def names(self, digest: bytes) -> bool:
        """Whether a run that is kept here, this device's own or one that it takes part in, names a blob.

        Beside its own coordinator a member's newest state is the coordinator's to keep.
        """
        return any(digest in (file.since, file.next, file.payload) for file in self._runs.files()) or any(
            known.award and known.newest is not None and known.newest.state == digest
            for known in self._enlisted.runs()
        )

    async def drop(self, digests: Iterable[bytes]) -> None:
        """Drop those of some blobs that nothing names; the empty name and `NO_HASH` stand for none."""
        for digest in sorted(set(digests) - {b"", NO_HASH}):
            if not self.names(digest):
                await self._blobs.drop(Digest(digest))
