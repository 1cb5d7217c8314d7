"""What libp2p's pubsub needs to see of a host, and no more: its id, its keys, and a way to open a stream."""

from collections.abc import Awaitable, Callable, Sequence

import multiaddr  # type: ignore[import-untyped]  # has no stubs
from libp2p.crypto.keys import KeyPair, PrivateKey, PublicKey
from libp2p.custom_types import StreamHandlerFn, TProtocol
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamEOF, StreamReset
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore

from node.host.mux_stream import Carrier, MuxStream
from node.host.yamux import Connection
from protocol.errors import AgoraError, StreamBroken
from protocol.identity import PeerId

OpenGossip = Callable[[PeerId, str], Awaitable[MuxStream]]
ConnectionsOf = Callable[[PeerId], Sequence[Connection]]


class PeerView:
    """A connection, as pubsub looks at one: whose it is, and whether it lives."""

    def __init__(self, connection: Carrier) -> None:
        self.peer_id = ID.from_base58(connection.peer_id)
        self.muxed_conn = self
        self._connection = connection

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be sent to the peer any more."""
        return self._connection.is_closed


class GossipStream:
    """A `MuxStream` that raises what pubsub expects."""

    metric_send_channel = None

    def __init__(self, raw: MuxStream, protocol: str) -> None:
        self.raw = raw
        self.muxed_conn = PeerView(raw.connection)
        self._protocol = TProtocol(protocol)

    def get_protocol(self) -> TProtocol:
        """Return the negotiated protocol."""
        return self._protocol

    async def read(self, n: int | None = None) -> bytes:
        """Read up to `n` bytes."""
        try:
            data = await self.raw.receive_some(n)
        except StreamBroken as error:
            raise StreamReset from error
        if not data:
            raise StreamEOF
        return data

    async def write(self, data: bytes) -> None:
        """Hand over all of it."""
        try:
            await self.raw.send_all(data)
        except StreamBroken as error:
            raise StreamReset from error

    async def reset(self) -> None:
        """Kill the stream."""
        self.raw.reset()


class HostView:
    """Host, network and address book in one, as far as pubsub asks."""

    def __init__(self, keys: KeyPair, open_gossip: OpenGossip, connections_of: ConnectionsOf) -> None:
        self._keys = keys
        self._id = ID.from_pubkey(keys.public_key)
        self._open_gossip = open_gossip
        self._connections_of = connections_of
        self._peerstore = PeerStore()
        self._peerstore.add_key_pair(self._id, keys)

    def get_id(self) -> ID:
        """Return our own id."""
        return self._id

    def get_private_key(self) -> PrivateKey:
        """Return our key, for libp2p's own message signatures."""
        return self._keys.private_key

    def get_public_key(self) -> PublicKey:
        """Return our public key."""
        return self._keys.public_key

    def get_peerstore(self) -> PeerStore:
        """Return an address book with nobody in it but us: addresses travel in our own signed messages."""
        return self._peerstore

    def get_addrs(self) -> list[multiaddr.Multiaddr]:
        """Return nothing, for the same reason."""
        return []

    def get_network(self) -> "HostView":
        """Return the part that knows connections."""
        return self

    def register_notifee(self, notifee: object) -> None:
        """Ignore it: `Gossip` tells pubsub of peers itself, in order."""

    def set_stream_handler(self, protocol_id: TProtocol, handler: StreamHandlerFn) -> None:
        """Ignore it: the host registers its handlers under the guard."""

    def get_connections(self, peer_id: ID) -> list[PeerView]:
        """Return the live connections to a peer."""
        return [PeerView(each) for each in self._connections_of(PeerId(peer_id.to_base58()))]

    async def new_stream(self, peer_id: ID, protocols: Sequence[TProtocol]) -> GossipStream:
        """Open a gossip stream; raises what makes pubsub try again while the peer is connected."""
        name = str(protocols[0])
        try:
            return GossipStream(await self._open_gossip(PeerId(peer_id.to_base58()), name), name)
        except AgoraError as error:
            raise SwarmException(str(error)) from error
