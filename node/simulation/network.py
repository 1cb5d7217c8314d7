"""A network in memory: every fault a real one has, in the order that one random generator decides.

Nodes join it and get a `MemoryMesh` each. Links have a latency, drawn once; gossip may be lost; links can be cut, also
in one direction only, and healed. What travels on a cut link is held back, as TCP would, until the link heals or the
peers notice the silence and drop the connection. Time is trio's, so a test with an autojump clock waits for nothing.
"""

import heapq
from collections.abc import Callable, Iterable
from functools import partial
from itertools import count
from random import Random
from typing import TYPE_CHECKING

import trio

from node.guard import Journal
from node.simulation.memory_mesh import MemoryMesh
from node.simulation.memory_stream import MemoryStream
from protocol.errors import Unreachable
from protocol.identity import PeerId
from protocol.mesh import PeerConnected, PeerLost

if TYPE_CHECKING:
    from trio_typing import TaskStatus

SILENCE_S = 6.0  # as the host: a heartbeat a second and five seconds of patience
DIAL_TIMEOUT_S = 10.0


class Connection:
    """A live connection of two peers: the streams on it, and what is held back while a link is cut."""

    def __init__(self, network: "Network", dialler: PeerId, answerer: PeerId) -> None:
        self.dialler = dialler
        self.answerer = answerer
        self.is_alive = True
        self.streams: list[MemoryStream] = []
        self._network = network
        self._last_arrival = {dialler: 0.0, answerer: 0.0}
        self._held: dict[PeerId, list[Callable[[], None]]] = {dialler: [], answerer: []}

    def other(self, peer_id: PeerId) -> PeerId:
        """The peer at the other end."""
        return self.answerer if peer_id == self.dialler else self.dialler

    def deliver(self, receiver: PeerId, work: Callable[[], None]) -> None:
        """Do `work` at the receiver once it has travelled there, in order."""
        if not self.is_alive:
            return
        if self._network.is_cut(self.other(receiver), receiver):
            self._held[receiver].append(work)
            return
        now = trio.current_time()
        at = max(now + self._network.latency_s(self.other(receiver), receiver), self._last_arrival[receiver])
        self._last_arrival[receiver] = at
        self._network.later(at - now, partial(self._arrive, work))

    def _arrive(self, work: Callable[[], None]) -> None:
        if self.is_alive:
            work()

    def release(self, receiver: PeerId) -> None:
        """The link to the receiver is whole again."""
        held, self._held[receiver] = self._held[receiver], []
        for work in held:
            self.deliver(receiver, work)

    def drop(self) -> None:
        """The connection is gone for both, with everything on it."""
        if self.is_alive:
            self.is_alive = False
            for stream in self.streams:
                stream.break_off()
            self._network.forget(self)


class Network:
    """The links between all nodes of a world."""

    def __init__(
        self, rng: Random, *, latency_s: tuple[float, float] = (0.001, 0.03), gossip_loss: float = 0.0
    ) -> None:
        """Make an empty network; each link's one-way latency is drawn from `latency_s` when it is first used."""
        self.gossip_loss = gossip_loss
        self.rng = rng
        self.meshes: dict[PeerId, MemoryMesh] = {}
        self._latency_range = latency_s
        self._latencies: dict[tuple[PeerId, PeerId], float] = {}
        self._connections: dict[tuple[PeerId, PeerId], Connection] = {}
        self._cut: dict[tuple[PeerId, PeerId], float] = {}  # link -> since when
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()
        self._sooner = trio.Event()

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Make things arrive when they are due, until cancelled."""
        task_status.started()
        while True:
            self._sooner = trio.Event()
            with trio.move_on_at(self._due[0][0] if self._due else float("inf")):
                await self._sooner.wait()
            while self._due and self._due[0][0] <= trio.current_time():
                heapq.heappop(self._due)[2]()

    def join(self, peer_id: PeerId, journal: Journal) -> "MemoryMesh":
        """Return the mesh of a node that has just started; the one it had before is dead."""
        self.kill(peer_id)
        self.meshes[peer_id] = MemoryMesh(self, peer_id, journal)
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
        self.partition([peer_id], [each for each in self.meshes if each != peer_id])

    def heal(self, *peer_ids: PeerId) -> None:
        """Mend every link of these peers; of all peers when none are named."""
        for sender, receiver in list(self._cut):
            if not peer_ids or sender in peer_ids or receiver in peer_ids:
                del self._cut[sender, receiver]
                connection = self.connection(sender, receiver)
                if connection is not None:
                    connection.release(receiver)

    def set_latency(self, sender: PeerId, receiver: PeerId, seconds: float) -> None:
        """Set the one-way latency of a link."""
        self._latencies[sender, receiver] = seconds

    # What meshes and connections ask.

    def latency_s(self, sender: PeerId, receiver: PeerId) -> float:
        """The one-way latency of a link."""
        if (sender, receiver) not in self._latencies:
            self._latencies[sender, receiver] = self.rng.uniform(*self._latency_range)
        return self._latencies[sender, receiver]

    def is_cut(self, sender: PeerId, receiver: PeerId) -> bool:
        """Whether nothing travels in this direction."""
        return (sender, receiver) in self._cut

    def later(self, delay_s: float, work: Callable[[], object]) -> None:
        """Do something after a delay; what is due at the same time happens in the order it was asked for."""
        heapq.heappush(self._due, (trio.current_time() + delay_s, next(self._numbers), work))
        self._sooner.set()

    def connection(self, one: PeerId, other: PeerId) -> Connection | None:
        """The live connection of two peers."""
        return self._connections.get(_pair(one, other))

    def connected(self, peer_id: PeerId) -> list[PeerId]:
        """The peers with a live connection to this one, the oldest first."""
        mine = [each for each in self._connections.values() if peer_id in (each.dialler, each.answerer)]
        return [each.other(peer_id) for each in mine]

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
        connection = self._connections[_pair(dialler, answerer)] = Connection(self, dialler, answerer)
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
        return self.latency_s(one, other) + self.latency_s(other, one)

    def forget(self, connection: Connection) -> None:
        """A connection was dropped; tell both ends."""
        del self._connections[_pair(connection.dialler, connection.answerer)]
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


def _pair(one: PeerId, other: PeerId) -> tuple[PeerId, PeerId]:
    return (one, other) if one < other else (other, one)
