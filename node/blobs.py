"""Blobs: byte strings named by their SHA-256 that any member may fetch: adapters, public sets, checkpoints.

Nothing private is ever put here: what is in it is served to whoever of the mesh asks (`services/blob_exchange.py`).
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

from node.store import StoreFull
from protocol.errors import AgoraError
from runtime.engine import Digest


class BlobNotFound(AgoraError):
    """The blob is not to be had.

    Of this device's own: it is not here, or was damaged. Of others': none of them gave it, and the message says what each did.
    """


def not_here(digest: Digest) -> BlobNotFound:
    """What a read of an absent blob raises."""
    return BlobNotFound(f"blob {digest.hex()[:12]} is not on this device")


class Blobs(Protocol):
    """This device's blobs. Two backends: a directory of the home, and the simulator's memory."""

    def has(self, digest: Digest) -> bool:
        """Whether the whole blob is here."""

    def size(self, digest: Digest) -> int:
        """Its length in bytes.

        Raises:
            BlobNotFound: it is not here.
        """

    def path(self, digest: Digest) -> Path:
        """Where a backend that works with files finds it. (In a world there is no such file.)"""

    async def read(self, digest: Digest, offset: int = 0, size: int | None = None) -> bytes:
        """Return bytes of it from an offset on; all that is left when `size` is None.

        Raises:
            BlobNotFound: it is not here, or was damaged and is not here any more.
        """

    async def put(self, data: bytes) -> Digest:
        """Keep a blob, durably, and return its digest; a second time changes nothing.

        Raises:
            StoreFull: the disk is; nothing was kept.
        """

    async def begin(self, digest: Digest, size: int) -> int:
        """Make room for a blob that is being fetched; return how many bytes of it an earlier try has left here.

        Raises:
            StoreFull: the disk has no room for it.
        """

    async def append(self, digest: Digest, offset: int, data: bytes) -> None:
        """Add what follows at `offset`, which is where the last append ended; 0 begins anew.

        Raises:
            StoreFull: the disk is; what was appended before is still there.
        """

    async def finish(self, digest: Digest) -> bool:
        """Verify what was appended and keep it as the blob; False: it is another, or was dropped, and nothing is left."""

    async def drop(self, digest: Digest) -> None:
        """Forget a blob, or what was fetched of it."""

    def keep_named(self, named: Callable[[], Collection[bytes]]) -> None:
        """Say which blobs are still needed: whatever else is here may go when there is no room for another one.

        See `node.spare_blobs`; until it is said, nothing goes.
        """


class NoBlobs:
    """The blobs of a node that was given no place to keep any: it has none, and takes none."""

    def has(self, digest: Digest) -> bool:  # noqa: ARG002
        """See `Blobs.has`."""
        return False

    def size(self, digest: Digest) -> int:
        """See `Blobs.size`."""
        raise not_here(digest)

    def path(self, digest: Digest) -> Path:
        """See `Blobs.path`."""
        raise not_here(digest)

    async def read(self, digest: Digest, offset: int = 0, size: int | None = None) -> bytes:  # noqa: ARG002
        """See `Blobs.read`."""
        raise not_here(digest)

    async def put(self, data: bytes) -> Digest:
        """See `Blobs.put`."""
        raise StoreFull(f"this node keeps no blobs, not even one of {len(data)} bytes")

    async def begin(self, digest: Digest, size: int) -> int:  # noqa: ARG002
        """See `Blobs.begin`."""
        raise StoreFull(f"this node keeps no blobs, not even one of {size} bytes")

    async def append(self, digest: Digest, offset: int, data: bytes) -> None:  # noqa: ARG002
        """See `Blobs.append`."""
        raise StoreFull(f"this node keeps no blobs, not even {len(data)} bytes of one")

    async def finish(self, digest: Digest) -> bool:  # noqa: ARG002
        """See `Blobs.finish`."""
        return False

    def keep_named(self, named: Callable[[], Collection[bytes]]) -> None:
        """See `Blobs.keep_named`."""

    async def drop(self, digest: Digest) -> None:
        """See `Blobs.drop`."""
