"""One device of a world: a node, its disk and engine, and the life of its process.

Only what the node stands on is simulated (mesh, store, engine, clock); the node is the daemon's own. The process can be
killed, and started again from what its disk holds.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Protocol

import trio

from marketplace.assembly.assembly import Assembly
from node.chat import ChatDelta, ChatError, ChatFinished, ChatRequest, ChatStarted, Unsold
from node.config import Config
from node.event import Event
from node.journal import Journal
from node.node import Node, Ports
from node.simulation.disk import Disk
from node.simulation.engine import SimulatedEngine
from node.simulation.learning import Learning
from node.simulation.memory_blobs import MemoryBlobs
from node.simulation.memory_data import MemoryData
from node.simulation.memory_mesh import MemoryMesh
from node.simulation.network import Network
from node.simulation.observations import Outcome
from node.simulation.virtual_clock import VirtualClock
from node.store import Record
from protocol.identity import Identity, PeerId
from protocol.messages import Device
from runtime.trainer import Fit

if TYPE_CHECKING:
    from trio_typing import TaskStatus

    from node.simulation.adversaries.adversary import Adversary

RING_EVENTS = 64  # of a node's newest, for the report of a broken law


class Surroundings(Protocol):
    """What a world gives each of its daemons."""

    nursery: trio.Nursery
    network: Network
    learning: Learning

    def random(self, name: str) -> Random:
        """A stream of randomness of its own, the same for the same name."""

    def belonging(self) -> Sequence[Record]:
        """What the disk of every member holds: its mesh, and the charter that proves it."""

    def assembly(self) -> Assembly | None:
        """What every member knows from the beginning, folded once; None: it is on each disk."""


@dataclass(frozen=True)
class Parts:
    """What a daemon is made of.

    Attributes:
        profile: a name of `devices.PROFILES`, or empty; for maps and reports.
        on_event: told of each event of its journal.
    """

    identity: Identity
    engine: SimulatedEngine
    device: Device
    disk: Disk
    config: Config
    profile: str = ""
    skew_ms: int = 0
    ring_events: int = RING_EVENTS
    on_event: Callable[[Event], None] | None = None


class Daemon:
    """A device and the process on it."""

    def __init__(self, world: Surroundings, name: str, parts: Parts) -> None:
        self.name = name
        self.identity = parts.identity
        self.engine = parts.engine
        self.device = parts.device
        self.disk = parts.disk
        self.config = parts.config
        self.adversary: Adversary | None = None  # the part of it that misbehaves; None: it is honest
        self.profile = parts.profile
        self.clock = VirtualClock(parts.skew_ms)
        self.blobs = MemoryBlobs()  # both lie on the device's disk, and outlive its process
        self.data = MemoryData(self.clock, salt=str(parts.identity.peer_id).encode())
        self.fits: list[Fit] = []  # every one that its trainer ever began
        self.fitted: list[
            tuple[int, Fit]
        ] = []  # those that came to their end, and in which life of the process
        self.starts = 0
        self.journal = Journal(
            wall_clock=lambda: self.clock.utc_ms() / 1000,
            monotonic=trio.current_time,
            ring_events=parts.ring_events,
            on_event=parts.on_event,
        )
        self.node: Node
        self.mesh: MemoryMesh
        self.is_online = False
        self.outcomes: list[Outcome] = []  # of the chats that are under way here
        self._surroundings = world
        self._process: trio.CancelScope | None = None
        self._ended = trio.Event()

    @property
    def peer_id(self) -> PeerId:
        """Its key's name on the network."""
        return self.identity.peer_id

    @property
    def address(self) -> str:
        """Where it is dialled."""
        return f"/ip4/127.0.0.1/tcp/4420/p2p/{self.peer_id}"

    @property
    def behaviour(self) -> str:
        """A name of `adversaries.BEHAVIOURS`; empty when it is honest."""
        return self.adversary.name if self.adversary else ""

    # --- the process ----------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Start the daemon from its disk; it runs when this returns, and has met nobody yet."""
        self.starts += 1
        self.disk.is_plugged_in = True
        self.mesh = self._surroundings.network.join(self.peer_id, self.journal)
        ports = Ports(
            mesh=self.adversary.tap(self.mesh) if self.adversary else self.mesh,
            store=self.disk,
            engine=self.engine,
            clock=self.clock,
            journal=self.journal,
            rng=self._surroundings.random(f"{self.name} {self.starts}"),
            device=lambda: self.device,
            blobs=self.blobs,
            data=self.data,
        )
        ports = self._surroundings.learning.equip(self, ports)
        if self.adversary is not None:
            ports = self.adversary.equip(ports)
        records = [*self._surroundings.belonging(), *await self.disk.load()]
        self.node = Node(ports, self.identity, self.config, records, assembly=self._surroundings.assembly())
        await self._surroundings.nursery.start(self._live)

    async def _live(self, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        self._ended = trio.Event()
        try:
            with trio.CancelScope() as self._process:
                async with trio.open_nursery() as nursery:
                    await nursery.start(self.node.run)
                    await nursery.start(self.mesh.run)
                    if self.adversary is not None:
                        nursery.start_soon(self.adversary.run)
                    self.is_online = True
                    task_status.started()
        finally:  # a broken law ends all of the world at once
            self._ended.set()

    async def kill(self) -> None:
        """SIGKILL: from here on nothing it does reaches its disk or its peers."""
        if self._process is None:
            return
        self.is_online = False
        for outcome in self.outcomes:
            outcome.state, outcome.reason = "lost", "the asking device went away"
        self.outcomes.clear()
        self._surroundings.network.kill(self.peer_id)
        self._process.cancel()
        self.engine.forget_adapters()
        await self.disk.crash()
        await self._ended.wait()

    async def restart(self) -> None:
        """Kill it, and start it again from its disk."""
        await self.kill()
        await self.start()

    # --- its user -------------------------------------------------------------------------------------------------
    async def ask(self, request: ChatRequest, outcome: Outcome) -> None:
        """Ask, and read the answer to its end; what came of it is written into `outcome` as it happens."""
        self.outcomes.append(outcome)
        job_id = ""
        try:
            async with aclosing(self.node.chat(request)) as events:
                async for event in events:
                    match event:
                        case ChatStarted():
                            job_id = event.job_id
                        case ChatDelta(_, tokens):
                            if outcome.ttft_s is None:
                                outcome.ttft_s = trio.current_time() - outcome.at_s
                            outcome.tokens += tokens
                        case ChatFinished():
                            outcome.state, outcome.reason = "finished", event.reason.value
        except Unsold as error:
            outcome.state, outcome.reason = "unsold", str(error)
            outcome.declines = dict(Counter(decline.reason for decline in error.declines))
        except ChatError as error:
            outcome.state, outcome.reason = "failed", str(error)
        if outcome not in self.outcomes:
            return  # this device went away meanwhile, and its life now is another
        self.outcomes.remove(outcome)
        outcome.ended_s = trio.current_time()
        if outcome.state == "running":
            outcome.state, outcome.reason = "failed", "the answer broke off"
        if job := self.node.job(job_id) if job_id else None:
            outcome.attempts = len(job.attempts)
            outcome.seller = job.seller
            outcome.price_micro = job.price_micro
            outcome.auction_s = job.attempts[0].auction_ms / 1000
