"""The way into gossip: libp2p's pubsub with the loop that reads and the gate that a message passes replaced.

Stock pubsub dies of a frame that is not protobuf, of a message with a garbage key, of a validator that raises and of a
message that arrives while it stops; it starts a task for each message a stranger sends. Here a peer's frames are taken
one at a time, checked in the order of cost, and a message that cannot be delivered yet holds up its deliverer alone.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sized
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio
from libp2p.peer.id import ID
from libp2p.pubsub.mcache import CacheEntry, MessageCache
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.pubsub.validators import signature_validator

from node.guard import Guard
from node.host.gossip_heart import Router
from node.host.gossip_view import GossipStream, HostView
from node.host.negotiation import read_uvarint
from node.pace import Pace
from protocol.errors import (
    BadSignature,
    MalformedMessage,
    RemoteProtocolError,
    StreamBroken,
    TooLarge,
    TooManyMessages,
)
from protocol.identity import PeerId
from protocol.limits import DEDUPE_MAX, PEER_MESSAGES_PER_S
from protocol.mesh import GossipHandler, Validator, Verdict
from protocol.topics import Topic

RPC_BYTES_MAX = 128 * 1024  # the largest gossip message of 64 KiB, its signature and some control
RPC_ITEMS_MAX = (
    512  # messages, subscriptions and control entries in one frame: what five busy seconds can hold
)
IDS_MAX = 1_024  # message ids in one control entry
INBOX_MESSAGES = 256  # delivered but not yet handled, per topic; then the peers that bring more wait
SEEN_S = 300.0  # a copy that wanders for longer is refused by the envelope's own time window
OUTBOX_RPCS = 128  # queued for one slow peer: at 64 KiB each 8 MiB


@dataclass(frozen=True)
class Subscription:
    """One topic we take part in."""

    topic: Topic
    validate: Validator
    handle: GossipHandler


def message_id(message: rpc_pb2.Message) -> bytes:
    """Return SHA-256 over topic and content: the same bytes are the same message, whoever numbered them."""
    topic = message.topicIDs[0].encode() if message.topicIDs else b""
    return hashlib.sha256(len(topic).to_bytes(2, "big") + topic + message.data).digest()


class GuardedPubsub(Pubsub):
    """Pubsub whose way in is our own: one frame at a time, each checked, nothing spawned for a stranger."""

    def __init__(
        self, view: HostView, router: Router, guard: Guard, subscriptions: dict[str, Subscription]
    ) -> None:
        super().__init__(
            view,  # type: ignore[arg-type]  # the part of IHost that pubsub uses
            router,
            strict_signing=True,
            msg_id_constructor=message_id,
            max_inbound_rpc_size=RPC_BYTES_MAX,
            max_subscriptions_per_peer=RPC_ITEMS_MAX,
            allowed_topics=frozenset(subscriptions),
        )
        self.seen_messages._stop_event.set()  # noqa: SLF001  a thread and no bound; `stop()` would wait for it
        self.seen_messages = SeenMessages()  # type: ignore[assignment]  # the two methods that are used
        assert router.scorer is not None
        self.scorer = router.scorer
        self.inboxes = {
            name: trio.open_memory_channel[tuple[bytes, PeerId]](INBOX_MESSAGES) for name in subscriptions
        }
        self._guard = guard
        self._heart = router
        self._subscriptions = subscriptions
        self._rates: dict[PeerId, Pace] = {}
        self.peer_queues = Outboxes()
        self._inbound: dict[ID, GossipStream] = {}
        self.nursery: trio.Nursery | None = None  # where tasks run; None while stopping

    @property
    def manager(self) -> Any:
        """The task manager, which starts every task under the guard, and none while stopping."""
        return GuardedManager(self._manager, self._guard, self.nursery)

    def greet(self, peer: ID) -> None:
        """Open our own gossip stream to a peer, again and again while it is connected."""
        self.manager.run_task(self._handle_new_peer_with_retry, peer)

    def forget(self, peer: ID) -> None:
        """A peer is gone."""
        self._rates.pop(PeerId(peer.to_base58()), None)
        self._handle_dead_peer(peer)

    async def handle_sending_messages(self, peer_id: ID, stream: Any, queue: RpcQueue) -> None:
        """Write what is queued for one peer, until our stream to it ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_wait_for_end, stream, nursery.cancel_scope)
            await super().handle_sending_messages(peer_id, stream, queue)
            nursery.cancel_scope.cancel()
        stream.raw.reset()
        if self.peers.get(peer_id) is stream:
            self._handle_dead_peer(peer_id)  # which opens another while the peer is connected

    async def stream_handler(self, stream: Any) -> None:
        """Read one peer's gossip until its stream ends; its newest stream is the one that counts."""
        peer = stream.muxed_conn.peer_id
        older = self._inbound.pop(peer, None)
        if older is not None:
            older.raw.reset()
        self._inbound[peer] = stream
        try:
            while True:
                await self._take_frame(stream, peer)
        except StreamBroken:
            return
        finally:
            if self._inbound.get(peer) is stream:
                del self._inbound[peer]
                self._forget_all_subscriptions(peer)  # it will say them again on its next stream

    def _handle_dead_peer(self, peer_id: ID) -> None:
        """Our own stream to a peer is gone: what the peer subscribed to on *its* stream still holds."""
        topics = [
            topic
            for topic, peers in self.peer_topics.items()
            if peer_id in peers and peer_id in self._inbound
        ]
        super()._handle_dead_peer(peer_id)
        for topic in topics:
            self.peer_topics.setdefault(topic, set()).add(peer_id)
            self._peer_subscription_count[peer_id] = len(topics)

    def hang_up(self) -> None:
        """Reset every gossip stream, so that peers open new ones to whoever comes after us."""
        for stream in (*self.peers.values(), *self._inbound.values()):
            stream.raw.reset()  # type: ignore[attr-defined]  # pubsub calls them INetStream; each is a GossipStream

    async def _take_frame(self, stream: GossipStream, peer: ID) -> None:
        size = await read_uvarint(stream.raw.receive_exactly, RPC_BYTES_MAX)
        frame = await stream.raw.receive_exactly(size)
        peer_id = stream.raw.peer_id
        rpc = rpc_pb2.RPC()
        try:
            rpc.ParseFromString(frame)
        except Exception as error:
            raise MalformedMessage("gossip frame is not an RPC") from error
        _check_texts(rpc)
        rpc.ClearField("senderRecord")  # an address book that strangers can write into is no use to us
        _check_counts(rpc)
        if not self._rates.setdefault(peer_id, Pace(PEER_MESSAGES_PER_S, 2 * PEER_MESSAGES_PER_S)).take(
            1 + len(rpc.publish)
        ):
            self._guard.charge(peer_id, TooManyMessages.offence, "gossip")
            return
        self._heart.stir()  # whatever it says may make a mesh too small or too full
        for message in rpc.publish:
            try:
                await self.push_msg(peer, message)
            except RemoteProtocolError as error:
                self._guard.charge(peer_id, error.offence, "gossip")
        for subscription in rpc.subscriptions:
            self.handle_subscription(peer, subscription)
        if rpc.HasField("control"):
            try:
                await self.router.handle_rpc(rpc, peer)
            except Exception as error:
                raise MalformedMessage("gossip control that the router chokes on") from error

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Pass one message through the gate, deliver it, and hand it on.

        Raises:
            RemoteProtocolError: refused, and the deliverer's fault.
        """
        key = message_id(msg)
        if self.seen_messages.has(key):
            return
        is_ours = msg_forwarder == self.my_id
        if not is_ours:
            peer_id = PeerId(msg_forwarder.to_base58())
            if not self.scorer.allow_publish(msg_forwarder, list(msg.topicIDs)):
                return
            verdict = self._judge(peer_id, msg)
            if verdict is Verdict.IGNORE:
                return
            if verdict is Verdict.REJECT:
                self.scorer.on_invalid_message(msg_forwarder, msg.topicIDs[0])
                raise MalformedMessage("gossip message that its topic refuses")
        self.seen_messages.add(key)
        if not is_ours:
            self.scorer.on_first_delivery(msg_forwarder, msg.topicIDs[0])
            await self.inboxes[msg.topicIDs[0]][0].send((msg.data, peer_id))
        await self.router.publish(msg_forwarder, msg)

    def _judge(self, peer_id: PeerId, message: rpc_pb2.Message) -> Verdict:
        """Check topic, size and signature, then ask the topic's validator; cheap checks first."""
        subscription = self._subscriptions.get(message.topicIDs[0]) if len(message.topicIDs) == 1 else None
        if subscription is None:
            raise MalformedMessage("gossip message that is not on one topic of ours")
        if len(message.data) > subscription.topic.message_bytes_max:
            raise TooLarge(f"{len(message.data)} bytes on {subscription.topic.name}")
        if message.from_id == self.my_id.to_bytes():
            return Verdict.IGNORE  # an echo of our own, or somebody who says it is
        try:
            is_signed = signature_validator(message)
        except Exception as error:
            raise MalformedMessage("gossip message with a garbage key") from error
        if not is_signed:
            raise BadSignature("gossip message whose signature does not hold")
        return self._guard.call(
            peer_id,
            f"validator of {subscription.topic.name}",
            lambda: subscription.validate(message.data, peer_id),
            otherwise=Verdict.IGNORE,
        )


async def _wait_for_end(stream: GossipStream, scope: trio.CancelScope) -> None:
    """Nothing is ever read on our own stream, but its end is: the other side has reset it."""
    with suppress(StreamBroken):
        await stream.raw.receive_some()
    scope.cancel()


class GuardedManager:
    """libp2p's task manager, seen through the guard: no task can take the service down with it."""

    def __init__(self, manager: Any, guard: Guard, nursery: trio.Nursery | None) -> None:
        self._manager = manager
        self._guard = guard
        self._nursery = nursery

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    def run_task(self, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Run a task for a peer; the first argument that is an id says whose."""
        if self._nursery is None:
            return  # stock pubsub dies here: "Nursery is closed to new arrivals"
        peer = next((each for each in arguments if isinstance(each, ID)), None)
        peer_id = PeerId(peer.to_base58()) if peer else PeerId("")

        self._nursery.start_soon(
            self._guard.run, peer_id, f"gossip {work.__name__}", partial(work, *arguments)
        )


class ContentCache(MessageCache):
    """The messages of the last seconds, under our message ids.

    libp2p's cache insists on its own ids, and then no peer ever finds a message that it was told of.
    """

    def put(self, msg: rpc_pb2.Message) -> None:
        """Remember a message."""
        key = message_id(msg)
        if key not in self.msgs:
            self.msgs[key] = msg
            self.history[0].append(CacheEntry(key, msg.topicIDs))


class Outboxes(dict[ID, RpcQueue]):
    """What is queued for each peer: long enough for a burst, in frames that the other side accepts."""

    def __setitem__(self, peer: ID, queue: RpcQueue) -> None:
        queue._queue.max_size = OUTBOX_RPCS  # noqa: SLF001  libp2p's 32 lost 1 of 40 messages published at once
        queue.max_message_size = RPC_BYTES_MAX
        super().__setitem__(peer, queue)


class SeenMessages:
    """The ids of messages that have passed here, for a while."""

    def __init__(self) -> None:
        self._ids: OrderedDict[bytes, float] = OrderedDict()

    def has(self, key: bytes) -> bool:
        """Whether a message was seen lately."""
        return key in self._ids

    def add(self, key: bytes) -> bool:
        """Remember a message; return whether it is new."""
        now = trio.current_time()
        is_new = self._ids.setdefault(key, now) == now
        while len(self._ids) > DEDUPE_MAX or next(iter(self._ids.values())) < now - SEEN_S:
            self._ids.popitem(last=False)
        return is_new


def _check_texts(rpc: rpc_pb2.RPC) -> None:
    """Refuse topics that are not text: protobuf hands those out as bytes, and whoever expects a `str` raises."""
    control = rpc.control
    texts: list[object] = [topic for message in rpc.publish for topic in message.topicIDs]
    texts += [subscription.topicid for subscription in rpc.subscriptions]
    entries: list[Any] = [*control.ihave, *control.graft, *control.prune]
    texts += [entry.topicID for entry in entries]
    if not all(isinstance(text, str) for text in texts):
        raise MalformedMessage("gossip topic that is not UTF-8")


def _check_counts(rpc: rpc_pb2.RPC) -> None:
    """Refuse a frame with too much in it."""
    control = rpc.control
    lists: list[Sized] = [
        rpc.publish,
        rpc.subscriptions,
        control.ihave,
        control.iwant,
        control.graft,
        control.prune,
    ]
    id_lists: list[Any] = [*control.ihave, *control.iwant, *control.idontwant]
    if (
        sum(len(each) for each in lists) > RPC_ITEMS_MAX
        or sum(len(each.messageIDs) for each in id_lists) > IDS_MAX
    ):
        raise TooLarge("gossip frame with too many entries")
    for prune in control.prune:
        del prune.peers[:]  # peer exchange: strangers choosing whom we dial
