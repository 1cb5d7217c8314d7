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
from functools import partial
from random import Random
from typing import TYPE_CHECKING, TypeVar

import trio

from marketplace.assembly.assembly import Assembly
from node.event import Event
from node.simulation import lookout
from node.simulation.adversaries import draw_adversaries, turn
from node.simulation.attendance import Attendance
from node.simulation.daemon import Daemon
from node.simulation.devices import PROFILES, draw_mix
from node.simulation.founding import Founding, Terms, admission
from node.simulation.learning import Learning
from node.simulation.link import Link
from node.simulation.network import Network
from node.simulation.observations import MapNode, Outcome, Propagation, Sample
from node.simulation.population import Askers
from node.simulation.workshop import make_device
from node.store import Record
from protocol.envelope import Sealed
from protocol.identity import Identity, PeerId
from protocol.messages import Admitted, Card, Entry
from runtime.echo import ECHO_MODEL

if TYPE_CHECKING:
    from node.simulation.workload import Workload

CREDIT_MICRO = 10_000_000
LARGE_NODES = 50  # from here on disks are shelves and arrivals are put off to the next tick
TICK_S = 0.002
LATENCY_S = (0.001, 0.02)  # one way between two devices' accesses to the net
SAMPLE_S = 60.0
LOOK_S = 0.01  # between two looks of `until`
DEVICES_PER_OWNER = 3
FOUNDER = "founder"
NAME = "echo"  # of the one model
E = TypeVar("E", bound=Entry)
FOUNDER_PATIENCE_S = 60.0  # until it has met a member since its start, and may write
TraceWriter = Callable[[float, str, Event], None]


class World:
    """Daemons of one mesh, and what befalls them.

    Args:
        nursery: where everything runs.
        seed: decides everything.
        nodes: how many there will be, about; large worlds cut the corners that `docs/SIMULATION.md` names.
        seconds: how long it is meant to last.
        latency_s: one way, of each link; drawn between these, besides what profiles add.
        on_event: told of every event of every node.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        seed: int = 1,
        nodes: int = 10,
        seconds: float = 3_600.0,
        latency_s: tuple[float, float] = LATENCY_S,
        on_event: TraceWriter | None = None,
    ) -> None:
        self.nursery = nursery
        self.seed = seed
        self.nodes = nodes
        self.seconds = seconds
        self.is_large = nodes >= LARGE_NODES
        self.network = Network(
            self.random("network"), latency_s=latency_s, tick_s=TICK_S if self.is_large else 0.0
        )
        self.daemons: dict[str, Daemon] = {}
        self.anchors: list[Daemon] = []  # always online: an invitation names one of them
        self.outcomes: list[Outcome] = []
        self.samples: list[Sample] = []
        self.askers = Askers(self)
        self.replay_command = ""  # how a user runs this very world again
        self._watchers: list[TraceWriter] = [] if on_event is None else [on_event]
        self.began_s: float  # on trio's clock
        self.is_open = False  # devices that are added go through the founder
        self.opened = trio.Event()  # all that were added before have started
        self.founding: Founding
        self.attendance = Attendance(self)
        self.learning = Learning(self)
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
        return self.founding.mesh_id

    @property
    def founder(self) -> Daemon:
        """The device on the roll: it admits the others, and holds no model."""
        return self.daemons[FOUNDER]

    def belonging(self) -> Sequence[Record]:
        """See `Surroundings`."""
        return self.founding.belonging()

    def assembly(self) -> Assembly | None:
        """See `Surroundings`."""
        return self.founding.assembly.fork()

    # --- who is there -----------------------------------------------------------------------------------------------
    def found(self, terms: Terms | None = None, voters: Sequence[Daemon] = ()) -> None:
        """Sign the charter; its founder is the first device, and others who vote are there from the beginning."""
        self.founding = Founding(
            "world", self.identity(FOUNDER), FOUNDER, self.learning.human.public_key, terms, voters
        )
        if FOUNDER not in self.daemons:
            self.daemons[FOUNDER] = self.make(FOUNDER, "server", FOUNDER, is_seller=False)
        self.daemons.update({voter.name: voter for voter in voters})
        self.founding.sign(lambda index, prev: Card(index=index, prev=prev, name=NAME, model=ECHO_MODEL))

    async def add(
        self,
        count: int = 1,
        *,
        profile: str = "",
        owner: str = "",
        is_seller: bool | None = None,
        behaviour: str = "",
    ) -> list[Daemon]:
        """Add devices; before the first `run` they are members from the founding on.

        Args:
            count: how many.
            profile: a name of `devices.PROFILES`; empty deals the usual mix.
            owner: whose; empty: three devices each.
            is_seller: whether they hold the model; None: as the profile's share has it.
            behaviour: a name of `adversaries.BEHAVIOURS`; empty: they are honest.

        Raises:
            ValueError: no such profile, or no such behaviour.
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
            daemon = self.make(f"{name}-{number}", name, whose, is_seller=holds)
            if behaviour:
                turn(self, daemon, behaviour)
            await self.settle(daemon, owner=whose)
            added.append(daemon)
        return added

    def mix_in(self, *, share: float, behaviours: Sequence[str]) -> list[Daemon]:
        """Turn a drawn share of the devices added so far, never the founder, into adversaries; before the first `run`.

        Raises:
            ValueError: no such behaviour or none at all, or a share that is not from 0 to 1.
        """
        return draw_adversaries(self, share, behaviours)

    def newcomer(self, name: str, *, profile: str, owner: str) -> Daemon:
        """Return a device that is no member and has not started; whoever lets it in puts it among the `daemons`."""
        return self.make(name, profile, owner, is_seller=True)

    async def settle(self, daemon: Daemon, *, owner: str, credit_micro: int = CREDIT_MICRO) -> None:
        """Add a device that somebody else has made: admit it, and start it if the world is open."""
        await self.admit(daemon.peer_id, owner=owner, credit_micro=credit_micro)
        self.daemons[daemon.name] = daemon
        if self.is_open:
            await daemon.start()

    async def admit(
        self, peer_id: PeerId, *, owner: str, credit_micro: int = CREDIT_MICRO
    ) -> Sealed[Admitted]:
        """Have the founder sign a key in; before the first `run`, for everybody at once.

        Raises:
            NotConfirmed: the founder is down, or has met nobody for long; it writes nothing then.
        """
        return await self.sign(Admitted, admission(peer_id, owner, credit_micro))

    async def publish(self, name: str) -> None:
        """Have the founder bind another name to the model; everybody hears of it by gossip.

        Raises:
            NotConfirmed: as in `admit`.
        """
        await self.sign(Card, lambda index, prev: Card(index=index, prev=prev, name=name, model=ECHO_MODEL))

    async def sign(
        self, form: type[E], place: Callable[[int, bytes], E], *, by: Daemon | None = None
    ) -> Sealed[E]:
        """Have a device (else the founder) sign an assembly entry and gossip it; before the first `run`, the founder."""
        if not self.is_open:
            return self.founding.sign(place)
        node = (by or self.founder).node
        with trio.move_on_after(FOUNDER_PATIENCE_S):
            await node.logbook.wait_confirmed()
        entry = await node.logbook.write(form, place)
        await node.sync.announce(entry)
        return entry

    def make(self, name: str, profile: str, owner: str, *, is_seller: bool) -> Daemon:
        """Return a device that is nowhere yet."""
        on_event = partial(self._tell, name)
        daemon = make_device(self, name, profile=profile, owner=owner, is_seller=is_seller, on_event=on_event)
        if PROFILES[profile].online_mean_s is None:
            self.anchors.append(daemon)
        return daemon

    # --- time -------------------------------------------------------------------------------------------------------
    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Found the mesh and hold the network; end every process at the end."""
        self.began_s = trio.current_time()
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
        self.is_open = True
        for daemon in list(self.daemons.values()):
            if self.attendance.is_expected(daemon):
                await daemon.start()
        self.opened.set()
        self.nursery.start_soon(self._sample)

    async def run(self, seconds: float) -> None:
        """Let virtual time pass; the first call starts everybody."""
        if not self.is_open:
            await self.open()
        await trio.sleep(seconds)

    async def until(self, holds: Callable[[], bool], within_s: float = 60.0) -> float:
        """Let virtual time pass until something is so; return how long it took. The first call starts everybody.

        Raises:
            TimeoutError: it is not so within this time.
        """
        await self.run(0)
        since = self.now
        while not holds():
            if self.now - since > within_s:
                raise TimeoutError(f"not so within {within_s:g} virtual seconds")
            await trio.sleep(LOOK_S)
        return self.now - since

    @property
    def now(self) -> float:
        """Virtual seconds since the world began."""
        return trio.current_time() - self.began_s

    # --- faults -----------------------------------------------------------------------------------------------------
    def partition(self, *groups: Iterable[Daemon]) -> None:
        """Cut every link between these groups."""
        self.network.partition(*([daemon.peer_id for daemon in group] for group in groups))

    def heal(self) -> None:
        """Mend every link; who was suspended goes on."""
        self.network.heal()

    def suspend(self, *daemons: Daemon) -> None:
        """Let devices neither be heard nor hear, as a closed lid does; what they have begun goes on inside."""
        for daemon in daemons:
            self.network.suspend(daemon.peer_id)

    def resume(self, *daemons: Daemon) -> None:
        """Let suspended devices hear and be heard again, on every link but those to others that are suspended."""
        for daemon in daemons:
            self.network.heal(daemon.peer_id)

    def clog(self, *daemons: Daemon, seconds: float) -> None:
        """Hold back whatever devices send for a while; then all of it leaves."""
        for daemon in daemons:
            self.network.clog(daemon.peer_id, seconds)

    def set_latency(self, one: Daemon, other: Daemon, one_way_s: float) -> None:
        """Make a link slower or faster, in both directions; what profiles add stays."""
        self.network.set_latency(one.peer_id, other.peer_id, one_way_s)
        self.network.set_latency(other.peer_id, one.peer_id, one_way_s)

    def weather(self, link: Link, *groups: Iterable[Daemon]) -> None:
        """Say what befalls the links between these groups; of one group, all its links; of none, every other link.

        What is said of a group counts for the devices that are there now, and is not changed by what is said of all.
        """
        sides = [[daemon.peer_id for daemon in group] for group in groups]
        if len(sides) == 1:
            sides.append([daemon.peer_id for daemon in self.daemons.values()])
        if sides:
            self.network.set_links_between(sides, link)
        else:
            self.network.weather = link

    def skew(self, *daemons: Daemon, seconds: float) -> None:
        """Set wall clocks so far ahead of the world's; below zero they are behind."""
        for daemon in daemons:
            daemon.clock.skew_ms = round(seconds * 1_000)

    def jump(self, *daemons: Daemon, seconds: float) -> None:
        """Set wall clocks forward from where they are, or back."""
        for daemon in daemons:
            daemon.clock.jump(round(seconds * 1_000))

    async def kill(self, *daemons: Daemon) -> None:
        """Pull the plug of devices."""
        for daemon in daemons:
            await daemon.kill()

    async def restart(self, *daemons: Daemon) -> None:
        """Start devices again from their disks; those that run are killed first."""
        for daemon in daemons:
            await daemon.restart()

    def churn(self, daemons: Iterable[Daemon] | None = None) -> None:
        """Let devices (else all) come and go as their profiles say, until the world ends.

        Said before the first `run`, some are away from the beginning, as in the middle of a device's life.
        """
        self.attendance.keep_hours(list(self.daemons.values() if daemons is None else daemons))

    # --- load -------------------------------------------------------------------------------------------------------
    def ask_everywhere(self, workload: "Workload", *, chats_per_node_hour: float | None = None) -> None:
        """Let the users of all devices ask, until the world ends.

        Args:
            workload: how they ask.
            chats_per_node_hour: how much, as a mean over all devices, those that are away counted in; how much more one
                asks than another stays as the profiles say. None: as much as they say.
        """
        self.askers.begin(list(self.daemons.values()), workload, chats_per_node_hour)

    # --- what is seen -----------------------------------------------------------------------------------------------
    def watch(self, writer: TraceWriter) -> None:
        """Tell somebody else of every event of every node, too, from now on."""
        self._watchers.append(writer)

    def _tell(self, name: str, event: Event) -> None:
        for writer in self._watchers:
            writer(self.now, name, event)

    async def _sample(self) -> None:
        while True:
            self.samples.append(lookout.sample(self))
            await trio.sleep(SAMPLE_S)

    @property
    def chats_finished(self) -> int:
        """How many have been answered so far."""
        return sum(outcome.state == "finished" for outcome in self.outcomes)

    @property
    def propagation(self) -> list[Propagation]:
        """How the first gossiped messages went through the mesh."""
        return lookout.propagation(self)

    def map(self) -> list[MapNode]:
        """Every node and whom it is connected with now."""
        return lookout.draw_map(self)
