"""The home directory: where everything that a device keeps lies, who may read it, and which daemon has it.

One home belongs to one user (0700) and to one running daemon (`daemon.lock`). Each check that fails refuses the start
with one line; nothing is repaired behind the user's back, since a key that others could read may have been read.
"""

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from node.errors import StartError
from node.private_file import check_not_world_writable, check_owner, check_private, write_atomic

SOCKET_PATH_BYTES_MAX = 107  # sun_path has 108 with the final zero: Linux refuses more


@dataclass(frozen=True)
class Home:
    """The directory and the names in it."""

    path: Path

    @classmethod
    def locate(cls, option: str | Path | None, environ: Mapping[str, str]) -> Self:
        """Return the home that `--home`, else AGORA_HOME, else the default names; it need not exist."""
        named = option or environ.get("AGORA_HOME") or "~/.agora"
        return cls(Path(named).expanduser().absolute())

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make the directory, 0700, if it is not there, and return it checked.

        Raises:
            StartError: it cannot be made, or what is there may not be used.
        """
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StartError(
                f"cannot make home {path} ({error.strerror}), expected a directory of yours"
            ) from error
        home = cls(path)
        home.check_place()
        return home

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return an existing home after checking the directory and the modes of what lies in it.

        Raises:
            StartError: missing, not a directory, somebody else's, open to others, or never finished.
        """
        home = cls(path)
        home.check()
        return home

    @property
    def identity_key(self) -> Path:
        """The device's key: libp2p identity and signer of envelopes."""
        return self.path / "identity.key"

    @property
    def human_key(self) -> Path:
        """The person's key, always under a passphrase; the daemon never reads it."""
        return self.path / "human.key"

    @property
    def recovery(self) -> Path:
        """The encrypted recovery file that `agora init` writes; better kept elsewhere."""
        return self.path / "recovery.agora"

    @property
    def config(self) -> Path:
        """What the user chose."""
        return self.path / "config.toml"

    @property
    def api_keys(self) -> Path:
        """Hashes of the gateway's API keys."""
        return self.path / "api_keys.json"

    @property
    def database(self) -> Path:
        """The store: everything that was acknowledged."""
        return self.path / "agora.db"

    @property
    def journal(self) -> Path:
        """What happened, newest file."""
        return self.path / "journal.jsonl"

    @property
    def models(self) -> Path:
        """GGUF files and their index."""
        return self.path / "models"

    @property
    def blobs(self) -> Path:
        """Adapters, public sets and checkpoints by digest; any member may have them."""
        return self.path / "blobs"

    @property
    def data(self) -> Path:
        """Frozen copies of private data; nobody else has them."""
        return self.path / "data"

    @property
    def tolerances(self) -> Path:
        """What `agora calibrate` measured: how far honest engines are apart."""
        return self.path / "tolerances.json"

    @property
    def unfinished(self) -> Path:
        """There while `init` or `join` makes this home, and after one that broke off; see `new_home.py`."""
        return self.path / "unfinished"

    @property
    def lock_file(self) -> Path:
        """Held by the running daemon, whose pid is in it."""
        return self.path / "daemon.lock"

    @property
    def admin_socket(self) -> Path:
        """Where the admin socket is: in the home, or where the daemon wrote that it had to put it instead."""
        try:
            return Path(os.fsdecode(self._socket_pointer.read_bytes()))
        except OSError:
            return self.path / "admin.sock"

    def check(self) -> None:
        """See `open`."""
        self.check_place()
        if self.unfinished.exists():
            raise StartError(
                f"home {self.path} was never finished: the 'agora init' or 'agora join' that made it broke off; "
                "run it again"
            )

    def check_place(self) -> None:
        """Check all but whether it was finished.

        Raises:
            StartError: see `open`.
        """
        try:
            found = self.path.stat()
        except FileNotFoundError:
            raise StartError(
                f"no home {self.path}; run 'agora init' or 'agora join', or name another with --home"
            ) from None
        except OSError as error:
            raise StartError(f"cannot read home {self.path} ({error.strerror})") from error
        if not stat.S_ISDIR(found.st_mode):
            raise StartError(f"home {self.path} is a file, expected a directory; name another with --home")
        check_owner(self.path, found)
        if found.st_mode & 0o077:
            raise StartError(
                f"home {self.path} has mode {stat.S_IMODE(found.st_mode):04o}, expected 0700; "
                f"run 'chmod 700 {self.path}'"
            )
        for key in (self.identity_key, self.human_key, self.api_keys):
            if key.exists():
                check_private(key, key.stat())
        if self.config.exists():
            check_not_world_writable(self.config, self.config.stat())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the home for one daemon; the system lets go when the process ends, however it ends.

        Raises:
            StartError: another process holds it.
        """
        try:
            fd = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StartError(
                f"cannot open {self.lock_file} ({error.strerror}), expected a file of yours"
            ) from error
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.pread(fd, 16, 0).decode("ascii", "replace").strip() or "?"
                raise StartError(
                    f"home {self.path} is in use by pid {pid}, expected one daemon a home; "
                    "stop it or name another with --home"
                ) from None
            with suppress(OSError):  # a full disk: the lock holds without the pid for the message
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(fd)

    def holder(self) -> int | None:
        """Return the pid of the daemon that holds this home, or None if none runs."""
        try:
            fd = os.open(self.lock_file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(fd, 16, 0)
            return int(text) if text.strip().isdigit() else 0
        finally:
            os.close(fd)
        return None

    @contextmanager
    def bind_admin(self, environ: Mapping[str, str]) -> Iterator[Path]:
        """Give the path to bind the admin socket to, free of what an earlier daemon left; call it under `lock`.

        A home whose path is too long for a socket gets a new directory, 0700, in XDG_RUNTIME_DIR or the system's
        temporary one. Its name cannot be guessed, so nobody can be there first; `admin.path` in the home says it.
        """
        self._forget_socket()
        path = self.path / "admin.sock"
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
            directory = tempfile.mkdtemp(prefix="agora-", dir=_runtime_directory(environ))
            path = Path(directory) / "admin.sock"
            write_atomic(self._socket_pointer, os.fsencode(path))
        try:
            yield path
        finally:
            self._forget_socket()

    @property
    def _socket_pointer(self) -> Path:
        return self.path / "admin.path"

    def _forget_socket(self) -> None:
        path = self.admin_socket
        path.unlink(missing_ok=True)
        if path.parent != self.path:
            with suppress(OSError):  # the system may have emptied its temporary directory
                path.parent.rmdir()
        self._socket_pointer.unlink(missing_ok=True)


def _runtime_directory(environ: Mapping[str, str]) -> str:
    """Return where short-lived sockets of this user go, if its own path leaves room for one."""
    for directory in (environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir()):
        if directory and os.path.isabs(directory) and os.access(directory, os.W_OK) and len(directory) < 80:  # noqa: PTH117
            return directory
    return "/tmp"  # noqa: S108  # mkdtemp makes a private directory in it
