"""Gossip: libp2p's GossipSub builds the mesh and forwards; what comes in passes our gate (`gossip_gate.py`).

Stock gossip drops what comes faster than 10/s or in bursts of over 32, silently, and delivers new content under an old
sequence number without validating it. Here publishing is paced, and the same bytes are the same message.
"""

from collections.abc import Callable
from functools import partial

import trio
from libp2p.crypto.keys import KeyPair
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, PROTOCOL_ID_V12
from libp2p.tools.anyio_service import background_trio_service

from node.guard import Guard
from node.host.gossip_gate import ContentCache, GuardedPubsub, Subscription
from node.host.gossip_heart import Router
from node.host.gossip_score import score_params
from node.host.gossip_view import ConnectionsOf, GossipStream, HostView, OpenGossip
from node.host.mux_stream import MuxStream
from node.pace import Pace
from protocol.identity import PeerId
from protocol.topics import Topic

PROTOCOLS = (PROTOCOL_ID_V12, PROTOCOL_ID_V11)
BURST = 32.0  # published at once before pacing begins


class Gossip:
    """This node's part in every topic. One instance lives until it dies; the host then makes another."""

    def __init__(
        self,
        keys: KeyPair,
        guard: Guard,
        subscriptions: dict[str, Subscription],
        *,
        per_s: float,
        open_gossip: OpenGossip,
        connections_of: ConnectionsOf,
    ) -> None:
        self._guard = guard
        self._subscriptions = subscriptions
        self._pace = Pace(per_s, BURST)
        view = HostView(keys, open_gossip, connections_of)
        self.router = Router(
            protocols=list(PROTOCOLS),
            degree=6,
            degree_low=4,
            degree_high=12,
            heartbeat_interval=1,
            adaptive_gossip_enabled=False,
            spam_protection_enabled=False,  # it counts our own publications and drops silently; rates are counted here
            eclipse_protection_enabled=False,
            score_params=score_params(self._offences_of),
        )
        self.router.mcache = ContentCache(window_size=3, history_size=5)
        self.pubsub = GuardedPubsub(view, self.router, guard, subscriptions)

    async def run(self, ready: Callable[[], None]) -> None:
        """Take part until cancelled."""
        async with (
            trio.open_nursery() as nursery,
            background_trio_service(self.pubsub),
            background_trio_service(self.router),
        ):
            self.pubsub.nursery = nursery
            try:
                await self.pubsub.wait_until_ready()
                for subscription in self._subscriptions.values():
                    nursery.start_soon(self._deliver, subscription)
                    await self.pubsub.subscribe(subscription.topic.name)
                ready()
                await self.router.manager.wait_finished()
            finally:
                self.pubsub.nursery = None
                self.pubsub.hang_up()
                nursery.cancel_scope.cancel()
        raise RuntimeError("gossip router ended")

    async def publish(self, topic: Topic, data: bytes) -> None:
        """Publish one message, when its turn comes."""
        await self._pace.wait()
        await self.pubsub.publish(topic.name, data)

    def peer_connected(self, peer_id: PeerId) -> None:
        """A first connection to a peer stands: open our gossip stream to it."""
        self.pubsub.greet(ID.from_base58(peer_id))

    def peer_lost(self, peer_id: PeerId) -> None:
        """The last connection to a peer is gone."""
        self._guard.call(
            peer_id, "gossip", lambda: self.pubsub.forget(ID.from_base58(peer_id)), otherwise=None
        )

    async def serve(self, raw: MuxStream, protocol: str) -> None:
        """Read a peer's gossip stream to its end; raises what the guard is to judge."""
        await self.pubsub.stream_handler(GossipStream(raw, protocol))

    async def _deliver(self, subscription: Subscription) -> None:
        async for data, peer_id in self.pubsub.inboxes[subscription.topic.name][1]:
            await self._guard.run(
                peer_id, subscription.topic.name, partial(subscription.handle, data, peer_id)
            )

    def _offences_of(self, peer: ID) -> float:
        return self._guard.offences.score(PeerId(peer.to_base58()), trio.current_time())
