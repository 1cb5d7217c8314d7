import json
import sys
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from protocol import limits
from protocol.envelope import decode, encode, open_sealed, seal
from protocol.errors import LocalProtocolError
from protocol.identity import Identity
from protocol.messages import (
    BY_KIND,
    MESSAGES,
    Admitted,
    Card,
    Decline,
    Entry,
    JobFrame,
    Message,
    Owner,
    Refusal,
    Revocation,
)

VECTORS = Path(__file__).parent.parent / "vectors"
sys.path.insert(0, str(VECTORS))

from make_vectors import make, plain  # noqa: E402  (found through the line above)

ANN = Identity(b"\x01" * 32)
FRAMES = {frame.__struct_config__.tag: frame for frame in get_args(JobFrame)}


def vector(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    return read


def test_every_kind_and_frame_has_a_vector() -> None:
    names = {path.stem for path in VECTORS.glob("*.json")}

    assert names == {*BY_KIND, *(f"frame_{tag}" for tag in FRAMES)}


@pytest.mark.parametrize("kind", BY_KIND)
def test_golden_bytes_open_to_the_message_that_stands_beside_them(kind: str) -> None:
    golden = vector(kind)

    sealed = open_sealed(bytes.fromhex(golden["hex"]), mesh=bytes.fromhex(golden["mesh"]))

    assert type(sealed.message) is BY_KIND[kind]
    assert plain(sealed.message) == golden["json"]
    assert (sealed.sender, sealed.id.hex()) == (golden["sender"], golden["id"])
    assert (str(sealed.boot), sealed.counter, sealed.time_ms) == (
        golden["boot"],
        golden["counter"],
        golden["time_ms"],
    )


@pytest.mark.parametrize("kind", BY_KIND)
def test_sealing_again_gives_the_golden_bytes(kind: str) -> None:
    golden = vector(kind)
    mesh = bytes.fromhex(golden["mesh"])
    message = open_sealed(bytes.fromhex(golden["hex"]), mesh=mesh).message

    again = seal(
        message,
        Identity(bytes.fromhex(golden["seed"])),
        mesh=mesh,
        seq=(int(golden["boot"]), golden["counter"]),
        time_ms=golden["time_ms"],
        ttl_ms=golden["ttl_ms"],
    )

    assert again.raw.hex() == golden["hex"]


@pytest.mark.parametrize("tag", FRAMES)
def test_golden_frames_decode_and_encode_to_themselves(tag: str) -> None:
    golden = vector(f"frame_{tag}")

    frame = decode(bytes.fromhex(golden["hex"]), JobFrame)

    assert type(frame) is FRAMES[tag]
    assert plain(frame) == golden["json"]
    assert encode(frame).hex() == golden["hex"]


def test_the_vectors_are_what_their_script_writes() -> None:
    """Who changes a message runs the script, and its diff shows what changed on the wire."""
    assert {name: vector(name) for name in make()} == make()


def test_no_two_messages_share_a_kind() -> None:
    assert len(BY_KIND) == len(MESSAGES)


def test_entries_are_durable_and_belong_to_a_log() -> None:
    for form in MESSAGES:
        if issubclass(form, Entry):
            assert not form.live, form
            assert form.log in {"assembly", "bilateral"}


def test_evidence_has_room_for_two_of_every_bilateral_entry() -> None:
    envelope = 512  # what an envelope adds to the two it carries

    for form in MESSAGES:
        if issubclass(form, Entry) and form.kind in {"award", "accept", "receipt"}:
            assert form.bytes_max <= limits.MARKET_BYTES_MAX
    assert 2 * limits.MARKET_BYTES_MAX + envelope <= BY_KIND["evidence"].bytes_max


@pytest.mark.parametrize("name", ["tiny\n", "", ".hidden", "a/b", "a" * 65, "ä"])
def test_a_name_is_one_plain_word(name: str) -> None:
    """It becomes a file's name and a line of a table."""
    card = Card(index=0, prev=bytes(32), name=name, model=bytes(32))

    with pytest.raises(LocalProtocolError):
        seal(card, Identity(bytes(32)), mesh=bytes(32), seq=(1, 1), time_ms=0)


def test_what_a_field_refuses_is_refused_before_it_is_signed() -> None:
    """A durable entry that no peer opens would end its author's log for ever."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert("o" * (limits.OWNER_CHARS_MAX + 1), Owner)

    refusal = BY_KIND["refusal"](reason="r" * 33, detail="")

    with pytest.raises(LocalProtocolError, match="refused by every peer"):
        seal(refusal, Identity(bytes(32)), mesh=bytes(32), seq=(1, 1), time_ms=0)


LONGEST = "𝄞" * limits.DETAIL_CHARS_MAX  # four bytes each


@pytest.mark.parametrize(
    "message",
    [
        Refusal(reason="𝄞" * 32, detail=LONGEST),
        Decline(request=bytes(32), reason="model_missing", detail=LONGEST),
        Revocation(index=2**53, prev=bytes(32), peer=ANN.peer_id, reason=LONGEST),
        Admitted(
            index=2**53,
            prev=bytes(32),
            peer=ANN.peer_id,
            owner="𝄞" * limits.OWNER_CHARS_MAX,
            credit_line_micro=2**53,
            invitation_id=bytes(16),
        ),
    ],
    ids=lambda message: message.kind,
)
def test_the_longest_text_that_a_field_allows_fits_its_message(message: Message) -> None:
    """Else a reason in Japanese would fail where one in English passes."""
    assert seal(message, ANN, mesh=bytes(32), seq=(2**62, 2**62), time_ms=2**53, ttl_ms=2**53)
