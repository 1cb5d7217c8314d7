"""What a run is worth and what becomes of it: exams on the line's public set, and in the end a proposal.

Each round's state is examined as the adapter file that it would be: by a few questions of each domain, since the next
round is under way on the same machine, and after the last round by all of them. After the last one the file becomes a blob and the
result a manifest: from there on it is every node's steward that decides, ours among them.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from node.adapter_maker import AdapterMaker, Compute
from node.blobs import Blobs
from node.clock import Clock, MembersTime
from node.evaluation_set import read_questions, scores_of
from node.journal import Journal
from node.logbook import Logbook
from node.named_blobs import NamedBlobs
from node.runs import DomainView
from node.services.blob_exchange import BlobExchange
from node.services.sync import Sync
from protocol.envelope import Sealed
from protocol.errors import AgoraError
from protocol.limits import MANIFEST_TTL_S_MAX
from protocol.messages import NO_HASH, Contribution, Line, Manifest, RunAnnouncement
from runtime.engine import Digest
from runtime.examiner import DomainResult, Examiner, Question

GLANCE_QUESTIONS = 8  # of each domain, after a round: enough to see where it goes
MANIFEST_TTL_MS = int(MANIFEST_TTL_S_MAX * 1000) // 2  # voted on within a day; loaded again for weeks


@dataclass(frozen=True)
class Proposal:
    """What a finished run proposes.

    Attributes:
        adapter: the file.
        rounds: that were aggregated.
        cohort: what each member gave and spent.
        before, after: on every domain of the public set; empty: this device has no examiner.
    """

    adapter: bytes
    rounds: int
    cohort: tuple[Contribution, ...]
    before: tuple[DomainResult, ...]
    after: tuple[DomainResult, ...]


class RunPatch:
    """Examines states and proposes adapters for the runs of this device."""

    def __init__(
        self,
        *,
        logbook: Logbook,
        sync: Sync,
        clock: Clock,
        members_time: MembersTime,
        blobs: Blobs,
        named: NamedBlobs,
        exchange: BlobExchange,
        adapters: AdapterMaker,
        examiner: Examiner | None,
        compute: Compute,
        journal: Journal,
    ) -> None:
        self._logbook = logbook
        self._sync = sync
        self._clock = clock
        self._members_time = members_time
        self._blobs = blobs
        self._named = named
        self._exchange = exchange
        self._adapters = adapters
        self._examiner = examiner
        self._compute = compute
        self._journal = journal

    async def export(self, state: bytes, announced: RunAnnouncement) -> bytes:
        """Return the adapter file of a state.

        Raises:
            AgoraError: the base is not here any more, or the state does not fit it.
        """
        return await self._compute(
            lambda: self._adapters.export(state, announced.recipe, Digest(announced.base))
        )

    async def before(self, announced: RunAnnouncement) -> tuple[DomainResult, ...]:
        """Return how the line does now, with the adapter in force."""
        head = self._logbook.assembly.ratified(announced.line, self._members_time.utc_ms())
        adapter = head.message.adapter if head else NO_HASH
        if head is not None and adapter != NO_HASH:
            await self._exchange.gather(Digest(adapter), head.message.adapter_bytes)
        return await self._examine(announced, None if adapter == NO_HASH else Digest(adapter))

    async def after(
        self, announced: RunAnnouncement, adapter: bytes, *, is_glance: bool = False
    ) -> tuple[DomainResult, ...]:
        """Return how the base does with an adapter file; it is among the blobs only while it is examined, if nobody names it.

        Args:
            announced: whose line says the questions.
            adapter: the file's bytes.
            is_glance: ask the first `GLANCE_QUESTIONS` of each domain only.
        """
        digest = await self._blobs.put(adapter)
        try:
            return await self._examine(announced, digest, is_glance=is_glance)
        finally:
            await self._named.drop([digest])

    async def _examine(
        self, announced: RunAnnouncement, adapter: Digest | None, *, is_glance: bool = False
    ) -> tuple[DomainResult, ...]:
        line = self._line(announced)
        if self._examiner is None or line is None:
            return ()
        await self._exchange.gather(Digest(line.evaluation), line.evaluation_bytes)
        questions = read_questions(await self._blobs.read(Digest(line.evaluation)))
        if is_glance:
            questions = glance(questions)
        return await self._examiner.examine(Digest(announced.base), adapter, questions)

    def _line(self, announced: RunAnnouncement) -> Line | None:
        return self._logbook.assembly.line(announced.line)

    async def propose(self, announced: RunAnnouncement, made: Proposal) -> Sealed[Manifest]:
        """Keep the adapter for whoever asks, sign the manifest and tell everybody.

        Raises:
            AgoraError: nothing can be signed or kept now; or the line is gone, or has gone on.
        """
        assembly, now_ms = self._logbook.assembly, self._members_time.utc_ms()
        line = self._line(announced)
        if line is None or line.base != announced.base:
            raise ProposalRefused(f"line {announced.line} has another base now")
        head = assembly.ratified(announced.line, now_ms)
        adapter = await self._blobs.put(made.adapter)

        def place(index: int, prev: bytes) -> Manifest:
            return Manifest(
                index=index,
                prev=prev,
                line=announced.line,
                version=assembly.next_version(announced.line, now_ms),
                parent=head.id if head else NO_HASH,
                base=announced.base,
                adapter=adapter,
                adapter_bytes=len(made.adapter),
                shape=announced.recipe.shape,
                rolls_back_to=0,
                run=announced.run,
                rounds=made.rounds,
                cohort=made.cohort,
                evaluation=line.evaluation,
                before=scores_of(made.before),
                after=scores_of(made.after),
                expires_at=now_ms + MANIFEST_TTL_MS,
                reason="",
            )

        manifest = await self._logbook.write(Manifest, place)
        self._journal.write(
            "proposal_made",
            manifest=manifest.id,
            line=announced.line,
            version=manifest.message.version,
            adapter=adapter,
        )
        await self._sync.announce(manifest)
        return manifest


class ProposalRefused(AgoraError):
    """A finished run cannot be proposed; its adapter is kept."""


def glance(questions: Iterable[Question]) -> tuple[Question, ...]:
    """Return the first questions of each domain."""
    asked: Counter[str] = Counter()
    kept = []
    for question in questions:
        asked[question.domain] += 1
        if asked[question.domain] <= GLANCE_QUESTIONS:
            kept.append(question)
    return tuple(kept)


def domain_views(results: Sequence[DomainResult]) -> list[DomainView]:
    """Return an exam's results as they are shown."""
    return [
        DomainView(
            domain=each.domain,
            right=each.right,
            total=each.total,
            accuracy=each.right / each.total if each.total else 0.0,
            loss=each.loss,
            precision=each.precision,
            recall=each.recall,
            f1=each.f1,
        )
        for each in results
    ]
