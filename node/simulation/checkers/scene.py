"""What the laws read: the honest devices of a world, what their disks hold, and the few events that accuse them.

Nothing here draws from chance, waits for virtual time or looks at a node's clock (which counts its looks), so a world
goes its way in the same steps whether it is checked or not.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from marketplace.assembly.assembly import open_entry
from node.enlisted import ENLISTED, EnlistedRun
from node.event import Event
from node.logbook import ENTRY
from node.runs import RUN, RunFile
from node.simulation.daemon import Daemon
from node.simulation.observations import Outcome
from protocol.envelope import Sealed
from protocol.errors import RemoteProtocolError
from protocol.identity import PeerId
from protocol.messages import Entry

if TYPE_CHECKING:
    from node.simulation.world import World

# Journaled things that a law reads; the others are only counted by whoever writes the trace.
HEARD: Final = frozenset(
    {
        "handler_failed",
        "contradiction_found",
        "offence_counted",
        "claim_written_off",
        "own_log_confirmed",  # once in each life of a process
        "bid_sent",
        "delivered",
        "delivery_broken",
        "exam_held",
        "vote_cast",
        "run_announced",
        "run_opened",
        "run_finished",
        "run_aborted",
        "run_paused",
        "round_ended",
        "privacy_reserved",
        "answer_drawn",
        "answer_spared",
        "check_bought",
        "job_verified",
        "seller_caught",
    }
)
LOADED: Final = "patch_loaded"


@dataclass(frozen=True)
class Broken:
    """A law that does not hold.

    Attributes:
        node: the name of the device whose events tell most.
        found: what is so and should not be.
    """

    node: str
    found: str


@dataclass(frozen=True)
class Loaded:
    """A patch that a device took up.

    Attributes:
        at_s: virtual seconds since the world began.
        lengths: of every assembly log that it knew at that moment.
        unwritten: the entries themselves, where a full disk may have taken none of them; else empty.
    """

    at_s: float
    node: str
    event: Event
    lengths: Mapping[PeerId, int]
    unwritten: Sequence[Sealed[Entry]] = ()


@dataclass
class Scene:
    """A world as its laws see it.

    Attributes:
        events: what was journaled under the names in `HEARD`, with the device it happened on.
        disks: every entry on the disk of each honest device; empty before `read_disks`.
        coordinated, enlisted: what the disk of each honest device says of its runs; empty before `read_disks`.
        unreadable: what lay among them and is no entry of this mesh.
        last_chats: what came of the chats that were asked when the faults were over.
        loaded: every patch that any device took up, and what the device knew then.
        first_seen: when a law first saw that a device knows an entry.
    """

    world: "World"
    events: defaultdict[str, list[tuple[str, Event]]] = field(default_factory=lambda: defaultdict(list))
    disks: dict[str, list[Sealed[Entry]]] = field(default_factory=dict)
    coordinated: dict[str, list[RunFile]] = field(default_factory=dict)
    enlisted: dict[str, list[EnlistedRun]] = field(default_factory=dict)
    unreadable: list[Broken] = field(default_factory=list)
    last_chats: list[Outcome] = field(default_factory=list)
    loaded: list[Loaded] = field(default_factory=list)
    first_seen: dict[tuple[str, bytes], float] = field(default_factory=dict)

    def note(self, at_s: float, node: str, event: Event) -> None:
        """Hear of an event."""
        if event.name in HEARD:
            self.events[event.name].append((node, event))
        elif event.name == LOADED:
            daemon = self.world.daemons[node]
            lengths = {PeerId(head.author): head.index + 1 for head in daemon.node.logbook.assembly.heads()}
            unwritten = tuple(self.known_to(daemon)) if daemon.disk.was_filled else ()
            self.loaded.append(Loaded(at_s, node, event, lengths, unwritten))

    async def read_disks(self) -> None:
        """Read every honest disk. An entry that several of them hold is opened once."""
        known: dict[bytes, Sealed[Entry]] = {}
        self.unreadable = []
        for daemon in self.honest:
            held = self.disks[daemon.name] = []
            records = await daemon.disk.load()
            self.coordinated[daemon.name] = [
                msgspec.msgpack.decode(record.body, type=RunFile)
                for record in records
                if record.kind == RUN and record.body is not None
            ]
            self.enlisted[daemon.name] = [
                msgspec.msgpack.decode(record.body, type=EnlistedRun)
                for record in records
                if record.kind == ENLISTED and record.body is not None
            ]
            for record in records:
                if record.kind != ENTRY or record.body is None:
                    continue
                if record.body not in known:
                    try:
                        known[record.body] = open_entry(record.body, self.world.mesh_id)
                    except RemoteProtocolError as error:
                        self.unreadable.append(
                            Broken(daemon.name, f"its disk holds what nobody opens: {error}")
                        )
                        continue
                held.append(known[record.body])

    # --- who is who -------------------------------------------------------------------------------------------------
    def is_honest(self, daemon: Daemon) -> bool:
        """Whether a device runs the node as it is."""
        return not daemon.behaviour

    @property
    def honest(self) -> list[Daemon]:
        """The devices that run the node as it is."""
        return [daemon for daemon in self.world.daemons.values() if self.is_honest(daemon)]

    @property
    def online(self) -> list[Daemon]:
        """Those of them that run now."""
        return [daemon for daemon in self.honest if daemon.is_online]

    @property
    def honest_ids(self) -> dict[PeerId, str]:
        """The honest devices' names by their keys."""
        return {daemon.peer_id: daemon.name for daemon in self.honest}

    def name(self, peer_id: str) -> str:
        """What a peer is called here."""
        names = (daemon.name for daemon in self.world.daemons.values() if daemon.peer_id == peer_id)
        return next(names, peer_id)

    def founding_entries(self) -> Sequence[Sealed[Entry]]:
        """What every member knew when the world began, and no disk holds."""
        assembly = self.world.founding.assembly
        return assembly.entries_after(assembly.founder, -1)

    def known_to(self, daemon: Daemon) -> Iterator[Sealed[Entry]]:
        """Every assembly entry that a device goes by now."""
        assembly = daemon.node.logbook.assembly
        for head in assembly.heads():
            yield from assembly.entries_after(PeerId(head.author), -1)

    def known_at(self, loaded: Loaded) -> Iterator[Sealed[Entry]]:
        """Every assembly entry that stood on a device's disk when it took up a patch."""
        held = loaded.unwritten or (*self.founding_entries(), *self.disks[loaded.node])
        for entry in held:
            is_of_assembly = entry.message.log == "assembly"
            if is_of_assembly and entry.message.index < loaded.lengths.get(entry.sender, 0):
                yield entry

    def entries(self) -> Iterator[tuple[Daemon, Sealed[Entry]]]:
        """Every entry on every honest disk."""
        for daemon in self.honest:
            for entry in self.disks[daemon.name]:
                yield daemon, entry
