"""One node's view of the simulated network: the `Mesh` port, with the host's guard, offences and pacing."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from node.guard import Guard, Journal
from node.pace import Pace
from node.peer_events import PeerEvents
from node.simulation.gossip import Gossip, Message, message
from node.simulation.memory_stream import MemoryStream
from protocol.errors import LocalProtocolError, MalformedMessage, StreamBroken, Unreachable
from protocol.identity import PeerId
from protocol.mesh import (
    GossipHandler,
    PeerConnected,
    PeerEvent,
    PeerHandler,
    PostHandler,
    Stream,
    StreamHandler,
    Validator,
    Verdict,
)
from protocol.topics import StreamProtocol, Topic

if TYPE_CHECKING:
    from trio_typing import TaskStatus

    from node.simulation.network import Connection, Network

GOSSIP_PER_S = 20.0  # as the host
BURST = 32.0
INBOX_MESSAGES = 256
OPEN_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Subscription:
    """One topic that a node takes part in, and the messages that wait for its handler."""

    topic: Topic
    validate: Validator
    handle: GossipHandler
    send: "trio.MemorySendChannel[tuple[bytes, PeerId]]"
    receive: "trio.MemoryReceiveChannel[tuple[bytes, PeerId]]"


class _Events(PeerEvents):
    """Tells gossip of a peer at once, and the node when its turn comes, as the host does."""

    def __init__(self, guard: Guard, gossip: Gossip) -> None:
        super().__init__(guard)
        self._gossip = gossip

    def add(self, event: PeerEvent) -> None:
        if isinstance(event, PeerConnected):
            self._gossip.connected(event.peer_id)
        else:
            self._gossip.lost(event.peer_id)
        super().add(event)


class MemoryMesh:
    """See `protocol.mesh.Mesh`; a node's `run` must be running before others reach it."""

    def __init__(self, network: "Network", peer_id: PeerId, journal: Journal) -> None:
        self.is_running = False
        self._network = network
        self._peer_id = peer_id
        self._guard = Guard(journal, lambda offender: network.disconnect(peer_id, offender))
        self.gossip = Gossip(network, peer_id, self._judge)
        self.events = _Events(self._guard, self.gossip)
        self._handlers: dict[str, tuple[StreamProtocol, StreamHandler]] = {}
        self._post_handlers: dict[str, PostHandler] = {}
        self._serving: dict[tuple[PeerId, str], int] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._known: dict[PeerId, None] = {}
        self._pace = Pace(GOSSIP_PER_S, BURST)
        self._nursery: trio.Nursery | None = None

    @property
    def peer_id(self) -> PeerId:
        """See `protocol.mesh.Mesh`."""
        return self._peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        """See `protocol.mesh.Mesh`; the host part means nothing here."""
        return (f"/ip4/127.0.0.1/tcp/4420/p2p/{self._peer_id}",)

    @property
    def connected(self) -> frozenset[PeerId]:
        """See `protocol.mesh.Mesh`."""
        return frozenset(self._network.connected(self._peer_id))

    def round_trip_s(self, peer_id: PeerId) -> float | None:
        """See `protocol.mesh.Mesh`."""
        is_connected = self._network.connection(self._peer_id, peer_id) is not None
        return self._network.round_trip_s(self._peer_id, peer_id) if is_connected else None

    def serve(self, protocol: StreamProtocol, handler: StreamHandler) -> None:
        """See `protocol.mesh.Mesh`."""
        self._refuse_while_running()
        self._handlers[protocol.name] = (protocol, handler)

    def serve_posts(self, protocol: StreamProtocol, handler: PostHandler) -> None:
        """See `protocol.mesh.Mesh`."""

        async def take(stream: Stream) -> None:
            handler(await stream.receive(), stream.peer_id)

        self.serve(protocol, take)  # nobody is bound to `post`: a stream with a frame on it is the same
        self._post_handlers[protocol.name] = handler

    def post(self, peer_id: PeerId, protocol: StreamProtocol, frame: bytes) -> None:
        """See `protocol.mesh.Mesh`; like gossip, a post may be lost on its way."""
        protocol.check_length(frame)
        connection = self._network.connection(self._peer_id, peer_id)
        if connection is not None:
            receiver = self._network.meshes[peer_id]
            connection.deliver(
                peer_id, partial(receiver.take_post, protocol, frame, self._peer_id), len(frame)
            )

    def take_post(self, protocol: StreamProtocol, frame: bytes, peer_id: PeerId) -> None:
        """A posted frame arrives."""
        handler = self._post_handlers.get(protocol.name)
        if handler is not None and self.is_running:
            self._guard.call(peer_id, protocol.name, lambda: handler(frame, peer_id), None)

    def subscribe(self, topic: Topic, validate: Validator, handle: GossipHandler) -> None:
        """See `protocol.mesh.Mesh`."""
        self._refuse_while_running()
        send, receive = trio.open_memory_channel[tuple[bytes, PeerId]](INBOX_MESSAGES)
        self._subscriptions[topic.name] = Subscription(topic, validate, handle, send, receive)
        self.gossip.subscribe(topic.name)

    def watch(self, handler: PeerHandler) -> None:
        """See `protocol.mesh.Mesh`."""
        self._refuse_while_running()
        self.events.handlers.append(handler)

    def learn(self, peer_id: PeerId, addresses: tuple[str, ...]) -> None:
        """Remember that a peer can be dialled."""
        if addresses:
            self._known[peer_id] = None

    async def dial(self, address: str) -> PeerId:
        """See `protocol.mesh.Mesh`."""
        _, separator, text = address.rpartition("/p2p/")
        if not separator or PeerId(text) == self._peer_id:
            raise Unreachable(f"address {address!r} does not end in /p2p/PEER of another node")
        await self._connect(PeerId(text))
        self._known[PeerId(text)] = None
        return PeerId(text)

    async def open_stream(self, peer_id: PeerId, protocol: StreamProtocol) -> MemoryStream:
        """See `protocol.mesh.Mesh`."""
        if peer_id not in self._known and peer_id not in self.connected:
            raise Unreachable(f"{peer_id} is not connected and no address of it is known")
        connection = await self._connect(peer_id)
        answered = trio.Event()
        ours: MemoryStream | None = None

        def arrive() -> None:
            nonlocal ours
            ours = self._network.meshes[peer_id].accept(self._peer_id, protocol, connection)
            connection.deliver(self._peer_id, answered.set)

        connection.deliver(peer_id, arrive)
        try:
            with trio.move_on_after(OPEN_TIMEOUT_S):
                await answered.wait()
        finally:
            if ours is not None and not answered.is_set():
                ours.abort()
        if ours is None or not answered.is_set():
            raise Unreachable(f"{peer_id} did not open {protocol.name}")
        return ours

    async def publish(self, topic: Topic, data: bytes) -> None:
        """See `protocol.mesh.Mesh`."""
        if topic.name not in self._subscriptions or len(data) > topic.message_bytes_max:
            raise LocalProtocolError(
                f"{len(data)} bytes for {topic.name}: not subscribed to it, or too long for it"
            )
        await self._pace.wait()
        self.gossip.publish(message(topic.name, data))

    async def disconnect(self, peer_id: PeerId) -> None:
        """See `protocol.mesh.Mesh`."""
        await trio.lowlevel.checkpoint()
        self._network.disconnect(self._peer_id, peer_id)

    def charge(self, peer_id: PeerId, offence: str) -> None:
        """See `protocol.mesh.Mesh`."""
        self._guard.charge(peer_id, offence)

    def is_barred(self, peer_id: PeerId) -> bool:
        """Whether this node refuses a peer for the moment."""
        return self._guard.offences.is_barred(peer_id, trio.current_time())

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled; then the node is gone for its peers."""
        try:
            async with trio.open_nursery() as self._nursery:
                for subscription in self._subscriptions.values():
                    self._nursery.start_soon(self._deliver, subscription)
                self._nursery.start_soon(self.events.run, lambda: None)
                self.is_running = True
                task_status.started()
                await trio.sleep_forever()
        finally:
            self.is_running = False
            self._nursery = None
            if self._network.meshes.get(self._peer_id) is self:
                self._network.kill(self._peer_id)

    # What the network brings.

    def accept(
        self, peer_id: PeerId, protocol: StreamProtocol, connection: "Connection"
    ) -> MemoryStream | None:
        """A peer opens a stream; return its end, or None when we do not speak the protocol."""
        if protocol.name not in self._handlers or self._nursery is None:
            return None
        known, handler = self._handlers[protocol.name]
        here = MemoryStream(peer_id, known, partial(connection.deliver, peer_id))
        there = MemoryStream(self._peer_id, protocol, partial(connection.deliver, self._peer_id))
        here.twin, there.twin = there, here
        connection.carry(here, there)
        self._nursery.start_soon(self._serve, known, handler, here)
        return there

    async def _serve(self, protocol: StreamProtocol, handler: StreamHandler, stream: MemoryStream) -> None:
        key = (stream.peer_id, protocol.name)
        self._serving[key] = self._serving.get(key, 0) + 1

        async def work() -> None:
            if self._serving[key] > protocol.streams_max:
                raise StreamBroken(
                    f"{stream.peer_id} has {protocol.streams_max} streams of {protocol.name} open already"
                )
            await handler(stream)
            await stream.end()

        try:
            if await self._guard.run(stream.peer_id, protocol.name, work):
                stream.discard()
            else:
                stream.abort()
        finally:
            self._serving[key] -= 1

    def hear(self, topic: str, data: bytes, peer_id: PeerId) -> None:
        """A gossip message arrives from a peer."""
        self.gossip.arrive(message(topic, data), peer_id)

    def _judge(self, message: Message, peer_id: PeerId) -> bool:
        """A gossip message is new here: pass it through the gate; return whether to keep it and hand it on."""
        subscription = self._subscriptions[message.topic]
        verdict = self._guard.call(
            peer_id,
            f"validator of {message.topic}",
            lambda: subscription.validate(message.data, peer_id),
            Verdict.IGNORE,
        )
        if verdict is Verdict.REJECT:
            self._guard.charge(peer_id, MalformedMessage.offence, "gossip")
        if verdict is not Verdict.ACCEPT:
            return False
        try:
            subscription.send.send_nowait((message.data, peer_id))
        except trio.WouldBlock:
            return False  # a handler this slow loses gossip, or is told of it again; `sync` repairs
        return True

    async def _deliver(self, subscription: Subscription) -> None:
        async for data, peer_id in subscription.receive:
            await self._guard.run(
                peer_id, subscription.topic.name, partial(subscription.handle, data, peer_id)
            )

    async def _connect(self, peer_id: PeerId) -> "Connection":
        if not self.is_running:
            raise Unreachable("the host is not running")
        if self.is_barred(peer_id):
            raise Unreachable(f"{peer_id} is barred for a while: too many offences")
        return await self._network.connect(self._peer_id, peer_id)

    def _refuse_while_running(self) -> None:
        if self.is_running:
            raise LocalProtocolError("the node runs already; serve, subscribe and watch come before")
