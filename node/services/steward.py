"""The steward: on this device, from a manifest to a served patch and back.

    patch_loader.py    what is ratified is loaded, what is barred is unloaded
    voter.py           what is proposed is examined and voted on
    canary_watch.py    what is loaded is watched
    rollback.py        what was bad is gone back from

Here they are put together, and here is what users see and say of patches.
"""

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

import trio

from marketplace.assembly.ballot import BallotView
from node.blobs import Blobs
from node.clock import Clock
from node.data_sets import DataSets
from node.directory import Directory
from node.examinations import Examinations
from node.journal import Journal
from node.logbook import Logbook
from node.patch_views import patch_view, proposal_view
from node.patches import Patches
from node.rollback import Rollbacks
from node.services.blob_exchange import BlobExchange
from node.services.canary_watch import CanaryWatch
from node.services.patch_loader import PatchLoader
from node.services.sync import Sync
from node.services.voter import Voter
from node.short_id import begins, the_only
from node.views import PatchView, ProposalView
from protocol.identity import PeerId
from runtime.engine import Digest, Engine
from runtime.examiner import Examiner

if TYPE_CHECKING:  # trio-typing's stubs, which libp2p brings, hide trio's own types
    from trio_typing import TaskStatus


class Steward:
    """Takes care of the patches of this device."""

    def __init__(
        self,
        *,
        engine: Engine,
        examiner: Examiner | None,
        blobs: Blobs,
        exchange: BlobExchange,
        data: DataSets | None,
        logbook: Logbook,
        sync: Sync,
        directory: Directory,
        patches: Patches,
        clock: Clock,
        utc_ms: Callable[[], int],
        journal: Journal,
        rng: Random,
        canary_interval_s: float,
        on_change: Callable[[], None],
    ) -> None:
        """`on_change` is called when the adapters that this device serves have changed; `utc_ms` is the members' time."""
        self._engine = engine
        self._logbook = logbook
        self._directory = directory
        self._patches = patches
        self._clock = clock
        self._utc_ms = utc_ms
        examinations = Examinations(examiner, blobs, exchange, data)
        self._loader = PatchLoader(
            engine=engine,
            examinations=examinations,
            patches=patches,
            blobs=blobs,
            logbook=logbook,
            clock=clock,
            utc_ms=utc_ms,
            journal=journal,
            on_change=on_change,
        )
        self._voter = Voter(
            engine=engine,
            examinations=examinations,
            logbook=logbook,
            sync=sync,
            clock=clock,
            utc_ms=utc_ms,
            journal=journal,
        )
        self._rollbacks = Rollbacks(logbook, sync, patches, examinations, journal, utc_ms)
        self._watch = CanaryWatch(
            examinations=examinations,
            loader=self._loader,
            patches=patches,
            rollbacks=self._rollbacks,
            logbook=logbook,
            clock=clock,
            journal=journal,
            rng=rng,
            interval_s=canary_interval_s,
        )

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Load, vote and watch."""
        async with trio.open_nursery() as nursery:
            for part in (self._loader, self._voter, self._watch):
                await nursery.start(part.run)
            task_status.started()

    # --- what users see ---------------------------------------------------------------------------------------------
    def patches(self) -> list[PatchView]:
        """Every patch that was proposed, the newest first."""
        return [self._patch_view(ballot) for ballot in reversed(self._ballots())]

    def patch(self, prefix: str) -> PatchView:
        """One patch, by the beginning of its id.

        Raises:
            StartError: no patch has such an id, or several have.
        """
        return self._patch_view(self._find(prefix))

    def proposals(self) -> list[ProposalView]:
        """Every ballot, the newest first."""
        assembly = self._logbook.assembly
        return [
            proposal_view(
                ballot,
                assembly.roll,
                {voter: self._why_not(voter, ballot) for voter in ballot.missing},
            )
            for ballot in reversed(self._ballots())
        ]

    def warnings(self) -> list[str]:
        """What is not as the mesh decided, on this device."""
        told = []
        for ballot in self._ballots():
            message = ballot.manifest.message
            name = f"version {message.version} of {message.line}"
            if ballot.is_in_force and (why := self._patches.why_held_back(ballot.id)):
                told.append(f"{name} is not served here: {why}; see 'agora proposals' for the way back")
            elif ballot.is_in_force and (why := self._loader.why_not_loaded(ballot.id)):
                told.append(f"{name} was refused here and is not served: {why}")
        return told

    # --- what users say -----------------------------------------------------------------------------------------------
    async def vote(self, prefix: str, *, is_yes: bool) -> dict[str, Any]:
        """Vote for this device, before it has.

        Raises:
            StartError: it has no vote, has voted before, or there is no such open ballot.
        """
        ballot = self._find(prefix)
        entry = await self._voter.vote(ballot, is_yes=is_yes)
        return {"id": ballot.id.hex(), "vote": entry.id.hex(), "is_yes": is_yes}

    async def roll_back(self, prefix: str) -> dict[str, Any]:
        """Propose the way back from a patch that is in force.

        Raises:
            StartError: it is not, or the way back is proposed already.
        """
        ballot = self._find(prefix)
        made = await self._rollbacks.propose(ballot.manifest, "a user asks for the way back")
        message = made.message
        return {
            "id": made.id.hex(),
            "line": message.line,
            "version": message.version,
            "rolls_back_to": message.rolls_back_to,
            "adapter_digest": "" if message.adapter == bytes(32) else message.adapter.hex(),
        }

    # --- -----------------------------------------------------------------------------------------------------------------
    def _ballots(self) -> list[BallotView]:
        return self._logbook.assembly.ballots(self._utc_ms())

    def _find(self, prefix: str) -> BallotView:
        found = [ballot for ballot in self._ballots() if begins(ballot.id, prefix)]
        return the_only(found, prefix, what="patches", see="agora patches")

    def _patch_view(self, ballot: BallotView) -> PatchView:
        return patch_view(
            ballot,
            is_loaded=Digest(ballot.manifest.message.adapter) in self._engine.adapters,
            why_not=self._patches.why_held_back(ballot.id) or self._loader.why_not_loaded(ballot.id),
        )

    def _why_not(self, voter: PeerId, ballot: BallotView) -> str:
        """Why a voter that has said nothing cannot vote, as far as is known; empty: it can."""
        if voter == self._logbook.me:
            return self._voter.why_not(ballot)
        offer = self._directory.offer(voter, self._clock.now())
        if offer is None:
            return "is away"
        held = {model.digest for model in offer.advert.message.models}
        return "" if ballot.manifest.message.base in held else "does not hold the base"
