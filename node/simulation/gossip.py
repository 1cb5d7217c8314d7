"""Gossip as the libp2p host does it (GossipSub 1.2 as set in `node/host/gossip.py`), between nodes in memory.

For each topic a node keeps a *mesh*: some of its connected peers, each of which has it in its own. Whoever connects while
one of the two has too few is taken in; what is missing or too much after that is chosen at random at the next heartbeat.
A new message goes at once to the mesh, save to whoever brought it and to whoever has already said that it has it. For
three heartbeats after that, a few peers outside the mesh are told of it, and ask for it if they lack it: so a message
that a link lost, or that no mesh link led to, still arrives.

A world may have ten thousand nodes, so nothing ticks while nothing happens. A node has a heartbeat only while it heard
a message lately or its mesh has too few or too many peers. And word of a message to a peer that has it by now, which
could change nothing, does not travel: only its bytes are counted.

What the host makes of scores is left out: members of one mesh that behave have about the same.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING

import trio

from protocol.identity import PeerId
from protocol.limits import DEDUPE_MAX

if TYPE_CHECKING:
    from node.simulation.network import Connection, Network

DEGREE, DEGREE_LOW, DEGREE_HIGH = 6, 4, 12  # as the host
HEARTBEAT_S = 1.0
PHASES = 32  # moments of a second at which hearts beat: a world pays for each moment at which it wakes
TOLD_TICKS = 3  # a message is told of at so many heartbeats
TOLD_MIN, TOLD_SHARE = 6, 0.25  # and each time to so many peers, or that share of those outside the mesh
KEPT_TICKS = 5  # and handed out on request for so many
MESSAGE_BYTES = 340  # around a message's data: its author and signature, a record of the sender
FRAME_BYTES = 86  # around a frame: yamux, Noise, TCP and IPv4, as the network counts for what it carries
BACKOFF_S = 60.0  # for so long who was let go by a full mesh neither asks back in nor tells that peer


@dataclass(frozen=True, slots=True)
class Message:
    """What is gossiped; every node that has it holds this one object."""

    topic: str
    data: bytes
    key: bytes  # the same bytes on a topic are the same message


def message(topic: str, data: bytes) -> Message:
    """Return a message with its key."""
    return Message(topic, data, sha256(topic.encode() + b"\0" + data).digest())


Gate = Callable[[Message, PeerId], bool]


@dataclass(slots=True)
class Neighbour:
    """A connected peer: its own part in gossip, and the way to it."""

    gossip: "Gossip"
    connection: "Connection"


class Gossip:
    """One node's part in every topic that it subscribes to.

    Attributes:
        peer_id: whose part it is.
        mesh: for each topic the peers that a new message goes to at once, the oldest first.
        copies: how many times a message has arrived here, copies of one that was known included.
        firsts: how many of those were new.
    """

    def __init__(self, network: "Network", peer_id: PeerId, gate: Gate) -> None:
        """Make the part of a node; `gate` says whether a new message is kept and handed on."""
        self.peer_id = peer_id
        self.mesh: dict[str, dict[PeerId, None]] = {}
        self.copies = 0
        self.firsts = 0
        self._network = network
        self._gate = gate
        self._neighbours: dict[PeerId, Neighbour] = {}
        self._heard: OrderedDict[bytes, float] = OrderedDict()  # key -> when
        self._recent: dict[bytes, tuple[Message, int]] = {}  # and the first tick after it was heard
        self._backoff: dict[tuple[str, PeerId], float] = {}
        self._phase_s: float | None = None  # where in each second this node's heart beats
        self._is_beating = False

    def subscribe(self, topic: str) -> None:
        """Take part in a topic."""
        self.mesh[topic] = {}

    def publish(self, message: Message) -> None:
        """Say something new; what was said or heard before is not said again."""
        if message.key not in self._heard:
            self._keep(message)
            self._spread(message, heard_from=self.peer_id)

    def connected(self, peer_id: PeerId) -> None:
        """A connection to a peer stands. Both ends are told; the first to be told acts for both."""
        connection = self._network.connection(self.peer_id, peer_id)
        mesh = self._network.meshes.get(peer_id)
        if connection is None or mesh is None or self._is_neighbour(peer_id):
            return
        other = mesh.gossip
        self.meet(other, connection)
        other.meet(self, connection)
        for topic in self.mesh:
            if topic in other.mesh:
                is_wanted = min(len(self.mesh[topic]), len(other.mesh[topic])) < DEGREE_LOW
                if is_wanted and self._may_graft(topic, other):
                    self._graft(topic, other)
                self.tell_newcomer(topic, other.peer_id)
                other.tell_newcomer(topic, self.peer_id)

    def lost(self, peer_id: PeerId) -> None:
        """The connection to a peer is gone; somebody else takes its place at the next heartbeat."""
        self._neighbours.pop(peer_id, None)
        for topic in self.mesh:
            self.drop(topic, peer_id)

    # What a neighbour's part calls, and what has travelled here from it.

    def meet(self, other: "Gossip", connection: "Connection") -> None:
        """Remember a peer that has come."""
        self._neighbours[other.peer_id] = Neighbour(other, connection)

    def add(self, topic: str, peer_id: PeerId) -> None:
        """Take a peer into the mesh, which may be too full up to the next heartbeat."""
        self.mesh[topic][peer_id] = None
        if len(self.mesh[topic]) > DEGREE_HIGH:
            self._beat_soon()

    def drop(self, topic: str, peer_id: PeerId) -> None:
        """Let a peer go from the mesh, which may be too small up to the next heartbeat."""
        if self.mesh[topic].pop(peer_id, self) is None and len(self.mesh[topic]) < DEGREE_LOW:
            self._beat_soon()

    def let_go_by(self, topic: str, peer_id: PeerId) -> None:
        """A peer's mesh is too full: leave it, and keep away from that peer for a while."""
        self._backoff[topic, peer_id] = trio.current_time() + BACKOFF_S
        self.drop(topic, peer_id)

    def keeps_away_from(self, topic: str, peer_id: PeerId) -> bool:
        """Whether a peer let this node go lately."""
        return self._backoff.get((topic, peer_id), 0.0) > trio.current_time()

    def tell_newcomer(self, topic: str, peer_id: PeerId) -> None:
        """Send the messages of the last heartbeats to a peer that has just come, as the host does."""
        other = self._neighbours[peer_id].gossip
        for message in self._told(topic, self._next_tick()):
            if other.heard_at(message) is None:
                self._send_message(peer_id, message)

    def heard_at(self, message: Message) -> float | None:
        """When this node got a message; None while it lacks it."""
        return self._heard.get(message.key)

    def arrive(self, message: Message, peer_id: PeerId) -> None:
        """A copy of a message, which may be the first."""
        self.copies += 1
        if message.key not in self._heard and message.topic in self.mesh and self._gate(message, peer_id):
            self.firsts += 1
            self._keep(message)
            self._spread(message, heard_from=peer_id)

    def hear_of(self, messages: Sequence[Message], peer_id: PeerId) -> None:
        """A peer has messages (IHAVE); ask for those we lack (IWANT)."""
        wanted = [each for each in messages if each.key not in self._heard]
        if wanted and self._is_neighbour(peer_id):
            answer = self._neighbours[peer_id].gossip.answer
            self._send(peer_id, partial(answer, wanted, self.peer_id), _ids_bytes(len(wanted)))

    def answer(self, wanted: Sequence[Message], peer_id: PeerId) -> None:
        """A peer wants messages that it was told of."""
        oldest = self._next_tick() - KEPT_TICKS
        for message in wanted:
            _, first_tick = self._recent.get(message.key, (None, oldest))
            if first_tick > oldest and self._is_neighbour(peer_id):
                self._send_message(peer_id, message)

    # The mesh.

    def _may_graft(self, topic: str, other: "Gossip") -> bool:
        return not (self.keeps_away_from(topic, other.peer_id) or other.keeps_away_from(topic, self.peer_id))

    def _graft(self, topic: str, other: "Gossip") -> None:
        self.add(topic, other.peer_id)
        other.add(topic, self.peer_id)

    def _maintain(self, topic: str) -> None:
        """Bring a mesh back between its bounds."""
        peers = list(self.mesh[topic])
        if len(peers) > DEGREE_HIGH:
            for peer_id in self._network.rng.sample(peers, len(peers) - DEGREE):
                self.drop(topic, peer_id)
                self._neighbours[peer_id].gossip.let_go_by(topic, self.peer_id)
        elif len(peers) < DEGREE_LOW:
            willing = [
                peer_id
                for peer_id in self._outside(topic)
                if self._may_graft(topic, self._neighbours[peer_id].gossip)
            ]
            for peer_id in self._sample(willing, DEGREE - len(peers)):
                self._graft(topic, self._neighbours[peer_id].gossip)

    def _outside(self, topic: str) -> list[PeerId]:
        """Return the connected subscribers outside the mesh, save those that let us go, the oldest connection first."""
        mesh, backoff, now = self.mesh[topic], self._backoff, trio.current_time()
        return [
            peer_id
            for peer_id, neighbour in self._neighbours.items()
            if peer_id not in mesh
            and topic in neighbour.gossip.mesh
            and neighbour.connection.is_alive
            and (not backoff or backoff.get((topic, peer_id), now) <= now)
        ]

    def _is_neighbour(self, peer_id: PeerId) -> bool:
        return peer_id in self._neighbours and self._neighbours[peer_id].connection.is_alive

    def _sample(self, peers: list[PeerId], count: int) -> list[PeerId]:
        return peers if len(peers) <= count else self._network.rng.sample(peers, count)

    # Messages.

    def _keep(self, message: Message) -> None:
        self._heard[message.key] = trio.current_time()
        self._network.heard(message.key, message.data)
        if len(self._heard) > DEDUPE_MAX:
            self._heard.popitem(last=False)
        self._recent[message.key] = (message, self._next_tick())
        self._beat_soon()

    def _spread(self, message: Message, *, heard_from: PeerId) -> None:
        """Send a new message to the mesh."""
        now = trio.current_time()
        mesh = self.mesh[message.topic]
        self._count_unsent(len(mesh), _ids_bytes(1))  # IDONTWANT, reckoned below: it is never lost
        for peer_id in mesh:
            if peer_id != heard_from:
                heard_at = self._neighbours[peer_id].gossip.heard_at(message)
                if heard_at is None or heard_at + self._network.latency_s(peer_id, self.peer_id) > now:
                    self._send_message(peer_id, message)

    def _send_message(self, peer_id: PeerId, message: Message) -> None:
        work = partial(self._neighbours[peer_id].gossip.arrive, message, self.peer_id)
        self._send(peer_id, work, len(message.data) + MESSAGE_BYTES)

    def _send(self, peer_id: PeerId, work: Callable[[], None], size_bytes: int) -> None:
        self._neighbours[peer_id].connection.deliver_loosely(peer_id, work, size_bytes)

    def _count_unsent(self, count: int, size_bytes: int) -> None:
        traffic = self._network.traffic[self.peer_id]
        traffic.messages += count
        traffic.bytes += count * (size_bytes + FRAME_BYTES)

    # The heartbeat.

    def _beat(self, tick: int) -> None:
        self._is_beating = False
        mesh = self._network.meshes.get(self.peer_id)
        if mesh is None or mesh.gossip is not self:
            return  # the node was killed since
        for topic in self.mesh:
            self._maintain(topic)
            self._tell(topic, tick)
        self._recent = {
            key: (message, first_tick)
            for key, (message, first_tick) in self._recent.items()
            if first_tick > tick + 1 - KEPT_TICKS
        }
        if any(self._told(topic, tick + 1) for topic in self.mesh):
            self._beat_at(tick + 1)

    def _tell(self, topic: str, tick: int) -> None:
        """Tell some peers outside the mesh what there is; who has it already would only drop the word of it."""
        told = self._told(topic, tick)
        if told:
            outside = self._outside(topic)
            size_bytes = _ids_bytes(len(told))
            unsent = 0
            for peer_id in self._sample(outside, max(TOLD_MIN, int(len(outside) * TOLD_SHARE))):
                other = self._neighbours[peer_id].gossip
                lacking = [each for each in told if other.heard_at(each) is None]
                if lacking:
                    self._send(peer_id, partial(other.hear_of, lacking, self.peer_id), size_bytes)
                else:
                    unsent += 1
            self._count_unsent(unsent, size_bytes)

    def _told(self, topic: str, tick: int) -> list[Message]:
        """Return the messages that others are told of at a tick."""
        return [
            message
            for message, first_tick in self._recent.values()
            if first_tick > tick - TOLD_TICKS and message.topic == topic
        ]

    def _next_tick(self) -> int:
        if self._phase_s is None:
            self._phase_s = self._network.rng.randrange(PHASES) / PHASES * HEARTBEAT_S
        return int((trio.current_time() - self._phase_s) // HEARTBEAT_S) + 1

    def _beat_soon(self) -> None:
        if not self._is_beating:
            self._beat_at(self._next_tick())

    def _beat_at(self, tick: int) -> None:
        assert self._phase_s is not None
        self._is_beating = True
        self._network.at(tick * HEARTBEAT_S + self._phase_s, partial(self._beat, tick))


def _ids_bytes(count: int) -> int:
    return 170 + 34 * count  # a frame with so many message ids and, as in each, a record of the sender
