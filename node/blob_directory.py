"""Blobs as files of the home: `blobs/<digest>`, and `blobs/<digest>.part` while one is being fetched.

A file gets its final name only after all of it was hashed and is on disk, so whatever bears a digest is that blob. What a
crash or a broken connection left of a fetch goes on where it ended; it is hashed as a whole in the end all the same.

A blob is hashed once more before it is first read in each run: a file that rotted is dropped, and fetched again by
whoever needs it, instead of being served to others under a name that is not its own.

Some of the disk is left to the database and the user. When a blob more would take of that, those that nobody names go.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import trio

from node.blobs import BlobNotFound, not_here
from node.private_file import sync_directory, write_atomic
from node.spare_blobs import Kept, whom_to_drop
from node.store import StoreFull
from protocol.limits import MIB
from runtime.engine import Digest

FREE_BYTES_MIN = 256 * MIB  # left on the disk for the database and the user, whoever sends what
PART_AGE_S_MAX = 24 * 3600.0  # what was left of a fetch is of no use to anybody after this
PARTS_MAX = 16  # unfinished fetches kept to go on with: holders that always break off must not fill the disk
_PIECE_BYTES = 4 * MIB
_PART = ".part"
_NAME_CHARS = 64


class DirectoryBlobs:
    """See `node.blobs.Blobs`.

    Args:
        directory: is made, 0700, if it is not there.
        free_bytes_min: what must stay free on its disk.
        free_bytes: how much is; None: as the system says.
    """

    def __init__(
        self,
        directory: Path,
        *,
        free_bytes_min: int = FREE_BYTES_MIN,
        free_bytes: Callable[[], int] | None = None,
    ) -> None:
        self.directory = directory.absolute()
        self._free_bytes_min = free_bytes_min
        self._free_bytes = free_bytes or (lambda: shutil.disk_usage(self.directory).free)
        self._named: Callable[[], Collection[bytes]] | None = None
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._sizes: dict[Digest, int] = {}
        self._verified: set[Digest] = set()
        self._parts: dict[Digest, int] = {}  # bytes of a fetch under way
        oldest = time.time() - PART_AGE_S_MAX
        for path in sorted(self.directory.iterdir()):
            if path.name.endswith(_PART) or path.name.startswith(
                "."
            ):  # a write that a crash broke off has a dot
                if path.name.startswith(".") or path.stat().st_mtime < oldest:
                    path.unlink()
            elif (digest := _digest_of(path.name)) is not None:
                self._sizes[digest] = path.stat().st_size

    def has(self, digest: Digest) -> bool:
        """See `Blobs.has`."""
        return digest in self._sizes

    def size(self, digest: Digest) -> int:
        """See `Blobs.size`."""
        if digest not in self._sizes:
            raise not_here(digest)
        return self._sizes[digest]

    def path(self, digest: Digest) -> Path:
        """See `Blobs.path`."""
        return self.directory / digest.hex()

    async def read(self, digest: Digest, offset: int = 0, size: int | None = None) -> bytes:
        """See `Blobs.read`."""
        if digest not in self._sizes:
            raise not_here(digest)
        try:
            if digest not in self._verified:
                await self._verify(digest)
            return await trio.to_thread.run_sync(_read, self.path(digest), offset, size)
        except OSError:
            self._sizes.pop(digest, None)  # its file is gone, or cannot be read: somebody else has it
            raise not_here(digest) from None

    async def put(self, data: bytes) -> Digest:
        """See `Blobs.put`."""
        digest = Digest(hashlib.sha256(data).digest())
        if digest in self._sizes:
            with suppress(OSError):  # it is as young as a new one; where its file is gone it is written again
                os.utime(self.path(digest))
                return digest
        await self._make_room(len(data))
        try:
            await trio.to_thread.run_sync(write_atomic, self.path(digest), data)
        except OSError as error:
            raise _full(self.directory, error) from error
        self._keep(digest, len(data))
        return digest

    async def begin(self, digest: Digest, size: int) -> int:
        """See `Blobs.begin`."""
        part = self._part(digest)
        there = part.stat().st_size if part.exists() else 0
        if there > size:
            there = 0
        self._forget_old_parts(part)
        await self._make_room(size - there)
        self._parts[digest] = there
        return there

    async def append(self, digest: Digest, offset: int, data: bytes) -> None:
        """See `Blobs.append`."""
        try:
            await trio.to_thread.run_sync(_write_at, self._part(digest), offset, data)
        except OSError as error:
            raise _full(self.directory, error) from error
        self._parts[digest] = offset + len(data)

    async def finish(self, digest: Digest) -> bool:
        """See `Blobs.finish`."""
        size = self._parts.pop(digest, None)
        if size is None:  # dropped meanwhile
            return False
        try:
            is_whole = await trio.to_thread.run_sync(_finish, self._part(digest), self.path(digest), digest)
        except OSError as error:
            raise _full(self.directory, error) from error
        if is_whole:
            self._keep(digest, size)
        return is_whole

    async def drop(self, digest: Digest) -> None:
        """See `Blobs.drop`."""
        await trio.lowlevel.checkpoint()
        self._sizes.pop(digest, None)
        self._verified.discard(digest)
        self._parts.pop(digest, None)
        self.path(digest).unlink(missing_ok=True)
        self._part(digest).unlink(missing_ok=True)

    def keep_named(self, named: Callable[[], Collection[bytes]]) -> None:
        """See `Blobs.keep_named`."""
        self._named = named

    def _forget_old_parts(self, kept: Path) -> None:
        """Drop the parts that nothing was added to for longest; one that is being fetched has just got a chunk."""
        others = [path for path in self.directory.glob(f"*{_PART}") if path != kept]
        for path in sorted(others, key=lambda path: path.stat().st_mtime)[
            : max(0, len(others) + 1 - PARTS_MAX)
        ]:
            path.unlink()

    async def _verify(self, digest: Digest) -> None:
        found = await trio.to_thread.run_sync(_hash, self.path(digest))
        if found != digest:
            await self.drop(digest)
            raise BlobNotFound(f"blob {digest.hex()[:12]} was damaged on this device's disk and is dropped")
        self._verified.add(digest)

    def _keep(self, digest: Digest, size: int) -> None:
        self._sizes[digest] = size
        self._verified.add(digest)

    def _part(self, digest: Digest) -> Path:
        return self.directory / (digest.hex() + _PART)

    async def _make_room(self, size: int) -> None:
        wanted = size + self._free_bytes_min
        if self._named is not None and (lacking := wanted - self._free_bytes()) > 0:
            for digest in whom_to_drop(self._kept(), lacking, self._named()):
                await self.drop(digest)
        if (free := self._free_bytes()) < wanted:
            raise StoreFull(
                f"{self.directory} has {free // MIB} MiB free, expected {wanted // MIB}; free some"
            )

    def _kept(self) -> list[Kept]:
        kept, now = [], time.time()
        for digest, size in self._sizes.items():
            with suppress(OSError):
                kept.append(Kept(digest, size, now - self.path(digest).stat().st_mtime))
        return kept


def _digest_of(name: str) -> Digest | None:
    """The digest that a file is named after; None: it is no blob."""
    with suppress(ValueError):
        if len(name) == _NAME_CHARS and name == name.lower():
            return Digest(bytes.fromhex(name))
    return None


def _read(path: Path, offset: int, size: int | None) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read() if size is None else file.read(size)


def _write_at(path: Path, offset: int, data: bytes) -> None:
    """Write and cut off what was behind it: an earlier try may have been longer."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.truncate(offset)
        file.seek(offset)
        file.write(data)


def _finish(part: Path, path: Path, digest: Digest) -> bool:
    if not part.exists():  # a blob of no bytes was never appended to
        _write_at(part, 0, b"")
    if _hash(part) != digest:
        part.unlink()
        return False
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    sync_directory(path.parent)
    return True


def _hash(path: Path) -> bytes:
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            hashed.update(piece)
    return hashed.digest()


def _full(directory: Path, error: OSError) -> StoreFull:
    return StoreFull(f"{directory} takes no more ({error.strerror}), expected free disk space; free some")
