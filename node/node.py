"""A node: the services of one device, composed over four ports (mesh, store, engine, clock), and what its users do.

Read it like a table of contents. The daemon (`node/daemon.py`) hands in the real backends; the simulator hands in its
own and runs this same node.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, cast

import trio

from marketplace.assembly.assembly import Assembly, open_entry
from marketplace.bidding import SellerTerms
from marketplace.budget import Budget
from marketplace.exposure import Exposure
from marketplace.ledger import Ledger
from marketplace.pricing import Prices
from marketplace.reputation import Reputation
from marketplace.verification import Tolerance, default_tolerance
from node.adapter_maker import AdapterMaker, Compute, at_once
from node.blobs import Blobs, NoBlobs
from node.charter_recovery import CharterRecovery
from node.charters import CharterChange, Charters
from node.chat import ChatEvent, ChatRequest
from node.clock import Clock, MembersTime
from node.config import Config
from node.data_sets import DataSets
from node.directory import Directory
from node.errors import StartError
from node.human_word import HumanWords, WordKind
from node.jobs import JobBook, attempt_view
from node.journal import Journal
from node.logbook import ENTRY, MESH, Logbook
from node.membership import Membership
from node.models import ModelNames
from node.overview import Overview
from node.own_data import OwnData
from node.own_lines import OwnLines
from node.own_models import Library, OwnModels
from node.patches import Patches
from node.privacy_book import PrivacyBook
from node.runs import RunView
from node.services.advertiser import Advertiser
from node.services.blob_exchange import BlobExchange
from node.services.buyer import Buyer
from node.services.coordinator import TrainOptions
from node.services.meeting import Meeting
from node.services.offer import OwnOffer
from node.services.purchasing import Purchasing
from node.services.registrar import Registrar
from node.services.second_opinion import SecondOpinion
from node.services.seller import Seller
from node.services.settlement import Settlement
from node.services.steward import Steward
from node.services.sync import Sync
from node.services.verifier import Verifier
from node.store import Record, Store
from node.training import Training
from node.views import (
    AttemptView,
    DataView,
    JobView,
    LedgerView,
    ModelView,
    PatchView,
    PeerView,
    ProposalView,
    StatusView,
)
from node.wire import Wire
from protocol.envelope import Sealed
from protocol.identity import Identity, PeerId
from protocol.mesh import Mesh
from protocol.messages import Charter, Device, Task
from runtime.engine import Engine
from runtime.examiner import Examiner
from runtime.trainer import Trainer

if TYPE_CHECKING:  # trio-typing's stubs, which libp2p brings, hide trio's own types
    from trio_typing import TaskStatus

VERSION = "0.1.0"
LAST_WORD_S = 0.5  # a daemon told to leave answers before it stops


@dataclass(frozen=True)
class Ports:
    """What a node stands on; a world hands in its own."""

    mesh: Mesh
    store: Store
    engine: Engine
    clock: Clock
    journal: Journal
    rng: Random
    device: Callable[[], Device]
    library: Library | None = None
    trainer: Trainer | None = None  # None: this device takes part in no run
    examiner: Examiner | None = None  # None: it neither votes nor serves adapters
    adapters: AdapterMaker | None = None  # None: it coordinates none
    compute: Compute = at_once
    tolerance: Callable[[bytes], Tolerance] = default_tolerance  # see `Verifier`
    blobs: Blobs = field(default_factory=NoBlobs)
    data: DataSets | None = None  # None: it keeps no private data


class Node:
    """One device of the mesh. Build it from what its store holds, `run` it, then run its mesh."""

    def __init__(
        self,
        ports: Ports,
        identity: Identity,
        config: Config,
        records: Sequence[Record],
        *,
        gateway: str = "",
        assembly: Assembly | None = None,
    ) -> None:
        """Fold what the store holds.

        Args:
            ports: what it stands on.
            identity: this device's key.
            config: what its owner has set.
            records: everything that its store holds.
            gateway: where clients reach it.
            assembly: what the records begin with, already folded; a world folds it once for all its nodes.

        Raises:
            StartError: the records belong to no mesh.
        """
        self._ports = ports
        self._config = config
        self.gateway = gateway
        self.stop_asked = trio.Event()
        self._left = trio.Event()
        clock, journal, rng = ports.clock, ports.journal, ports.rng
        mesh_id = _mesh_id(records)
        charter = _charter(records, mesh_id)
        boot = rng.getrandbits(62)
        self._members_time = MembersTime(clock)
        self.wire = Wire(identity, mesh_id, boot=boot, clock=clock, members_time=self._members_time)
        assembly = assembly or Assembly.found(charter)
        self.logbook = Logbook(
            self.wire,
            ports.store,
            assembly,
            Ledger(mesh_id, assembly.was_admitted),
            clock=clock,
            journal=journal,
        )
        self.logbook.load(records)
        self.directory = Directory(identity.peer_id, ports.mesh.learn)
        self.job_book = JobBook(ports.store, clock)
        self.job_book.load(records)
        self.sync = Sync(ports.mesh, self.wire, self._members_time, self.logbook, journal)
        self.blobs = ports.blobs
        self.blob_exchange = BlobExchange(
            mesh=ports.mesh,
            wire=self.wire,
            logbook=self.logbook,
            blobs=ports.blobs,
            clock=clock,
            journal=journal,
        )
        self.privacy_book: PrivacyBook | None = None
        self._own_data: OwnData | None = None
        if ports.data is not None:
            self.privacy_book = PrivacyBook(
                self.logbook, ports.data, journal, run_percent=config.privacy_run_percent
            )
            self._own_data = OwnData(ports.data, self.privacy_book, journal)
        self.reputation = Reputation()
        self.verifier = Verifier(
            me=identity.peer_id,
            engine=ports.engine,
            jobs=self.job_book,
            reputation=self.reputation,
            store=ports.store,
            clock=clock,
            journal=journal,
            rng=rng,
            tolerance=ports.tolerance,
            ask_others=SecondOpinion(
                self.chat, logbook=self.logbook, directory=self.directory, clock=clock, journal=journal
            )
            if config.buy_checks
            else None,
        )
        self.verifier.load(records)
        exposure = Exposure(self.logbook.ledger.unsettled(identity.peer_id))
        self.settlement = Settlement(
            mesh=ports.mesh,
            wire=self.wire,
            clock=clock,
            logbook=self.logbook,
            sync=self.sync,
            jobs=self.job_book,
            exposure=exposure,
            journal=journal,
            on_signed=self.verifier.signed,
        )
        offer = OwnOffer(
            mesh=ports.mesh,
            clock=clock,
            logbook=self.logbook,
            engine=ports.engine,
            store=ports.store,
            exposure=exposure,
            terms=SellerTerms(
                owner=self._owner(),
                base=Prices(config.price_prompt_micro, config.price_completion_micro),
                owner_percent=config.owner_percent,
                battery_percent_min=config.battery_percent_min,
                exposure_micro_max=config.exposure_peer_micro,
            ),
            device=ports.device,
        )
        self.seller = Seller(
            mesh=ports.mesh,
            wire=self.wire,
            clock=clock,
            logbook=self.logbook,
            engine=ports.engine,
            settlement=self.settlement,
            exposure=exposure,
            offer=offer,
            journal=journal,
        )
        self.advertiser = Advertiser(
            mesh=ports.mesh,
            wire=self.wire,
            clock=clock,
            logbook=self.logbook,
            directory=self.directory,
            rng=rng,
            describe=offer.describe,
        )
        self.meeting = Meeting(
            mesh=ports.mesh,
            wire=self.wire,
            clock=clock,
            members_time=self._members_time,
            logbook=self.logbook,
            directory=self.directory,
            advertiser=self.advertiser,
            sync=self.sync,
            store=ports.store,
            journal=journal,
            rng=rng,
            boot=boot.to_bytes(16),
            bootstrap=config.bootstrap,
            on_restarted=self._meet_restarted,
        )
        self.meeting.load(records)
        self.registrar = Registrar(
            mesh=ports.mesh,
            wire=self.wire,
            clock=clock,
            logbook=self.logbook,
            meeting=self.meeting,
            sync=self.sync,
            journal=journal,
        )
        self.patches_followed = Patches(lambda: self.logbook.assembly, self._members_time.utc_ms, ports.store)
        self.patches_followed.load(records)
        self.names = ModelNames(
            identity.peer_id,
            lambda: self.logbook.assembly,
            self.patches_followed,
            self.directory,
            ports.engine,
            clock,
        )
        self.steward = Steward(
            engine=ports.engine,
            examiner=ports.examiner,
            blobs=ports.blobs,
            exchange=self.blob_exchange,
            data=ports.data,
            logbook=self.logbook,
            sync=self.sync,
            directory=self.directory,
            patches=self.patches_followed,
            clock=clock,
            utc_ms=self._members_time.utc_ms,
            journal=journal,
            rng=rng,
            canary_interval_s=config.canary_interval_s,
            on_change=self.advertiser.refresh,
        )
        self.training = Training(
            ports,
            config,
            records,
            wire=self.wire,
            members_time=self._members_time,
            logbook=self.logbook,
            sync=self.sync,
            settlement=self.settlement,
            exposure=exposure,
            exchange=self.blob_exchange,
            privacy=self.privacy_book,
        )
        self.buyer = Buyer(
            mesh=ports.mesh,
            wire=self.wire,
            clock=clock,
            logbook=self.logbook,
            names=self.names,
            engine=ports.engine,
            settlement=self.settlement,
            jobs=self.job_book,
            open_purchasing=partial(
                Purchasing,
                mesh=ports.mesh,
                wire=self.wire,
                clock=clock,
                logbook=self.logbook,
                directory=self.directory,
                advertiser=self.advertiser,
                budget=Budget(config.budget_job_micro or None, config.budget_day_micro or None),
                price_most=Prices(config.pay_prompt_micro_max, config.pay_completion_micro_max),
                reputation=self.reputation,
                journal=journal,
                rng=rng,
            ),
            journal=journal,
            rng=rng,
            is_of_a_run=self.training.coordinator.is_of_a_run,
            on_engine_died=offer.forget_warm,
        )
        self.overview = Overview(
            version=VERSION,
            mesh_id=mesh_id,
            mesh=ports.mesh,
            store=ports.store,
            engine=ports.engine,
            clock=clock,
            device=ports.device,
            logbook=self.logbook,
            directory=self.directory,
            meeting=self.meeting,
            names=self.names,
            reputation=self.reputation,
            owner=self._owner,
            patch_warnings=self.steward.warnings,
        )
        self._own_lines = OwnLines(self.logbook, self.sync, ports.blobs, journal)
        self._own_models = OwnModels(
            library=ports.library,
            logbook=self.logbook,
            sync=self.sync,
            names=self.names,
            advertiser=self.advertiser,
            journal=journal,
        )
        self._membership = Membership(
            mesh=ports.mesh,
            wire=self.wire,
            clock=clock,
            logbook=self.logbook,
            sync=self.sync,
            journal=journal,
            rng=rng,
        )
        self._charters = Charters(self.logbook, self.sync, journal)
        self._charter_recovery = CharterRecovery(self.logbook, self.sync, journal)
        self._human_words = HumanWords(self.logbook, self.sync, journal, self._members_time.utc_ms)

    @property
    def journal(self) -> Journal:
        """The one stream of events."""
        return self._ports.journal

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Run the services; started when all of them are. The mesh is to be run after that."""
        if self.logbook.assembly.is_alone(self.logbook.me):
            self.logbook.confirm()  # nobody else could know more of our log than we do
        async with trio.open_nursery() as nursery:
            services = (
                self.logbook,
                self.sync,
                self.settlement,
                self.buyer,
                self.verifier,
                self.meeting,
                self.advertiser,
                self.steward,
                self.training,
            )
            for service in services:
                await nursery.start(service.run)
            task_status.started()
            await self._left.wait()
            await trio.sleep(LAST_WORD_S)
            self.stop_asked.set()

    # --- what its users do ----------------------------------------------------------------------------------------
    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Yield the events of one chat; see `Buyer.chat`."""
        return self.buyer.chat(request)

    def model(self, name: str, task: Task = "chat") -> ModelView:
        """Return the model that a client's name stands for; see `ModelNames.view`."""
        return self.names.view(name, task)

    async def quotes(self, model: str, prompt_tokens: int, completion_tokens: int) -> AttemptView:
        """Ask the sellers what such a request would cost, and award nothing."""
        return attempt_view(await self.buyer.quotes(model, prompt_tokens, completion_tokens))

    async def invite(
        self, *, expires_s: float, uses: int, owner: str | None, credit_line_micro: int
    ) -> dict[str, Any]:
        """Make an invitation; see `Membership.invite`."""
        return self._membership.invite(
            expires_s=expires_s, uses=uses, owner=owner or self._owner(), credit_line_micro=credit_line_micro
        )

    async def add_model(
        self, path: str, name: str | None, publish: bool, progress: Callable[[int, int], None]
    ) -> dict[str, Any]:
        """Take a GGUF file in, and bind a name to it for everybody if this device may; see `OwnModels.add`."""
        return await self._own_models.add(path, name, publish=publish, progress=progress)

    async def publish_model(self, digest_prefix: str, name: str) -> dict[str, Any]:
        """Sign the card that binds a name to a model that somebody on the mesh holds; see `OwnModels.publish`."""
        return await self._own_models.publish(digest_prefix, name)

    async def vote(self, patch: str, *, is_yes: bool) -> dict[str, Any]:
        """Vote for this device on a patch, by the beginning of its id, before it has voted by itself."""
        return await self.steward.vote(patch, is_yes=is_yes)

    async def roll_back(self, patch: str) -> dict[str, Any]:
        """Propose the way back from a patch that is in force."""
        return await self.steward.roll_back(patch)

    async def propose_charter(self, change: CharterChange) -> dict[str, Any]:
        """Propose the next charter; see `Charters.propose`."""
        return await self._charters.propose(change)

    async def sign_charter(self, prefix: str) -> dict[str, Any]:
        """Agree to a proposed charter with this device; see `Charters.sign`."""
        return await self._charters.sign(prefix)

    def place_recovery(self, author: str, change: CharterChange) -> dict[str, Any]:
        """The next charter for a recovery key to sign; see `CharterRecovery.place`."""
        return self._charter_recovery.place(PeerId(author), change)

    async def recover_charter(self, raw: bytes) -> dict[str, Any]:
        """Take in a charter that a recovery key has signed, and agree to it if this device is to vote."""
        charter = await self._charter_recovery.take(raw)
        return await self._charters.agree(charter)

    async def revoke(self, peer_id: str, reason: str) -> dict[str, Any]:
        """Bar a device from the mesh; see `Membership.revoke`."""
        return await self._membership.revoke(peer_id, reason)

    async def leave(self) -> dict[str, Any]:
        """Leave the mesh: this home serves it no more, and the daemon stops."""
        if self.logbook.me in self.logbook.assembly.roll:
            raise StartError("this device is on the charter's roll; only a new charter takes it off")
        await self._ports.store.append([Record(MESH, b"left", b"1")])
        self.journal.write("mesh_left", mesh=self.wire.mesh_id)
        self._left.set()
        return {"mesh_id": self.wire.mesh_id.hex(), "left": True}

    async def add_data(self, path: str, name: str, budget_milli: int) -> dict[str, Any]:
        """Freeze a copy of private records; see `OwnData.add`."""
        return await self._private_data().add(path, name, budget_milli)

    async def remove_data(self, digest_prefix: str) -> dict[str, Any]:
        """Delete private records; see `OwnData.remove`."""
        return await self._private_data().remove(digest_prefix)

    async def publish_line(self, name: str, evaluation: str, replay: str | None) -> dict[str, Any]:
        """Give a named model the public sets that its patches are judged by; see `OwnLines.publish`."""
        return await self._own_lines.publish(name, evaluation, replay)

    def place_word(self, author: str, kind: WordKind, target: str) -> dict[str, Any]:
        """What a human needs in order to sign a word on a patch; see `HumanWords.place`."""
        return self._human_words.place(PeerId(author), kind, target)

    async def take_word(self, raw: bytes) -> dict[str, Any]:
        """Take in a word that a human has signed; see `HumanWords.take`."""
        return await self._human_words.take(raw)

    def _private_data(self) -> OwnData:
        if self._own_data is None:
            raise StartError("this node keeps no private data")
        return self._own_data

    # --- training runs: `training.py` ---------------------------------------------------------------------------------
    async def train(self, options: TrainOptions) -> RunView:
        """Announce a training run; it goes on by itself."""
        return await self.training.train(options)

    async def steer_run(self, run_id: str, verb: str) -> RunView:
        """Pause, resume or cancel a run that this device coordinates."""
        coordinator = self.training.coordinator
        match verb:
            case "pause":
                return await coordinator.pause(run_id)
            case "resume":
                return await coordinator.resume(run_id)
            case _:
                return await coordinator.cancel(run_id)

    def runs(self) -> list[RunView]:
        """Every run that this device coordinates or takes part in, the newest first."""
        return self.training.views()

    def training_run(self, run_id: str) -> RunView:
        """The run of an id, or of a prefix that only one has."""
        return self.training.view(run_id)

    # --- what its users see: `overview.py` --------------------------------------------------------------------------
    def charter(self) -> dict[str, Any]:
        """The charter in force, what it means in practice, and what may follow it."""
        return self._charters.shown()

    def status(self) -> StatusView:
        """This daemon at a glance."""
        return self.overview.status(self.gateway)

    def peers(self) -> list[PeerView]:
        """Every member, and everybody connected."""
        return self.overview.peers()

    def models(self) -> list[ModelView]:
        """Every model that can be asked for."""
        return self.names.views()

    def patches(self) -> list[PatchView]:
        """Every patch that was proposed, the newest first."""
        return self.steward.patches()

    def patch(self, patch: str) -> PatchView:
        """The patch of an id, or of a prefix that only one patch has."""
        return self.steward.patch(patch)

    def proposals(self) -> list[ProposalView]:
        """Every ballot, the newest first."""
        return self.steward.proposals()

    def lines(self) -> list[dict[str, Any]]:
        """Every line of the mesh, with its public sets."""
        return self._own_lines.views()

    def data(self) -> list[DataView]:
        """The private data sets of this device, with what was spent on each."""
        return self._own_data.views() if self._own_data else []

    def jobs(self, limit: int = 100) -> list[JobView]:
        """The newest jobs, running ones first."""
        return self.job_book.views(limit)

    def job(self, job_id: str) -> JobView | None:
        """The job of a full id, or of a prefix that only one job has."""
        return self.job_book.view(job_id)

    def ledger(self) -> LedgerView:
        """The accounts as this node knows them; they sum to zero."""
        return self.overview.ledger()

    def _meet_restarted(self, peer_id: PeerId) -> None:
        """A peer's daemon is another one than before."""
        self.buyer.seller_restarted(peer_id)

    def _owner(self) -> str:
        """Whose device this is, as the mesh says; before it has been told, as the config says."""
        assembly, me = self.logbook.assembly, self.logbook.me
        return assembly.member(me).owner if assembly.is_member(me) else self._config.owner


def _mesh_id(records: Sequence[Record]) -> bytes:
    known = {record.key: record.body for record in records if record.kind == MESH}
    mesh_id = known.get(b"id")
    if mesh_id is None:
        raise StartError("this home belongs to no mesh; run 'agora init' or 'agora join'")
    if b"left" in known:
        raise StartError("this home has left its mesh; join again with another --home")
    return mesh_id


def _charter(records: Sequence[Record], mesh_id: bytes) -> Sealed[Charter]:
    for record in records:
        if record.kind == ENTRY and record.key == mesh_id and record.body is not None:
            return cast("Sealed[Charter]", open_entry(record.body, mesh_id))
    raise StartError("the database holds no charter of this mesh; restore a backup with 'agora restore'")
