"""The training half of a node: what takes this device's data to runs and what coordinates its own, put together."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from marketplace.batch import TrainerTerms
from marketplace.exposure import Exposure
from node.adapter_maker import AdapterMaker
from node.clock import MembersTime
from node.config import Config
from node.enlisted import EnlistedBook
from node.errors import StartError
from node.logbook import Logbook
from node.named_blobs import NamedBlobs
from node.privacy_book import PrivacyBook
from node.runs import Bought, RunBook, RunView, find
from node.services.blob_exchange import BlobExchange
from node.services.cohort_link import CohortLink, LocalLink, StreamLink
from node.services.coordinator import Coordinator, TrainOptions
from node.services.fitting import Fitting
from node.services.participant import Participant
from node.services.round_stream import RoundStream
from node.services.run_driver import RunTools
from node.services.run_patch import RunPatch
from node.services.settlement import Settlement
from node.services.sync import Sync
from node.store import Record
from node.wire import Wire
from protocol.envelope import Sealed
from protocol.errors import AgoraError
from protocol.identity import PeerId
from protocol.messages import Award, Enlistment, Recipe, RunAnnouncement
from runtime.engine import Digest

if TYPE_CHECKING:  # trio-typing's stubs, which libp2p brings, hide trio's own types
    from trio_typing import TaskStatus

    from node.node import Ports


class Training:
    """Runs of others that this device takes part in, and its own."""

    def __init__(
        self,
        ports: "Ports",
        config: Config,
        records: Sequence[Record],
        *,
        wire: Wire,
        members_time: MembersTime,
        logbook: Logbook,
        sync: Sync,
        settlement: Settlement,
        exposure: Exposure,
        exchange: BlobExchange,
        privacy: PrivacyBook | None,
    ) -> None:
        self._ports = ports
        self._privacy = privacy
        self._logbook = logbook
        self._config = config
        self._wire = wire
        self._settlement = settlement
        enlisted = EnlistedBook(ports.store)
        enlisted.load(records)
        book = RunBook(ports.store)
        book.load(records)
        named = NamedBlobs(ports.blobs, book, enlisted, lambda: logbook.assembly, members_time.utc_ms)
        fitting = None
        if ports.trainer is not None and ports.data is not None and privacy is not None:
            fitting = Fitting(
                trainer=ports.trainer,
                data=ports.data,
                privacy=privacy,
                blobs=ports.blobs,
                named=named,
                exchange=exchange,
                book=enlisted,
                journal=ports.journal,
            )
        self.participant = Participant(
            mesh=ports.mesh,
            wire=wire,
            clock=ports.clock,
            members_time=members_time,
            logbook=logbook,
            exposure=exposure,
            engine=ports.engine,
            data=ports.data,
            privacy=privacy,
            fitting=fitting,
            book=enlisted,
            terms=self._terms,
            is_willing=config.train,
            device=ports.device,
            journal=ports.journal,
        )
        self._rounds = RoundStream(
            mesh=ports.mesh,
            wire=wire,
            logbook=logbook,
            settlement=settlement,
            participant=self.participant,
            journal=ports.journal,
        )
        patch = RunPatch(
            logbook=logbook,
            sync=sync,
            clock=ports.clock,
            members_time=members_time,
            blobs=ports.blobs,
            named=named,
            exchange=exchange,
            adapters=ports.adapters or NoAdapters(),
            examiner=ports.examiner,
            compute=ports.compute,
            journal=ports.journal,
        )
        self.coordinator = Coordinator(
            tools=RunTools(
                mesh_id=wire.mesh_id,
                clock=ports.clock,
                logbook=logbook,
                blobs=ports.blobs,
                named=named,
                compute=ports.compute,
                book=book,
                patch=patch,
                link=self._link,
                unpaid=self._unpaid,
                journal=ports.journal,
            ),
            mesh=ports.mesh,
            wire=wire,
            settlement=settlement,
            participant=self.participant,
            enlisted=enlisted,
            adapters=ports.adapters,
            own_bids=self._own_bids,
            owner_of=self._owner_of,
            step_micro_max=config.pay_step_micro_max,
            rng=ports.rng,
        )

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Run both sides."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.participant.run)
            await nursery.start(self.coordinator.run)
            task_status.started()

    async def train(self, options: TrainOptions) -> RunView:
        """Announce a run; see `Coordinator.announce`."""
        run = await self.coordinator.announce(options)
        return self.view(run.hex())

    def views(self) -> list[RunView]:
        """Every run that this device knows, the newest first."""
        return self.coordinator.views.all()

    def view(self, prefix: str) -> RunView:
        """The run of an id, or of a prefix that only one has.

        Raises:
            StartError: there is none, or there are several.
        """
        found = find(self.views(), prefix)
        if found is None:
            raise StartError(f"no run {prefix[:32]!r}, or several; 'agora runs' lists them")
        return found

    def _terms(self) -> TrainerTerms:
        config = self._config
        return TrainerTerms(
            owner=self._owner_of(self._logbook.me) or config.owner,
            step_micro=config.price_step_micro,
            owner_percent=config.owner_percent,
            battery_percent_min=config.battery_percent_min,
            exposure_micro_max=config.exposure_peer_micro,
            cohort_min=config.cohort_min,
        )

    def _own_bids(self, name: str) -> list[tuple[int, int]]:
        """Of each data set of a name here, the oldest first: its records, and the epsilon that one run may spend on it."""
        if self._ports.data is None or self._privacy is None:
            return []
        return [(each.samples, self._privacy.share_milli(each)) for each in self._ports.data.named(name)]

    def _owner_of(self, peer_id: PeerId) -> str:
        assembly = self._logbook.assembly
        return assembly.member(peer_id).owner if assembly.is_member(peer_id) else ""

    def _unpaid(self, run: bytes) -> list[Bought]:
        ledger, me = self._logbook.ledger, self._logbook.me
        return [
            Bought(
                peer=work.award.message.seller,
                round=work.round,
                state=work.state,
                payload=work.payload,
                steps=work.steps,
            )
            for work in self._settlement.rounds.values()
            if work.run == run and ledger.payment(me, work.job_id, work.attempt) is None
        ]

    def _link(
        self,
        announcement: Sealed[RunAnnouncement],
        enlistment: Sealed[Enlistment],
        award: Sealed[Award] | None,
    ) -> CohortLink:
        if award is None:
            return LocalLink(announcement, wire=self._wire, participant=self.participant)
        return StreamLink(
            enlistment.sender,
            announcement,
            enlistment,
            award,
            mesh=self._ports.mesh,
            wire=self._wire,
            clock=self._ports.clock,
            settlement=self._settlement,
        )


class NoAdapters(AdapterMaker):
    """Of a device that coordinates no runs."""

    def shapes(self, base: Digest, recipe: Recipe) -> dict[str, tuple[int, int]]:
        """Refuse."""
        raise AgoraError(
            f"this device makes no adapters, not for {base.hex()[:8]} of rank {recipe.shape.rank}"
        )

    def export(self, state: bytes, recipe: Recipe, base: Digest) -> bytes:
        """Refuse."""
        raise AgoraError(
            f"this device makes no adapters, not of {len(state)} bytes for {base.hex()[:8]} {recipe}"
        )
