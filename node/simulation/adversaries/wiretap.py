"""A mesh with a wire tap: whoever holds it sees each frame of its own node, and may send other ones in its place.

The node above it signs and checks as always; what it says is changed, repeated or kept back on its way out. Nothing of
another peer can be touched here: streams are authenticated, so an adversary only ever garbles its own voice.
"""

from typing import Protocol

from protocol.identity import PeerId
from protocol.mesh import GossipHandler, Mesh, PeerHandler, PostHandler, Stream, StreamHandler, Validator
from protocol.topics import StreamProtocol, Topic


class Tapper(Protocol):
    """Who listens."""

    def outgoing(self, frame: bytes, peer_id: PeerId, protocol: StreamProtocol) -> list[bytes]:
        """Return what is sent in this frame's place: nothing, itself, or more."""

    def incoming(self, frame: bytes, peer_id: PeerId, protocol: StreamProtocol) -> None:
        """A frame has come in; the node reads it next."""


class TappedStream:
    """See `protocol.mesh.Stream`."""

    def __init__(self, stream: Stream, protocol: StreamProtocol, tapper: Tapper) -> None:
        self._stream = stream
        self._protocol = protocol
        self._tapper = tapper

    @property
    def peer_id(self) -> PeerId:
        """See `Stream`."""
        return self._stream.peer_id

    async def send(self, frame: bytes) -> None:
        """See `Stream.send`; what goes out is the tapper's choice."""
        for each in self._tapper.outgoing(frame, self.peer_id, self._protocol):
            await self._stream.send(each)

    async def receive(self) -> bytes:
        """See `Stream.receive`."""
        frame = await self._stream.receive()
        self._tapper.incoming(frame, self.peer_id, self._protocol)
        return frame

    async def end(self) -> None:
        """See `Stream.end`."""
        await self._stream.end()

    def abort(self) -> None:
        """See `Stream.abort`."""
        self._stream.abort()


class TappedMesh:
    """See `protocol.mesh.Mesh`."""

    def __init__(self, mesh: Mesh, tapper: Tapper) -> None:
        self._mesh = mesh
        self._tapper = tapper

    @property
    def peer_id(self) -> PeerId:
        """See `Mesh`."""
        return self._mesh.peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        """See `Mesh`."""
        return self._mesh.addresses

    @property
    def connected(self) -> frozenset[PeerId]:
        """See `Mesh`."""
        return self._mesh.connected

    def round_trip_s(self, peer_id: PeerId) -> float | None:
        """See `Mesh`."""
        return self._mesh.round_trip_s(peer_id)

    def serve(self, protocol: StreamProtocol, handler: StreamHandler) -> None:
        """See `Mesh`."""

        async def tapped(stream: Stream) -> None:
            await handler(TappedStream(stream, protocol, self._tapper))

        self._mesh.serve(protocol, tapped)

    def serve_posts(self, protocol: StreamProtocol, handler: PostHandler) -> None:
        """See `Mesh`."""

        def tapped(frame: bytes, peer_id: PeerId) -> None:
            self._tapper.incoming(frame, peer_id, protocol)
            handler(frame, peer_id)

        self._mesh.serve_posts(protocol, tapped)

    def post(self, peer_id: PeerId, protocol: StreamProtocol, frame: bytes) -> None:
        """See `Mesh`."""
        for each in self._tapper.outgoing(frame, peer_id, protocol):
            self._mesh.post(peer_id, protocol, each)

    def subscribe(self, topic: Topic, validate: Validator, handle: GossipHandler) -> None:
        """See `Mesh`; what members gossip is theirs and passes untouched."""
        self._mesh.subscribe(topic, validate, handle)

    def watch(self, handler: PeerHandler) -> None:
        """See `Mesh`."""
        self._mesh.watch(handler)

    def learn(self, peer_id: PeerId, addresses: tuple[str, ...]) -> None:
        """See `Mesh`."""
        self._mesh.learn(peer_id, addresses)

    async def dial(self, address: str) -> PeerId:
        """See `Mesh`."""
        return await self._mesh.dial(address)

    async def open_stream(self, peer_id: PeerId, protocol: StreamProtocol) -> Stream:
        """See `Mesh`."""
        return TappedStream(await self._mesh.open_stream(peer_id, protocol), protocol, self._tapper)

    async def publish(self, topic: Topic, data: bytes) -> None:
        """See `Mesh`."""
        await self._mesh.publish(topic, data)

    async def disconnect(self, peer_id: PeerId) -> None:
        """See `Mesh`."""
        await self._mesh.disconnect(peer_id)

    def charge(self, peer_id: PeerId, offence: str) -> None:
        """See `Mesh`."""
        self._mesh.charge(peer_id, offence)
