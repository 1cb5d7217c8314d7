"""The keys of a home: the device's, which the daemon uses, and the human's, which only the command line does.

`identity.key` holds the 32-byte Ed25519 seed as it is, or under a passphrase if the user wants one. `human.key` is
always under a passphrase: it approves and vetoes, and the daemon never loads it. `recovery.agora` belongs on paper and
a stick in a drawer: it can sign the charter's next version when the devices are lost.
"""

import secrets
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from node import secret_file
from node.errors import StartError
from node.home import Home
from node.private_file import read_private, write_atomic
from protocol.identity import SEED_BYTES, Identity

_DEVICE_KIND = "device-key"
_HUMAN_KIND = "human-key"
_RECOVERY_KIND = "recovery"
_KEY_FILE_BYTES_MAX = SEED_BYTES + secret_file.OVERHEAD_BYTES_MAX
_RECOVERY_FILE_BYTES_MAX = 64 * 1024  # two seeds and one charter

CODE_LETTERS = "ABCDEFGHJKMNPQRSTUVWXYZ"  # without I, L and O, which are read as digits
CODE_GROUPS = 6
CODE_GROUP_LETTERS = 5  # 30 letters of 23: 135 bits


def create_device_key(
    home: Home, passphrase: str | None = None, identity: Identity | None = None
) -> Identity:
    """Write a device key, a new one unless it is given, and return it.

    Raises:
        StartError: there is one already.
    """
    identity = identity or Identity.generate()
    data = identity.seed
    if passphrase is not None:
        data = secret_file.seal(data, passphrase, kind=_DEVICE_KIND)
    _write_new(home.identity_key, data, "device key")
    return identity


def load_device_key(home: Home, passphrase: str | None = None) -> Identity:
    """Return the device's identity.

    Raises:
        WrongPassphrase: it is under another passphrase.
        StartError: missing, too open, of the wrong length, or a passphrase is needed and none was given.
    """
    what = f"device key {home.identity_key}"
    data = read_private(home.identity_key, what="device key", size_bytes_max=_KEY_FILE_BYTES_MAX)
    if secret_file.is_sealed(data):
        if passphrase is None:
            raise StartError(f"{what} is under a passphrase and none was given; set AGORA_PASSPHRASE")
        data = secret_file.unseal(data, passphrase, kind=_DEVICE_KIND, what=what)
    if len(data) != SEED_BYTES:
        raise StartError(f"{what} has {len(data)} bytes, expected {SEED_BYTES}; restore a backup")
    return Identity(data)


def is_device_key_sealed(home: Home) -> bool:
    """Tell whether `load_device_key` needs a passphrase.

    Raises:
        StartError: missing or too open.
    """
    data = read_private(home.identity_key, what="device key", size_bytes_max=_KEY_FILE_BYTES_MAX)
    return secret_file.is_sealed(data)


def create_human_key(home: Home, passphrase: str, identity: Identity | None = None) -> Identity:
    """Write a human key under the passphrase and return it: a new one, or the one that a recovery file has kept.

    Raises:
        StartError: there is one already, or the passphrase is empty.
    """
    identity = identity or Identity.generate()
    _write_new(home.human_key, secret_file.seal(identity.seed, passphrase, kind=_HUMAN_KIND), "human key")
    return identity


def load_human_key(home: Home, passphrase: str) -> Identity:
    """Return the human's identity, for one signature.

    Raises:
        WrongPassphrase: it is under another.
        StartError: missing, too open, or not a human key.
    """
    what = f"human key {home.human_key}"
    data = read_private(home.human_key, what="human key", size_bytes_max=_KEY_FILE_BYTES_MAX)
    return Identity(secret_file.unseal(data, passphrase, kind=_HUMAN_KIND, what=what))


@dataclass(frozen=True)
class Recovery:
    """What signs the charter's next version when the devices are gone.

    Attributes:
        recovery_seed: of the key that stands in the charter's `recovery`.
        human_seed: of the human key, so that its owner need not be approved anew.
        charter: the sealed bytes of the charter when the file was written.
    """

    recovery_seed: bytes = field(repr=False)
    human_seed: bytes = field(repr=False)
    charter: bytes


def new_recovery_code() -> str:
    """Return a passphrase of 135 bits to write on paper: `KQXWR-…`, letters that are not mistaken for others."""
    groups = (
        "".join(secrets.choice(CODE_LETTERS) for _ in range(CODE_GROUP_LETTERS)) for _ in range(CODE_GROUPS)
    )
    return "-".join(groups)


def write_recovery(path: Path, recovery: Recovery, passphrase: str) -> None:
    """Write the recovery file under a recovery code or a passphrase of the user's own.

    Raises:
        StartError: there is a file already.
    """
    data = secret_file.seal(msgspec.msgpack.encode(recovery), _as_typed(passphrase), kind=_RECOVERY_KIND)
    _write_new(path, data, "recovery file")


def read_recovery(path: Path, passphrase: str) -> Recovery:
    """Return what the recovery file holds. A recovery code may be typed in any case, with or without dashes.

    Raises:
        WrongPassphrase: it is under another.
        StartError: missing, too open, or not a recovery file.
    """
    data = read_private(path, what="recovery file", size_bytes_max=_RECOVERY_FILE_BYTES_MAX)
    what = f"recovery file {path}"
    content = secret_file.unseal(data, _as_typed(passphrase), kind=_RECOVERY_KIND, what=what)
    try:
        return msgspec.msgpack.decode(content, type=Recovery)
    except msgspec.DecodeError as error:
        raise StartError(f"{what} holds something else than expected ({error}); update agora-node") from error


def _as_typed(passphrase: str) -> str:
    """Return a recovery code in its one form; any other passphrase as it is."""
    letters = [char for char in passphrase.upper() if char not in " -\t"]
    is_code = len(letters) == CODE_GROUPS * CODE_GROUP_LETTERS and set(letters) <= set(CODE_LETTERS)
    return "".join(letters) if is_code else passphrase


def _write_new(path: Path, data: bytes, what: str) -> None:
    if path.exists():
        raise StartError(f"there is a {what} {path} already, expected none; move it away first")
    write_atomic(path, data)
