"""The canary watch: what a loaded patch really answers here, after loading and now and then.

The same few questions of the line's public set are asked again. Where this device's own figures fall under what the ballot
was told, it stops serving the patch, follows the version before, says so, and proposes the way back to everybody.
"""

from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

import trio

from marketplace.assembly.judgement import why_fallen
from node.clock import Clock
from node.examinations import Examinations
from node.journal import Journal
from node.logbook import Logbook
from node.patches import Patches
from node.rollback import Rollbacks
from node.services.patch_loader import PatchLoader
from node.store import StoreClosed, StoreFailed
from protocol.envelope import Sealed, narrow
from protocol.errors import AgoraError
from protocol.messages import NO_HASH, Manifest, Score, Vote

if TYPE_CHECKING:  # trio-typing's stubs, which libp2p brings, hide trio's own types
    from trio_typing import TaskStatus

# All devices see a bad patch fall at once. One proposal is enough, and each voter has one yes for a version.
PROPOSAL_DELAY_S_MAX = 10.0


class CanaryWatch:
    """Watches the heads that this device serves."""

    def __init__(
        self,
        *,
        examinations: Examinations,
        loader: PatchLoader,
        patches: Patches,
        rollbacks: Rollbacks,
        logbook: Logbook,
        clock: Clock,
        journal: Journal,
        rng: Random,
        interval_s: float,
    ) -> None:
        """`interval_s` lies between two rounds of canaries."""
        self._examinations = examinations
        self._loader = loader
        self._patches = patches
        self._rollbacks = rollbacks
        self._logbook = logbook
        self._clock = clock
        self._journal = journal
        self._rng = rng
        self._interval_s = interval_s
        self._asked: dict[bytes, float] = {}  # when each head was watched last

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Watch."""
        task_status.started()
        while True:
            loaded = self._loader.loaded
            for head in list(self._loader.taken_up.values()):
                if head.message.adapter != NO_HASH and self._is_due(head):
                    self._asked[head.id] = self._clock.now()
                    await self._watch(head)
            with trio.move_on_after(self._quiet_s()):
                await loaded.wait()

    def _is_due(self, head: Sealed[Manifest]) -> bool:
        asked = self._asked.get(head.id)
        return asked is None or self._clock.now() - asked >= self._interval_s

    def _quiet_s(self) -> float:
        dues = [
            self._asked.get(head.id, self._clock.now()) + self._interval_s
            for head in self._loader.taken_up.values()
            if head.message.adapter != NO_HASH
        ]
        return max(0.001, min(dues) - self._clock.now()) if dues else float("inf")

    async def _watch(self, head: Sealed[Manifest]) -> None:
        line = self._logbook.assembly.line(head.message.line)
        if line is None or line.evaluation != head.message.evaluation:
            return  # it was told of other questions
        try:
            canaries = await self._examinations.canaries(line, head.message.adapter)
        except (AgoraError, OSError) as error:
            self._journal.write("canaries_not_asked", manifest=head.id, reason=str(error))
            return
        if why := why_fallen(self._told(head), canaries):
            await self._hold_back(head, why)

    def _told(self, head: Sealed[Manifest]) -> tuple[Score, ...]:
        """What this device said of the patch when it voted; else what its manifest says."""
        own = self._logbook.assembly.entries_after(self._logbook.me, -1)
        for vote in (narrow(entry, Vote) for entry in own):
            if vote is not None and vote.message.manifest == head.id and vote.message.scores:
                return vote.message.scores
        return head.message.after

    async def _hold_back(self, head: Sealed[Manifest], why: str) -> None:
        fields = {"manifest": head.id, "line": head.message.line, "version": head.message.version}
        self._journal.write("canaries_fell", **fields, reason=why)
        self._patches.hold_back(head.id, why)
        self._loader.unload(head.message.adapter, f"canaries fell: {why}")
        with suppress(StoreFailed, StoreClosed):
            await self._patches.remember_held_back(head.id)
        await trio.sleep(self._rng.uniform(0, PROPOSAL_DELAY_S_MAX))
        try:
            await self._rollbacks.propose(head, f"canaries fell: {why}")
        except AgoraError as error:
            self._journal.write("rollback_not_proposed", **fields, reason=str(error))
