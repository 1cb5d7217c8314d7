"""A disk under SQLite that forgets when its power is cut: a file system in memory, for `apsw`.

What SQLite writes goes to a cache and is durable once that file was synced. A power cut ends the current operation
half done. What was synced stays; of the rest each write of a sector is kept, dropped or torn in its middle, each
truncation is kept or dropped, and each name leads where any operation on it since the directory was last synced left
it. All of that is drawn one by one, so later writes may survive earlier ones, as they do on a disk that reorders.

It promises SQLite no more and no less than the system's own file layer does: the same sector size, and that a write
harms no byte outside its range. Only shared memory is missing: a connection has to lock exclusively. That changes
nothing here, because the index that lives there is never synced and is built anew after every crash.
"""

from dataclasses import dataclass, field
from random import Random
from typing import Any

import apsw

SECTOR_BYTES = 512
_PROMISED_SECTOR_BYTES = 4_096  # the default of SQLite's own layer


class PowerCut(Exception):
    """The operation that was running when the power went."""


@dataclass
class _File:
    """One file's bytes: as the disk has them, and as programs see them.

    Attributes:
        unsynced: the difference, in order: (offset, bytes) of a sector, or the size after a truncation.
    """

    durable: bytearray = field(default_factory=bytearray)
    cached: bytearray = field(default_factory=bytearray)
    unsynced: list[tuple[int, bytes] | int] = field(default_factory=list)

    def write(self, data: bytes, offset: int) -> None:
        _put(self.cached, offset, data)
        start = offset
        while start < offset + len(data):
            end = min(start - start % SECTOR_BYTES + SECTOR_BYTES, offset + len(data))
            self.unsynced.append((start, data[start - offset : end - offset]))
            start = end

    def truncate(self, size_bytes: int) -> None:
        del self.cached[size_bytes:]
        self.unsynced.append(size_bytes)

    def sync(self) -> None:
        self.durable[:] = self.cached
        self.unsynced.clear()

    def after_power_cut(self, rng: Random) -> bytes:
        """Return what the disk has of it: the synced bytes, and any of the others."""
        left = bytearray(self.durable)
        for change in self.unsynced:
            if isinstance(change, int):
                if rng.random() < 0.5:
                    del left[change:]
                continue
            offset, data = change
            middle = len(data) // 2
            match rng.choice(("kept", "dropped", "first half", "second half")):
                case "kept":
                    _put(left, offset, data)
                case "first half":
                    _put(left, offset, data[:middle])
                case "second half":
                    _put(left, offset + middle, data[middle:])
        return bytes(left)


class TornDisk(apsw.VFS):
    """One spell of power: from the files that are found to the cut.

    Args:
        files: what the disk holds, by name.
        cut_after: this many changes and syncs are begun; the last of them ends in `PowerCut`.

    Attributes:
        remains: what the disk holds after the cut, by name; None before it.
    """

    NAME = "torn"

    def __init__(self, rng: Random, files: dict[str, bytes], *, cut_after: int) -> None:
        super().__init__(self.NAME, "")  # time and randomness are the system's; they steer no operation
        self._rng = rng
        self._left = cut_after
        # where each name leads: on the disk, then after each operation since the directory was synced
        self._names: dict[str, list[_File | None]] = {
            name: [_File(bytearray(content), bytearray(content))] for name, content in files.items()
        }
        self.remains: dict[str, bytes] | None = None

    def begin(self) -> None:
        """Count one operation that changes or syncs.

        Raises:
            PowerCut: it was the last one. What a program that has no power does afterwards no longer matters.
        """
        self._left -= 1
        if self._left == 0:
            ends = {name: self._rng.choice(leads) for name, leads in self._names.items()}
            self.remains = {
                name: file.after_power_cut(self._rng) for name, file in ends.items() if file is not None
            }
            raise PowerCut

    def sync_directory(self) -> None:
        for leads in self._names.values():
            del leads[:-1]

    def xFullPathname(self, name: str) -> str:  # noqa: N802 - SQLite's names
        return name

    def xAccess(self, pathname: str, _flags: int) -> bool:  # noqa: N802
        return self._names.get(pathname, [None])[-1] is not None

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        leads = self._names.setdefault(path, [None])
        file = leads[-1]
        is_new = file is None
        if file is None:
            file = _File()
            leads.append(file)
            self.begin()
        flags[1] = flags[0]
        is_log = bool(flags[0] & (apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL))
        return _Handle(self, file, syncs_directory=is_new and is_log)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        self._names[filename].append(None)
        self.begin()
        if syncdir:
            self.sync_directory()


class _Handle(apsw.VFSFile):
    """An open file.

    Args:
        syncs_directory: the first sync also makes the name durable, as SQLite's own layer does for a log it created.
    """

    def __init__(self, disk: TornDisk, file: _File, *, syncs_directory: bool) -> None:
        self._disk = disk
        self._file = file
        self._syncs_directory = syncs_directory

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        return bytes(self._file.cached[offset : offset + amount])

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._file.write(data, offset)
        self._disk.begin()

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self._file.truncate(newsize)
        self._disk.begin()

    def xSync(self, _flags: int) -> None:  # noqa: N802
        self._disk.begin()
        self._file.sync()
        if self._syncs_directory:
            self._disk.sync_directory()
            self._syncs_directory = False

    def xFileSize(self) -> int:  # noqa: N802
        return len(self._file.cached)

    def xSectorSize(self) -> int:  # noqa: N802
        return _PROMISED_SECTOR_BYTES

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE

    def xLock(self, _level: int) -> None:  # noqa: N802
        """One connection at a time: nobody to lock out."""

    def xUnlock(self, _level: int) -> None:  # noqa: N802
        """See `xLock`."""

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return False

    def xFileControl(self, _op: int, _ptr: int) -> bool:  # noqa: N802
        return False

    def xClose(self) -> None:  # noqa: N802
        """What is not synced stays so."""


def _put(image: bytearray, offset: int, data: bytes) -> None:
    image.extend(bytes(max(0, offset - len(image))))
    image[offset : offset + len(data)] = data
