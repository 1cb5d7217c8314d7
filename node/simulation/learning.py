"""What stories say about learning: who votes, what a line is judged by, who holds data, who trains, what humans decide.

`world.learning` has these words. A world in which somebody is to learn says so before its first `run` (`seat`, `line`
and `give_data` do); in all others no device has a trainer, and nothing that computes is imported.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from marketplace.assembly.ballot import BallotState, BallotView
from node import records
from node.data_sets import DataSet
from node.errors import StartError
from node.node import Ports
from node.services.coordinator import TrainOptions
from node.simulation.devices import PROFILES
from node.simulation.engine import SimulatedEngine
from node.simulation.founding import Terms
from node.simulation.toys import LINE, SHAPE, SKILL, digest_of, measured, public_set
from node.simulation.virtual_clock import NOON_MS
from protocol.envelope import Sealed, seal
from protocol.errors import RemoteProtocolError
from protocol.limits import COHORT_MIN_DEFAULT
from protocol.messages import (
    NO_HASH,
    Approval,
    Entry,
    Line,
    Manifest,
    Score,
    Veto,
    Withdrawal,
)
from runtime.echo import ECHO_MODEL

if TYPE_CHECKING:
    from node.simulation.daemon import Daemon
    from node.simulation.learning_kit import LearningKit
    from node.simulation.world import World

E = TypeVar("E", bound=Entry)

ROUND_S: Final = 60.0  # a toy takes a tenth of it
HUMAN: Final = "a human"
EXPIRES_MS: Final = 7 * 24 * 3_600_000  # of a manifest that a story makes


class Learning:
    """The learning of a world.

    Attributes:
        is_on: whether its devices have what they need to learn.
        human: who approves; no device holds this key.
    """

    def __init__(self, world: "World") -> None:
        self._world = world
        self.is_on = False
        self.human = world.identity(HUMAN)
        self._human_log: list[Sealed[Entry]] = []

    def begin(self) -> None:
        """Give each device what it needs to learn.

        Raises:
            ValueError: too late: the devices run already.
        """
        if self._world.is_open and not self.is_on:
            raise ValueError("the devices run already, and have no trainers: speak of learning before 'run'")
        self.is_on = True

    def equip(self, daemon: "Daemon", ports: Ports) -> Ports:
        """Give a device what it learns with, if anybody does here."""
        if not self.is_on:
            return ports
        kit: LearningKit = importlib.import_module("node.simulation.learning_kit").LearningKit(daemon)
        return replace(
            ports, trainer=kit.trainer(ports.rng), examiner=kit.examiner(), adapters=kit.adapters()
        )

    # --- who decides ------------------------------------------------------------------------------------------------
    async def seat(
        self, voters: int, *, profile: str = "laptop", terms: Terms | None = None
    ) -> "list[Daemon]":
        """Put further devices on the founding charter's roll, each of an owner of its own; before any other is added.

        Args:
            voters: how many, beside the founder.
            profile: of their devices; they hold the model, and so does the founder now, or they could examine nothing.
            terms: how the mesh decides.
        """
        world = self._world
        self.begin()
        if len(world.daemons) > 1:
            raise ValueError("voters are seated before any other device is added")
        names = [f"voter-{number}" for number in range(1, voters + 1)]
        seated = [world.make(name, profile, name, is_seller=True) for name in names]
        world.found(terms, seated)
        world.founder.engine = SimulatedEngine.of(PROFILES[world.founder.profile], is_seller=True)
        return seated

    # --- what is learned, and from what -----------------------------------------------------------------------------
    async def line(self, name: str = LINE, *, by: "Daemon | None" = None) -> Sealed[Line]:
        """Have a voter (else the founder) give the model its public sets; all its devices that are there hold them."""
        self.begin()
        questions, examples = public_set("question"), public_set("example")
        publisher = by or self._world.founder
        for data in (questions, examples):
            await publisher.blobs.put(data)

        def place(index: int, prev: bytes) -> Line:
            return Line(
                index=index,
                prev=prev,
                name=name,
                base=ECHO_MODEL,
                evaluation=digest_of(questions),
                evaluation_bytes=len(questions),
                replay=digest_of(examples),
                replay_bytes=len(examples),
            )

        return await self._world.sign(Line, place, by=publisher)

    def give_data(
        self,
        device: "Daemon",
        name: str = SKILL,
        *,
        samples: int = 400,
        budget_milli: int = 0,
        first: int = 0,
    ) -> DataSet:
        """Register a private data set on a device, as `agora data add` does.

        Args:
            device: whose it is.
            name: what runs ask for; it trains the skill of this name.
            samples: records, those held out among them.
            budget_milli: the epsilon that its owner allows, in thousandths; 0: without differential privacy.
            first: the number of its first record: sets that overlap hold the same records.
        """
        self.begin()
        pairs = [(f"{name} {number}", f"answer {number}") for number in range(first, first + samples)]
        found = records.read(records.encode(pairs), Path(name))
        return device.data.insert(name, found, budget_milli).data_set

    async def train(
        self,
        name: str = SKILL,
        *,
        by: "Daemon",
        rounds: int = 4,
        cohort_min: int = COHORT_MIN_DEFAULT,
        round_s: float = ROUND_S,
    ) -> bytes:
        """Have a device announce a run, as `agora train` does; return the run's id. It goes on by itself.

        Args:
            name: of the data that trains.
            by: who coordinates.
            rounds: of the usual number of steps.
            cohort_min: members, at least.
            round_s: after which whoever is late is not waited for.

        Raises:
            StartError: the device cannot coordinate it now.
        """
        options = TrainOptions(
            data=name, line=LINE, rounds=rounds, cohort_min=cohort_min, round_s=round_s, step_micro_max=1_000
        )
        return bytes.fromhex((await by.node.train(options)).run_id)

    async def propose(
        self,
        by: "Daemon",
        adapter: bytes,
        *,
        version: int = 1,
        parent: bytes = NO_HASH,
        claimed: Sequence[Score] | None = None,
        line: str = LINE,
        shift_ms: int = 0,
    ) -> Sealed[Manifest]:
        """Have a member propose an adapter that no run has made; in its own name, whatever it is worth.

        Args:
            by: who proposes; its node writes the entry.
            adapter: the file.
            version: of the line.
            parent: the manifest that it follows.
            claimed: the scores that the proposal tells; None: the true ones.
            line: whose.
            shift_ms: added to the expiry, to make one that is over.
        """
        evaluation = public_set("question")
        before, after = await measured(None), claimed or await measured(adapter)
        expires_at = by.clock.utc_ms() + EXPIRES_MS + shift_ms

        def place(index: int, prev: bytes) -> Manifest:
            return Manifest(
                index=index,
                prev=prev,
                line=line,
                version=version,
                parent=parent,
                base=ECHO_MODEL,
                adapter=digest_of(adapter),
                adapter_bytes=len(adapter),
                shape=SHAPE,
                rolls_back_to=0,
                run=bytes(16),
                rounds=0,
                cohort=(),
                evaluation=digest_of(evaluation),
                before=before,
                after=tuple(after),
                expires_at=expires_at,
                reason="",
            )

        await by.blobs.put(adapter)
        return await self._world.sign(Manifest, place, by=by)

    # --- what is waited for -------------------------------------------------------------------------------------------
    def ballot(self, manifest: bytes, *, at: "Daemon | None" = None) -> BallotView | None:
        """Return how a ballot stands, as this device (else the founder) knows; None: it has not heard of it."""
        device = at or self._world.founder
        now_ms = NOON_MS + int(trio.current_time() * 1000)
        return device.node.logbook.assembly.ballot(manifest, now_ms) if device.is_online else None

    async def until_certified(self, manifest: bytes, within_s: float = 120.0) -> None:
        """Wait until the founder knows that enough voters have said yes.

        Raises:
            TimeoutError: they have not, within this time.
        """

        def is_so() -> bool:
            view = self.ballot(manifest)
            return view is not None and view.state in (BallotState.CERTIFIED, BallotState.RATIFIED)

        await self._world.until(is_so, within_s)

    async def until_proposed(self, run: bytes, within_s: float = 200.0) -> bytes:
        """Wait until the founder hears of the patch that came of a run; return its manifest's id.

        Raises:
            TimeoutError: none has come within this time.
        """
        found: list[bytes] = []

        def is_so() -> bool:
            assembly = self._world.founder.node.logbook.assembly
            views = assembly.ballots(NOON_MS + int(trio.current_time() * 1000))
            found.extend(view.id for view in views if view.manifest.message.run == run)
            return bool(found)

        await self._world.until(is_so, within_s)
        return found[0]

    # --- what humans say --------------------------------------------------------------------------------------------
    async def approve(self, manifest: bytes, *, at: "Daemon | None" = None) -> Sealed[Approval]:
        """Have the human approve, on this device (else the founder's).

        Raises:
            RemoteProtocolError: there is nothing to approve there; as in the other words of the human.
        """
        return await self._say(
            lambda index, prev: Approval(index=index, prev=prev, manifest=manifest), at or self._world.founder
        )

    async def veto(self, manifest: bytes, *, at: "Daemon | None" = None) -> Sealed[Veto]:
        """Have the human veto a patch, on this device (else the founder's)."""
        return await self._say(
            lambda index, prev: Veto(index=index, prev=prev, manifest=manifest, reason="no"),
            at or self._world.founder,
        )

    async def withdraw(self, adapter: bytes, *, at: "Daemon | None" = None) -> Sealed[Withdrawal]:
        """Have the human bar an adapter for ever, on this device (else the founder's)."""
        return await self._say(
            lambda index, prev: Withdrawal(index=index, prev=prev, adapter=adapter, reason="it harms"),
            at or self._world.founder,
        )

    async def _say(self, place: Callable[[int, bytes], E], device: "Daemon") -> Sealed[E]:
        """Sign a word of the human, and hand all of its words that the device lacks over to its daemon."""
        log = self._human_log
        entry = seal(
            place(len(log), log[-1].id if log else NO_HASH),
            self.human,
            mesh=self._world.mesh_id,
            seq=(1, len(log) + 1),
            time_ms=NOON_MS + int(trio.current_time() * 1000),
        )
        await self._hand_over(device)
        log.append(entry)
        try:
            await device.node.take_word(entry.raw)
        except (RemoteProtocolError, StartError):
            log.pop()  # it is refused before anything changes, so it was never said
            raise
        return entry

    async def _hand_over(self, device: "Daemon") -> None:
        """Bring a device what the human has said elsewhere, or its next word would not follow on there."""
        known = device.node.logbook.head(self.human.peer_id, "assembly")
        for word in self._human_log[known.index + 1 if known else 0 :]:
            await device.node.sync.bring(word)
