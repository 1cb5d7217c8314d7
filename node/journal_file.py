"""The journal on disk: one JSON object a line, rotated by size, read back and followed by `agora logs`.

Each line is handed to the system at once but not synced: a crash of the process loses nothing, a power cut a moment of
narrative. What must survive a power cut is in the store.
"""

import errno
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import trio

from node.event import Event

FILE_BYTES_MAX = 16 * 1024 * 1024  # then the file is rotated
FILES_MAX = 3  # journal.jsonl, journal.jsonl.1 and .2
FOLLOW_INTERVAL_S = 0.2
_CHUNK_BYTES = 256 * 1024


class JournalFile:
    """The file that is written, 0600. One process writes it: the one that holds the home's lock."""

    def __init__(
        self, path: Path, *, size_bytes_max: int = FILE_BYTES_MAX, files_max: int = FILES_MAX
    ) -> None:
        self._path = path
        self._size_bytes_max = size_bytes_max
        self._files_max = files_max
        self._size_bytes = 0
        self._is_torn = False  # the file ends in the middle of a line
        self._fd = self._open()

    def write_line(self, line: str) -> None:
        """Append one line.

        Raises:
            OSError: it was not written, or not whole; the next line will not run into its remains.
        """
        data = b"\n" * self._is_torn + line.encode() + b"\n"
        if self._size_bytes and self._size_bytes + len(data) > self._size_bytes_max:
            self._rotate()
        written = os.write(self._fd, data)
        self._size_bytes += written
        self._is_torn = written < len(data)
        if self._is_torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def close(self) -> None:
        """Close the file; nothing may be written after."""
        os.close(self._fd)

    def _open(self) -> int:
        fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._size_bytes = os.fstat(fd).st_size
        # the process before us may have been killed in the middle of a line
        self._is_torn = self._size_bytes > 0 and os.pread(fd, 1, self._size_bytes - 1) != b"\n"
        return fd

    def _rotate(self) -> None:
        for number in range(self._files_max - 1, 0, -1):
            newer = rotated(self._path, number - 1)
            if newer.exists():
                newer.replace(rotated(self._path, number))
        full, self._fd = self._fd, self._open()
        os.close(full)


def rotated(path: Path, number: int) -> Path:
    """Return the name of the file `number` rotations ago; 0 is the one being written."""
    return path if number == 0 else path.with_name(f"{path.name}.{number}")


@dataclass(frozen=True)
class Filter:
    """Which events to show.

    Attributes:
        since_s: wall clock, seconds since 1970.
        name: a glob: `award_*`.
        id: shows events that carry it in any field; the first 8 characters of an id or more are enough.
    """

    since_s: float = 0.0
    name: str = "*"
    id: str | None = None

    def accepts(self, event: Event) -> bool:
        """Tell whether to show this event."""
        if event.time_s < self.since_s or not fnmatchcase(event.name, self.name):
            return False
        if self.id is None:
            return True
        values = [str(value) for value in event.fields.values()]
        return self.id in values or (len(self.id) >= 8 and any(value.startswith(self.id) for value in values))


def read(path: Path, wanted: Filter | None = None) -> Iterator[Event]:
    """Yield the events of all kept files, oldest first. Lines that are none are passed over."""
    wanted = wanted or Filter()
    for number in reversed(range(FILES_MAX)):
        try:
            file = rotated(path, number).open("rb")
        except FileNotFoundError:
            continue
        with file:
            for line in file:
                event = Event.from_json(line)
                if event is not None and wanted.accepts(event):
                    yield event


async def _pause() -> None:
    # a file wakes nobody up: what other platforms offer instead of polling has nothing in common
    await trio.sleep(FOLLOW_INTERVAL_S)


async def follow(
    path: Path, wanted: Filter | None = None, *, pause: Callable[[], Awaitable[None]] = _pause
) -> AsyncGenerator[Event, None]:
    """Yield events as they are written from now on, across rotations; ends when it is closed."""
    wanted = wanted or Filter()
    position = _size(path)
    while True:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            await pause()
            continue
        with file:
            file.seek(position)
            rest = b""
            while True:
                is_rotated = _is_rotated(
                    path, file.fileno()
                )  # before reading: then what is read is all of it
                chunk = file.read(_CHUNK_BYTES)
                *lines, rest = (rest + chunk).split(b"\n")
                for event in map(Event.from_json, lines):
                    if event is not None and wanted.accepts(event):
                        yield event
                if chunk:
                    continue
                if is_rotated:
                    break
                await pause()
        position = 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_rotated(path: Path, fd: int) -> bool:
    try:
        return not os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return True
