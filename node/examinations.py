"""Examinations: what this device itself finds out about an adapter before it votes on it or serves it.

First the bytes are fetched from whoever has them and their length compared with the manifest's; then the examiner checks
them strictly and tries them in a child of its own (docs/SECURITY.md, "Adapter files"). An adapter that was refused once is
not tried again. Public scores are kept, since each patch of a line is compared with the same parent.
"""

from collections.abc import Sequence

from marketplace.assembly.judgement import Private, is_private_kept
from node.blobs import BlobNotFound, Blobs
from node.data_sets import DataSets
from node.evaluation_set import canaries, is_askable, read_questions, scores_of
from node.services.blob_exchange import BlobExchange
from protocol import limits
from protocol.envelope import Sealed
from protocol.identity import PeerId
from protocol.messages import NO_HASH, Line, Manifest, Score
from runtime.engine import Digest
from runtime.examiner import BadAdapter, Examiner, ExaminerError, Question

CANARIES_PER_DOMAIN = 4
PRIVATE_SAMPLES_MAX = 512  # enough for a verdict; a large data set would hold the examiner up
KEPT_MAX = 64  # exams whose public scores are remembered
PRIVATE_DOMAIN = "private"  # all of this device's sets together: no figure of one of them is told to anybody


class Examinations:
    """Fetches and examines.

    Args:
        examiner: None: this device examines nothing, so it neither votes nor serves adapters.
        data: this device's own data sets; None: it keeps none.
    """

    def __init__(
        self, examiner: Examiner | None, blobs: Blobs, exchange: BlobExchange, data: DataSets | None
    ) -> None:
        self._examiner = examiner
        self._blobs = blobs
        self._exchange = exchange
        self._data = data
        self._scores: dict[tuple[bytes, bytes, bytes], tuple[Score, ...]] = {}
        self._sound: set[tuple[bytes, bytes]] = set()
        self._refused: dict[tuple[bytes, bytes], str] = {}

    @property
    def is_possible(self) -> bool:
        """Whether this device can examine at all."""
        return self._examiner is not None

    async def fetch(self, manifest: Sealed[Manifest]) -> None:
        """Have a patch's adapter here: from its author, from who trained it, or from any member that is connected.

        Raises:
            BadAdapter: it has another length than its manifest says.
            BlobNotFound, StoreFull: it cannot be had now.
        """
        proposal = manifest.message
        adapter = Digest(proposal.adapter)
        if proposal.adapter == NO_HASH:
            return
        holders = (manifest.sender, *(PeerId(member.peer) for member in proposal.cohort))
        await self._bring(adapter, proposal.adapter_bytes, holders)
        if (size := self._blobs.size(adapter)) != proposal.adapter_bytes:
            raise BadAdapter(f"the adapter has {size} bytes, its manifest says {proposal.adapter_bytes}")

    async def trial(self, base: bytes, adapter: bytes) -> None:
        """Check an adapter that is here strictly, and try it, unless that was done before.

        Raises:
            BadAdapter: it is never to be loaded.
            ExaminerError: not now.
        """
        if (base, adapter) not in self._sound:
            await self._examine(base, adapter, ())

    async def public(self, line: Line, adapter: bytes, *, is_anew: bool = False) -> tuple[Score, ...]:
        """Ask all questions of a line's evaluation set.

        Args:
            line: whose base answers.
            adapter: with which; `NO_HASH`: none.
            is_anew: also when they were asked before.

        Raises:
            BadAdapter: it is never to be loaded.
            BadEvaluationSet: the line's set is none.
            BlobNotFound, ExaminerError, StoreFull: not now.
        """
        key = (line.base, adapter, line.evaluation)
        if is_anew or key not in self._scores:
            found = await self._examine(line.base, adapter, await self._questions(line))
            self._scores.pop(key, None)
            self._scores[key] = found
            while len(self._scores) > KEPT_MAX:
                del self._scores[next(iter(self._scores))]
        return self._scores[key]

    async def canaries(self, line: Line, adapter: bytes) -> tuple[Score, ...]:
        """Ask a few questions of each domain; raises as `public`."""
        questions = canaries(await self._questions(line), CANARIES_PER_DOMAIN)
        return await self._examine(line.base, adapter, questions)

    async def private(self, base: bytes, before: bytes, after: bytes) -> Private:
        """Whether this device's own held-out samples are answered no worse with one adapter than with another.

        Only that much is ever told: exact scores of private data would leak it. With few samples even that would.

        Raises:
            BadAdapter, ExaminerError: see `public`.
        """
        samples: list[Question] = []
        for each in self._data.sets() if self._data else ():
            if each.held_out >= limits.PRIVATE_SAMPLES_MIN:
                found = await self._data.held_out(each.digest) if self._data else ()
                samples += [
                    Question(PRIVATE_DOMAIN, one.prompt, one.response) for one in found if is_askable(one)
                ]
        samples = samples[:PRIVATE_SAMPLES_MAX]
        if len(samples) < limits.PRIVATE_SAMPLES_MIN:
            return "none"
        (old,) = await self._examine(base, before, samples)
        (new,) = await self._examine(base, after, samples)
        return "passed" if is_private_kept(old, new) else "failed"

    async def _questions(self, line: Line) -> tuple[Question, ...]:
        evaluation = Digest(line.evaluation)
        await self._bring(evaluation, line.evaluation_bytes, ())
        return read_questions(await self._blobs.read(evaluation))

    async def _bring(self, blob: Digest, size: int, holders: Sequence[PeerId]) -> None:
        if self._blobs.has(blob):
            return
        try:
            await self._exchange.fetch(blob, size, holders)
        except BlobNotFound:
            await self._exchange.gather(blob, size)

    async def _examine(self, base: bytes, adapter: bytes, questions: Sequence[Question]) -> tuple[Score, ...]:
        if self._examiner is None:
            raise ExaminerError("this device has no examiner")
        key = (base, adapter)
        if key in self._refused:
            raise BadAdapter(self._refused[key])
        try:
            results = await self._examiner.examine(
                Digest(base), None if adapter == NO_HASH else Digest(adapter), questions
            )
        except BadAdapter as error:
            self._refused[key] = str(error)
            raise
        self._sound.add(key)
        return scores_of(results)
