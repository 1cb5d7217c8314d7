"""The router's heart: it beats every second while gossip is alive, and hardly ever while nobody says anything.

libp2p's GossipSub wakes each second for ever, which was three quarters of what an idle daemon did. A beat repairs: it
takes peers into a mesh that has become too small, lets some go from one that is too full, and tells others of messages of
the last seconds. Each of those begins with something that happens here: a frame came, a message went out, a peer left. So
the heart is *stirred* by these, beats on the same seconds as if it had never paused, and goes on for as long as there
are messages to tell of. What only time brings, scores that fade and peers that may be asked again, waits for a slow beat.
"""

import math
from typing import Any

import trio
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2

QUIET_BEAT_S = 15.0  # as often as an idle connection's heartbeat


class Router(GossipSub):
    """GossipSub with a heart that rests."""

    def __init__(self, **settings: Any) -> None:
        """Take GossipSub's own settings."""
        super().__init__(**settings)
        self._stirred = trio.Event()

    def stir(self) -> None:
        """Something has happened that the next beat may have to deal with."""
        self._stirred.set()

    async def publish(self, msg_forwarder: ID, pubsub_msg: rpc_pb2.Message) -> None:
        """Hand on a message, ours or another's; those outside the mesh are told of it at the next beats."""
        self.stir()
        await super().publish(msg_forwarder, pubsub_msg)

    def remove_peer(self, peer_id: ID) -> None:
        """Forget a peer; the meshes that it was in may be too small now."""
        self.stir()
        super().remove_peer(peer_id)

    async def heartbeat(self) -> None:
        """Beat for as long as the router lives."""
        await trio.sleep(self.heartbeat_initial_delay)
        # On whole seconds of our clock, so that a slow beat wakes us together with the heartbeats of idle connections.
        beat_at = trio.current_time() // self.heartbeat_interval * self.heartbeat_interval
        seconds = 1
        while True:
            self._stirred = trio.Event()  # what happens from here on is for the next beat
            await self._beat(seconds)
            if not any(self.mcache.history):
                with trio.move_on_at((beat_at // QUIET_BEAT_S + 1) * QUIET_BEAT_S):
                    await self._stirred.wait()
            passed_s = trio.current_time() - beat_at
            if self._stirred.is_set():
                seconds = max(1, math.ceil(passed_s / self.heartbeat_interval)) * self.heartbeat_interval
            else:
                seconds = max(1, round(passed_s))
            beat_at += seconds
            await trio.sleep_until(beat_at)

    async def _beat(self, seconds: int) -> None:
        """Do what GossipSub's own heartbeat does, with the parts that we have turned off left out."""
        grafts, prunes = self.mesh_heartbeat()
        await self._emit_control_msgs(grafts, prunes, self.gossip_heartbeat())
        self.mcache.shift()
        assert self.scorer is not None
        for _ in range(seconds):  # scores fade by the second, however long the heart has rested
            self.scorer.on_heartbeat()
        for topic in list(self.mesh):
            await self._maintain_mesh_quality(topic)
        self._periodic_security_cleanup()
        self._prune_idontwant_entries()
