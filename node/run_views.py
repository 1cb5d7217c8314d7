"""How the runs of a device are shown: its own out of what is kept of them, those of others as far as a member knows."""

from collections.abc import Callable, Mapping
from typing import Protocol, cast

import msgspec

from federation.training_run import TrainingRun
from marketplace.batch import ATTEMPT, NO_RUN, round_job_id
from node.enlisted import EnlistedBook
from node.logbook import Logbook
from node.runs import MemberView, RunBook, RunFile, RunView, Seat
from protocol.envelope import Sealed, open_sealed
from protocol.identity import PeerId
from protocol.messages import Enlistment, RunAnnouncement


class Live(Protocol):
    """A run under way; `services/run_driver.py` drives it."""

    machine: TrainingRun

    @property
    def progress(self) -> Mapping[str, float]:
        """How far each member that is at work has got, from 0 to 1."""


class RunViews:
    """The listings."""

    def __init__(
        self,
        book: RunBook,
        enlisted: EnlistedBook,
        logbook: Logbook,
        mesh_id: bytes,
        owner_of: Callable[[PeerId], str],
        live: Callable[[bytes], Live | None],
    ) -> None:
        self._book = book
        self._enlisted = enlisted
        self._logbook = logbook
        self._mesh_id = mesh_id
        self._owner_of = owner_of
        self._live = live

    def all(self) -> list[RunView]:
        """Every run that this device coordinates or takes part in, the newest first."""
        views = [self.coordinated(file) for file in self._book.files()]
        ours = {view.run_id for view in views}
        views += [self._joined(known.run) for known in self._enlisted.runs() if known.run.hex() not in ours]
        return sorted(views, key=lambda view: -view.started_at)

    def coordinated(self, file: RunFile) -> RunView:
        """A run that this device coordinates."""
        announced = self._announced(file.announcement)
        driver = self._live(file.run)
        declines = file.declines
        if driver is not None and file.state == "enlisting":
            declines = [
                {"peer_id": each.peer, "reason": each.reason, "detail": each.detail}
                for each in driver.machine.declines
            ]
        cohort = [self._member(file, PeerId(peer), seat) for peer, seat in file.seats.items()]
        base = self._view(announced, role="coordinator", coordinator=self._logbook.me)
        return msgspec.structs.replace(
            base,
            state=file.state,
            reason=file.reason,
            outlook=file.outlook,
            strategy=file.strategy or announced.recipe.strategy,
            is_protected=file.is_protected,
            round=file.done,
            cohort=cohort,
            declines=declines,
            history=self._book.rounds(file.run),
            before=file.before,
            checkpoint=file.next.hex(),
            adapter=file.adapter.hex(),
            manifest=file.manifest.hex(),
            price_micro=sum(member.paid_micro for member in cohort),
            progress=dict(driver.progress) if driver else {},
            started_at=file.started_at,
            finished_at=file.finished_at,
        )

    def _joined(self, run: bytes) -> RunView:
        known = self._enlisted.get(run)
        assert known is not None, "only runs that were joined are asked for"
        announced = self._announced(known.announcement)
        newest = known.newest
        base = self._view(announced, role="member", coordinator=known.buyer)
        opened = [
            cast("Sealed[Enlistment]", open_sealed(raw, mesh=self._mesh_id)) for raw in known.enlistments
        ]
        return msgspec.structs.replace(
            base,
            state="finished" if known.ended else "running",
            reason=known.ended,
            round=newest.round if newest else 0,
            cohort=[self._member_view(each) for each in opened],
            checkpoint=newest.state.hex() if newest else "",
            started_at=known.started_at,
        )

    def _view(self, announced: RunAnnouncement, *, role: str, coordinator: PeerId) -> RunView:
        return RunView(
            run_id=announced.run.hex(),
            role=role,  # type: ignore[arg-type]  # one of its words
            coordinator=coordinator,
            state="enlisting",
            reason="",
            data=announced.data,
            line=announced.line,
            base=announced.base.hex(),
            outlook="",
            strategy=announced.recipe.strategy,
            is_protected=False,
            rounds=announced.recipe.rounds,
            round=0,
            steps=announced.recipe.steps,
            cohort=[],
            declines=[],
            history=[],
            before=[],
            parent="" if announced.parent == NO_RUN else announced.parent.hex(),
            checkpoint="",
            adapter="",
            manifest="",
            price_micro=0,
            progress={},
            started_at=0.0,
            finished_at=None,
        )

    def _member(self, file: RunFile, peer: PeerId, seat: Seat) -> MemberView:
        enlistment = cast("Sealed[Enlistment]", open_sealed(seat.enlistment, mesh=self._mesh_id))
        ledger, me = self._logbook.ledger, self._logbook.me
        paid = [
            ledger.payment(me, round_job_id(file.run, peer, number), ATTEMPT)
            for number in range(1, file.done + 2)
        ]
        paid_micro = sum(payment.amount_micro for payment in paid if payment is not None)
        view = self._member_view(enlistment)
        return msgspec.structs.replace(view, is_local=not seat.award, out=seat.out, paid_micro=paid_micro)

    def _member_view(self, enlistment: Sealed[Enlistment]) -> MemberView:
        bid = enlistment.message
        return MemberView(
            peer_id=enlistment.sender,
            owner=self._owner_of(enlistment.sender),
            samples=bid.samples,
            step_micro=bid.step_micro,
            steps_per_s=bid.steps_per_ks / 1000,
            epsilon_milli=bid.epsilon_milli,
            is_local=enlistment.sender == self._logbook.me,
        )

    def _announced(self, raw: bytes) -> RunAnnouncement:
        return cast("Sealed[RunAnnouncement]", open_sealed(raw, mesh=self._mesh_id)).message
