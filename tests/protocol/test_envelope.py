import tracemalloc

import msgpack
import pytest
from envelope_forge import ANN, BOB, DURABLE, EVE, LIVE, MESH, NOON, fields, forge, sign

from protocol import limits
from protocol.envelope import Gate, Sealed, Sequence, decode, encode, open_sealed, seal
from protocol.errors import (
    BadSignature,
    Expired,
    ForeignMesh,
    LocalProtocolError,
    MalformedMessage,
    RemoteProtocolError,
    Replayed,
    TooLarge,
    TooManyMessages,
)
from protocol.identity import PeerId
from protocol.messages import Cancel, JobFrame, Message, SamplingTerms, TokensFrame, Turn, Work

KINDS = frozenset({"cancel", "card"})
DAN = PeerId("12D3KooWdan")  # who delivers; only a name to the gate


def admit(
    gate: Gate, raw: bytes, *, by: PeerId = DAN, now: float = 0.0, utc_ms: int = NOON
) -> Sealed[Message]:
    return gate.admit(raw, delivered_by=by, kinds=KINDS, now=now, utc_ms=utc_ms)


def learned(gate: Gate) -> tuple[object, ...]:
    """What a gate remembers of senders: nothing of it may change before a signature holds."""
    return (
        {key: vars(window).copy() for key, window in gate._windows.items()},
        dict(gate._seen),
        dict(gate._author_rates._buckets),
    )


# --- sealing and opening ----------------------------------------------------------------------------------------------
def test_what_is_sealed_opens_to_the_same_value() -> None:
    sealed = seal(LIVE, ANN, mesh=MESH, seq=(9, 1), time_ms=NOON, ttl_ms=5)

    assert open_sealed(sealed.raw, mesh=MESH) == sealed
    assert (sealed.sender, sealed.expires_ms) == (ANN.peer_id, NOON + 5)


def test_sequence_numbers_count_within_a_boot() -> None:
    sequence = Sequence(9)

    assert [sequence.next(), sequence.next()] == [(9, 1), (9, 2)]


def test_an_id_hashes_the_content_and_not_the_signature() -> None:
    """Else whoever can sign twice has two ids for one word."""
    sealed = seal(LIVE, ANN, mesh=MESH, seq=(9, 1), time_ms=NOON)
    other = seal(LIVE, ANN, mesh=b"\x08" * 32, seq=(9, 1), time_ms=NOON)

    assert sealed.id == open_sealed(sealed.raw, mesh=MESH).id
    assert sealed.id != other.id


def test_a_message_over_its_kinds_size_is_not_sealed() -> None:
    work = Work(
        award=bytes(32),
        job_id=bytes(16),
        attempt=1,
        turns=(Turn(role="user", content="x" * limits.PROMPT_BYTES_MAX),),
        completion_tokens_max=1,
        sampling=SamplingTerms(),
        stop=(),
        received=(),
    )

    with pytest.raises(LocalProtocolError, match="at most"):
        seal(work, ANN, mesh=MESH, seq=(9, 1), time_ms=NOON)


# --- form -------------------------------------------------------------------------------------------------------------
def packed_map(*pairs: tuple[bytes, bytes]) -> bytes:
    return bytes([0x80 | len(pairs)]) + b"".join(key + value for key, value in pairs)


HONEST = fields()
PAIRS = [(msgpack.packb(key), msgpack.packb(value)) for key, value in HONEST.items()]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xc1", id="no MessagePack"),
        pytest.param(msgpack.packb([1, 2]), id="a list"),
        pytest.param(msgpack.packb(HONEST) + b"\xc0", id="trailing bytes"),
        pytest.param(msgpack.packb(HONEST)[:-1], id="cut off"),
        pytest.param(packed_map(*PAIRS, PAIRS[0]), id="a duplicate key"),
        pytest.param(packed_map(*PAIRS[:-1]), id="a missing field"),
        pytest.param(msgpack.packb({**HONEST, "more": 1}), id="an unknown field"),
        pytest.param(msgpack.packb({**HONEST, 1: 1}), id="a key that is no text"),
        pytest.param(msgpack.packb({**HONEST, "time": 1.5}), id="a float"),
        pytest.param(msgpack.packb({**HONEST, "time": float(NOON)}), id="a float that is whole"),
        pytest.param(msgpack.packb({**HONEST, "time": True}), id="a boolean for an integer"),
        pytest.param(msgpack.packb({**HONEST, "time": -1}), id="a time before 1970"),
        pytest.param(msgpack.packb({**HONEST, "time": 2**53 + 1}), id="a time beyond 2**53"),
        pytest.param(msgpack.packb({**HONEST, "ttl": msgpack.ExtType(5, b"")}), id="an extension type"),
        pytest.param(msgpack.packb({**HONEST, "ttl": msgpack.Timestamp(1)}), id="a timestamp"),
        pytest.param(msgpack.packb({**HONEST, "sender": "A" * 43 + "="}), id="base64 text for bytes"),
        pytest.param(msgpack.packb({**HONEST, "sender": bytes(31)}), id="a short key"),
        pytest.param(msgpack.packb({**HONEST, "body": "text"}), id="text for the body"),
        pytest.param(msgpack.packb({**HONEST, "kind": b"cancel"}), id="bytes for text"),
        pytest.param(msgpack.packb({**HONEST, "kind": "cancel\0"}), id="a zero byte in the kind"),
        pytest.param(msgpack.packb({**HONEST, "kind": "nonsense"}), id="an unknown kind"),
        pytest.param(msgpack.packb({**HONEST, "seq": [1]}), id="half a sequence number"),
        pytest.param(msgpack.packb({**HONEST, "seq": [1, 2**62 + 1]}), id="a counter beyond 2**62"),
        pytest.param(msgpack.packb({**HONEST, "v": 2}), id="another version"),
        pytest.param(b"\x91" * 20 + b"\xc0", id="nested 20 deep"),
        pytest.param(b"\x91" * 100_000 + b"\xc0", id="nested 100,000 deep"),
        pytest.param(b"\x81\xa1a" * 100 + b"\xc0", id="maps nested 100 deep"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="a list that announces 4 billion"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="a map that announces 4 billion"),
        pytest.param(b"\xc6\xff\xff\xff\xff", id="bytes that announce 4 GiB"),
        pytest.param(b"\xa1\xff", id="text that is not UTF-8"),
    ],
)
def test_malformed_content_is_refused_though_properly_signed(content: bytes) -> None:
    with pytest.raises(MalformedMessage):
        open_sealed(sign(content), mesh=MESH)


@pytest.mark.parametrize("size", [0, 1, 63, 64])
def test_a_signature_without_content_is_refused(size: int) -> None:
    with pytest.raises(MalformedMessage):
        open_sealed(bytes(size), mesh=MESH)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(msgpack.packb({"job_id": bytes(16)}), id="a missing field"),
        pytest.param(msgpack.packb({"job_id": bytes(16), "attempt": 1, "x": 1}), id="an unknown field"),
        pytest.param(msgpack.packb({"job_id": bytes(16), "attempt": 1.0}), id="a float"),
        pytest.param(msgpack.packb({"job_id": "A" * 22 + "==", "attempt": 1}), id="base64 text for bytes"),
        pytest.param(msgpack.packb({"job_id": bytes(16), "attempt": "1"}), id="text for an integer"),
        pytest.param(msgpack.packb({"job_id": bytes(16), "attempt": 0}), id="a value out of bounds"),
        pytest.param(encode(LIVE) + b"\xc0", id="trailing bytes"),
    ],
)
def test_a_malformed_body_is_refused_though_properly_signed(body: bytes) -> None:
    with pytest.raises(MalformedMessage):
        open_sealed(forge(body=body), mesh=MESH)


def test_a_bomb_of_nested_lists_reserves_no_memory() -> None:
    """msgpack reserves what a header announces: 5 KB of these once cost 60 MiB and 0.3 s, before any signature."""
    bomb = b"\xdd\x00\x01\x00\x00" * 1_000
    tracemalloc.start()

    for _ in range(10):
        with pytest.raises(MalformedMessage):
            open_sealed(sign(bomb), mesh=MESH)

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1024 * 1024


def test_a_frame_of_another_form_is_refused() -> None:
    frame = TokensFrame(first=0, ids=(1,), text="a")

    assert decode(encode(frame), JobFrame) == frame
    for wrong in (
        {"type": "nonsense"},
        {"type": "tokens"},
        {},
        [],
        {**msgpack.unpackb(encode(frame)), "x": 1},
    ):
        with pytest.raises(MalformedMessage):
            decode(msgpack.packb(wrong), JobFrame)


# --- signature, mesh and kind -----------------------------------------------------------------------------------------
def test_a_flipped_bit_anywhere_is_noticed() -> None:
    raw = forge()

    for at in range(len(raw)):
        flipped = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises(RemoteProtocolError):
            open_sealed(flipped, mesh=MESH)


def test_a_signature_for_one_kind_does_not_hold_for_another() -> None:
    content = msgpack.packb(HONEST)

    with pytest.raises(BadSignature):
        open_sealed(sign(content, kind="card"), mesh=MESH)


def test_a_signature_for_one_mesh_does_not_hold_in_another() -> None:
    """Also when the attacker writes the other mesh's id into the header."""
    content = msgpack.packb(HONEST)

    with pytest.raises(BadSignature):
        open_sealed(sign(content, mesh=b"\x08" * 32), mesh=MESH)


def test_a_message_of_another_mesh_is_foreign() -> None:
    with pytest.raises(ForeignMesh):
        open_sealed(forge(mesh=b"\x08" * 32), mesh=MESH)


def test_a_message_signed_by_somebody_else_is_refused() -> None:
    with pytest.raises(BadSignature):
        open_sealed(forge(author=EVE, sender=ANN.public_key), mesh=MESH)


def test_a_kind_that_is_not_expected_here_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="not expected here"):
        open_sealed(forge(), mesh=MESH, kinds=frozenset({"card"}))


# --- the order of the gate --------------------------------------------------------------------------------------------
def test_the_gate_checks_cheap_things_first() -> None:
    """Each message has one fault and every later one too; what is named is the first in the documented order."""
    late = {"time": NOON - 61_000, "seq": [9, 5], "body": b"\xc1"}
    pile: list[tuple[type[RemoteProtocolError], str, bytes]] = [
        (TooLarge, "allowed here", b"\xc1" * 8_193),
        (MalformedMessage, "MessagePack", bytes(64) + b"\xc1"),
        (MalformedMessage, "version", forge(signed=False, v=2, mesh=bytes(32), kind="bid", **late)),
        (ForeignMesh, "mesh", forge(signed=False, mesh=bytes(32), kind="bid", **late)),
        (MalformedMessage, "not expected here", forge(signed=False, kind="bid", **late)),
        (TooLarge, "cancel of", forge(signed=False, **{**late, "body": bytes(1_024)})),
        (Expired, "old", forge(signed=False, **late)),
        (Replayed, "used or too old", forge(signed=False, **{**late, "time": NOON})),
        (BadSignature, "hold", forge(signed=False, body=b"\xc1", seq=[9, 6])),
        (MalformedMessage, "Cancel", forge(body=msgpack.packb({}), seq=[9, 6])),
    ]
    gate = Gate(MESH)
    admit(gate, forge(seq=[9, 5]))
    before = learned(gate)

    for error, words, raw in pile:
        with pytest.raises(error, match=words):
            gate.admit(raw, delivered_by=DAN, kinds=KINDS | {"award"}, now=0, utc_ms=NOON)

    assert learned(gate) == before


def test_a_peers_rate_is_checked_before_its_bytes_are_read() -> None:
    gate = Gate(MESH)
    for _ in range(int(2 * limits.PEER_MESSAGES_PER_S)):
        with pytest.raises(MalformedMessage):
            admit(gate, b"")

    with pytest.raises(TooManyMessages, match=DAN):
        admit(gate, b"")


def test_time_is_checked_before_duplicates_and_those_before_the_authors_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "AUTHOR_MESSAGES_PER_S", 0.5)
    gate = Gate(MESH)
    raw = forge()
    admit(gate, raw)

    with pytest.raises(Expired):
        admit(gate, raw, utc_ms=NOON + 60_001)
    with pytest.raises(Replayed, match="delivered before"):
        admit(gate, raw)
    with pytest.raises(TooManyMessages):
        admit(gate, forge(seq=[9, 2]))


def test_an_authors_rate_is_checked_before_the_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "AUTHOR_MESSAGES_PER_S", 1.0)
    gate = Gate(MESH)
    for counter in (1, 2):
        admit(gate, forge(seq=[9, counter]))

    with pytest.raises(TooManyMessages, match="author"):
        admit(gate, forge(seq=[9, 3], signed=False))


# --- what a stranger cannot do to somebody else ------------------------------------------------------------------------
def test_a_forged_sender_is_never_charged() -> None:
    """Eve sends a thousand messages in ann's name; ann's own next one passes, with the very counter eve tried."""
    gate = Gate(MESH)
    before = learned(gate)

    for number in range(1_000):
        with pytest.raises(BadSignature):
            admit(gate, forge(signed=False, seq=[9, 2**62 - number]), by=EVE.peer_id, now=float(number))
    assert learned(gate) == before

    admit(gate, forge(seq=[9, 1]), now=1_000)
    admit(gate, forge(seq=[9, 2**62]), now=1_000)


def test_a_message_of_a_forged_body_leaves_no_trace() -> None:
    gate = Gate(MESH)
    before = learned(gate)

    with pytest.raises(MalformedMessage):
        admit(gate, forge(body=b"\xc1"))

    assert learned(gate) == before


def test_a_peer_over_its_rate_does_not_use_up_anothers() -> None:
    gate = Gate(MESH)
    for _ in range(500):
        with pytest.raises(RemoteProtocolError):
            admit(gate, b"", by=EVE.peer_id)

    assert admit(gate, forge(), by=BOB.peer_id).sender == ANN.peer_id


# --- replay -----------------------------------------------------------------------------------------------------------
def test_a_replayed_message_is_refused() -> None:
    gate = Gate(MESH)
    raw = forge()
    admit(gate, raw)
    before = learned(gate)

    with pytest.raises(Replayed):
        admit(gate, raw, by=EVE.peer_id)

    assert learned(gate) == before


def test_a_used_sequence_number_is_refused_for_other_content() -> None:
    gate = Gate(MESH)
    admit(gate, forge())

    with pytest.raises(Replayed, match="sequence number 1"):
        admit(gate, forge(Cancel(job_id=b"x" * 16, attempt=1)))


def test_messages_may_overtake_each_other_within_the_window() -> None:
    gate = Gate(MESH)
    newest = 5_000
    inside = [newest, newest - 1, newest - limits.SEQUENCE_WINDOW + 1, newest - 500]
    for counter in inside:
        admit(gate, forge(seq=[9, counter]))

    for counter in (*inside, newest - limits.SEQUENCE_WINDOW, 0):
        with pytest.raises(Replayed):
            admit(gate, forge(Cancel(job_id=b"x" * 16, attempt=1), seq=[9, counter]))


def test_every_counter_of_a_window_can_be_used_once_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEQUENCE_WINDOW", 8)
    gate = Gate(MESH)
    for counter in (10, 3, 9, 4, 8, 5, 7, 6):
        admit(gate, forge(seq=[9, counter]))

    for counter in range(12):
        again = forge(Cancel(job_id=b"x" * 16, attempt=1), seq=[9, counter])
        if counter == 11:
            admit(gate, again)
        else:
            with pytest.raises(Replayed):
                admit(gate, again)


def test_a_jump_of_the_counter_to_its_end_costs_no_memory() -> None:
    """A window kept as an integer would shift by 2**62."""
    gate = Gate(MESH)
    admit(gate, forge(seq=[9, 1]))
    admit(gate, forge(seq=[9, 2**62]))

    (window,) = gate._windows.values()
    assert window._used.bit_length() <= limits.SEQUENCE_WINDOW
    with pytest.raises(Replayed):
        admit(gate, forge(Cancel(job_id=b"x" * 16, attempt=1), seq=[9, 1]))
    admit(gate, forge(seq=[9, 2**62 - 1]))


def test_a_restarted_sender_begins_a_new_window() -> None:
    gate = Gate(MESH)
    admit(gate, forge(seq=[9, 1_000_000]))

    assert admit(gate, forge(seq=[10, 1])).boot == 10


def test_durable_messages_need_no_order() -> None:
    """Members hand each other's entries on, in any order and long after; only the very same bytes are refused."""
    gate = Gate(MESH)
    admit(gate, forge(DURABLE, seq=[9, 2_000]))
    admit(gate, forge(DURABLE, seq=[9, 1]))

    with pytest.raises(Replayed, match="delivered before"):
        admit(gate, forge(DURABLE, seq=[9, 1]))


# --- time -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("skew_ms", [-60_000, 0, 60_000])
def test_a_live_message_is_taken_within_a_minute_of_our_clock(skew_ms: int) -> None:
    assert admit(Gate(MESH), forge(time=NOON + skew_ms)).time_ms == NOON + skew_ms


@pytest.mark.parametrize("skew_ms", [-60_001, 60_001, -NOON, 2**53 - NOON])
def test_a_live_message_too_old_or_from_the_future_is_refused(skew_ms: int) -> None:
    with pytest.raises(Expired):
        admit(Gate(MESH), forge(time=NOON + skew_ms))


def test_a_durable_message_is_taken_until_its_ttl() -> None:
    year_ms = 365 * 24 * 3_600_000
    gate = Gate(MESH)

    admit(gate, forge(DURABLE, time=NOON - year_ms))
    admit(gate, forge(DURABLE, time=NOON - year_ms, ttl=year_ms + 1))
    with pytest.raises(Expired):
        admit(gate, forge(DURABLE, time=NOON - year_ms, ttl=year_ms))


def test_a_durable_message_from_the_future_is_refused() -> None:
    with pytest.raises(Expired, match="future"):
        admit(Gate(MESH), forge(DURABLE, time=NOON + 60_001))


def test_a_live_message_with_a_ttl_ends_with_it() -> None:
    with pytest.raises(Expired):
        admit(Gate(MESH), forge(time=NOON - 10, ttl=10))


# --- rates and tables --------------------------------------------------------------------------------------------------
def test_an_author_may_send_a_burst_and_then_its_rate() -> None:
    gate = Gate(MESH)
    burst = int(2 * limits.AUTHOR_MESSAGES_PER_S)
    for counter in range(1, burst + 1):
        admit(gate, forge(seq=[9, counter]), by=PeerId(str(counter)))

    with pytest.raises(TooManyMessages, match="author"):
        admit(gate, forge(seq=[9, burst + 1]), by=BOB.peer_id)
    admit(gate, forge(seq=[9, burst + 1]), by=BOB.peer_id, now=1 / limits.AUTHOR_MESSAGES_PER_S)


def test_a_message_over_the_authors_rate_may_come_again_later() -> None:
    """Refusing it must not use its sequence number up."""
    gate = Gate(MESH)
    burst = int(2 * limits.AUTHOR_MESSAGES_PER_S)
    for counter in range(1, burst + 1):
        admit(gate, forge(seq=[9, counter]), by=PeerId(str(counter)))
    late = forge(seq=[9, burst + 1])
    with pytest.raises(TooManyMessages):
        admit(gate, late)

    assert admit(gate, late, now=1.0).counter == burst + 1


def test_what_the_gate_remembers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SENDERS_MAX", 4)
    monkeypatch.setattr(limits, "DEDUPE_MAX", 8)
    gate = Gate(MESH)

    for number in range(20):
        admit(gate, forge(seq=[number, 1]), by=PeerId(str(number)))

    assert len(gate._windows) == 4
    assert len(gate._seen) == 8
    assert len(gate._peer_rates._buckets) == 4
    assert len(gate._author_rates._buckets) == 1
