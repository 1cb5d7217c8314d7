"""Blobs on a simulated disk: they outlive the process that put them there, as a directory does.

What was appended is there after a crash, what was under way is not; a disk that is full takes no more.
"""

import hashlib
from collections.abc import Callable, Collection
from pathlib import Path

import trio

from node.blobs import not_here
from node.spare_blobs import Kept, whom_to_drop
from node.store import StoreFull
from runtime.engine import Digest


class MemoryBlobs:
    """See `node.blobs.Blobs`.

    Args:
        size_bytes_max: of all blobs together; None: endless.

    Attributes:
        born_s: when each was put or fetched, in virtual seconds.
    """

    def __init__(self, size_bytes_max: int | None = None) -> None:
        self.size_bytes_max = size_bytes_max
        self._blobs: dict[Digest, bytes] = {}
        self.born_s: dict[Digest, float] = {}
        self._named: Callable[[], Collection[bytes]] | None = None
        self._fetched: dict[Digest, bytearray] = {}  # of blobs that are not whole yet

    def has(self, digest: Digest) -> bool:
        """See `Blobs.has`."""
        return digest in self._blobs

    def digests(self) -> tuple[Digest, ...]:
        """Every blob that is here; for whoever looks at the disk from outside."""
        return tuple(self._blobs)

    def size(self, digest: Digest) -> int:
        """See `Blobs.size`."""
        return len(self._here(digest))

    def path(self, digest: Digest) -> Path:
        """See `Blobs.path`: where it would be; only fakes, which open no file, are given it."""
        return Path("/blobs") / digest.hex()

    async def read(self, digest: Digest, offset: int = 0, size: int | None = None) -> bytes:
        """See `Blobs.read`."""
        await trio.lowlevel.checkpoint()
        return self._here(digest)[offset : None if size is None else offset + size]

    async def put(self, data: bytes) -> Digest:
        """See `Blobs.put`."""
        digest = Digest(hashlib.sha256(data).digest())
        await trio.lowlevel.checkpoint()
        if digest not in self._blobs:
            self._make_room(len(data))
            self._blobs[digest] = bytes(data)
        self.born_s[digest] = trio.current_time()
        self._fetched.pop(digest, None)
        return digest

    async def begin(self, digest: Digest, size: int) -> int:
        """See `Blobs.begin`."""
        await trio.lowlevel.checkpoint()
        fetched = self._fetched.get(digest, bytearray())
        self._make_room(size - len(fetched))
        if len(fetched) > size:
            fetched.clear()
        self._fetched[digest] = fetched
        return len(fetched)

    async def append(self, digest: Digest, offset: int, data: bytes) -> None:
        """See `Blobs.append`."""
        await trio.lowlevel.checkpoint()
        self._make_room(len(data))
        self._fetched.setdefault(digest, bytearray())[offset:] = data

    async def finish(self, digest: Digest) -> bool:
        """See `Blobs.finish`."""
        await trio.lowlevel.checkpoint()
        data = self._fetched.pop(digest, None)
        if data is None or hashlib.sha256(data).digest() != digest:
            return False
        self._blobs[digest] = bytes(data)
        self.born_s[digest] = trio.current_time()
        return True

    async def drop(self, digest: Digest) -> None:
        """See `Blobs.drop`."""
        await trio.lowlevel.checkpoint()
        self._forget(digest)

    def keep_named(self, named: Callable[[], Collection[bytes]]) -> None:
        """See `Blobs.keep_named`."""
        self._named = named

    def _forget(self, digest: Digest) -> None:
        self._blobs.pop(digest, None)
        self.born_s.pop(digest, None)
        self._fetched.pop(digest, None)

    def _here(self, digest: Digest) -> bytes:
        if digest not in self._blobs:
            raise not_here(digest)
        return self._blobs[digest]

    def _make_room(self, size: int) -> None:
        if self.size_bytes_max is None:
            return
        if self._named is not None and (lacking := self._held() + size - self.size_bytes_max) > 0:
            now = trio.current_time()
            kept = [
                Kept(digest, len(data), now - self.born_s[digest]) for digest, data in self._blobs.items()
            ]
            for digest in whom_to_drop(kept, lacking, self._named()):
                self._forget(digest)
        if self._held() + size > self.size_bytes_max:
            raise StoreFull(f"the simulated disk holds {self.size_bytes_max} bytes at most")

    def _held(self) -> int:
        return sum(map(len, self._blobs.values())) + sum(map(len, self._fetched.values()))
