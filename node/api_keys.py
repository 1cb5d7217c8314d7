"""API keys of the gateway: 256 random bits, shown once, kept as their SHA-256.

A key that long needs no slow hash. Looking one up by its hash leaks nothing by its timing: who could steer the hash of
a guess towards a kept one could invert SHA-256. The file is edited by the command line while the daemon runs; the
daemon notices by its time stamp.
"""

import fcntl
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from node.errors import StartError
from node.private_file import read_private, write_atomic
from protocol.errors import AgoraError

PREFIX = "agora_"
NAME_CHARS_MAX = 64
KEYS_MAX = 1_000  # a file this program would still read at each change
_FILE_BYTES_MAX = 1024 * 1024


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a key after it was shown.

    Attributes:
        id: names it in `keys revoke`.
        created: UTC, ISO 8601.
        last_four: the key's last characters, so that its owner recognises it.
        sha256: of the whole key, hex.
    """

    id: str
    name: str
    created: str
    last_four: str
    sha256: str


class ApiKeyError(AgoraError):
    """A key that cannot be made: a name that is none, or too many keys."""


class NoSuchKey(ApiKeyError):
    """There is no API key with this id."""


class ApiKeys:
    """The keys in one file, which need not exist: then there are none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._by_hash: dict[str, ApiKey] = {}

    def create(self, name: str, *, now: datetime | None = None) -> tuple[ApiKey, str]:
        """Return a new key's record and the key itself, which nobody can show again.

        Raises:
            ApiKeyError: the name is empty, too long or not printable, or there are too many keys.
            StartError: the file may not be read, or is damaged.
        """
        if not (name and name.isprintable() and len(name) <= NAME_CHARS_MAX):
            raise ApiKeyError(
                f"key name {name[:NAME_CHARS_MAX]!r}, expected 1 to {NAME_CHARS_MAX} printable characters"
            )
        secret = PREFIX + secrets.token_urlsafe(32)
        created = (now or datetime.now(UTC)).isoformat(timespec="seconds")
        key = ApiKey(secrets.token_hex(4), name, created, secret[-4:], _sha256(secret))
        with _editing(self._path) as keys:
            if len(keys) >= KEYS_MAX:
                raise ApiKeyError(
                    f"{self._path} holds {len(keys)} keys, expected {KEYS_MAX} at most; revoke some"
                )
            keys.append(key)
        return key, secret

    def list(self) -> tuple[ApiKey, ...]:
        """Return all keys, oldest first.

        Raises:
            StartError: the file may not be read, or is damaged.
        """
        self._refresh()
        return tuple(self._by_hash.values())

    def revoke(self, key_id: str) -> ApiKey:
        """Forget a key: it opens nothing from now on.

        Raises:
            NoSuchKey: no key has this id.
            StartError: the file may not be read, or is damaged.
        """
        with _editing(self._path) as keys:
            for key in keys:
                if key.id == key_id:
                    keys.remove(key)
                    return key
            raise NoSuchKey(f"no API key {key_id[:NAME_CHARS_MAX]!r}; 'agora keys list' shows their ids")

    def check(self, secret: str) -> ApiKey | None:
        """Return the key that this is, or None: cheap enough for each request. A file gone bad opens to nobody."""
        try:
            self._refresh()
        except StartError:
            return None
        found_hash = _sha256(secret)
        key = self._by_hash.get(found_hash)
        return key if key is not None and hmac.compare_digest(key.sha256, found_hash) else None

    def _refresh(self) -> None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            self._stamp, self._by_hash = None, {}
            return
        stamp = (found.st_ino, found.st_ctime_ns, found.st_size)  # the change time: of `chmod` too
        if stamp != self._stamp:
            self._stamp, self._by_hash = None, {}
            self._by_hash = {key.sha256: key for key in _read(self._path)}
            self._stamp = stamp


def _read(path: Path) -> list[ApiKey]:
    data = read_private(path, what="API keys", size_bytes_max=_FILE_BYTES_MAX)
    try:
        return msgspec.json.decode(data, type=list[ApiKey])
    except msgspec.DecodeError as error:
        raise StartError(f"API keys {path} are damaged ({error}); restore a backup") from error


@contextmanager
def _editing(path: Path) -> Iterator[list[ApiKey]]:
    """Hold the directory against another editor, and write the list back if the block succeeds."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        keys = _read(path) if path.exists() else []
        yield keys
        write_atomic(path, msgspec.json.format(msgspec.json.encode(keys)))
    finally:
        os.close(fd)


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
