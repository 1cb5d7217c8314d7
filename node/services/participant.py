"""The participant: hears of runs, bids for a place, checks who else is in the cohort, and trains round after round.

    RunAnnouncement (gossip) ─▶ enlist() ─▶ Enlistment │ Decline (stream)
    [RunOpening], [Award] ─▶ cohort, award and credit hold? ─▶ Accept │ Decline
    [RoundTask], chunks ─▶ order and fence ─▶ fitting.py ─▶ progress … [finished], [RoundUpdate], chunks, [Receipt]
    [Cancel] of the run's own job ─▶ it is over

It trains for one run at a time. A round is trained once: whoever asks for it again is sent the same bytes. The streams
are `round_stream.py`'s; the device that coordinates a run takes part through the functions here, without a stream, an
award or money.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import trio

from marketplace.batch import TrainerState, TrainerTerms, enlist, why_no_cohort
from marketplace.exposure import Exposure
from node.clock import Clock, MembersTime
from node.data_sets import DataSet, DataSets
from node.enlisted import EnlistedBook, EnlistedRun, Noise, Result
from node.journal import Journal
from node.logbook import Logbook
from node.privacy_book import PrivacyBook, Refused
from node.services.fitting import Fitting, Round, Task
from node.wire import Wire
from protocol import limits
from protocol.envelope import Sealed, open_sealed
from protocol.errors import AgoraError, MeshError, RemoteProtocolError
from protocol.identity import PeerId
from protocol.mesh import Mesh, Verdict
from protocol.messages import (
    Award,
    Decline,
    Device,
    Enlistment,
    FailedFrame,
    RunAnnouncement,
)
from protocol.topics import ENLIST, RUNS
from runtime.engine import Digest, Engine
from runtime.trainer import NoisePlan

if TYPE_CHECKING:  # trio-typing's stubs, which libp2p brings, hide trio's own types
    from trio_typing import TaskStatus

ANNOUNCEMENT_TTL_MS_MAX = 600_000  # of gossip: nobody asks for members for longer
BID_HELD_S = 60.0  # after a run's window: by then its coordinator has chosen
IDLE_S_MIN = 60.0  # nothing asked for so long, and for two rounds' time: the memory is given back, other runs are taken
HEARD_MAX = 256  # announcements remembered
ANSWERS_MAX = 16  # announcements considered at a time; a flood of them is not


@dataclass(frozen=True)
class Bid:
    """Our answer to a run, until it opens or has forgotten us."""

    announcement: Sealed[RunAnnouncement]
    enlistment: Sealed[Enlistment]
    data: DataSet
    noise: NoisePlan | None
    until_s: float


class Participant:
    """Takes this device's data to the runs of others, and of itself."""

    def __init__(
        self,
        *,
        mesh: Mesh,
        wire: Wire,
        clock: Clock,
        members_time: MembersTime,
        logbook: Logbook,
        exposure: Exposure,
        engine: Engine,
        data: DataSets | None,
        privacy: PrivacyBook | None,
        fitting: Fitting | None,
        book: EnlistedBook,
        terms: Callable[[], TrainerTerms],
        is_willing: bool,
        device: Callable[[], Device],
        journal: Journal,
    ) -> None:
        # no data, privacy book or fitting: this device cannot train; not willing: its owner does not let it
        self._mesh = mesh
        self._wire = wire
        self._clock = clock
        self._members_time = members_time
        self._logbook = logbook
        self._exposure = exposure
        self._engine = engine
        self._data = data
        self._privacy = privacy
        self._fitting = fitting
        self._terms = terms
        self._is_willing = is_willing
        self._device = device
        self._journal = journal
        self._nursery: trio.Nursery | None = None
        self._heard: OrderedDict[bytes, None] = OrderedDict()
        self._answering = 0
        self._bid: Bid | None = None
        self._under_way: Round | None = None
        self._current: bytes | None = None  # the run that was joined last, while it goes on
        self._asked_s = 0.0  # when it last asked for anything
        self.book = book
        mesh.subscribe(RUNS, self._validate, self._hear)

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the rounds: they outlive the streams that ask for them."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    # --- an announcement ------------------------------------------------------------------------------------------
    def _validate(self, data: bytes, _delivered_by: PeerId) -> Verdict:
        try:
            announcement = self.open_announcement(data)
        except RemoteProtocolError:
            return Verdict.REJECT
        now_ms = self._members_time.utc_ms()
        is_fresh = (
            announcement.expires_ms is not None
            and announcement.expires_ms - announcement.time_ms <= ANNOUNCEMENT_TTL_MS_MAX
            and announcement.time_ms <= now_ms + int(limits.LIVE_WINDOW_S * 1000)
            and announcement.expires_ms > now_ms
        )
        if not is_fresh or not self._logbook.assembly.is_member(announcement.sender):
            return Verdict.IGNORE
        return Verdict.ACCEPT

    def open_announcement(self, data: bytes) -> Sealed[RunAnnouncement]:
        """Open a sealed announcement.

        Raises:
            RemoteProtocolError: it is none of this mesh.
        """
        opened = open_sealed(data, mesh=self._wire.mesh_id, kinds=frozenset({RunAnnouncement.kind}))
        return cast("Sealed[RunAnnouncement]", opened)

    async def _hear(self, data: bytes, _delivered_by: PeerId) -> None:
        announcement = self.open_announcement(data)
        if announcement.id in self._heard or self._nursery is None or self._answering >= ANSWERS_MAX:
            return
        self._heard[announcement.id] = None
        while len(self._heard) > HEARD_MAX:
            self._heard.popitem(last=False)
        self._answering += 1
        self._nursery.start_soon(self._answer, announcement)

    async def _answer(self, announcement: Sealed[RunAnnouncement]) -> None:
        announcer, run = announcement.sender, announcement.message.run
        try:
            answer = self.consider(announcement)
            if isinstance(answer.message, Decline):
                reason = answer.message.reason
                self._journal.write("run_declined", run=run, coordinator=announcer, reason=reason)
                if reason == "data" and announcer not in self._mesh.connected:
                    return  # who has nothing to offer dials nobody to say so: most members of a large mesh have not
            stream = await self._mesh.open_stream(announcer, ENLIST)
            await stream.send(answer.raw)
            await stream.end()
        except MeshError as error:
            self._journal.write("run_not_answered", run=run, coordinator=announcer, reason=str(error))
        finally:
            self._answering -= 1

    def consider(self, announcement: Sealed[RunAnnouncement]) -> Sealed[Enlistment] | Sealed[Decline]:
        """Return this device's signed answer to an announced run; an enlistment is kept until the run opens."""
        wanted = announcement.message
        sets = self._data.named(wanted.data) if self._data else []
        data_set = sets[-1] if sets else None
        noise: NoisePlan | None = None
        why_no_budget, epsilon_milli = "", -1
        if data_set is not None and self._privacy is not None:
            planned = self._privacy.plan(data_set, wanted.recipe)
            if isinstance(planned, Refused):
                why_no_budget = planned.detail
            else:
                noise = planned
                steps = wanted.recipe.steps * wanted.recipe.rounds
                epsilon_milli = self._privacy.cost_milli(data_set, noise, steps)
        terms = self._terms()
        state = self._state(announcement, data_set, why_no_budget, epsilon_milli)
        answer = enlist(announcement, terms, state)
        if isinstance(answer, Decline):
            return self._wire.seal(answer)
        assert data_set is not None, "who has no data declines"
        sealed = self._wire.seal(answer)
        until_s = self._clock.now() + wanted.window_ms / 1000 + BID_HELD_S
        self._bid = Bid(announcement, sealed, data_set, noise, until_s)
        self._journal.write(
            "enlisted", run=wanted.run, coordinator=announcement.sender, step_micro=answer.step_micro
        )
        return sealed

    def _state(
        self,
        announcement: Sealed[RunAnnouncement],
        data_set: DataSet | None,
        why_no_budget: str,
        epsilon_milli: int,
    ) -> TrainerState:
        assembly, ledger, announcer = self._logbook.assembly, self._logbook.ledger, announcement.sender
        member = assembly.member(announcer) if assembly.is_member(announcer) else None
        line_micro = member.credit_line_micro if member else 0
        device = self._device()
        trainer = self._fitting.trainer if self._fitting else None
        return TrainerState(
            announcer_owner=member.owner if member else None,
            samples=data_set.samples if data_set else None,
            why_no_budget=why_no_budget,
            epsilon_milli=epsilon_milli,
            is_base_held=Digest(announcement.message.base) in self._engine.models,
            why_not=self._why_not(),
            is_busy=self.is_busy_for(announcement.message.run),
            load_percent=device.load_percent,
            battery_percent=device.battery_percent,
            is_charging=device.is_charging,
            steps_per_ks=int(trainer.steps_per_s * 1000) if trainer else 0,
            spendable_micro=(
                # money never moves between a device and itself
                2**53 if announcer == self._logbook.me else ledger.spendable_micro(announcer, line_micro)
            ),
            unsettled_micro=self._exposure.micro(announcer),
        )

    def _why_not(self) -> str:
        """Why this device trains for nobody now."""
        if self._fitting is None:
            return "this device has no trainer"
        if not self._is_willing:
            return "its owner does not let it train"
        if not self._logbook.is_confirmed:
            return "the own log is not confirmed yet"
        return self._logbook.halted or self._fitting.trainer.why_not

    def is_busy_for(self, run: bytes) -> bool:
        """Whether this device trains, or may soon have to, for another run than this one."""
        now = self._clock.now()
        if self._bid is not None and now > self._bid.until_s:
            self._bid = None
        if self._bid is not None and self._bid.announcement.message.run != run:
            return True
        known = self.book.get(self._current) if self._current else None
        if known is None or known.run == run or known.ended:
            return self._under_way is not None and self._under_way.run != run
        return now <= self._asked_s + self._patience_s(known)

    def _patience_s(self, known: EnlistedRun) -> float:
        wanted = self.open_announcement(known.announcement).message
        return max(IDLE_S_MIN, 2 * wanted.round_ms / 1000)

    # --- the cohort -------------------------------------------------------------------------------------------------
    def bid_for(self, announcement_id: bytes) -> Bid | None:
        """Our open bid for an announcement."""
        bid = self._bid
        return bid if bid is not None and bid.announcement.id == announcement_id else None

    def why_not_join(self, bid: Bid, enlistments: Sequence[Sealed[Enlistment]]) -> str:
        """Why this device will not train in this cohort; empty: it will."""
        assembly = self._logbook.assembly
        owners = {
            each.sender: assembly.member(each.sender).owner
            for each in enlistments
            if assembly.is_member(each.sender)
        }
        return why_no_cohort(
            bid.announcement,
            enlistments,
            mine=bid.enlistment.id,
            owners=owners,
            cohort_min=self._terms().cohort_min,
        )

    async def join(
        self, bid: Bid, enlistments: Sequence[Sealed[Enlistment]], award: Sealed[Award] | None
    ) -> None:
        """Keep that this device has joined; from now on its rounds may be asked for.

        Raises:
            StoreFailed: nothing was kept.
        """
        noise = bid.noise
        known = EnlistedRun(
            run=bid.announcement.message.run,
            coordinator=bid.announcement.sender,
            announcement=bid.announcement.raw,
            enlistments=[each.raw for each in enlistments],
            award=award.raw if award else b"",
            data=bid.data.digest,
            noise=Noise(noise.noise_milli, noise.rate_ppm, noise.clip_milli) if noise else None,
            started_at=self._clock.utc_ms() / 1000,
        )
        await self.book.keep(known)
        self._bid = None
        self._current = known.run
        self._asked_s = self._clock.now()
        self._journal.write("run_joined", run=known.run, coordinator=known.buyer, cohort=len(enlistments))

    # --- a round ----------------------------------------------------------------------------------------------------
    def begin(self, run: bytes, task: Task) -> Result | FailedFrame | Round:
        """Return the result of a round, why there will be none, or the round, which is under way now."""
        known = self.book.get(run)
        if known is None or self._nursery is None:
            return _refused("no such run was joined here")
        wanted = self.open_announcement(known.announcement).message
        newest = known.newest
        if newest is not None and task.round <= newest.round:
            if (newest.round, newest.state) != (task.round, task.state):
                return _refused(
                    f"round {newest.round} was trained before, from another state or later than this"
                )
            return newest
        if known.ended:
            return _refused(f"the run has ended: {known.ended}")
        if task.round > wanted.recipe.rounds:
            return _refused(f"round {task.round} of {wanted.recipe.rounds}")
        if self._under_way is not None:
            same = (self._under_way.run, self._under_way.task.round, self._under_way.task.state)
            if same != (run, task.round, task.state):
                return FailedFrame(reason="busy", detail="another round is under way here")
            return self._under_way
        if refusal := self._why_no_round(known):
            return _refused(refusal)
        assert self._fitting is not None, "who has no trainer joins nothing"
        self._current, self._asked_s = run, self._clock.now()
        self._under_way = Round(run, task, wanted.recipe.steps)
        self._nursery.start_soon(self._train, self._fitting, known, wanted, self._under_way)
        return self._under_way

    def _why_no_round(self, known: EnlistedRun) -> str:
        device, terms = self._device(), self._terms()
        if why_not := self._why_not():
            return why_not
        if 0 <= device.battery_percent < terms.battery_percent_min and not device.is_charging:
            return f"battery at {device.battery_percent} %, at least {terms.battery_percent_min} % wanted"
        owed = self._exposure.micro(known.buyer)
        if owed > terms.exposure_micro_max:
            return f"{owed} not countersigned, at most {terms.exposure_micro_max} allowed"
        if self._current not in (None, known.run) and self.is_busy_for(known.run):
            return "this device trains for another run"
        return ""

    async def _train(
        self, fitting: Fitting, known: EnlistedRun, wanted: RunAnnouncement, under_way: Round
    ) -> None:
        cohort = [
            opened.sender
            for raw in known.enlistments
            if (opened := open_sealed(raw, mesh=self._wire.mesh_id)).sender != self._logbook.me
        ]
        try:
            await fitting.fit(known, wanted, cohort, under_way)
        finally:
            self._under_way = None
            self._asked_s = self._clock.now()
        asked_s = self._asked_s
        await trio.sleep(self._patience_s(known))
        if self._under_way is None and self._asked_s == asked_s:
            await fitting.trainer.rest()

    async def end(self, run: bytes, reason: str) -> None:
        """A run is over for this device: its coordinator says so, or its credit has run out."""
        known = self.book.get(run)
        if known is None or known.ended:
            return
        known.ended = reason
        if self._under_way is not None and self._under_way.run == run:
            self._under_way.scope.cancel()
        if self._current == run:
            self._current = None
        try:
            await self.book.keep(known)
        except AgoraError as error:
            self._journal.write("run_end_not_kept", run=run, reason=str(error))
        self._journal.write("run_left", run=run, reason=reason)
        if self._fitting is not None and self._under_way is None:
            await self._fitting.trainer.rest()


def _refused(detail: str) -> FailedFrame:
    return FailedFrame(reason="refused", detail=detail[: limits.DETAIL_CHARS_MAX])
