"""A secret under a passphrase: one line of header, then the sealed bytes.

The header says how the key was derived; it is authenticated with the content. Only the one set of costs that this
program writes is accepted: a file that names its own would let whoever swapped it spend our memory, or weaken it.

Source: scrypt, RFC 7914; ChaCha20-Poly1305, RFC 8439.
"""

import json
import os
import unicodedata

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from node.errors import StartError

HEADER_BYTES_MAX = 512
OVERHEAD_BYTES_MAX = HEADER_BYTES_MAX + 16
_SALT_BYTES = 16
_NONCE_BYTES = 12
_MAGIC = b'{"agora":"'
_VERSION = 1
_COSTS = {"kdf": "scrypt", "n": 2**17, "r": 8, "p": 1}  # 128 MiB and a third of a second for each guess


class WrongPassphrase(StartError):
    """It does not open the file; a damaged file cannot be told from it."""


def is_sealed(data: bytes) -> bool:
    """Tell whether these are the bytes of a file under a passphrase."""
    return data.startswith(_MAGIC)


def seal(secret: bytes, passphrase: str, *, kind: str) -> bytes:
    """Return the secret under the passphrase; `kind` ("human-key", "backup"…) keeps one file from posing as another.

    Raises:
        StartError: the passphrase is empty.
    """
    if not passphrase:
        raise StartError("the passphrase is empty, expected at least one character")
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    fields = {"agora": kind, "version": _VERSION, **_COSTS, "salt": salt.hex(), "nonce": nonce.hex()}
    header = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
    return header + ChaCha20Poly1305(_derive(passphrase, salt)).encrypt(nonce, secret, header)


def unseal(data: bytes, passphrase: str, *, kind: str, what: str) -> bytes:
    """Return the secret; `what` names the file in errors: "human key /home/ann/.agora/human.key".

    Raises:
        WrongPassphrase: or the file is damaged.
        StartError: another kind of file, a newer version, or none of ours.
    """
    end = data.find(b"\n", 0, HEADER_BYTES_MAX) + 1
    salt, nonce = _read_header(data[:end], kind, what)
    try:
        return ChaCha20Poly1305(_derive(passphrase, salt)).decrypt(nonce, data[end:], data[:end])
    except InvalidTag:
        raise WrongPassphrase(f"wrong passphrase for {what}, or the file is damaged") from None


def _read_header(header: bytes, kind: str, what: str) -> tuple[bytes, bytes]:
    try:
        fields = json.loads(header)
        found, version = fields["agora"], fields["version"]
        salt, nonce = bytes.fromhex(fields["salt"]), bytes.fromhex(fields["nonce"])
    except (ValueError, TypeError, KeyError):
        raise StartError(f"{what} is not a file that agora wrote, expected its header line") from None
    if found != kind:
        raise StartError(f"{what} is of kind {str(found)[:32]!r}, expected {kind!r}")
    if version != _VERSION:
        raise StartError(f"{what} has version {str(version)[:8]!r}, expected {_VERSION}; update agora-node")
    if any(fields.get(name) != cost for name, cost in _COSTS.items()) or len(salt) != _SALT_BYTES:
        raise StartError(f"{what} names other key derivation costs than agora writes; restore a backup")
    if len(nonce) != _NONCE_BYTES:
        raise StartError(
            f"{what} has a nonce of {len(nonce)} bytes, expected {_NONCE_BYTES}; restore a backup"
        )
    return salt, nonce


def _derive(passphrase: str, salt: bytes) -> bytes:
    # the same passphrase typed on another system may arrive composed differently
    text = unicodedata.normalize("NFKC", passphrase)
    kdf = Scrypt(salt=salt, length=32, n=2**17, r=8, p=1)
    return kdf.derive(text.encode("utf-8", "surrogatepass"))
