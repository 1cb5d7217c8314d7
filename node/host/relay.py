"""Circuit relay v2: reaching a peer that cannot be dialled, through one that both can reach.

The peer behind a router *reserves* a place at a relay and announces `RELAY/p2p-circuit/p2p/SELF`. Whoever dials that
asks the relay to *connect*; the relay asks the peer to *stop* for a stranger, and from then on copies bytes both ways.
Caller and peer run Noise through the pipe, so the relay learns who talks to whom and how much, and nothing else.

libp2p's own relay lets one peer reserve in the name of others, forgets a caller's first circuit when it opens a second,
and never found a relay by itself. This one keeps the wire format. Everything is bounded: places, circuits, bytes, time.

Source: https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md
"""

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
from google.protobuf.message import DecodeError, Message
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status, StopMessage

from node.host.address import Address
from node.host.mux_stream import MuxStream
from node.host.negotiation import read_uvarint, uvarint
from protocol.errors import MalformedMessage, MeshError, RemoteProtocolError, Unreachable
from protocol.identity import PeerId

HOP = "/libp2p/circuit/relay/0.2.0/hop"
STOP = "/libp2p/circuit/relay/0.2.0/stop"

MESSAGE_BYTES_MAX = 4_096
RESERVATIONS_MAX = 128
RESERVATION_S = 3_600
CIRCUITS_MAX = 64
CIRCUITS_PER_PEER = 8  # as caller and as called, each
CIRCUIT_BYTES_MAX = 256 * 1024 * 1024  # both directions together: an adapter of 64 MiB there and back
CIRCUIT_S = 3_600
ANSWER_S = 10.0

OpenStream = Callable[[PeerId, str], Awaitable[MuxStream]]
MessageType = TypeVar("MessageType", bound=Message)


class Relay:
    """Both sides of the protocol: carrying for others, and being carried."""

    def __init__(
        self,
        open_stream: OpenStream,
        take_circuit: Callable[[MuxStream], Awaitable[None]],
        now: Callable[[], float],
    ) -> None:
        """Prepare.

        Args:
            open_stream: opens a stream of a protocol to a peer that is connected.
            take_circuit: serves a connection on a byte channel that a relay has opened to us.
            now: monotonic seconds.
        """
        self.may_use: Callable[[PeerId], bool] = lambda _: True
        self.is_connected: Callable[[PeerId], bool] = lambda _: True
        self._open_stream = open_stream
        self._take_circuit = take_circuit
        self._now = now
        self._reservations: dict[PeerId, float] = {}  # peer -> when its place is given up
        self._circuits: dict[PeerId, int] = {}  # peer -> circuits it is an end of
        self._circuits_total = 0

    # For others: the relay in the middle.

    async def serve_hop(self, stream: MuxStream) -> None:
        """Answer one request of a peer: a place, or a circuit to somebody who has one."""
        with trio.fail_after(ANSWER_S):
            request = await _read(stream, HopMessage)
        if stream.connection.is_relayed or not self.may_use(stream.peer_id):
            await _write(stream, _status(Status.PERMISSION_DENIED))
        elif request.type == HopMessage.RESERVE:
            await _write(stream, self._reserve(stream.peer_id))
        elif request.type == HopMessage.CONNECT:
            await self._carry(stream, _peer_id(request.peer.id))
            return
        else:
            await _write(stream, _status(Status.UNEXPECTED_MESSAGE))
        stream.end()

    def _reserve(self, peer_id: PeerId) -> HopMessage:
        now = self._now()
        self._reservations = {
            peer: until
            for peer, until in self._reservations.items()
            if until > now and self.is_connected(peer)
        }
        if peer_id not in self._reservations and len(self._reservations) >= RESERVATIONS_MAX:
            return _status(Status.RESERVATION_REFUSED)
        self._reservations[peer_id] = now + RESERVATION_S
        answer = _status(Status.OK)
        answer.reservation.expire = (
            int(time.time()) + RESERVATION_S
        )  # the specification wants wall-clock seconds
        answer.limit.duration = CIRCUIT_S
        answer.limit.data = CIRCUIT_BYTES_MAX
        return answer

    async def _carry(self, caller: MuxStream, called: PeerId) -> None:
        """Connect a caller to a peer with a place here, and copy until either is done."""
        if self._reservations.get(called, 0.0) <= self._now() or not self.is_connected(called):
            await _refuse(caller, Status.NO_RESERVATION)
            return
        ends = (caller.peer_id, called)
        if self._circuits_total >= CIRCUITS_MAX or any(
            self._circuits.get(end, 0) >= CIRCUITS_PER_PEER for end in ends
        ):
            await _refuse(caller, Status.RESOURCE_LIMIT_EXCEEDED)
            return
        self._count(ends, 1)
        try:
            try:
                far = await self._ask_to_stop(called, caller.peer_id)
            except (MeshError, trio.TooSlowError):
                await _refuse(caller, Status.CONNECTION_FAILED)
                return
            answer = _status(Status.OK)
            answer.limit.duration = CIRCUIT_S
            answer.limit.data = CIRCUIT_BYTES_MAX
            await _write(caller, answer)
            await _splice(caller, far)
        finally:
            self._count(ends, -1)

    async def _ask_to_stop(self, called: PeerId, caller: PeerId) -> MuxStream:
        with trio.fail_after(ANSWER_S):
            stream = await self._open_stream(called, STOP)
            question = StopMessage(type=StopMessage.CONNECT)
            question.peer.id = ID.from_base58(caller).to_bytes()
            try:
                await _write(stream, question)
                answer = await _read(stream, StopMessage)
            except BaseException:
                stream.reset()
                raise
        if answer.status != Status.OK:
            stream.reset()
            raise Unreachable(f"{called} does not take a circuit")
        return stream

    def _count(self, ends: tuple[PeerId, PeerId], step: int) -> None:
        self._circuits_total += step
        for end in ends:
            self._circuits[end] = self._circuits.get(end, 0) + step
            if not self._circuits[end]:
                del self._circuits[end]

    # For ourselves: the caller, and the called.

    async def serve_stop(self, stream: MuxStream) -> None:
        """A relay has somebody for us; the circuit's own handshake will prove who."""
        with trio.fail_after(ANSWER_S):
            question = await _read(stream, StopMessage)
        if question.type != StopMessage.CONNECT:
            raise MalformedMessage("stop message that is not a connect")
        await _write(stream, StopMessage(type=StopMessage.STATUS, status=Status.OK))
        await self._take_circuit(stream)

    async def call(self, target: Address) -> MuxStream:
        """Ask the relay of an address for a byte channel to the peer behind it.

        Raises:
            Unreachable: the relay refused, or did not answer.
        """
        assert target.relay is not None
        question = HopMessage(type=HopMessage.CONNECT)
        question.peer.id = ID.from_base58(target.peer_id).to_bytes()
        stream, _ = await self._ask(target.relay, question)
        return stream

    async def reserve(self, relay: PeerId) -> float:
        """Take or renew a place at a relay that is connected; return for how many seconds it holds.

        Raises:
            Unreachable: the relay refused, or did not answer.
        """
        stream, answer = await self._ask(relay, HopMessage(type=HopMessage.RESERVE))
        stream.end()
        stream.discard()
        return min(max(float(answer.reservation.expire) - time.time(), 60.0), float(RESERVATION_S))

    async def _ask(self, relay: PeerId, question: HopMessage) -> tuple[MuxStream, HopMessage]:
        try:
            with trio.fail_after(ANSWER_S):
                stream = await self._open_stream(relay, HOP)
                try:
                    await _write(stream, question)
                    answer = await _read(stream, HopMessage)
                except BaseException:
                    stream.reset()
                    raise
        except trio.TooSlowError as error:
            raise Unreachable(f"relay {relay} did not answer within {ANSWER_S} s") from error
        except (MeshError, RemoteProtocolError) as error:
            raise Unreachable(
                f"relay {relay} gave no answer: {str(error) or type(error).__name__}"
            ) from error
        if answer.status != Status.OK:
            stream.reset()
            raise Unreachable(f"relay {relay} refused with status {answer.status}")
        return stream, answer


async def _splice(one: MuxStream, other: MuxStream) -> None:
    """Copy both ways until an end, the byte limit or the time limit; then both streams are gone."""
    left = CIRCUIT_BYTES_MAX
    connections = (one.connection, other.connection)

    async def copy(source: MuxStream, sink: MuxStream) -> None:
        nonlocal left
        while data := await source.receive_some():
            left -= len(data)
            if left < 0:
                break
            await sink.send_all(data)
        nursery.cancel_scope.cancel()

    for connection in connections:
        connection.busy += 1
    try:
        with trio.move_on_after(CIRCUIT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(copy, one, other)
                nursery.start_soon(copy, other, one)
    except* MeshError:
        pass  # one end is gone, which is how circuits end
    finally:
        for connection in connections:
            connection.busy -= 1
        one.reset()
        other.reset()


async def _refuse(stream: MuxStream, status: Status.ValueType) -> None:
    await _write(stream, _status(status))
    stream.end()


def _status(status: Status.ValueType) -> HopMessage:
    return HopMessage(type=HopMessage.STATUS, status=status)


def _peer_id(raw: bytes) -> PeerId:
    return PeerId(ID(raw).to_base58())


async def _write(stream: MuxStream, message: Message) -> None:
    body = message.SerializeToString()
    await stream.send_all(uvarint(len(body)) + body)


async def _read(stream: MuxStream, kind: type[MessageType]) -> MessageType:
    body = await stream.receive_exactly(await read_uvarint(stream.receive_exactly, MESSAGE_BYTES_MAX))
    message = kind()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise MalformedMessage("relay message is not protobuf") from error
    return message
