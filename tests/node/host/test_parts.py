"""The small rules of the host, each by itself: addresses, the accept gate, negotiation, what is announced."""

from contextlib import suppress

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from node.host import address, negotiation
from node.host.address import Address, parse
from node.host.gate import UNPROVEN_PER_ADDRESS, UNPROVEN_TOTAL, AcceptGate
from protocol.errors import MalformedMessage, RemoteProtocolError, Unreachable
from protocol.identity import Identity

PEER = Identity(bytes(32)).peer_id
RELAY = Identity(bytes([1]) * 32).peer_id


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"/ip4/192.0.2.7/tcp/4420/p2p/{PEER}", Address("ip4", "192.0.2.7", 4420, PEER)),
        (f"/ip6/2001:db8::1/tcp/1/p2p/{PEER}", Address("ip6", "2001:db8::1", 1, PEER)),
        (f"/dns/agora.example/tcp/65535/p2p/{PEER}", Address("dns", "agora.example", 65535, PEER)),
        (
            f"/ip4/192.0.2.7/tcp/1/p2p/{RELAY}/p2p-circuit/p2p/{PEER}",
            Address("ip4", "192.0.2.7", 1, PEER, RELAY),
        ),
    ],
)
def test_an_address_is_read_and_written_alike(text: str, expected: Address) -> None:
    assert parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        f"/ip4/192.0.2.7/tcp/0/p2p/{PEER}",
        f"/ip4/192.0.2.7/tcp/65536/p2p/{PEER}",
        f"/ip4/192.0.2.7/tcp/+80/p2p/{PEER}",
        f"/ip4/192.0.2.7/tcp/٣/p2p/{PEER}",
        f"/ip4/192.0.2/tcp/80/p2p/{PEER}",
        f"/ip4/::1/tcp/80/p2p/{PEER}",
        f"/ip4/192.0.2.7/udp/80/p2p/{PEER}",
        f"/dns/a b/tcp/80/p2p/{PEER}",
        f"/dns//tcp/80/p2p/{PEER}",
        f"/ip4/192.0.2.7/tcp/80/p2p/{PEER}/p2p-circuit",
        f"/ip4/192.0.2.7/tcp/80/p2p/x/p2p-circuit/p2p/{PEER}",
        "/ip4/192.0.2.7/tcp/80",
        "/ip4/192.0.2.7/tcp/80/p2p/QmSomethingElse",
        "x" * 100_000,
    ],
)
def test_an_address_that_agora_cannot_dial_is_refused(text: str) -> None:
    with pytest.raises(Unreachable):
        parse(text)


@given(st.text(max_size=300))
def test_no_text_at_all_gets_anything_else_out_of_the_parser(text: str) -> None:
    with suppress(Unreachable):
        parse(text)


def test_the_wildcard_is_never_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers who hear 0.0.0.0 know each other and never connect."""
    monkeypatch.setattr(address, "interface_hosts", lambda: ["192.0.2.7", "198.51.100.7", "2001:db8::7"])

    assert address.announced("0.0.0.0", 4420, PEER) == [
        f"/ip4/192.0.2.7/tcp/4420/p2p/{PEER}",
        f"/ip4/198.51.100.7/tcp/4420/p2p/{PEER}",
    ]
    assert address.announced("::", 4420, PEER) == [f"/ip6/2001:db8::7/tcp/4420/p2p/{PEER}"]
    assert address.announced("192.0.2.9", 4420, PEER) == [f"/ip4/192.0.2.9/tcp/4420/p2p/{PEER}"]


def test_a_machine_has_an_address_of_its_own() -> None:
    hosts = address.interface_hosts()

    assert hosts
    assert "0.0.0.0" not in hosts


def test_an_address_with_too_many_unproven_sockets_loses_its_oldest() -> None:
    """The attacker displaces itself; others, and the honest peer that comes last, get in."""
    gate = AcceptGate()
    dropped: list[int] = []
    gate.enter("198.51.100.1", lambda: dropped.append(-1))
    for number in range(UNPROVEN_PER_ADDRESS + 3):
        gate.enter("192.0.2.1", lambda number=number: dropped.append(number))

    assert dropped == [0, 1, 2]
    assert len(gate) == UNPROVEN_PER_ADDRESS + 1


def test_a_crowd_of_addresses_loses_the_oldest_of_the_most_crowded() -> None:
    gate = AcceptGate()
    dropped: list[str] = []
    for number in range(UNPROVEN_TOTAL // 16):
        for _ in range(16):
            gate.enter(f"192.0.2.{number}", lambda number=number: dropped.append(f"192.0.2.{number}"))
    gate.enter("192.0.2.5", lambda: dropped.append("the newest of 5"))

    assert dropped == ["192.0.2.0"]

    gate.enter("198.51.100.1", lambda: dropped.append("the newcomer"))

    assert dropped == ["192.0.2.0", "192.0.2.5"]
    assert len(gate) == UNPROVEN_TOTAL


def test_a_proven_socket_leaves_its_place_once() -> None:
    gate = AcceptGate()
    ticket = gate.enter("192.0.2.1", lambda: pytest.fail("dropped"))

    gate.leave(ticket)
    gate.leave(ticket)

    assert len(gate) == 0


class Bytes:
    """A channel that has said all it will say."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.written = b""

    async def read(self, count: int) -> bytes:
        if len(self.data) < count:
            raise MalformedMessage("ended")
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    async def write(self, data: bytes) -> None:
        self.written += data


HEADER = b"\x13/multistream/1.0.0\n"


async def test_unknown_proposals_are_answered_until_one_is_known() -> None:
    channel = Bytes(HEADER + b"\x03ls\n" + b"\x05/old\n" + b"\x05/new\n" + b"rest")

    assert await negotiation.accept(channel.read, channel.write, ["/new"]) == "/new"

    assert channel.written == HEADER + b"\x03na\n" * 2 + b"\x05/new\n"
    assert channel.data == b"rest"


@pytest.mark.parametrize(
    "said",
    [
        b"\x03\xff\xfe\n",
        b"\x13/multistream/2.0.0\n",
        HEADER + b"\x00" * 20,
        HEADER + b"\xff\xff\xff\xff\xff\xff\xff",
        HEADER + b"\x81\x08" + b"x" * 1025,
        HEADER + b"\x04/old",
        HEADER + b"\x05/old\n" * 17,
        b"",
    ],
    ids=[
        "not utf-8",
        "a later version",
        "empty",
        "a varint without end",
        "too long",
        "no newline",
        "guessing",
        "silence",
    ],
)
async def test_a_negotiation_that_makes_no_sense_is_the_peers_fault(said: bytes) -> None:
    channel = Bytes(said)

    with pytest.raises(MalformedMessage):
        await negotiation.accept(channel.read, channel.write, ["/new"])


@given(st.binary(max_size=200))
def test_no_bytes_at_all_get_anything_else_out_of_a_negotiation(said: bytes) -> None:
    async def negotiate() -> None:
        channel = Bytes(said)
        with suppress(RemoteProtocolError):
            await negotiation.accept(channel.read, channel.write, ["/new"])

    trio.run(negotiate)


async def test_a_peer_that_says_na_does_not_speak_the_protocol() -> None:
    channel = Bytes(HEADER + b"\x03na\n")

    with pytest.raises(Unreachable):
        await negotiation.propose(channel.read, channel.write, "/new")

    assert channel.written == HEADER + b"\x05/new\n"


@given(st.integers(min_value=0, max_value=1 << 30))
def test_a_varint_is_read_as_it_was_written(value: int) -> None:
    assert trio.run(negotiation.read_uvarint, Bytes(negotiation.uvarint(value)).read, 1 << 30) == value
