"""The one port to other peers: publish to a topic, open a stream, be told of both.

Two backends stand behind it: the hardened libp2p host (`node/host.py`) and the simulator's in-memory network
(`node/simulation/network.py`). `tests/contracts/test_mesh.py` is their shared acceptance suite.

A stream carries *frames*: whole byte strings with a length in front and an explicit end. A TCP connection that dies
looks like a clean end of file; an Agora stream that dies raises `StreamBroken`, and only a said end is `StreamEnded`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from protocol.identity import PeerId
from protocol.topics import StreamProtocol, Topic


class Verdict(Enum):
    """What a topic's validator says of one gossip message, before it is handed on to anybody."""

    ACCEPT = "accept"  # deliver it here and forward it
    IGNORE = "ignore"  # neither deliver nor forward, nobody's fault (seen before, just expired)
    REJECT = "reject"  # neither deliver nor forward, and count it against the peer that delivered it


@dataclass(frozen=True)
class PeerConnected:
    """A first connection to a peer stands. The side that dialled speaks first (its hello)."""

    peer_id: PeerId
    we_dialled: bool


@dataclass(frozen=True)
class PeerLost:
    """The last connection to a peer is gone."""

    peer_id: PeerId


PeerEvent = PeerConnected | PeerLost


class Stream(Protocol):
    """One bidirectional stream of frames with one authenticated peer. One reader and one writer task at a time."""

    @property
    def peer_id(self) -> PeerId:
        """The peer at the other end, as the transport's handshake proved it."""

    async def send(self, frame: bytes) -> None:
        """Hand over one whole frame; waits while the peer is slow.

        Cancelling is safe: the frame then goes out whole or not at all, never cut in half.

        Raises:
            StreamBroken: the stream is gone.
            LocalProtocolError: the frame is over the protocol's `frame_bytes_max`, or `end` was called before.
        """

    async def receive(self) -> bytes:
        """Wait for the next whole frame. Cancelling is safe: no byte of a frame is lost.

        Raises:
            StreamEnded: the peer said it is done.
            StreamBroken: the stream died before that.
            TooLarge: the peer announced a frame over the protocol's `frame_bytes_max`; the stream is reset.
        """

    async def end(self) -> None:
        """Say that no further frame will come from here, after everything sent has gone out. May be called twice."""

    def abort(self) -> None:
        """Drop the stream at once, without waiting; the peer sees `StreamBroken`. May be called at any time."""


StreamHandler = Callable[[Stream], Awaitable[None]]
Validator = Callable[[bytes, PeerId], Verdict]
GossipHandler = Callable[[bytes, PeerId], Awaitable[None]]
PostHandler = Callable[[bytes, PeerId], None]
PeerHandler = Callable[[PeerEvent], Awaitable[None]]


class Mesh(Protocol):
    """A node's view of the other peers."""

    @property
    def peer_id(self) -> PeerId:
        """Our own peer id."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs, with `/p2p/<peer id>`, under which others can dial us now; never 0.0.0.0."""

    @property
    def connected(self) -> frozenset[PeerId]:
        """The peers with a live connection."""

    def round_trip_s(self, peer_id: PeerId) -> float | None:
        """The last heartbeat's round trip to a connected peer in seconds; None before the first."""

    def serve(self, protocol: StreamProtocol, handler: StreamHandler) -> None:
        """Answer inbound streams of a protocol; to be called before the mesh runs.

        Each call of the handler runs under the one guard: a `RemoteProtocolError` resets the stream and is counted
        against the peer, a `MeshError` just resets it, anything else resets it and is journaled as our own fault.
        A handler that returns ends its stream. At most `protocol.streams_max` run per peer; more are reset.
        """

    def serve_posts(self, protocol: StreamProtocol, handler: PostHandler) -> None:
        """Take what peers `post`, under the same guard; to be called before the mesh runs."""

    def post(self, peer_id: PeerId, protocol: StreamProtocol, frame: bytes) -> None:
        """Send one frame on a stream of its own that nobody answers, without waiting; it may be lost.

        Raises:
            LocalProtocolError: the frame is over the protocol's `frame_bytes_max`.
        """

    def subscribe(self, topic: Topic, validate: Validator, handle: GossipHandler) -> None:
        """Take part in a topic; to be called before the mesh runs. `validate` must be quick and only read."""

    def watch(self, handler: PeerHandler) -> None:
        """Be told of peers that come and go, in order per peer; to be called before the mesh runs."""

    def learn(self, peer_id: PeerId, addresses: tuple[str, ...]) -> None:
        """Remember where a peer says it can be dialled, for `open_stream`."""

    async def dial(self, address: str) -> PeerId:
        """Connect to a multiaddr that ends in `/p2p/<peer id>` (a circuit relay's too).

        Raises:
            Unreachable: no connection within the limit, or another key answered.
        """

    async def open_stream(self, peer_id: PeerId, protocol: StreamProtocol) -> Stream:
        """Open a stream to a connected or known peer.

        One that agreed to the protocol before on this connection is not waited for: should it refuse now, or be gone,
        the first receive says so.

        Raises:
            Unreachable: not connected and not dialable, or the peer does not speak the protocol.
        """

    async def publish(self, topic: Topic, data: bytes) -> None:
        """Gossip one message; paced inside, so a burst waits instead of being lost."""

    async def disconnect(self, peer_id: PeerId) -> None:
        """Close every connection to a peer."""

    def charge(self, peer_id: PeerId, offence: str) -> None:
        """Count an offence against a peer; too many in too short a time and its connections are closed."""
