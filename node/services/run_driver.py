"""One training run, driven: what the machine of `federation/training_run.py` says is done here, and what comes of it is told.

    Open ─▶ awards on disk ─▶ each member verifies and accepts          Ask ─▶ each member: task ─▶ update ─▶ gate ─▶ pay
    Aggregate ─▶ strategy ─▶ new state: blob, checkpoint ─▶ Aggregated  Finish ─▶ export ─▶ exam ─▶ manifest

The checkpoint is on disk before the next round is asked for: a coordinator that is killed asks for the round that was under
way once more, and who has trained it sends the same bytes.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar, cast

import trio

from federation.run_events import (
    Abort,
    Action,
    Aggregate,
    Aggregated,
    Ask,
    Cancel,
    Dismiss,
    Finish,
    Incoming,
    Joined,
    Lost,
    NotAggregated,
    Open,
    Refuse,
    Unsold,
    Update,
)
from federation.training_run import TrainingRun
from marketplace.batch import draft_award
from node.adapter_maker import Compute
from node.blobs import Blobs
from node.clock import Clock
from node.journal import Journal
from node.logbook import Logbook
from node.named_blobs import NamedBlobs
from node.run_outlook import outlook
from node.runs import Bought, RoundView, RunBook, RunFile, Seat
from node.services.cohort_link import CohortLink, Traffic, Wanted
from node.services.run_patch import Proposal, RunPatch, domain_views
from protocol.envelope import Sealed, open_sealed
from protocol.errors import AgoraError
from protocol.identity import PeerId
from protocol.messages import (
    NO_HASH,
    Award,
    Contribution,
    Enlistment,
    RoundTask,
    RoundUpdate,
    RunAnnouncement,
)
from runtime.engine import Digest
from runtime.examiner import DomainResult

if TYPE_CHECKING:  # it brings numpy and Flower, which come with the first run
    from node.run_numbers import Made, RunNumbers

T = TypeVar("T")

NEWS_WAITING_MAX = 1_024  # of members and of ourselves; a full one slows its senders down


@dataclass(frozen=True)
class RunTools:
    """What every run of this device is driven with.

    Attributes:
        link: from a member's seat, once it has one, to the line to it.
        unpaid: the rounds of a run that no countersignature has gone out for yet.
    """

    mesh_id: bytes
    clock: Clock
    logbook: Logbook
    blobs: Blobs
    named: NamedBlobs
    compute: Compute
    book: RunBook
    patch: RunPatch
    link: Callable[[Sealed[RunAnnouncement], Sealed[Enlistment], Sealed[Award] | None], CohortLink]
    unpaid: Callable[[bytes], list[Bought]]
    journal: Journal


@dataclass
class _Member:
    """One of the cohort, as it is spoken with."""

    enlistment: Sealed[Enlistment]
    link: CohortLink
    traffic: Traffic = field(default_factory=Traffic)
    scope: trio.CancelScope | None = None  # of the round it is at work on
    is_paid: bool = False  # its update has come: what is left of the round is paying for it
    epsilon_milli: int = -1
    rounds: int = 0  # that its updates were counted in


class RunDriver:
    """Drives one run to its end.

    Attributes:
        put: blobs that it has put, or was begun from, and not dropped yet; those that it needs are among them.
    """

    def __init__(
        self,
        tools: RunTools,
        file: RunFile,
        announcement: Sealed[RunAnnouncement],
        machine: TrainingRun,
        numbers: "RunNumbers",
        actions: Sequence[Action] = (),
    ) -> None:
        self.file = file
        self.machine = machine
        self.announcement = announcement
        self.round_under_way = 0
        self.put: set[bytes] = set()
        self._tools = tools
        self._numbers = numbers
        self._computing = trio.Lock()  # the numbers are one state: one thread at a time
        self._first = list(actions)
        self._announced = announcement.message
        self._members: dict[PeerId, _Member] = {}
        self._send, self._inbox = trio.open_memory_channel[tuple[PeerId, Incoming]](NEWS_WAITING_MAX)
        self._steps: dict[tuple[PeerId, int], int] = {}  # trained, by member and round
        self._faults: dict[PeerId, str] = {}  # why a member gave nothing in this round
        self._round_began_s = 0.0
        self._exam = trio.Event()  # set: none is under way
        self._exam.set()
        self._before: tuple[DomainResult, ...] = ()
        self._after: tuple[DomainResult, ...] = ()
        self._payload = b""

    @property
    def run_id(self) -> bytes:
        """Which run."""
        return self._announced.run

    @property
    def progress(self) -> dict[str, float]:
        """How far each member that is at work has got, from 0 to 1."""
        steps = max(1, self._announced.recipe.steps)
        return {
            peer: min(1.0, member.traffic.step / steps)
            for peer, member in self._members.items()
            if member.scope is not None
        }

    def tell(self, sender: PeerId, news: Incoming) -> bool:
        """Let the machine know; False: too much waits already, or the run has ended."""
        try:
            self._send.send_nowait((sender, news))
        except (trio.WouldBlock, trio.BrokenResourceError):
            return False
        return True

    async def _report(self, sender: PeerId, news: Incoming) -> None:
        """Let the machine know from within; an update that comes when the run is over is paid, and is no news any more."""
        with suppress(trio.BrokenResourceError):
            await self._send.send((sender, news))

    async def drive(self) -> None:
        """Drive the run until it is over; what is kept of it says how it ended."""
        async with trio.open_nursery() as self._rounds, self._inbox:
            async with trio.open_nursery() as self._nursery:
                await self._sit_down()
                await self._steer()
                self._nursery.cancel_scope.cancel()
            for member in self._members.values():
                if member.scope is not None and not member.is_paid:
                    member.scope.cancel()
        # only now, when every update that came is paid
        async with trio.open_nursery() as nursery:
            for member in self._members.values():
                nursery.start_soon(member.link.end)

    async def _steer(self) -> None:
        actions, clock = self._first, self._tools.clock
        while True:
            for action in actions:
                await self._perform(action)
            if self.machine.is_over:
                return
            deadline = self.machine.deadline
            wait_s = float("inf") if deadline is None else max(0.0, deadline - clock.now())
            with trio.move_on_after(wait_s) as waiting:
                sender, news = await self._inbox.receive()
                actions = self.machine.handle_message(sender, news, clock.now())
            if waiting.cancelled_caught:
                actions = self.machine.handle_timeout(clock.now())

    async def _perform(self, action: Action) -> None:
        match action:
            case Open(cohort):
                await self._open(cohort)
            case Ask(number, members, left_s):
                await self._ask(number, members, left_s)
            case Aggregate():
                self._nursery.start_soon(self._aggregate, action)
            case Refuse(peer, number, reason):
                self._refuse(peer, number, reason)
            case Dismiss(peer, reason):
                await self._dismiss(peer, reason)
            case Unsold(reason, declines):
                self.file.declines = [
                    {"peer_id": each.peer, "reason": each.reason, "detail": each.detail} for each in declines
                ]
                await self._end("unsold", reason)
            case Finish():
                await self._finish()
            case Abort(reason):
                await self._end("cancelled" if self.file.state == "cancelled" else "aborted", reason)

    async def _compute(self, work: Callable[[], T]) -> T:
        async with self._computing:
            return await self._tools.compute(work)

    # --- the cohort -------------------------------------------------------------------------------------------------
    async def _sit_down(self) -> None:
        """After a restart: the members have their seats already."""
        for peer, seat in self.file.seats.items():
            if seat.out:
                continue
            enlistment = cast("Sealed[Enlistment]", open_sealed(seat.enlistment, mesh=self._mesh_id))
            award = cast("Sealed[Award]", open_sealed(seat.award, mesh=self._mesh_id)) if seat.award else None
            self._seat(PeerId(peer), enlistment, award)
        for view in self._tools.book.rounds(self.run_id):
            for peer in view.members:
                if (member := self._members.get(PeerId(peer))) is not None:
                    member.rounds += 1
                    member.epsilon_milli = view.epsilon_milli.get(peer, member.epsilon_milli)
        if self.file.next and not self.machine.is_over:
            try:
                await self._take_up()
            except AgoraError as error:
                self._first = self._give_up(f"its checkpoint cannot be gone on from: {error}")

    async def _take_up(self) -> None:
        """Go on from the checkpoint.

        Raises:
            AgoraError: it is not here any more, was damaged, or is no state.
        """
        payload = await self._tools.blobs.read(Digest(self.file.payload))
        state = await self._tools.blobs.read(Digest(self.file.next))
        await self._compute(lambda: self._numbers.go_on(state))
        self._payload = payload

    def _give_up(self, reason: str) -> list[Action]:
        """Nobody outside is at fault: the run ends as if its owner had ended it, and the daemon goes on."""
        coordinator = self.announcement.sender
        return self.machine.handle_message(coordinator, Cancel(reason), self._tools.clock.now())

    @property
    def _mesh_id(self) -> bytes:
        return self._tools.mesh_id

    def _seat(self, peer: PeerId, enlistment: Sealed[Enlistment], award: Sealed[Award] | None) -> _Member:
        link = self._tools.link(self.announcement, enlistment, award)
        self._members[peer] = _Member(enlistment, link)
        self._numbers.samples_max[peer] = enlistment.message.samples
        return self._members[peer]

    async def _open(self, cohort: tuple[Sealed[Enlistment], ...]) -> None:
        """Write everybody's award, keep who sits where, and only then tell anybody."""
        self.file.declines = [
            {"peer_id": each.peer, "reason": each.reason, "detail": each.detail}
            for each in self.machine.declines
        ]
        unpaid: list[tuple[PeerId, str]] = []
        for enlistment in cohort:
            peer = enlistment.sender
            try:
                award = None if peer == self._tools.logbook.me else await self._award(enlistment)
            except AgoraError as error:
                unpaid.append((peer, str(error)))
                continue
            self._seat(peer, enlistment, award)
            self.file.seats[peer] = Seat(enlistment=enlistment.raw, award=award.raw if award else b"")
        bids = [each.message for each in cohort]
        self.file.outlook = await self._tools.compute(
            lambda: outlook(
                self._announced.recipe, [(bid.samples, max(0, bid.epsilon_milli)) for bid in bids]
            )
        )
        await self._tools.book.keep_soon(self.file)
        self._tools.journal.write("run_opened", run=self.run_id, cohort=len(self._members))
        for peer, reason in unpaid:
            self.tell(peer, Lost(f"credit: {reason}"))
        for peer, member in self._members.items():
            self._nursery.start_soon(self._open_member, peer, member, cohort)

    async def _award(self, enlistment: Sealed[Enlistment]) -> Sealed[Award]:
        """Write a member's award.

        Raises:
            AgoraError: the credit is not there, or nothing can be written now.
        """
        logbook = self._tools.logbook
        terms = draft_award(self.announcement, enlistment, index=0, prev=NO_HASH)
        line_micro = logbook.assembly.member(logbook.me).credit_line_micro
        holding = b"awarding" + terms.job_id  # two awards at once must not spend the same credit
        refused = logbook.ledger.hold(holding, logbook.me, terms.hold_micro, credit_line_micro=line_micro)
        if refused is not None:
            raise NotAffordable(refused.detail)
        try:
            return await logbook.write(
                Award,
                lambda index, prev: draft_award(self.announcement, enlistment, index=index, prev=prev),
            )
        finally:
            logbook.ledger.void(holding)  # once it is written, the award itself holds

    async def _open_member(
        self, peer: PeerId, member: _Member, cohort: tuple[Sealed[Enlistment], ...]
    ) -> None:
        try:
            await member.link.open(cohort)
        except AgoraError as error:
            await self._send.send((peer, Lost(str(error))))
        else:
            await self._send.send((peer, Joined()))

    async def _dismiss(self, peer: PeerId, reason: str) -> None:
        member = self._members.pop(peer, None)
        if (seat := self.file.seats.get(peer)) is not None:
            self.file.seats[peer] = Seat(enlistment=seat.enlistment, award=seat.award, out=reason)
            await self._tools.book.keep_soon(self.file)
        self._tools.journal.write("member_dismissed", run=self.run_id, member=peer, reason=reason)
        if member is not None:
            if member.scope is not None:
                member.scope.cancel()
            self._nursery.start_soon(member.link.end)

    # --- a round ----------------------------------------------------------------------------------------------------
    async def _ask(self, number: int, peers: tuple[PeerId, ...], left_s: float) -> None:
        if not self.file.next:
            try:
                await self._begin()
            except AgoraError as error:
                for action in self._give_up(f"it could not begin: {error}"):
                    await self._perform(action)
                return
        if number != self.round_under_way:
            self.round_under_way = number
            self._round_began_s = self._tools.clock.now()
            self._faults.clear()
            await self._compute(lambda: self._numbers.open_round(number))
            if self.file.state == "enlisting":
                self.file.state = "running"
            await self._tools.book.keep_soon(self.file)
            self._tools.journal.write("round_begun", run=self.run_id, round=number)
        wanted = Wanted(
            round=number,
            since=self.file.since or NO_HASH,
            state=self.file.next,
            payload=self._payload,
            left_s=left_s,
            update_bytes_max=self._numbers.change_bytes_max,
        )
        for peer in peers:
            if (member := self._members.get(peer)) is not None:
                self._rounds.start_soon(self._ask_member, peer, member, wanted)

    async def _begin(self) -> None:
        """The first state: the seed's, or the checkpoint's that this run goes on from.

        Raises:
            AgoraError: there is no such checkpoint here, or this one cannot be kept.
        """
        start, file = self._announced.start, self.file
        start_bytes = None if start == NO_HASH else await self._tools.blobs.read(Digest(start))
        began = await self._compute(lambda: self._numbers.begin(start_bytes))
        state, payload = await self._put(began)
        file.since, file.next, file.payload = start, state, payload
        try:
            await self._tools.book.keep(file)
        except AgoraError:
            file.next = file.payload = b""  # it has none
            raise
        self._payload = began.payload
        self._nursery.start_soon(self._examine_before)

    async def _put(self, made: "Made") -> tuple[Digest, Digest]:
        """Keep a state and the change that leads to it.

        Raises:
            AgoraError: the disk is full.
        """
        digests = []
        for data in (made.state, made.payload):
            digests.append(await self._tools.blobs.put(data))
            self.put.add(digests[-1])
        state, payload = digests
        return state, payload

    async def _ask_member(self, peer: PeerId, member: _Member, wanted: Wanted) -> None:
        async def take(task: Sealed[RoundTask], update: Sealed[RoundUpdate], payload: bytes) -> str:
            fault = await self._compute(lambda: self._numbers.judge(peer, task, update, payload))
            if not fault:
                self._steps[peer, wanted.round] = update.message.steps
                member.is_paid = True
                member.epsilon_milli = update.message.epsilon_milli
            await self._report(peer, Update(update, fault))
            return fault

        member.traffic.step, member.is_paid = 0, False
        with trio.CancelScope() as member.scope:
            try:
                await member.link.ask(wanted, member.traffic, take)
            except AgoraError as error:
                self._faults[peer] = str(error)
                await self._report(peer, Lost(str(error), wanted.round))
        member.scope = None

    def _refuse(self, peer: PeerId, number: int, reason: str) -> None:
        if not self.machine.counts(peer, number):  # or it was a second one: the first still counts
            self._numbers.drop(peer, number)
        self._faults[peer] = reason
        self._tools.journal.write("update_refused", run=self.run_id, round=number, member=peer, reason=reason)

    async def _aggregate(self, action: Aggregate) -> None:
        number = action.round
        try:
            made = await self._compute(lambda: self._numbers.aggregate(number, action.fresh, action.stale))
            state, payload = await self._put(made)
            view = self._round_view(action)
            await self._check_point(made, state, payload, view)
        except (AgoraError, ValueError) as error:
            await self._report(self.announcement.sender, NotAggregated(number, str(error)))
            return
        self._payload = made.payload
        await self._tools.named.drop(self.put)
        self.put = {self.file.since, self.file.next, self.file.payload}
        self._steps = {key: steps for key, steps in self._steps.items() if key[1] >= number}
        for peer in (*action.fresh, *action.stale):
            if (member := self._members.get(peer)) is not None:
                member.rounds += 1
        self._tools.journal.write(
            "round_ended",
            run=self.run_id,
            round=number,
            members=len(view.members),
            dropped=len(view.dropped),
            seconds=round(view.seconds, 3),
            bytes=view.bytes_down + view.bytes_up,
        )
        await self._exam.wait()  # one at a time, while the next round is trained
        self._exam = trio.Event()
        self._nursery.start_soon(self._examine_after, made.state, view)
        await self._send.send((self.announcement.sender, Aggregated(number)))

    async def _check_point(self, made: "Made", state: Digest, payload: Digest, view: RoundView) -> None:
        """Have on disk what the next round is trained from; what cannot be kept has not been.

        Raises:
            AgoraError: the disk is full.
        """
        file = self.file
        self.put |= {file.since, file.payload}
        after: dict[str, object] = {
            "unpaid": self._tools.unpaid(self.run_id),
            "strategy": made.strategy,
            "is_protected": made.is_protected,
            "since": file.next,
            "next": state,
            "payload": payload,
            "done": view.round,
        }
        before = {name: getattr(file, name) for name in after}
        _set(file, after)
        try:
            await self._tools.book.keep(file, view)
        except AgoraError:
            _set(file, before)
            raise

    def _round_view(self, action: Aggregate) -> RoundView:
        members = [*action.fresh, *action.stale]
        epsilon = {peer: member.epsilon_milli for peer, member in self._members.items() if peer in members}
        traffic = [member.traffic for member in self._members.values()]
        view = RoundView(
            round=action.round,
            members=list(members),
            dropped=[
                {"peer_id": peer, "reason": self._faults.get(peer, "no answer in time")}
                for peer in action.missing
            ],
            late=list(action.stale),
            seconds=self._tools.clock.now() - self._round_began_s,
            bytes_down=sum(each.bytes_down for each in traffic),
            bytes_up=sum(each.bytes_up for each in traffic),
            steps=sum(self._steps.get((peer, action.round - (peer in action.stale)), 0) for peer in members),
            epsilon_milli={str(peer): spent for peer, spent in epsilon.items()},
            epsilon_milli_max=max(epsilon.values(), default=-1),
            domains=[],
        )
        for each in traffic:
            each.bytes_down = each.bytes_up = 0
        return view

    # --- what it is worth -------------------------------------------------------------------------------------------
    async def _examine_before(self) -> None:
        try:
            self._before = await self._tools.patch.before(self._announced)
        except AgoraError as error:
            self._tools.journal.write("exam_not_held", run=self.run_id, reason=str(error))
        self.file.before = domain_views(self._before)
        await self._tools.book.keep_soon(self.file)

    async def _examine_after(self, state: bytes, view: RoundView) -> None:
        is_last = view.round == self._announced.recipe.rounds
        try:
            adapter = await self._tools.patch.export(state, self._announced)
            results = await self._tools.patch.after(self._announced, adapter, is_glance=not is_last)
        except AgoraError as error:
            self._tools.journal.write("exam_not_held", run=self.run_id, round=view.round, reason=str(error))
        else:
            if is_last:
                self._after = results
            view.domains.extend(domain_views(results))
            await self._tools.book.keep_soon(self.file, view)
        finally:
            self._exam.set()

    # --- the end ----------------------------------------------------------------------------------------------------
    async def _finish(self) -> None:
        """Propose what came of it."""
        await self._exam.wait()
        try:
            state = await self._tools.blobs.read(Digest(self.file.next))
            adapter = await self._tools.patch.export(state, self._announced)
            if not self._before:  # of a run that a restart has brought to its last round
                self._before = await self._tools.patch.before(self._announced)
            if not self._after:
                self._after = await self._tools.patch.after(self._announced, adapter)
            manifest = await self._tools.patch.propose(
                self._announced,
                Proposal(adapter, self.file.done, self._contributions(), self._before, self._after),
            )
        except AgoraError as error:
            await self._end("aborted", f"its adapter could not be proposed: {error}")
            return
        self.file.adapter, self.file.manifest = manifest.message.adapter, manifest.id
        self.file.before = domain_views(self._before)
        await self._end("finished", "")

    def _contributions(self) -> tuple[Contribution, ...]:
        return tuple(
            Contribution(
                peer=peer,
                samples=member.enlistment.message.samples,
                rounds=member.rounds,
                epsilon_milli=member.epsilon_milli,
            )
            for peer, member in self._members.items()
            if member.rounds
        )

    async def _end(self, state: str, reason: str) -> None:
        file = self.file
        file.state, file.reason = state, reason  # type: ignore[assignment]  # one of its words
        file.finished_at = self._tools.clock.utc_ms() / 1000
        await self._tools.book.keep_soon(file)
        event = "run_finished" if state == "finished" else "run_aborted"
        self._tools.journal.write(event, run=self.run_id, reason=reason)


def _set(file: RunFile, fields: dict[str, object]) -> None:
    for name, value in fields.items():
        setattr(file, name, value)


class NotAffordable(AgoraError):
    """This device's account does not hold what a member's award would."""
