"""The coordinator: announces runs, hears who would take part, drives each to its end, and goes on with them after a crash.

    agora train ─▶ RunAnnouncement (gossip) ─▶ Enlistment │ Decline (streams) ─▶ run_driver.py ─▶ Manifest

A run's state is kept by `runs.py`. One that was under way when the daemon died goes on from its checkpoint; one that was
still looking for members has ended with it.
"""

import importlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, cast

import msgspec
import trio

from federation.defaults import DEFAULT_RECIPE
from federation.run_events import Action, Cancel, Pause, Resume
from federation.strategy import strategy_of
from federation.training_run import TrainingRun
from marketplace.batch import NO_RUN, RoundWork, cohort_size
from node.adapter_maker import AdapterMaker
from node.enlisted import EnlistedBook
from node.errors import StartError
from node.jobs import CLAIM_WINDOW_S
from node.run_outlook import outlook
from node.run_views import RunViews
from node.runs import ENDED, RunFile, RunView
from node.services.participant import Participant
from node.services.run_driver import RunDriver, RunTools
from node.services.settlement import Settlement
from node.wire import Wire
from protocol import limits
from protocol.envelope import Sealed, open_sealed
from protocol.errors import AgoraError, MeshError, NotAuthorised
from protocol.identity import PeerId
from protocol.mesh import Mesh, PeerEvent, Stream
from protocol.messages import (
    NO_HASH,
    Award,
    Decline,
    Enlistment,
    Line,
    Message,
    Recipe,
    RunAnnouncement,
)
from protocol.topics import ENLIST, RUNS
from runtime.engine import Digest

if TYPE_CHECKING:  # trio-typing's stubs, which libp2p brings, hide trio's own types
    from trio_typing import TaskStatus

    from node.run_numbers import RunNumbers

ANSWER_TIMEOUT_S = 10.0
GOSSIP_SLACK_S = (
    30.0  # an announcement lives this much longer than its window: clocks differ, gossip takes time
)
RUNS_AT_ONCE = 4
KEEP_AGAIN_S = 60.0  # a full disk is tried again: until a run's end is on it, a restart takes the run up
GATHER_S = 20.0  # after a restart: for a run's members to find this device again, or it them


@dataclass(frozen=True)
class TrainOptions:
    """What a user asks of a run; None: as usual.

    Attributes:
        data: the name of the data that trains.
        line: the model's name.
        parameters: of the strategy.
        step_micro_max: a dearer bid is not wanted.
        start_from: the run whose checkpoint is begun from.
    """

    data: str
    line: str
    rounds: int | None = None
    steps: int | None = None
    batch: int | None = None
    learning_rate_ppm: int | None = None
    replay_percent: int | None = None
    rank: int | None = None
    strategy: str = "default"
    parameters: tuple[tuple[str, int], ...] = ()
    cohort_min: int = limits.COHORT_MIN_DEFAULT
    cohort_max: int = 8
    step_micro_max: int | None = None
    round_s: float = limits.ROUND_TIMEOUT_S
    window_s: float = limits.ENLIST_WINDOW_S
    start_from: str = ""


class Coordinator:
    """Runs of this device."""

    def __init__(
        self,
        *,
        tools: RunTools,
        mesh: Mesh,
        wire: Wire,
        settlement: Settlement,
        participant: Participant,
        enlisted: EnlistedBook,
        adapters: AdapterMaker | None,
        own_bids: Callable[[str], Sequence[tuple[int, int]]],
        owner_of: Callable[[PeerId], str],
        step_micro_max: int,
        rng: Random,
    ) -> None:
        self._tools = tools
        self._mesh = mesh
        self._wire = wire
        self._settlement = settlement
        self._participant = participant
        self._enlisted = enlisted
        self._adapters = adapters
        self._own_bids = own_bids
        self._owner_of = owner_of
        self._step_micro_max = step_micro_max
        self._rng = rng
        self._drivers: dict[bytes, RunDriver] = {}
        self.views = RunViews(tools.book, enlisted, tools.logbook, wire.mesh_id, owner_of, self._drivers.get)
        self._nursery: trio.Nursery | None = None
        self._met = trio.Event()  # set, and another one put in its place, whenever a peer has come or gone
        mesh.serve(ENLIST, self._hear)
        mesh.watch(self._meet)

    async def _meet(self, _event: PeerEvent) -> None:
        self._met.set()
        self._met = trio.Event()

    async def _gather(self, cohort: Sequence[PeerId]) -> None:
        """Wait a while for the members of a run: whoever is asked before it is back has failed its round."""
        others = frozenset(cohort) - {self._tools.logbook.me}
        with trio.move_on_after(GATHER_S):
            while not others <= self._mesh.connected:
                await self._met.wait()

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Drive runs, those of the daemon's earlier life first."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await self._tools.logbook.wait_confirmed()
            for file in self._tools.book.files():
                if file.state not in ENDED:
                    nursery.start_soon(self._go_on, file)
                elif file.since or file.payload:  # a crash came before they were dropped
                    nursery.start_soon(self._let_go, file, frozenset())
            await trio.sleep_forever()

    def is_of_a_run(self, award_id: bytes) -> bool:
        """Whether an award belongs to a run that goes on; a restart does not end it."""
        return any(
            seat.award and open_sealed(seat.award, mesh=self._wire.mesh_id).id == award_id
            for file in self._tools.book.files()
            if file.state not in ENDED and file.next
            for seat in file.seats.values()
        )

    # --- a new run --------------------------------------------------------------------------------------------------
    async def announce(self, options: TrainOptions) -> bytes:
        """Announce a run and return its id; it goes on by itself.

        Raises:
            StartError: this device cannot coordinate it, or it could never be won.
        """
        announcement = self._announcement(options)
        shapes = await self._tools.compute(lambda: self._shapes(announcement.message))
        del (
            shapes
        )  # they are asked for again when the run begins; here only whether the base has such tensors
        file = RunFile(
            run=announcement.message.run,
            outlook=self._outlook(announcement.message),
            announcement=announcement.raw,
            since=b"" if announcement.message.start == NO_HASH else announcement.message.start,
            started_at=self._tools.clock.utc_ms() / 1000,
        )
        await self._tools.book.keep(file)
        assert self._nursery is not None, "run() comes first"
        self._nursery.start_soon(self._drive_new, file, announcement)
        return file.run

    def _outlook(self, announced: RunAnnouncement) -> str:
        """What to expect where others hold data like this device's own; empty: it holds none to go by."""
        return outlook(announced.recipe, self._own_bids(announced.data)[-1:])

    def _announcement(self, options: TrainOptions) -> Sealed[RunAnnouncement]:
        logbook = self._tools.logbook
        if self._adapters is None or self._nursery is None:
            raise StartError("this device coordinates no runs")
        if len(self._drivers) >= RUNS_AT_ONCE:
            raise StartError(f"{len(self._drivers)} runs are under way here; wait for one, or cancel it")
        if not logbook.is_confirmed or logbook.halted:
            raise StartError(
                logbook.halted or "no member has confirmed this device's log since its start; try again soon"
            )
        try:
            importlib.import_module("federation.aggregation")
        except ModuleNotFoundError as error:
            raise StartError(
                f"cannot train without {error.name}; install it with 'pip install \"agora-node[train]\"'"
            ) from error
        line = logbook.assembly.line(options.line)
        if line is None:
            known = ", ".join(sorted(logbook.assembly.lines())) or "none"
            raise StartError(
                f"model {options.line!r} has no line, so nobody could judge what came of it; there are: {known}. "
                "A device on the roll publishes one with 'agora model line'"
            )
        parent, start, recipe = self._start(options, line)
        strategy_of(recipe)
        message = {
            "run": self._rng.randbytes(16),
            "line": options.line,
            "base": line.base,
            "data": options.data,
            "replay": line.replay if recipe.replay_percent else NO_HASH,
            "replay_bytes": line.replay_bytes if recipe.replay_percent else 0,
            "start": start,
            "start_bytes": self._tools.blobs.size(Digest(start)) if start != NO_HASH else 0,
            "parent": parent,
            "recipe": msgspec.to_builtins(recipe, builtin_types=(bytes,)),
            "cohort_min": options.cohort_min,
            "cohort_max": options.cohort_max,
            "round_ms": round(options.round_s * 1000),
            "step_micro_max": (
                self._step_micro_max if options.step_micro_max is None else options.step_micro_max
            ),
            "window_ms": round(options.window_s * 1000),
        }
        if options.cohort_min > options.cohort_max:
            raise StartError(f"at least {options.cohort_min} members, but at most {options.cohort_max}")
        try:
            announced = msgspec.convert(message, RunAnnouncement, builtin_types=(bytes,))
        except msgspec.ValidationError as error:
            raise StartError(
                f"no such run can be announced: {str(error)[:1].lower()}{str(error)[1:]}"
            ) from None
        return self._sealed(announced)

    def _sealed(self, announced: RunAnnouncement) -> Sealed[RunAnnouncement]:
        ttl_ms = announced.window_ms + round(GOSSIP_SLACK_S * 1000)
        return self._wire.seal(announced, ttl_ms=ttl_ms)

    def _start(self, options: TrainOptions, line: Line) -> tuple[bytes, bytes, Recipe]:
        """The parent run, the state to begin from, and the recipe."""
        changes = {
            name: value
            for name in ("rounds", "steps", "batch", "learning_rate_ppm", "replay_percent")
            if (value := getattr(options, name)) is not None
        }
        changes |= {"strategy": options.strategy, "parameters": options.parameters}
        if not options.start_from:
            shape = DEFAULT_RECIPE.shape
            if options.rank is not None:
                shape = msgspec.structs.replace(shape, rank=options.rank, alpha=2 * options.rank)
            seed = self._rng.getrandbits(32)
            recipe = msgspec.structs.replace(DEFAULT_RECIPE, shape=shape, seed=seed, **changes)
            return NO_RUN, NO_HASH, recipe
        announced, start = self._checkpoint(options.start_from)
        if announced.base != line.base:
            raise StartError(
                f"run {options.start_from!r} trained another base than line {options.line!r} has"
            )
        # the seed of A, the shape and what is frozen are the checkpoint's own
        return announced.run, start, msgspec.structs.replace(announced.recipe, **changes)

    def _checkpoint(self, prefix: str) -> tuple[RunAnnouncement, bytes]:
        """The announcement of a run that this device knows, and the newest state of it that is here."""
        found = [
            (raw, state)
            for run, raw, state in (
                *((file.run, file.announcement, file.next) for file in self._tools.book.files()),
                *(
                    (known.run, known.announcement, known.newest.state if known.newest else b"")
                    for known in self._enlisted.runs()
                    if known.award
                ),
            )
            if run.hex().startswith(prefix)
        ]
        if len(found) != 1:
            raise StartError(f"no run {prefix!r} here, or several; 'agora runs' lists them")
        raw, state = found[0]
        if not state or not self._tools.blobs.has(Digest(state)):
            raise StartError(
                f"run {prefix!r} has no checkpoint on this device; it ended before its first round"
            )
        return self._participant.open_announcement(raw).message, state

    def _numbers(self, announced: RunAnnouncement) -> "RunNumbers":
        from node.run_numbers import RunNumbers  # noqa: PLC0415  # numpy and Flower come with the first run

        return RunNumbers(announced.recipe, self._shapes(announced))

    def _shapes(self, announced: RunAnnouncement) -> dict[str, tuple[int, int]]:
        assert self._adapters is not None, "announce() has looked"
        return dict(self._adapters.shapes(Digest(announced.base), announced.recipe))

    # --- driving ----------------------------------------------------------------------------------------------------
    async def _drive_new(self, file: RunFile, announcement: Sealed[RunAnnouncement]) -> None:
        is_answered = await self._try_once(file, announcement)
        if file.state == "unsold" and not is_answered:
            # gossip may have been lost as a whole, or everybody was just away
            file.state, file.reason, file.finished_at = "enlisting", "", None
            again = self._sealed(announcement.message)
            file.announcement = again.raw
            await self._try_once(file, again)

    async def _try_once(self, file: RunFile, announcement: Sealed[RunAnnouncement]) -> bool:
        """Announce, and drive the run to its end; whether anybody else has answered."""
        machine = TrainingRun(announcement, now=self._tools.clock.now(), parties=self._parties)
        try:
            driver = await self._driver(file, announcement, machine)
        except AgoraError as error:
            await self._abandon(file, str(error))
            return True
        self._tools.journal.write("run_announced", run=file.run, data=announcement.message.data)
        try:
            await self._mesh.publish(RUNS, announcement.raw)
        except MeshError as error:
            self._tools.journal.write("run_not_gossiped", run=file.run, reason=str(error))
        own = self._participant.consider(announcement)
        driver.tell(self._tools.logbook.me, own)
        await self._drive(driver)
        others = {each.sender for each in machine.enlistments} | {each.peer for each in machine.declines}
        return bool(others - {self._tools.logbook.me})

    async def _driver(
        self,
        file: RunFile,
        announcement: Sealed[RunAnnouncement],
        machine: TrainingRun,
        actions: Sequence[Action] = (),
    ) -> RunDriver:
        """Make a run's driver.

        Raises:
            AgoraError: its base is not here any more, or cannot be read.
        """
        numbers = await self._tools.compute(lambda: self._numbers(announcement.message))
        driver = RunDriver(self._tools, file, announcement, machine, numbers, actions)
        self._drivers[file.run] = driver
        return driver

    async def _drive(self, driver: RunDriver) -> None:
        try:
            await driver.drive()
        finally:
            self._drivers.pop(driver.run_id, None)
        assert self._nursery is not None, "run() holds it"
        self._nursery.start_soon(self._release, driver.file)
        self._nursery.start_soon(self._let_go, driver.file, frozenset(driver.put))

    async def _abandon(self, file: RunFile, reason: str) -> None:
        """End a run that nothing drives."""
        file.state, file.reason = "aborted", reason
        file.finished_at = self._tools.clock.utc_ms() / 1000
        await self._tools.book.keep_soon(file)
        self._tools.journal.write("run_aborted", run=file.run, reason=reason)
        assert self._nursery is not None, "run() holds it"
        self._nursery.start_soon(self._release, file)
        self._nursery.start_soon(self._let_go, file, frozenset())

    async def _release(self, file: RunFile) -> None:
        """Give the holds back, at once where every round is paid, else when no member comes for its receipt any more."""
        ledger, me = self._tools.logbook.ledger, self._tools.logbook.me
        bought = [work for work in self._settlement.rounds.values() if work.run == file.run]
        if any(ledger.payment(me, work.job_id, work.attempt) is None for work in bought):
            await trio.sleep(CLAIM_WINDOW_S)
        for seat in file.seats.values():
            if seat.award:
                ledger.void(open_sealed(seat.award, mesh=self._wire.mesh_id).id)
        for work in bought:
            self._settlement.rounds.pop(work.job_id, None)

    async def _let_go(self, file: RunFile, put: frozenset[bytes]) -> None:
        """Drop what an ended run has put, but for its newest state, as soon as a record of its end is on disk.

        Until then the one on disk may be of a run under way: after a crash it goes on from the blobs that it names.
        """
        spare = put | {file.since, file.payload}
        while file.state in ENDED:  # one that nobody answered is announced once more
            file.since = file.payload = b""
            if await self._tools.book.keep_soon(file):
                await self._tools.named.drop(spare)
                return
            await trio.sleep(KEEP_AGAIN_S)

    async def _go_on(self, file: RunFile) -> None:
        """Take a run up again that a crash has broken off, and drive it to its end."""
        announcement = self._participant.open_announcement(file.announcement)
        if not file.next or self._adapters is None:
            await self._abandon(file, "this device was restarted before the run had begun")
            return
        cohort = [PeerId(peer) for peer, seat in file.seats.items() if not seat.out]
        self._remember_unpaid(file, announcement.message.recipe)
        if file.state != "paused":
            await self._gather(cohort)
        machine, actions = TrainingRun.continued(
            announcement,
            cohort,
            shown=[PeerId(peer) for peer in file.seats],
            rounds_done=file.done,
            now=self._tools.clock.now(),
            parties=self._parties,
        )
        if file.state == "paused":
            actions = [
                *actions,
                *machine.handle_message(announcement.sender, Pause(), self._tools.clock.now()),
            ]
        try:
            driver = await self._driver(file, announcement, machine, actions)
        except AgoraError as error:
            await self._abandon(file, f"it cannot go on: {error}")
            return
        self._tools.journal.write("run_resumed", run=file.run, round=file.done + 1)
        await self._drive(driver)

    def _parties(self, peers: Collection[PeerId]) -> int:
        return cohort_size([self._owner_of(peer) for peer in peers])

    def _remember_unpaid(self, file: RunFile, recipe: Recipe) -> None:
        """Members may still come for rounds of the daemon's earlier life."""
        for bought in file.unpaid:
            raw = file.seats[bought.peer].award
            award = cast("Sealed[Award]", open_sealed(raw, mesh=self._wire.mesh_id))
            work = RoundWork(
                award, file.run, bought.round, recipe, bought.state, bought.payload, bought.steps
            )
            self._settlement.rounds[work.job_id] = work

    async def _hear(self, stream: Stream) -> None:
        with trio.move_on_after(ANSWER_TIMEOUT_S):
            answer: Sealed[Message] = await self._wire.receive(stream, Enlistment, Decline)
            if not self._tools.logbook.assembly.is_member(stream.peer_id):
                raise NotAuthorised(f"peer {stream.peer_id} is not a member and cannot enlist")
            said = answer.message
            about = said.announcement if isinstance(said, Enlistment) else cast("Decline", said).request
            for driver in self._drivers.values():
                if driver.announcement.id == about:
                    driver.tell(stream.peer_id, cast("Sealed[Enlistment] | Sealed[Decline]", answer))

    # --- the user's words -------------------------------------------------------------------------------------------
    async def pause(self, prefix: str) -> RunView:
        """Ask for no further round until it is resumed.

        Raises:
            StartError: no such run is driven here.
        """
        driver = self._find(prefix)
        driver.tell(driver.announcement.sender, Pause())
        driver.file.state = "paused"
        await self._tools.book.keep(driver.file)
        self._tools.journal.write("run_paused", run=driver.run_id)
        return self.views.coordinated(driver.file)

    async def resume(self, prefix: str) -> RunView:
        """Go on with a run that was paused.

        Raises:
            StartError: no such run is driven here.
        """
        driver = self._find(prefix)
        driver.file.state = "running" if driver.file.next else "enlisting"
        await self._tools.book.keep(driver.file)
        driver.tell(driver.announcement.sender, Resume())
        self._tools.journal.write("run_resumed", run=driver.run_id, round=driver.round_under_way)
        return self.views.coordinated(driver.file)

    async def cancel(self, prefix: str) -> RunView:
        """End a run; its newest checkpoint stays.

        Raises:
            StartError: no such run is driven here.
        """
        driver = self._find(prefix)
        driver.file.state = "cancelled"
        driver.tell(driver.announcement.sender, Cancel("cancelled by its owner"))
        return self.views.coordinated(driver.file)

    def _find(self, prefix: str) -> RunDriver:
        found = [driver for run, driver in self._drivers.items() if prefix and run.hex().startswith(prefix)]
        if len(found) != 1:
            raise StartError(f"no run {prefix!r} is under way here, or several; 'agora runs' lists them")
        return found[0]
