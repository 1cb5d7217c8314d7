"""The patch loader: what this device's engine serves follows what the mesh has ratified.

    manifest heard ─▶ … ─▶ ratified ─▶ fetched, checked and tried here ─▶ loaded ─▶ advertised
                                                       vetoed, withdrawn, fallen ─▶ unloaded at once

The engine is never asked to load what the assembly does not allow at that moment, whoever asks; and whatever a human has
barred leaves it within the event that says so. Versions before the head stay loaded for a while: answers that began with
them may have to go on here.
"""

from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING

import trio

from marketplace.assembly.ballot import BallotState, BallotView
from node.blobs import Blobs
from node.clock import Clock
from node.examinations import Examinations
from node.journal import Journal
from node.logbook import Logbook
from node.patches import Patches
from node.store import StoreClosed, StoreFailed
from protocol import limits
from protocol.envelope import Sealed
from protocol.errors import AgoraError
from protocol.messages import NO_HASH, Manifest
from runtime.engine import AdapterRefused, AdapterSetAside, Digest, Engine
from runtime.examiner import BadAdapter

if TYPE_CHECKING:  # trio-typing's stubs, which libp2p brings, hide trio's own types
    from trio_typing import TaskStatus

LOOK_INTERVAL_S = 30.0  # a model may have been added, or the clock set, without an entry of anybody's
RETRY_S, RETRY_S_MAX = 2.0, 120.0  # nobody has the blob, no memory for an exam: each time twice as long
NEVER_LOADED = (BadAdapter, AdapterRefused, AdapterSetAside)


def is_lost(ballot: BallotView, now_ms: int) -> bool:
    """Whether a proposal will never be in force, whatever its line becomes and whatever is still to come."""
    match ballot.state:
        case BallotState.REJECTED:
            return ballot.yes_weight < ballot.weight_to_pass  # else only its line's base has changed
        case BallotState.EXPIRED:  # words that were signed in time may come when a partition ends
            return ballot.manifest.message.expires_at <= now_ms
        case state:
            return state in (BallotState.VETOED, BallotState.WITHDRAWN, BallotState.SUPERSEDED)


class _NotYet(AgoraError):
    """A head that may yet turn out to be none."""


class PatchLoader:
    """Loads and unloads adapters, for the engine of this device."""

    def __init__(
        self,
        *,
        engine: Engine,
        examinations: Examinations,
        patches: Patches,
        blobs: Blobs,
        logbook: Logbook,
        clock: Clock,
        utc_ms: Callable[[], int],
        journal: Journal,
        on_change: Callable[[], None],
    ) -> None:
        """`on_change` is called when the engine's adapters have changed: buyers want to know."""
        self._engine = engine
        self._examinations = examinations
        self._patches = patches
        self._blobs = blobs
        self._logbook = logbook
        self._clock = clock
        self._utc_ms = utc_ms
        self._journal = journal
        self._on_change = on_change
        self._states: dict[bytes, BallotState] = {}  # of each manifest, as last told in the journal
        self._prepared: set[bytes] = set()  # manifests that were certified and tried in advance
        self._lost: set[bytes] = set()  # manifests whose files were dropped
        self._loading: set[bytes] = set()
        self._pauses: dict[bytes, tuple[float, float]] = {}  # until when, and how long the next one is
        self._refused: dict[bytes, str] = {}  # manifests never to be loaded here, and why
        self.taken_up: dict[str, Sealed[Manifest]] = {}  # by line: the head that the engine serves
        self.loaded = trio.Event()  # set, and replaced, each time a head was taken up

    def why_not_loaded(self, manifest: bytes) -> str:
        """Why a patch in force is not served by this device though it holds the base; empty: nothing is known."""
        return self._refused.get(manifest, "")

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the assembly."""
        self._states = {each.id: each.state for each in self._logbook.assembly.ballots(self._utc_ms())}
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                grown = self._logbook.grown
                with suppress(StoreFailed, StoreClosed):
                    await self._patches.release_decided()
                self._tell(nursery)
                self._unload_barred()
                self._take_up(nursery)
                self._prepare_certified(nursery)
                with trio.move_on_after(self._quiet_s()):
                    await grown.wait()

    def unload(self, adapter: bytes, reason: str) -> None:
        """Serve an adapter no more; answers under way end as they began."""
        manifest = self._manifest_of(adapter)
        self._engine.unload_adapter(Digest(adapter))
        self.taken_up = {
            line: head for line, head in self.taken_up.items() if head.message.adapter != adapter
        }
        self._journal.write(
            "patch_unloaded",
            line=manifest.message.line if manifest else "",
            version=manifest.message.version if manifest else 0,
            adapter=adapter,
            reason=reason,
        )
        self._on_change()

    # --- what has changed -------------------------------------------------------------------------------------------
    def _tell(self, nursery: trio.Nursery) -> None:
        """Write into the journal what became of the ballots; a file that nobody will ever load is kept no longer."""
        for ballot in self._logbook.assembly.ballots(self._utc_ms()):
            known = self._states.get(ballot.id)
            message = ballot.manifest.message
            fields = {"manifest": ballot.id, "line": message.line, "version": message.version}
            if known is None:
                self._journal.write("manifest_heard", **fields)
            if ballot.state is not known and ballot.state is BallotState.RATIFIED:
                self._journal.write("patch_ratified", **fields, adapter=message.adapter)
            if ballot.id not in self._lost and is_lost(ballot, self._utc_ms()):
                self._lost.add(ballot.id)
                nursery.start_soon(self._drop, Digest(message.adapter))
            self._states[ballot.id] = ballot.state

    async def _drop(self, adapter: Digest) -> None:
        """Drop a blob unless another proposal may yet need it. Else four files a day of each member would stay for ever."""
        ballots = self._logbook.assembly.ballots(self._utc_ms())
        of_adapter = [each for each in ballots if each.manifest.message.adapter == adapter]
        if self._blobs.has(adapter) and all(is_lost(each, self._utc_ms()) for each in of_adapter):
            await self._blobs.drop(adapter)

    def _unload_barred(self) -> None:
        for adapter in list(self._engine.adapters):
            if why := self._logbook.assembly.may_load(adapter, self._utc_ms()):
                self.unload(adapter, why)

    def _quiet_s(self) -> float:
        """How long nothing can change here without an entry: a veto window may end, a pause be over."""
        assembly, now_ms, now = self._logbook.assembly, self._utc_ms(), self._clock.now()
        if not assembly.lines():
            return inf
        ends = [
            (ballot.expires_ms - now_ms) / 1000
            for ballot in assembly.ballots(now_ms)
            if ballot.state is BallotState.CERTIFIED and ballot.expires_ms > now_ms
        ]
        pauses = [until - now for until, _ in self._pauses.values() if until > now]
        return max(0.001, min([LOOK_INTERVAL_S, *ends, *pauses]))

    # --- loading ----------------------------------------------------------------------------------------------------
    def _prepare_certified(self, nursery: trio.Nursery) -> None:
        """Fetch and try what only waits for a human: then it is served the moment that the word is heard."""
        if not self._examinations.is_possible:
            return
        for ballot in self._logbook.assembly.ballots(self._utc_ms()):
            is_held = Digest(ballot.manifest.message.base) in self._engine.models
            is_new = ballot.id not in self._prepared and ballot.manifest.message.adapter != NO_HASH
            if ballot.state is BallotState.CERTIFIED and is_held and is_new:
                self._prepared.add(ballot.id)
                nursery.start_soon(self._prepare, ballot.manifest)

    async def _prepare(self, manifest: Sealed[Manifest]) -> None:
        with suppress(
            AgoraError, OSError
        ):  # whatever it is, it comes up again when the patch is to be loaded
            await self._examinations.fetch(manifest)
            await self._examinations.trial(manifest.message.base, manifest.message.adapter)

    def _take_up(self, nursery: trio.Nursery) -> None:
        for line in self._logbook.assembly.lines().values():
            head = self._logbook.assembly.ratified(line.name, self._utc_ms())
            is_able = Digest(line.base) in self._engine.models and self._examinations.is_possible
            if is_able and head is not None and self._is_wanted(head):
                self._loading.add(head.id)
                nursery.start_soon(self._load, head)

    def _is_wanted(self, head: Sealed[Manifest]) -> bool:
        until, _ = self._pauses.get(head.id, (0.0, 0.0))
        if head.id in self._loading or head.id in self._refused or until > self._clock.now():
            return False
        return not self._is_served(head) and not self._patches.why_held_back(head.id)

    def _is_served(self, head: Sealed[Manifest]) -> bool:
        taken_up = self.taken_up.get(head.message.line)
        is_there = head.message.adapter == NO_HASH or Digest(head.message.adapter) in self._engine.adapters
        return taken_up is not None and taken_up.id == head.id and is_there

    async def _load(self, head: Sealed[Manifest]) -> None:
        fields = {"manifest": head.id, "line": head.message.line, "version": head.message.version}
        try:
            await self._load_once(head)
            self._pauses.pop(head.id, None)
        except NEVER_LOADED as error:
            self._refused[head.id] = str(error)
            self._journal.write("patch_refused", **fields, reason=str(error))
        except (AgoraError, OSError) as error:
            _, pause_s = self._pauses.get(head.id, (0.0, RETRY_S))
            self._pauses[head.id] = (self._clock.now() + pause_s, min(2 * pause_s, RETRY_S_MAX))
            self._journal.write("patch_postponed", **fields, reason=str(error))
        finally:
            self._loading.discard(head.id)

    async def _load_once(self, head: Sealed[Manifest]) -> None:
        proposal = head.message
        base, adapter = Digest(proposal.base), Digest(proposal.adapter)
        if self._patches.is_below_high_water(proposal.line, proposal.version):
            raise _NotYet("a newer version was served here before; its manifest has not come back yet")
        if proposal.adapter != NO_HASH:
            await self._examinations.fetch(head)
            await self._examinations.trial(base, adapter)
        if not self._may_serve(head):
            return
        await self._patches.raise_high_water(proposal.line, proposal.version)
        if proposal.adapter != NO_HASH:
            await self._engine.load_adapter(base, adapter, self._blobs.path(adapter))
            if not self._may_serve(head):  # a human has spoken meanwhile
                self._unload_barred()
                return
            self._journal.write(
                "patch_loaded",
                line=proposal.line,
                version=proposal.version,
                adapter=adapter,
                base=base,
                manifest=head.id,
            )
        self.taken_up[proposal.line] = head
        self._unload_outdated(head)
        self.loaded.set()
        self.loaded = trio.Event()
        self._on_change()

    def _may_serve(self, head: Sealed[Manifest]) -> bool:
        """Whether it is still the head: while an adapter was examined, anything may have been said."""
        in_force = self._logbook.assembly.ratified(head.message.line, self._utc_ms())
        is_head = in_force is not None and in_force.id == head.id
        return is_head and not self._patches.why_held_back(head.id)

    def _unload_outdated(self, head: Sealed[Manifest]) -> None:
        """Keep the adapters that may still have to go on with an answer; no more than an advert names."""
        base = head.message.base
        newest = list(
            dict.fromkeys([head.message.adapter, *(adapter for _, adapter in self._patches.in_force(base))])
        )[: limits.ADAPTERS_PER_OFFER_MAX]
        loaded = [adapter for adapter, for_base in self._engine.adapters.items() if for_base == base]
        others = [adapter for adapter in loaded if adapter not in newest]
        for adapter in others[: max(0, len(loaded) - limits.ADAPTERS_PER_OFFER_MAX)]:
            self.unload(adapter, "newer versions have taken its place")

    def _manifest_of(self, adapter: bytes) -> Sealed[Manifest] | None:
        """The newest manifest that proposes an adapter."""
        found = [
            ballot.manifest
            for ballot in self._logbook.assembly.ballots(self._utc_ms())
            if ballot.manifest.message.adapter == adapter
        ]
        return max(found, key=lambda manifest: manifest.message.version, default=None)
