"""Whatever bytes come in, only the protocol's own errors come out."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
from envelope_forge import MESH, NOON, fields, forge, sign
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from marketplace.assembly.assembly import open_entry
from protocol import limits
from protocol.envelope import Gate, decode, open_sealed
from protocol.errors import RemoteProtocolError
from protocol.identity import Identity, PeerId
from protocol.messages import BY_KIND, NO_HASH, JobFrame, Message

VECTORS = [
    json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((Path(__file__).parent.parent / "vectors").glob("*.json"))
]
GOLDEN = [(bytes.fromhex(vector["hex"]), bytes.fromhex(vector.get("mesh", ""))) for vector in VECTORS]
BODIES = [msgpack.unpackb(raw[64:])["body"] if mesh else raw for raw, mesh in GOLDEN]
FORMS: list[Any] = [*BY_KIND.values(), JobFrame]

bounded = settings(derandomize=True, max_examples=150, deadline=None)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=40),
    st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=8)),
    st.sampled_from([bytes(16), bytes(32), bytes(64), "a", 1, 2**53, 2**53 + 1, NOON]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=8), scalars), inner, max_size=4),
    ),
    max_leaves=12,
)


@st.composite
def mutations(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """Draw golden bytes with some of them changed, cut out or put in."""
    raw = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(raw)


def offer(raw: bytes) -> None:
    """Hand bytes to everything that stands at the door."""
    for mesh in (MESH, NO_HASH):
        with suppress(RemoteProtocolError):
            open_sealed(raw, mesh=mesh)
        with suppress(RemoteProtocolError):
            open_entry(raw, mesh)
        with suppress(RemoteProtocolError):
            Gate(mesh).admit(raw, delivered_by=PeerId("eve"), kinds=frozenset(BY_KIND), now=0.0, utc_ms=NOON)


def packed(value: Any) -> bytes:
    """Return MessagePack bytes; a value that msgpack itself refuses to write is no test case."""
    try:
        data: bytes = msgpack.packb(value)
    except (ValueError, TypeError, OverflowError):
        reject()
    return data


@bounded
@given(st.binary(max_size=400))
def test_random_bytes(raw: bytes) -> None:
    offer(raw)
    offer(sign(raw))


@bounded
@given(mutations([raw for raw, mesh in GOLDEN if mesh]))
def test_mutated_envelopes(raw: bytes) -> None:
    offer(raw)
    offer(sign(raw[64:]))


@bounded
@given(st.dictionaries(st.sampled_from(list(fields())), values))
def test_envelopes_with_fields_of_any_form(changes: dict[str, Any]) -> None:
    packed(changes)

    offer(forge(**changes))


@bounded
@given(st.sampled_from(list(BY_KIND)), st.one_of(mutations(BODIES), values.map(packed)))
def test_signed_bodies_of_any_form(kind: str, body: bytes) -> None:
    offer(sign(packed(fields(kind=kind, body=body)), kind))


@bounded
@given(st.sampled_from(FORMS), st.one_of(st.binary(max_size=200), mutations(BODIES)))
def test_bodies_and_frames_from_any_bytes(form: type[Message], raw: bytes) -> None:
    with suppress(RemoteProtocolError):
        decode(raw, form)


@bounded
@given(st.sampled_from(range(len(VECTORS))), st.data())
def test_known_fields_with_values_of_any_form(number: int, data: st.DataObject) -> None:
    table = msgpack.unpackb(BODIES[number])
    table[data.draw(st.sampled_from(list(table)))] = data.draw(values)
    raw = packed(table)

    for form in FORMS:
        with suppress(RemoteProtocolError):
            decode(raw, form)


@bounded
@given(st.lists(st.integers(0, 2**62), max_size=30))
def test_a_window_takes_each_counter_at_most_once(counters: list[int]) -> None:
    gate = Gate(MESH)
    taken: list[int] = []
    for number, counter in enumerate(counters):
        message = BY_KIND["cancel"](job_id=number.to_bytes(16, "big"), attempt=1)
        with suppress(RemoteProtocolError):
            raw = forge(message, seq=[9, counter])
            gate.admit(raw, delivered_by=PeerId("p"), kinds=frozenset({"cancel"}), now=0.0, utc_ms=NOON)
            taken.append(counter)

    assert len(set(taken)) == len(taken)
    fresh = {counter for counter in counters if counter > max(counters) - limits.SEQUENCE_WINDOW}
    assert fresh <= set(taken)


def test_the_forgers_own_envelopes_are_good() -> None:
    """Else the properties above would hold for nothing but garbage."""
    author = Identity(bytes([1]) * 32)

    assert open_sealed(forge(), mesh=MESH).sender == author.peer_id
