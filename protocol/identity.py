"""One Ed25519 key per device: it is the libp2p identity, and it signs every envelope.

A peer id is libp2p's: the base58 text of an identity multihash over the protobuf form of the public key. For Ed25519
the public key stands in the id, so an id alone is enough to verify a signature.

Source: libp2p peer id specification, https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NewType

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocol.errors import BadSignature, MalformedMessage

PeerId = NewType("PeerId", str)
PublicKey = NewType("PublicKey", bytes)  # 32 bytes, raw Ed25519

SIGNATURE_BYTES = 64
PUBLIC_KEY_BYTES = 32
SEED_BYTES = 32

# multihash: identity code 0x00, length 36; protobuf: field 1 (type) = Ed25519 (1), field 2 (data) of 32 bytes
_PEER_ID_PREFIX = bytes((0x00, 0x24, 0x08, 0x01, 0x12, 0x20))


@dataclass(frozen=True)
class Identity:
    """A private key and what follows from it. `seed` is the 32-byte Ed25519 seed; it is never printed."""

    seed: bytes

    @classmethod
    def generate(cls) -> "Identity":
        """Return a new identity from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"

    @cached_property
    def _private_key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    @cached_property
    def public_key(self) -> PublicKey:
        """The raw 32-byte public key."""
        return PublicKey(self._private_key.public_key().public_bytes_raw())

    @cached_property
    def peer_id(self) -> PeerId:
        """The libp2p peer id of this key."""
        return peer_id_of(self.public_key)

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature over the exact bytes."""
        return self._private_key.sign(data)


@lru_cache(maxsize=32_768)
def peer_id_of(public_key: PublicKey) -> PeerId:
    """Return the peer id of a raw 32-byte Ed25519 public key."""
    return PeerId(base58.b58encode(_PEER_ID_PREFIX + public_key).decode("ascii"))


@lru_cache(maxsize=32_768)
def public_key_of(peer_id: PeerId) -> PublicKey:
    """Return the raw public key that stands in an Ed25519 peer id.

    Raises:
        MalformedMessage: not base58, or not the id of an Ed25519 key.
    """
    try:
        raw = base58.b58decode(peer_id) if len(peer_id) <= 64 else b""
    except ValueError:
        raw = b""
    if len(raw) != len(_PEER_ID_PREFIX) + PUBLIC_KEY_BYTES or not raw.startswith(_PEER_ID_PREFIX):
        raise MalformedMessage(f"peer id {peer_id[:64]!r} is not that of an Ed25519 key")
    return PublicKey(raw[len(_PEER_ID_PREFIX) :])


def verify(public_key: PublicKey, signature: bytes, data: bytes) -> None:
    """Check one signature over the exact bytes.

    Raises:
        BadSignature: it does not hold, or the key is not a point on the curve.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError) as error:
        raise BadSignature(f"signature of {peer_id_of(public_key)} does not hold") from error
