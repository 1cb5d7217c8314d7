"""The hardened libp2p host: the `Mesh` port on real sockets.

A message's way in: `swarm` takes the socket past `gate`, `upgrade` proves the key, `yamux` cuts the connection into
streams, `negotiation` names the protocol, the `guard` runs the handler, which sees whole frames (`streams`). Gossip
comes the same way and passes `gossip`. What a peer does wrong on that way costs it the stream, and is counted.

The host is supervised: each part that dies, for whatever reason, is back within a second with the same key and the
same ports. While it is away, callers wait briefly and then get `Unreachable`, like any other trouble of the network.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from node.guard import Guard, Guarded, Journal
from node.host import negotiation, relay
from node.host.address import Address, parse
from node.host.discovery import Discovery
from node.host.gossip import PROTOCOLS as GOSSIP_PROTOCOLS
from node.host.gossip import Gossip
from node.host.gossip_gate import Subscription
from node.host.mux_stream import MuxStream
from node.host.settings import HostSettings
from node.host.streams import FrameStream
from node.host.swarm import Swarm
from node.host.upgrade import libp2p_key_pair
from node.host.yamux import Connection
from node.peer_events import PeerEvents
from node.supervisor import supervise
from protocol.errors import (
    AgoraError,
    LocalProtocolError,
    MeshError,
    RemoteProtocolError,
    StreamBroken,
    Unreachable,
)
from protocol.identity import Identity, PeerId
from protocol.mesh import (
    GossipHandler,
    PeerConnected,
    PeerEvent,
    PeerHandler,
    PostHandler,
    Stream,
    StreamHandler,
    Validator,
)
from protocol.topics import StreamProtocol, Topic

if TYPE_CHECKING:
    from trio_typing import TaskStatus

RESTART_WAIT_S = 3.0  # how long a caller waits for a part that is being restarted
POSTS_WAITING_MAX = 256  # more are lost, as on a bad line
POSTS_AT_ONCE = 32
POST_TIMEOUT_S = 5.0
RELAY_RETRY_S = 10.0  # between attempts to get a place at a relay


class Host:
    """This node's view of its peers, over libp2p."""

    def __init__(self, identity: Identity, settings: HostSettings, journal: Journal) -> None:
        self._identity = identity
        self._settings = settings
        self._journal = journal
        self._guard = Guard(journal, lambda peer_id: self._swarm.close(peer_id, "too many offences"))
        self._protocols: dict[str, Guarded[MuxStream]] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._running: dict[tuple[PeerId, str], int] = {}
        self._is_running = False
        self._events = PeerEvents(self._guard)
        self._relay = relay.Relay(self._open_raw, self._take_circuit, trio.current_time)
        self._swarm = Swarm(
            identity, settings, self._guard, answer=self._answer, tell=self._tell, circuit=self._relay.call
        )
        self._relay.is_connected = lambda peer_id: peer_id in self._swarm.connected
        self._reserved: dict[PeerId, str] = {}  # relay -> our address through it
        self._posts, self._outbox = trio.open_memory_channel[tuple[PeerId, StreamProtocol, bytes]](
            POSTS_WAITING_MAX
        )
        self._gossip: Gossip | None = None
        self._gossip_up = trio.Event()
        self._register_own_protocols()

    # The port: what is known.

    @property
    def peer_id(self) -> PeerId:
        """See `protocol.mesh.Mesh`."""
        return self._identity.peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        """See `protocol.mesh.Mesh`."""
        announced = tuple(f"{text}/p2p/{self.peer_id}" for text in self._settings.announce)
        return (*announced, *self._swarm.listening, *self._reserved.values())

    @property
    def connected(self) -> frozenset[PeerId]:
        """See `protocol.mesh.Mesh`."""
        return self._swarm.connected

    def round_trip_s(self, peer_id: PeerId) -> float | None:
        """See `protocol.mesh.Mesh`."""
        known = (each.round_trip_s for each in self._swarm.connections(peer_id))
        return next((seconds for seconds in known if seconds is not None), None)

    # The port: taking part.

    def serve(self, protocol: StreamProtocol, handler: StreamHandler) -> None:
        """See `protocol.mesh.Mesh`."""
        self._refuse_while_running()
        self._register(protocol.name, partial(self._serve_frames, protocol, handler))

    def serve_posts(self, protocol: StreamProtocol, handler: PostHandler) -> None:
        """See `protocol.mesh.Mesh`."""

        async def take(stream: Stream) -> None:
            handler(await stream.receive(), stream.peer_id)

        self.serve(protocol, take)

    def subscribe(self, topic: Topic, validate: Validator, handle: GossipHandler) -> None:
        """See `protocol.mesh.Mesh`."""
        self._refuse_while_running()
        self._subscriptions[topic.name] = Subscription(topic, validate, handle)

    def watch(self, handler: PeerHandler) -> None:
        """See `protocol.mesh.Mesh`."""
        self._refuse_while_running()
        self._events.handlers.append(handler)

    def allow_relaying(self, may_use: Callable[[PeerId], bool]) -> None:
        """Say who may reserve a place here and call through us; before this is called, anybody connected."""
        self._relay.may_use = may_use

    # The port: reaching others.

    async def dial(self, address: str) -> PeerId:
        """See `protocol.mesh.Mesh`."""
        await self._wait_up()
        return (await self._swarm.dial(address)).peer_id

    async def open_stream(self, peer_id: PeerId, protocol: StreamProtocol) -> FrameStream:
        """See `protocol.mesh.Mesh`."""
        connection = await self._reach(peer_id)
        proposal = b""
        if protocol.name in connection.agreed:
            # It goes out with the first frame: waiting for the answer would cost a round trip, each time.
            proposal = negotiation.opening(protocol.name)
            raw = _begin(connection, protocol.name)
        else:
            raw = await self._agree(connection, protocol.name)

        def over() -> None:
            connection.busy -= 1

        if not raw.is_broken:
            connection.busy += 1
            raw.on_over = over  # not the caller's end: who only tells something never hears the peer's
        return FrameStream(raw, protocol, proposal=proposal)

    def post(self, peer_id: PeerId, protocol: StreamProtocol, frame: bytes) -> None:
        """See `protocol.mesh.Mesh`."""
        protocol.check_length(frame)
        with suppress(trio.WouldBlock):
            self._posts.send_nowait((peer_id, protocol, frame))

    async def publish(self, topic: Topic, data: bytes) -> None:
        """See `protocol.mesh.Mesh`."""
        if topic.name not in self._subscriptions or len(data) > topic.message_bytes_max:
            raise LocalProtocolError(
                f"{len(data)} bytes for {topic.name}: not subscribed to it, or too long for it"
            )
        with trio.move_on_after(RESTART_WAIT_S):
            await self._gossip_up.wait()
        if self._gossip is None:
            raise Unreachable("gossip is being restarted")
        try:
            await self._gossip.publish(topic, data)
        except AgoraError:
            raise
        except Exception as error:
            raise Unreachable(f"gossip is being restarted: {type(error).__name__}") from error

    async def disconnect(self, peer_id: PeerId) -> None:
        """See `protocol.mesh.Mesh`."""
        self._swarm.close(peer_id, "disconnected")
        await self._swarm.wait_closed(peer_id)

    def charge(self, peer_id: PeerId, offence: str) -> None:
        """See `protocol.mesh.Mesh`."""
        self._guard.charge(peer_id, offence)

    def learn(self, peer_id: PeerId, addresses: tuple[str, ...]) -> None:
        """Remember where a peer says it can be dialled, for `open_stream`."""
        self._swarm.learn(peer_id, addresses)

    # Running.

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started once listening.

        Raises:
            OSError: an address cannot be bound.
        """
        self._is_running = True
        await self._swarm.bind()
        async with trio.open_nursery() as nursery:
            await nursery.start(supervise, self._journal, "swarm", self._swarm.run)
            await nursery.start(supervise, self._journal, "events", self._events.run)
            await nursery.start(supervise, self._journal, "posts", self._send_posts)
            if self._subscriptions:
                await nursery.start(supervise, self._journal, "gossip", self._run_gossip)
            for address in self._settings.relays:
                await nursery.start(
                    supervise, self._journal, "relay", partial(self._keep_place, parse(address))
                )
            discovery = Discovery(self.peer_id, lambda: self._swarm.bound, self._found, self._journal)
            if self._settings.mdns and discovery.is_useful:
                await nursery.start(supervise, self._journal, "mdns", discovery.run)
            self._journal.write("listening", peer_id=self.peer_id, addresses=" ".join(self.addresses))
            task_status.started()

    async def _run_gossip(self, ready: Callable[[], None]) -> None:
        gossip = Gossip(
            libp2p_key_pair(self._identity),
            self._guard,
            self._subscriptions,
            per_s=self._settings.gossip_per_s,
            open_gossip=self._open_gossip,
            connections_of=self._swarm.connections,
        )

        def up() -> None:
            self._gossip = gossip
            self._gossip_up.set()
            for peer_id in self._swarm.connected:
                gossip.peer_connected(peer_id)
            ready()

        try:
            await gossip.run(up)
        finally:
            self._gossip = None
            self._gossip_up = trio.Event()

    async def _send_posts(self, ready: Callable[[], None]) -> None:
        """Send what is posted, several at a time: a peer that does not answer holds up nobody else's."""
        at_once = trio.CapacityLimiter(POSTS_AT_ONCE)

        async def send(peer_id: PeerId, protocol: StreamProtocol, frame: bytes) -> None:
            async with at_once:
                with trio.move_on_after(POST_TIMEOUT_S), suppress(MeshError):
                    stream = await self.open_stream(peer_id, protocol)
                    await stream.send(frame)
                    await stream.end()

        async with trio.open_nursery() as nursery:
            ready()
            async for peer_id, protocol, frame in self._outbox:
                nursery.start_soon(send, peer_id, protocol, frame)

    async def _keep_place(self, at: Address, ready: Callable[[], None]) -> None:
        """Hold a reservation at one relay for as long as we run, so that peers can reach us through it."""
        ready()
        through = str(Address(at.family, at.host, at.port, self.peer_id, relay=at.peer_id))
        while True:
            wait_s = RELAY_RETRY_S
            try:
                await self.dial(str(at))
                holds_s = await self._relay.reserve(at.peer_id)
                self._reserved[at.peer_id] = through
                self._journal.write("relay_reserved", relay=at.peer_id)
                wait_s = holds_s / 2
            except AgoraError as error:
                self._reserved.pop(at.peer_id, None)
                self._journal.write("relay_refused", relay=at.peer_id, reason=str(error))
            connections = self._swarm.connections(at.peer_id)
            with trio.move_on_after(wait_s):
                if connections:
                    await connections[0].closed.wait()  # and with it our place
                    self._reserved.pop(at.peer_id, None)
                else:
                    await trio.sleep_forever()

    # Inbound streams.

    def _register(self, name: str, handler: Callable[[MuxStream], Awaitable[None]]) -> None:
        self._protocols[name] = Guarded(self._guard, name, handler)

    def _register_own_protocols(self) -> None:
        for protocol in GOSSIP_PROTOCOLS:
            self._register(str(protocol), partial(self._serve_gossip, str(protocol)))
        self._register(relay.STOP, self._relay.serve_stop)
        if self._settings.relay:
            self._register(relay.HOP, self._relay.serve_hop)

    async def _answer(self, stream: MuxStream) -> None:
        """Serve one stream that a peer opened, from its first byte to its last; never raises."""
        name = ""

        async def negotiate() -> None:
            nonlocal name
            with trio.move_on_after(self._settings.negotiation_timeout_s):
                name = await negotiation.accept(stream.receive_exactly, stream.send_held, self._protocols)
                stream.release()

        try:
            if await self._guard.run(stream.peer_id, "negotiation", negotiate) and name:
                went_well = await self._protocols[name](stream.peer_id, stream)
                if went_well:
                    stream.end()
                    stream.discard()
                    return
        finally:
            if not stream.is_discarded:
                stream.reset()

    async def _serve_frames(self, protocol: StreamProtocol, handler: StreamHandler, raw: MuxStream) -> None:
        key = (raw.peer_id, protocol.name)
        if self._running.get(key, 0) >= protocol.streams_max:
            raise StreamBroken(
                f"{raw.peer_id} has {protocol.streams_max} streams of {protocol.name} open already"
            )
        self._running[key] = self._running.get(key, 0) + 1
        raw.connection.busy += 1
        stream = FrameStream(raw, protocol)
        try:
            await handler(stream)
            await stream.end()
        finally:
            raw.connection.busy -= 1
            self._running[key] -= 1
            if not self._running[key]:
                del self._running[key]

    async def _serve_gossip(self, protocol: str, raw: MuxStream) -> None:
        if self._gossip is None:
            raise StreamBroken("gossip is not running")
        await self._gossip.serve(raw, protocol)

    # Outbound streams.

    async def _open_raw(self, peer_id: PeerId, name: str) -> MuxStream:
        """Open a stream to a peer and agree on its protocol; raises `Unreachable`."""
        return await self._agree(await self._reach(peer_id), name)

    async def _open_gossip(self, peer_id: PeerId, name: str) -> MuxStream:
        """Open a stream to a connected peer: gossip is no reason to dial one that is gone, or was told to go."""
        connections = self._swarm.connections(peer_id)
        if not connections:
            raise Unreachable(f"{peer_id} is not connected")
        return await self._agree(connections[0], name)

    async def _reach(self, peer_id: PeerId) -> Connection:
        await self._wait_up()
        return await self._swarm.connect(peer_id)

    async def _agree(self, connection: Connection, name: str) -> MuxStream:
        stream = _begin(connection, name)
        try:
            with trio.fail_after(self._settings.negotiation_timeout_s):
                await negotiation.propose(stream.receive_exactly, stream.send_all, name)
        except (StreamBroken, RemoteProtocolError, trio.TooSlowError) as error:
            stream.reset()
            raise Unreachable(f"{stream.peer_id} did not open {name}: {type(error).__name__}") from error
        except BaseException:
            stream.reset()
            raise
        connection.agreed.add(name)
        return stream

    async def _take_circuit(self, stream: MuxStream) -> None:
        await self._swarm.take_circuit(stream)

    async def _wait_up(self) -> None:
        with trio.move_on_after(RESTART_WAIT_S):
            await self._swarm.up.wait()
        if not self._swarm.up.is_set():
            raise Unreachable("the host is not running")

    async def _found(self, address: str) -> None:
        """A peer was heard of on the local network."""
        try:
            await self.dial(address)
        except Unreachable as error:
            self._journal.write("dial_failed", address=address, reason=str(error))

    def _tell(self, event: PeerEvent) -> None:
        gossip = self._gossip
        if gossip is not None:
            if isinstance(event, PeerConnected):
                gossip.peer_connected(event.peer_id)
            else:
                gossip.peer_lost(event.peer_id)
        self._events.add(event)

    def _refuse_while_running(self) -> None:
        if self._is_running:
            raise LocalProtocolError("the host runs already; serve, subscribe and watch come before")


def _begin(connection: Connection, name: str) -> MuxStream:
    try:
        return connection.open_stream()
    except StreamBroken as error:
        raise Unreachable(f"{connection.peer_id} did not open {name}: {type(error).__name__}") from error
