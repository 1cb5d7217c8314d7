"""A world: many nodes, one seed, one virtual clock. Stories are told in its words; `docs/SIMULATION.md` explains them.

Devices that are added before the first `run` belong to the mesh from its founding: their admissions are signed, folded
once, and what they have in common is kept once. Whoever is added later is admitted by the founder, and everybody hears
of it by gossip, as in life.

Everything by chance comes from the seed, in streams of its own for each purpose, so that a new purpose does not change
what the others draw.
"""

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, TypeVar

import trio

from marketplace.assembly.assembly import Assembly
from marketplace.assembly.charter import founding_charter
from node.config import Config
from node.event import Event
from node.logbook import ENTRY, MESH
from node.simulation.daemon import Daemon, Parts
from node.simulation.devices import PROFILES, Profile, device_message, draw_mix, sessions_online
from node.simulation.disk import Disk
from node.simulation.engine import SimulatedEngine
from node.simulation.link import Uplink
from node.simulation.network import Network
from node.simulation.observations import MapNode, Outcome, Propagation, Sample
from node.simulation.population import Askers
from node.simulation.virtual_clock import NOON_MS, VirtualClock
from node.store import Record
from protocol.envelope import Sealed, open_sealed, seal
from protocol.identity import Identity, PeerId
from protocol.messages import NO_HASH, Admitted, Card, Charter, Entry
from runtime.echo import ECHO_MODEL

if TYPE_CHECKING:
    from node.simulation.workload import Workload

D = TypeVar("D", bound=Daemon)

CREDIT_MICRO = 10_000_000
LARGE_NODES = 50  # from here on disks are shelves and arrivals are put off to the next tick
TICK_S = 0.002
SAMPLE_S = 60.0
BOOTSTRAP_PEERS = 4  # members that each device knows an address of, from earlier runs or an invitation
DEVICES_PER_OWNER = 3
FOUNDER = "founder"
TraceWriter = Callable[[float, str, Event], None]


class World:
    """Daemons of one mesh, and what befalls them.

    Args:
        nursery: where everything runs.
        seed: decides everything.
        nodes: how many there will be, about; large worlds cut the corners that `docs/SIMULATION.md` names.
        on_event: told of every event of every node.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        seed: int = 1,
        nodes: int = 10,
        seconds: float = 3_600.0,
        on_event: TraceWriter | None = None,
    ) -> None:
        self.nursery = nursery
        self.seed = seed
        self.nodes = nodes
        self.seconds = seconds
        self.is_large = nodes >= LARGE_NODES
        self.network = Network(
            self.random("network"), latency_s=(0.001, 0.02), tick_s=TICK_S if self.is_large else 0.0
        )
        self.daemons: dict[str, Daemon] = {}
        self.outcomes: list[Outcome] = []
        self.samples: list[Sample] = []
        self.askers = Askers(self)
        self.replay_command = ""  # how a user runs this very world again
        self._on_event = on_event
        self._clock = VirtualClock()
        self._charter: Sealed[Charter]
        self._assembly: Assembly
        self._is_open = False
        self._opened = trio.Event()
        self._away: set[str] = set()  # who is not there when the world begins
        self._tail: bytes
        self._counts: dict[str, int] = {}

    # --- chance ---------------------------------------------------------------------------------------------------
    def random(self, purpose: str) -> Random:
        """A stream of randomness of its own for each purpose."""
        return Random(f"{self.seed} {purpose}")  # noqa: S311  # a world's chance, no secret

    def identity(self, name: str) -> Identity:
        """The key of a name."""
        return Identity(hashlib.sha256(f"{self.seed} {name}".encode()).digest())

    # --- what daemons are given -------------------------------------------------------------------------------------
    @property
    def mesh_id(self) -> bytes:
        """The mesh's id: its charter's hash."""
        return self._charter.id

    @property
    def founder(self) -> Daemon:
        """The device on the roll: it admits the others, and holds no model."""
        return self.daemons[FOUNDER]

    def belonging(self) -> Sequence[Record]:
        """See `Surroundings`."""
        return (Record(MESH, b"id", self.mesh_id), Record(ENTRY, self.mesh_id, self._charter.raw))

    def assembly(self) -> Assembly | None:
        """See `Surroundings`."""
        return self._assembly.fork()

    # --- who is there -----------------------------------------------------------------------------------------------
    def found(self) -> None:
        """Sign the charter; its founder is the first device."""
        key = self.identity(FOUNDER)
        message = founding_charter(
            "world", founder=key.public_key, owner=FOUNDER, approver=self.identity("a human").public_key
        )
        self._charter = seal(message, key, mesh=NO_HASH, seq=(0, 1), time_ms=NOON_MS)
        self._assembly = Assembly.found(self._charter)
        self._tail = self._charter.id
        self.daemons[FOUNDER] = self._build(FOUNDER, PROFILES["server"], "server", FOUNDER, is_seller=False)
        self._sign(lambda index, prev: Card(index=index, prev=prev, name="echo", model=ECHO_MODEL))

    async def add(
        self, count: int = 1, *, profile: str = "", owner: str = "", is_seller: bool | None = None
    ) -> list[Daemon]:
        """Add devices; before the first `run` they are members from the founding on.

        Args:
            count: how many.
            profile: a name of `devices.PROFILES`; empty deals the usual mix.
            owner: whose; empty: three devices each.
            is_seller: whether they hold the model; None: as the profile's share has it.

        Raises:
            ValueError: no such profile.
        """
        rng = self.random(f"add {len(self.daemons)}")
        dealt = [profile] * count if profile else draw_mix(rng, count)
        added = []
        for name in dealt:
            if name not in PROFILES:
                raise ValueError(f"no device profile {name!r}, expected one of {', '.join(PROFILES)}")
            number = self._counts[name] = self._counts.get(name, 0) + 1
            holds = rng.random() < PROFILES[name].holds_model if is_seller is None else is_seller
            whose = owner or f"owner-{(len(self.daemons) - 1) // DEVICES_PER_OWNER + 1}"
            daemon = self._build(f"{name}-{number}", PROFILES[name], name, whose, is_seller=holds)
            added.append(await self._admit(daemon, whose))
        return added

    async def _admit(self, daemon: D, owner: str) -> D:
        def place(index: int, prev: bytes) -> Admitted:
            return Admitted(
                index=index,
                prev=prev,
                peer=daemon.peer_id,
                owner=owner,
                credit_line_micro=CREDIT_MICRO,
                invitation_id=bytes(16),
            )

        self.daemons[daemon.name] = daemon
        if not self._is_open:
            self._sign(place)
            return daemon
        founder = self.founder.node
        entry = await founder.logbook.write(Admitted, place)
        await founder.sync.announce(entry)
        await daemon.start()
        return daemon

    def _sign(self, place: Callable[[int, bytes], Entry]) -> None:
        """Let the founder sign an entry before anything runs."""
        index = len(self._assembly.entries_after(self._assembly.founder, -1))
        entry = seal(
            place(index, self._tail),
            self.identity(FOUNDER),
            mesh=self.mesh_id,
            seq=(0, index + 1),
            time_ms=NOON_MS,
        )
        self._assembly.apply(entry)
        self._tail = entry.id

    def _build(self, name: str, profile: Profile, kind: str, owner: str, *, is_seller: bool) -> Daemon:
        rng = self.random(f"device {name}")
        identity = self.identity(name)
        self.network.set_uplink(
            identity.peer_id, Uplink(rng.uniform(*profile.latency_s), profile.up_bytes_per_s)
        )
        config = Config(
            owner=owner,
            bootstrap=self._bootstrap(rng),
            price_prompt_micro=round(10 * profile.price_factor),
            price_completion_micro=round(40 * profile.price_factor * rng.uniform(0.8, 1.25)),
            battery_percent_min=30,
        )
        on_event = self._on_event
        return Daemon(
            self,
            name,
            Parts(
                identity=identity,
                engine=SimulatedEngine.of(profile, is_seller=is_seller),
                device=device_message(profile),
                disk=Disk(self.random(f"disk {name}"), sync_s=0.002, is_large_world=self.is_large),
                config=config,
                profile=kind,
                on_event=None
                if on_event is None
                else lambda event: on_event(trio.current_time() - self._began, name, event),
            ),
        )

    def _bootstrap(self, rng: Random) -> tuple[str, ...]:
        known = list(self.daemons.values())
        return tuple(daemon.address for daemon in rng.sample(known, min(BOOTSTRAP_PEERS, len(known))))

    # --- time -------------------------------------------------------------------------------------------------------
    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold the network; end every process at the end."""
        self._began = trio.current_time()
        self.found()
        await self.nursery.start(self.network.run)
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                for daemon in self.daemons.values():
                    await daemon.kill()
                    daemon.disk.close()
            self.nursery.cancel_scope.cancel()

    async def open(self) -> None:
        """Start every device that has been added, the founder first."""
        self._is_open = True
        for daemon in list(self.daemons.values()):
            if daemon.name not in self._away:
                await daemon.start()
        self._opened.set()
        self.nursery.start_soon(self._sample)

    async def run(self, seconds: float) -> None:
        """Let virtual time pass; the first call starts everybody."""
        if not self._is_open:
            await self.open()
        await trio.sleep(seconds)

    @property
    def now(self) -> float:
        """Virtual seconds since the world began."""
        return trio.current_time() - self._began

    # --- faults -----------------------------------------------------------------------------------------------------
    def partition(self, *groups: Iterable[Daemon]) -> None:
        """Cut every link between these groups."""
        self.network.partition(*([daemon.peer_id for daemon in group] for group in groups))

    def heal(self) -> None:
        """Mend every link."""
        self.network.heal()

    async def kill(self, *daemons: Daemon) -> None:
        """Pull the plug of devices."""
        for daemon in daemons:
            await daemon.kill()

    async def restart(self, *daemons: Daemon) -> None:
        """Start devices again from their disks; those that run are killed first."""
        for daemon in daemons:
            await daemon.restart()

    def churn(self, daemons: Iterable[Daemon] | None = None) -> None:
        """Let devices come and go as their profiles say, until the world ends.

        Said before the first `run`, some are away from the beginning, as in the middle of a device's life.
        """
        for daemon in list(daemons or self.daemons.values()):
            profile = PROFILES[daemon.profile]
            if profile.online_mean_s is None:
                continue
            sessions = sessions_online(self.random(f"churn {daemon.name}"), profile, self.seconds - self.now)
            lives = [(self.now + start, self.now + end) for start, end in sessions]
            if not lives or lives[0][0] > self.now:
                self._away.add(daemon.name)
            self.nursery.start_soon(self._come_and_go, daemon, lives)

    async def _come_and_go(self, daemon: Daemon, lives: list[tuple[float, float]]) -> None:
        await self._opened.wait()
        if daemon.name in self._away:
            await daemon.kill()
        for start, end in lives:
            await trio.sleep(max(0.0, start - self.now))
            if not daemon.is_online:
                await daemon.start()
            await trio.sleep(end - self.now)
            if end < self.seconds:
                await daemon.kill()

    # --- load -------------------------------------------------------------------------------------------------------
    def ask_everywhere(self, workload: "Workload", *, chats: float | None = None) -> None:
        """Let the users of all devices ask, until the world ends; `chats` scales the total to about so many."""
        self.askers.begin(list(self.daemons.values()), workload, chats)

    # --- what is seen -----------------------------------------------------------------------------------------------
    async def _sample(self) -> None:
        while True:
            self.samples.append(self._look())
            await trio.sleep(SAMPLE_S)

    @property
    def chats_finished(self) -> int:
        """How many have been answered so far."""
        return sum(outcome.state == "finished" for outcome in self.outcomes)

    @property
    def propagation(self) -> list[Propagation]:
        """How the first gossiped messages went through the mesh."""
        return [
            Propagation(
                kind=open_sealed(data, mesh=self.mesh_id).message.kind,
                at_s=times[0] - self._began,
                heard_s=tuple(time_s - times[0] for time_s in times),
            )
            for data, times in self.network.followed.values()
        ]

    def _look(self) -> Sample:
        online = [daemon for daemon in self.daemons.values() if daemon.is_online]
        sellers = [daemon for daemon in online if daemon.engine.models]
        status = [daemon.engine.status(ECHO_MODEL) for daemon in sellers]
        prices = [daemon.config.price_completion_micro for daemon in sellers]
        traffic = self.network.traffic.values()
        return Sample(
            at_s=self.now,
            online=len(online),
            slots=sum(each.slots for each in status),
            slots_busy=sum(each.slots - each.slots_free for each in status),
            price_micro=sum(prices) / len(prices) if prices else 0.0,
            chats_running=sum(len(daemon.outcomes) for daemon in online),
            messages=sum(each.messages for each in traffic),
            bytes=sum(each.bytes for each in traffic),
        )

    def map(self) -> list[MapNode]:
        """Every node and whom it is connected with now."""
        names: dict[PeerId, str] = {daemon.peer_id: daemon.name for daemon in self.daemons.values()}
        return [
            MapNode(
                daemon.name,
                daemon.profile,
                daemon.is_online,
                tuple(names[peer] for peer in self.network.connected(daemon.peer_id) if peer in names),
            )
            for daemon in self.daemons.values()
        ]
