"""Files that only their owner may read or change, and writing them so that a crash leaves the old or the new one."""

import os
import stat
import tempfile
from pathlib import Path

from node.errors import StartError


def read_private(path: Path, *, what: str, size_bytes_max: int) -> bytes:
    """Return the content of a file of secrets, after checking what was opened, not what lay there a moment before.

    Raises:
        StartError: missing, unreadable, somebody else's, open to others, or too long.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hang the start
    except FileNotFoundError:
        raise StartError(f"no {what} {path}; run 'agora init' or 'agora join', or restore a backup") from None
    except OSError as error:
        raise StartError(
            f"cannot read {what} {path} ({error.strerror}), expected a file of yours with mode 0600"
        ) from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise StartError(f"{what} {path} is not a regular file; restore a backup or move it away")
        check_private(path, found)
        if found.st_size > size_bytes_max:
            raise StartError(
                f"{what} {path} has {found.st_size} bytes, expected {size_bytes_max} at most; restore a backup"
            )
        return os.read(fd, size_bytes_max)
    finally:
        os.close(fd)


def check_private(path: Path, found: os.stat_result) -> None:
    """Refuse a file that others could read: what is in it may be known already, so it is not quietly repaired.

    Raises:
        StartError: it is somebody else's, or its mode gives the group or the world anything.
    """
    check_owner(path, found)
    if found.st_mode & 0o077:
        raise StartError(
            f"{path} has mode {stat.S_IMODE(found.st_mode):04o}, expected 0600; run 'chmod 600 {path}', "
            "and replace what is in it if others use this machine"
        )


def check_not_world_writable(path: Path, found: os.stat_result) -> None:
    """Refuse a file that anybody could have changed.

    Raises:
        StartError: it is somebody else's, or the world may write it.
    """
    check_owner(path, found)
    if found.st_mode & 0o002:
        raise StartError(
            f"{path} has mode {stat.S_IMODE(found.st_mode):04o}, expected one that others cannot write; "
            f"read it through, then run 'chmod 600 {path}'"
        )


def check_owner(path: Path, found: os.stat_result) -> None:
    """Refuse what belongs to another user.

    Raises:
        StartError: it does.
    """
    if found.st_uid != os.geteuid():
        raise StartError(
            f"{path} belongs to uid {found.st_uid}, expected {os.geteuid()}; run as its owner or name another home"
        )


def write_atomic(path: Path, data: bytes) -> None:
    """Replace or create a file, 0600; a crash at any moment leaves the old content or the new, on disk when this returns."""
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Put the names in a directory on disk, as `fsync` of a file does not."""
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
