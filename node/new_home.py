"""A new home, whole or not at all.

Making one takes a dozen files, and the power may fail between any two of them. So the first thing on disk is a marker
that says "unfinished", and its removal is the last: no daemon starts while it is there, and the next `init` or `join`
takes what it finds beside it for its own leavings. It is put only where none of those files was before, so nothing of
anybody's is ever removed. (Building elsewhere and renaming would not do where the home is a mount point.)
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from node.errors import StartError
from node.home import Home
from node.private_file import sync_directory, write_atomic

_SQLITE_SUFFIXES = ("-journal", "-wal", "-shm")


@contextmanager
def making(path: Path) -> Iterator[Home]:
    """Give a home to fill; it is a home, on disk, when the block has ended, and nothing of it is left if it fails.

    Raises:
        StartError: the home belongs to a mesh already, another process has it, or it cannot be written.
    """
    home = Home.create(path)
    with home.lock():
        _remove_halves(home.unfinished)
        if home.unfinished.exists():
            _remove(home)
        refuse_used(home)
        write_atomic(home.unfinished, b"")
        try:
            yield home
            sync_directory(home.path)
            with suppress(PermissionError):  # a parent that this user may only pass through
                sync_directory(home.path.parent)
        except BaseException:
            _remove(home)
            raise
        home.unfinished.unlink()
        sync_directory(home.path)


def refuse_used(home: Home) -> None:
    """Check that a home belongs to no mesh yet, and that there is nothing in it that a new one would replace.

    Raises:
        StartError: it does, or there is.
    """
    if home.unfinished.exists():
        return
    for path in (home.identity_key, home.database):
        if path.exists():
            raise StartError(
                f"home {home.path} belongs to a mesh already ({path.name} is there); name another with --home"
            )
    for path in _made(home):
        if path.exists():
            raise StartError(f"there is a file {path} already, expected none; move it away first")


def _made(home: Home) -> tuple[Path, ...]:
    return (home.identity_key, home.human_key, home.recovery, home.config, home.api_keys, home.database)


def _remove(home: Home) -> None:
    """Remove what was made, and the marker only when all of that is gone."""
    for path in _made(home):
        path.unlink(missing_ok=True)
        _remove_halves(path)
    for suffix in _SQLITE_SUFFIXES:
        home.database.with_name(home.database.name + suffix).unlink(missing_ok=True)
    sync_directory(home.path)
    home.unfinished.unlink(missing_ok=True)
    sync_directory(home.path)


def _remove_halves(path: Path) -> None:
    """Remove what a file was being written as, under another name, when that broke off."""
    for half in path.parent.glob(f".{path.name}.*"):
        half.unlink()
