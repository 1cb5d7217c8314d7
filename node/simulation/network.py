"""A network in memory: every fault a real one has, in the order that one random generator decides.

Nodes join it and get a `MemoryMesh` each. A link has a latency, drawn once, and what may befall it (`link.py`). Links can
be cut, also in one direction only, and healed. What travels on a cut link is held back, as TCP would, until the link
heals or the peers notice the silence and drop the connection. Time is trio's, so a test with an autojump clock waits for
nothing.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import combinations, count, product
from random import Random
from typing import TYPE_CHECKING

import trio

from node.guard import Journal
from node.simulation.link import Link, Uplink
from node.simulation.memory_mesh import MemoryMesh
from node.simulation.memory_stream import MemoryStream
from node.simulation.observations import Traffic
from protocol.errors import Unreachable
from protocol.identity import PeerId
from protocol.mesh import PeerConnected, PeerLost

if TYPE_CHECKING:
    from trio_typing import TaskStatus

SILENCE_S = 6.0  # as the host: a heartbeat a second and five seconds of patience
DIAL_TIMEOUT_S = 10.0
STREAMS_SWEPT = 8  # streams on a connection before those that are over are first looked for
GOSSIP_FOLLOWED = 20  # messages whose way is kept for the plots
FRAME_OVERHEAD_BYTES = 34  # length prefix 4, yamux header 12, Noise length and tag 18
IP_PACKET_OVERHEAD_BYTES = 52  # TCP and IPv4 headers with timestamps, once a frame: most frames fit a packet


class Connection:
    """A live connection of two peers: the streams on it, and what is held back while a link is cut."""

    def __init__(self, network: "Network", dialler: PeerId, answerer: PeerId) -> None:
        self.dialler = dialler
        self.answerer = answerer
        self.is_alive = True
        self._streams: list[MemoryStream] = []
        self._sweep_at = STREAMS_SWEPT
        self._network = network
        self._last_arrival = {dialler: 0.0, answerer: 0.0}
        self._held: dict[PeerId, list[tuple[Callable[[], None], int]]] = {dialler: [], answerer: []}

    def other(self, peer_id: PeerId) -> PeerId:
        """The peer at the other end."""
        return self.answerer if peer_id == self.dialler else self.dialler

    def deliver(self, receiver: PeerId, work: Callable[[], None], size_bytes: int = 0) -> None:
        """Do `work` at the receiver once it has travelled there, in order."""
        if not self.is_alive:
            return
        sender = self.other(receiver)
        if self._network.is_cut(sender, receiver):
            self._held[receiver].append((work, size_bytes))
            return
        at = max(self._network.arrival(sender, receiver, size_bytes), self._last_arrival[receiver])
        self._last_arrival[receiver] = at
        self._network.at(at, partial(self._arrive, work))

    def deliver_loosely(self, receiver: PeerId, work: Callable[[], None], size_bytes: int) -> None:
        """Do `work` at the receiver: perhaps never, twice, or after what was sent later. For gossip."""
        sender = self.other(receiver)
        network = self._network
        if not self.is_alive or network.is_cut(sender, receiver):
            return
        link = network.link(sender, receiver)
        if link.loses(network.rng) or network.rng.random() < network.gossip_loss:
            return
        for _ in range(1 + link.duplicates(network.rng)):
            delay_s = link.reordering_s(network.rng)
            network.at(network.arrival(sender, receiver, size_bytes) + delay_s, partial(self._arrive, work))

    @property
    def open_streams(self) -> list[MemoryStream]:
        """The ends of streams on which something may still be said."""
        return [each for each in self._streams if not each.is_over]

    def carry(self, *ends: MemoryStream) -> None:
        """Take a new stream along: it breaks with the connection."""
        self._streams += ends
        if len(self._streams) >= self._sweep_at:
            self._streams = self.open_streams
            self._sweep_at = max(STREAMS_SWEPT, 2 * len(self._streams))

    def _arrive(self, work: Callable[[], None]) -> None:
        if self.is_alive:
            work()

    def release(self, receiver: PeerId) -> None:
        """The link to the receiver is whole again."""
        held, self._held[receiver] = self._held[receiver], []
        for work, size_bytes in held:
            self.deliver(receiver, work, size_bytes)

    def drop(self) -> None:
        """The connection is gone for both, with everything on it."""
        if self.is_alive:
            self.is_alive = False
            for stream in self._streams:
                stream.break_off()
            self._streams.clear()
            self._network.forget(self)


class Network:
    """The links between all nodes of a world.

    Args:
        rng: draws whatever happens by chance on the way.
        latency_s: each link's one-way latency is drawn from here when it is first used.
        gossip_loss: of gossip messages, on every link, whatever its weather.
        tick_s: arrivals are put off to multiples of this, so that a large world wakes less often; 0 is exact.
    """

    def __init__(
        self,
        rng: Random,
        *,
        latency_s: tuple[float, float] = (0.001, 0.03),
        gossip_loss: float = 0.0,
        tick_s: float = 0.0,
    ) -> None:
        self.rng = rng
        self.gossip_loss = gossip_loss
        self.meshes: dict[PeerId, MemoryMesh] = {}
        self.weather = Link()  # what befalls links that nothing else was said about
        self.traffic: dict[PeerId, Traffic] = {}
        self.followed: dict[
            bytes, tuple[bytes, list[float]]
        ] = {}  # gossip by key: its bytes, when it was heard
        self._uplinks: dict[PeerId, Uplink] = {}
        self._latency_range = latency_s
        self._tick_s = tick_s
        self._latencies: dict[tuple[PeerId, PeerId], float] = {}
        self._links: dict[tuple[PeerId, PeerId], Link] = {}
        self._neighbours: dict[PeerId, dict[PeerId, Connection]] = {}
        self._cut: dict[tuple[PeerId, PeerId], float] = {}  # link -> since when
        self._suspended: dict[PeerId, None] = {}
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()
        self._sleep = trio.CancelScope()  # ends when the next is due

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Make things arrive when they are due, until cancelled."""
        task_status.started()
        due = self._due
        while True:
            with trio.CancelScope(deadline=due[0][0] if due else math.inf) as self._sleep:
                await trio.sleep_forever()
            now = trio.current_time()
            while due and due[0][0] <= now:
                heapq.heappop(due)[2]()

    def join(self, peer_id: PeerId, journal: Journal) -> "MemoryMesh":
        """Return the mesh of a node that has just started; the one it had before is dead."""
        self.kill(peer_id)
        self.meshes[peer_id] = MemoryMesh(self, peer_id, journal)
        self.traffic.setdefault(peer_id, Traffic())
        self.partition([peer_id], [each for each in self._suspended if each != peer_id])
        return self.meshes[peer_id]

    # Faults.

    def kill(self, peer_id: PeerId) -> None:
        """The node's process is gone; its peers notice at once, since its kernel says so."""
        self.meshes.pop(peer_id, None)
        for other in self.connected(peer_id):
            self.disconnect(peer_id, other)

    def cut(self, sender: PeerId, receiver: PeerId) -> None:
        """Nothing travels from sender to receiver any more; the other direction goes on working."""
        self._cut.setdefault((sender, receiver), trio.current_time())
        connection = self.connection(sender, receiver)
        if connection is not None:
            self.later(SILENCE_S, partial(self._notice_silence, connection))

    def partition(self, *groups: Iterable[PeerId]) -> None:
        """Cut every link between peers of different groups, both ways."""
        sides = [list(group) for group in groups]
        for index, side in enumerate(sides):
            for others in sides[:index] + sides[index + 1 :]:
                for sender in side:
                    for receiver in others:
                        self.cut(sender, receiver)

    def suspend(self, peer_id: PeerId) -> None:
        """Stop a node from being heard and from hearing, as SIGSTOP or a closed lid does."""
        self._suspended[peer_id] = None
        self.partition([peer_id], [each for each in self.traffic if each != peer_id])

    def heal(self, *peer_ids: PeerId) -> None:
        """Mend every link of these peers, of all peers when none are named; those that were suspended go on."""
        for peer_id in peer_ids or list(self._suspended):
            self._suspended.pop(peer_id, None)
        for sender, receiver in list(self._cut):
            is_meant = not peer_ids or sender in peer_ids or receiver in peer_ids
            if is_meant and sender not in self._suspended and receiver not in self._suspended:
                del self._cut[sender, receiver]
                connection = self.connection(sender, receiver)
                if connection is not None:
                    connection.release(receiver)

    def set_latency(self, sender: PeerId, receiver: PeerId, seconds: float) -> None:
        """Set the one-way latency of a link."""
        self._latencies[sender, receiver] = seconds

    def set_link(self, sender: PeerId, receiver: PeerId, link: Link) -> None:
        """Say what befalls one direction of a link."""
        self._links[sender, receiver] = link

    def set_links_between(self, groups: Sequence[Sequence[PeerId]], link: Link) -> None:
        """Say what befalls the links between these groups, in both directions."""
        for group, others in combinations(groups, 2):
            for one, other in product(group, others):
                self.set_link(one, other, link)
                self.set_link(other, one, link)

    def set_uplink(self, peer_id: PeerId, uplink: Uplink) -> None:
        """Say how a node hangs on the net: its own latency and bandwidth are added to each of its links."""
        self._uplinks[peer_id] = uplink

    def clog(self, peer_id: PeerId, seconds: float) -> None:
        """Nothing that a node sends leaves it for a while; then it all does."""
        self.uplink(peer_id).clog(trio.current_time() + seconds)

    # What meshes and connections ask.

    def uplink(self, peer_id: PeerId) -> Uplink:
        """How a node hangs on the net."""
        return self._uplinks.setdefault(peer_id, Uplink())

    def link(self, sender: PeerId, receiver: PeerId) -> Link:
        """What befalls one direction of a link."""
        return self._links.get((sender, receiver), self.weather)

    def latency_s(self, sender: PeerId, receiver: PeerId) -> float:
        """The one-way latency of a link."""
        drawn = self._latencies.get((sender, receiver))
        if drawn is None:
            drawn = self._latencies[sender, receiver] = self.rng.uniform(*self._latency_range)
        if self._uplinks:
            drawn += self.uplink(sender).latency_s + self.uplink(receiver).latency_s
        return drawn

    def arrival(self, sender: PeerId, receiver: PeerId, size_bytes: int) -> float:
        """When something that is sent now arrives; what is on the sender's uplink before it goes first."""
        traffic = self.traffic[sender]
        traffic.messages += 1
        size_bytes += FRAME_OVERHEAD_BYTES + IP_PACKET_OVERHEAD_BYTES
        traffic.bytes += size_bytes
        at = trio.current_time()
        if self._uplinks:
            at = self.uplink(sender).departure(at, size_bytes)
        at += self.latency_s(sender, receiver)
        link = self.link(sender, receiver)
        if link.is_rough:
            at += link.delay_s(self.rng)
        if self._tick_s:
            at = math.ceil(at / self._tick_s) * self._tick_s
        return at

    def heard(self, key: bytes, data: bytes) -> None:
        """A node has a gossiped message for the first time: follow the first few through the mesh."""
        if key not in self.followed and len(self.followed) < GOSSIP_FOLLOWED:
            self.followed[key] = (data, [])
        if key in self.followed:
            self.followed[key][1].append(trio.current_time())

    def is_cut(self, sender: PeerId, receiver: PeerId) -> bool:
        """Whether nothing travels in this direction."""
        return (sender, receiver) in self._cut

    def later(self, delay_s: float, work: Callable[[], object]) -> None:
        """Do something after a delay."""
        self.at(trio.current_time() + delay_s, work)

    def at(self, time_s: float, work: Callable[[], object]) -> None:
        """Do something at a time; what is due at the same time happens in the order it was asked for."""
        heapq.heappush(self._due, (time_s, next(self._numbers), work))
        self._sleep.deadline = min(self._sleep.deadline, time_s)

    def connection(self, one: PeerId, other: PeerId) -> Connection | None:
        """The live connection of two peers."""
        return self._neighbours.get(one, {}).get(other)

    def connected(self, peer_id: PeerId) -> list[PeerId]:
        """The peers with a live connection to this one, the oldest first."""
        return list(self._neighbours.get(peer_id, ()))

    async def connect(self, dialler: PeerId, answerer: PeerId) -> Connection:
        """Return the connection of two peers, making it if need be; raises `Unreachable`."""
        if dialler not in self.meshes:
            raise Unreachable("the host is not running")
        existing = self.connection(dialler, answerer)
        if existing is not None:
            return existing
        cut = self.is_cut(dialler, answerer) or self.is_cut(answerer, dialler)
        await trio.sleep(DIAL_TIMEOUT_S if cut else 2 * self.round_trip_s(dialler, answerer))
        if cut or not self._accepts(dialler, answerer) or not self._accepts(answerer, dialler):
            raise Unreachable(f"{answerer} did not answer")
        existing = self.connection(dialler, answerer)
        if existing is not None:
            return existing
        connection = Connection(self, dialler, answerer)
        self._neighbours.setdefault(dialler, {})[answerer] = connection
        self._neighbours.setdefault(answerer, {})[dialler] = connection
        self.meshes[dialler].events.add(PeerConnected(answerer, we_dialled=True))
        self.meshes[answerer].events.add(PeerConnected(dialler, we_dialled=False))
        return connection

    def disconnect(self, one: PeerId, other: PeerId) -> None:
        """Drop the connection of two peers, if there is one."""
        connection = self.connection(one, other)
        if connection is not None:
            connection.drop()

    def round_trip_s(self, one: PeerId, other: PeerId) -> float:
        """There and back."""
        slowness_s = self.link(one, other).slowness_s + self.link(other, one).slowness_s
        return self.latency_s(one, other) + self.latency_s(other, one) + slowness_s

    def forget(self, connection: Connection) -> None:
        """A connection was dropped; tell both ends."""
        del self._neighbours[connection.dialler][connection.answerer]
        del self._neighbours[connection.answerer][connection.dialler]
        for peer_id in (connection.dialler, connection.answerer):
            if peer_id in self.meshes:
                self.meshes[peer_id].events.add(PeerLost(connection.other(peer_id)))

    def _accepts(self, peer_id: PeerId, other: PeerId) -> bool:
        mesh = self.meshes.get(peer_id)
        return mesh is not None and mesh.is_running and not mesh.is_barred(other)

    def _notice_silence(self, connection: Connection) -> None:
        for link in ((connection.dialler, connection.answerer), (connection.answerer, connection.dialler)):
            if link in self._cut and trio.current_time() >= self._cut[link] + SILENCE_S:
                connection.drop()
