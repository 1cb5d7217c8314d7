import base58
import pytest

from protocol.errors import BadSignature, MalformedMessage
from protocol.identity import Identity, PeerId, PublicKey, peer_id_of, public_key_of, verify

ANN = Identity(b"\x01" * 32)


def test_a_peer_id_is_libp2ps_for_the_same_key() -> None:
    """The public key of RFC 8032's first test vector, and its id as libp2p writes it."""
    identity = Identity(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))

    assert identity.public_key.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert identity.peer_id == base58.b58encode(bytes.fromhex("002408011220") + identity.public_key).decode()
    assert identity.peer_id.startswith("12D3KooW")
    assert len(identity.peer_id) == 52


def test_a_peer_id_brings_back_its_key() -> None:
    assert public_key_of(ANN.peer_id) == ANN.public_key
    assert peer_id_of(public_key_of(ANN.peer_id)) == ANN.peer_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0OIl",
        "12D3KooW",
        "12D3KooW" + "z" * 44,
        "Qm" + "1" * 44,
        "1" * 52,
        "1" * 100_000,
        "é" * 52,
        base58.b58encode(bytes.fromhex("002408021220") + bytes(32)).decode(),
    ],
)
def test_what_is_no_ed25519_peer_id_is_refused(text: str) -> None:
    with pytest.raises(MalformedMessage, match="peer id"):
        public_key_of(PeerId(text))


def test_a_signature_holds_for_its_exact_bytes_only() -> None:
    signature = ANN.sign(b"data")

    verify(ANN.public_key, signature, b"data")
    for wrong in (
        (ANN.public_key, signature, b"datA"),
        (ANN.public_key, bytes(64), b"data"),
        (ANN.public_key, signature[:-1], b"data"),
        (Identity(b"\x02" * 32).public_key, signature, b"data"),
        (PublicKey(b"\xff" * 32), signature, b"data"),
    ):
        with pytest.raises(BadSignature):
            verify(*wrong)


def test_a_signature_has_one_form_only() -> None:
    """Adding the group's order to S gives a second valid-looking signature: it would pass a dedupe by hash."""
    order = 2**252 + 27742317777372353535851937790883648493
    signature = ANN.sign(b"data")
    s = int.from_bytes(signature[32:], "little") + order
    malleable = signature[:32] + s.to_bytes(32, "little")

    with pytest.raises(BadSignature):
        verify(ANN.public_key, malleable, b"data")


def test_printing_an_identity_does_not_print_its_seed() -> None:
    secret = Identity(b"\x41" * 32)

    assert "A" * 8 not in f"{secret!r} {secret}"
    assert secret.seed.hex() not in repr(secret)
    assert repr(secret) == f"Identity({secret.peer_id})"


def test_generated_identities_differ() -> None:
    assert Identity.generate().peer_id != Identity.generate().peer_id
