"""One encrypted file with everything of a home that cannot be had again: keys, settings, private data and the database.

Models and blobs are not in it: any holder has them, by digest. Private data is: nobody else has the records, and without
what is known of them a restored device would forget which of them it has spent privacy on. It may be made while the daemon runs. What is
written is read back and compared first, and a file or a home that is there already is never overwritten.

A restored home starts like any other; that it does not fork its own log is the protocol's care.
"""

import os
import re
import shutil
import sqlite3
import tempfile
import zlib
from contextlib import closing, suppress
from pathlib import Path

import msgspec

from node import database, secret_file
from node.clock import SystemClock
from node.config import Config
from node.data_directory import DataDirectory
from node.errors import StartError
from node.home import Home
from node.keys import is_device_key_sealed, load_device_key
from node.private_file import sync_directory, write_atomic

BACKUP_BYTES_MAX = 1024**3  # read into memory; a ledger of a million jobs is well under it
_VERSION = 1
_KIND = "backup"
_DATA_NAME = re.compile(r"data/(salt|[0-9a-f]{64}/(hashes|card\.json|train\.jsonl|held_out\.jsonl))\Z")


class _Contents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is inside: the home's files by name, those of private data by their path in it."""

    version: int
    files: dict[str, bytes]


def backup(home: Home, destination: Path, passphrase: str) -> None:
    """Write the backup of a home, whether its daemon runs or not.

    Raises:
        StartError: the home is not sound, the destination exists or cannot be written, or the passphrase is empty.
    """
    home.check()
    files = {path.name: path.read_bytes() for path in _plain_files(home) if path.exists()}
    files |= _data_files(home)  # before the database: what is spent on a set is never older than the set
    if home.database.exists():
        files[home.database.name] = _snapshot(home.database)
    packed = zlib.compress(msgspec.msgpack.encode(_Contents(_VERSION, files)))
    if len(packed) > BACKUP_BYTES_MAX:
        raise StartError(
            f"the backup of {home.path} has {len(packed)} bytes, expected {BACKUP_BYTES_MAX} at most"
        )
    sealed = secret_file.seal(packed, passphrase, kind=_KIND)
    if secret_file.unseal(sealed, passphrase, kind=_KIND, what="the new backup") != packed:
        raise StartError(
            "the new backup does not read back as it was written; is this machine's memory sound?"
        )
    _write_new(destination, sealed)


def restore(source: Path, home_path: Path, passphrase: str) -> Home:
    """Make a home out of a backup; all of it is checked before the home appears, under its name, at once.

    Raises:
        WrongPassphrase: or the file is damaged.
        StartError: the home is there already, or the backup is not one that this program can use.
    """
    if home_path.exists() and not (home_path.is_dir() and not any(home_path.iterdir())):
        raise StartError(
            f"there is a home {home_path} already, expected none; move it away or name another with --home"
        )
    contents = _read(source, passphrase)
    try:
        home_path.parent.mkdir(parents=True, exist_ok=True)
        staging = Home(Path(tempfile.mkdtemp(prefix=f".{home_path.name}.", dir=home_path.parent)))
    except OSError as error:
        raise StartError(
            f"cannot restore to {home_path} ({error.strerror}), expected a place of yours"
        ) from error
    try:
        for name, data in contents.files.items():
            (staging.path / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(staging.path / name, data)
        _check(staging)
        staging.path.replace(home_path)
    except BaseException as error:
        shutil.rmtree(staging.path, ignore_errors=True)
        if isinstance(error, OSError):
            raise StartError(f"cannot restore to {home_path} ({error.strerror}); check free space") from error
        raise
    sync_directory(home_path.parent)
    return Home.open(home_path)


def _plain_files(home: Home) -> tuple[Path, ...]:
    return (home.identity_key, home.human_key, home.recovery, home.config, home.api_keys)


def _data_files(home: Home) -> dict[str, bytes]:
    """Return what is kept of private data; a set that is being added or removed just now is there before or after."""
    files = {}
    for path in sorted(
        home.data.rglob("*"), reverse=True
    ):  # the card, which says what is there, as the last of a set
        name = path.relative_to(home.path).as_posix()
        if _DATA_NAME.match(name):
            with suppress(FileNotFoundError):
                files[name] = path.read_bytes()
    return files


def _snapshot(path: Path) -> bytes:
    """Return the database as of now, the write-ahead log folded in; a running daemon is not held up."""
    database.check_file(path)
    with (
        closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source,
        closing(sqlite3.connect(":memory:")) as copy,
    ):
        source.backup(copy)
        return copy.serialize()


def _read(source: Path, passphrase: str) -> _Contents:
    what = f"backup {source}"
    try:
        with source.open("rb") as file:
            sealed = file.read(BACKUP_BYTES_MAX + secret_file.OVERHEAD_BYTES_MAX)
    except OSError as error:
        raise StartError(
            f"cannot read {what} ({error.strerror}), expected a file that 'agora backup' wrote"
        ) from error
    packed = secret_file.unseal(sealed, passphrase, kind=_KIND, what=what)
    try:
        contents = msgspec.msgpack.decode(zlib.decompress(packed), type=_Contents)
    except (zlib.error, msgspec.DecodeError) as error:
        raise StartError(f"{what} holds something else than expected ({error}); update agora-node") from error
    if contents.version != _VERSION:
        raise StartError(f"{what} has version {contents.version}, expected {_VERSION}; update agora-node")
    known = Home(Path())
    names = {path.name for path in (*_plain_files(known), known.database)}
    foreign = {name for name in contents.files if name not in names and not _DATA_NAME.match(name)}
    if foreign or known.identity_key.name not in contents.files:
        raise StartError(f"{what} holds other files than a home's, expected {', '.join(sorted(names))}")
    return contents


def _check(home: Home) -> None:
    """Refuse what a daemon could not start from."""
    home.check()
    if not is_device_key_sealed(home):
        load_device_key(home)
    Config.load(home.config)
    if home.data.exists():
        DataDirectory(home.data, SystemClock())
    if home.database.exists():
        database.check_file(home.database)
        for left_by_the_check in ("-shm", "-wal"):
            home.database.with_name(home.database.name + left_by_the_check).unlink(missing_ok=True)


def _write_new(destination: Path, data: bytes) -> None:
    """Write a file that must not exist, whole or not at all."""
    try:
        os.close(
            os.open(destination, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        )  # the name is ours
    except FileExistsError:
        raise StartError(
            f"there is a file {destination} already, expected none; choose another name"
        ) from None
    except OSError as error:
        raise StartError(
            f"cannot write {destination} ({error.strerror}), expected a directory of yours"
        ) from error
    try:
        write_atomic(destination, data)
    except BaseException as error:
        with suppress(OSError):
            destination.unlink()
        if isinstance(error, OSError):
            raise StartError(f"cannot write {destination} ({error.strerror}); check free space") from error
        raise
