"""One round on this device: fetch what it names, reserve the privacy, train, and keep the result.

A round under way outlives the stream that asked for it: its privacy is spent when it begins, so it is trained to its end
and what came of it waits for the coordinator to ask again. In this order, so that a failure costs as little as possible:

    blobs are here ─▶ the trainer has read them ─▶ privacy is reserved (on disk) ─▶ first step … ─▶ result is on disk ─▶ it is sent
"""

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

import trio

from node.blobs import BlobNotFound, Blobs
from node.data_sets import DataSet, DataSets
from node.enlisted import EnlistedBook, EnlistedRun, Result
from node.journal import Journal
from node.named_blobs import NamedBlobs
from node.privacy_book import PrivacyBook
from node.services.blob_exchange import BlobExchange
from protocol.errors import AgoraError
from protocol.identity import PeerId
from protocol.limits import BLOB_BYTES_MAX, DETAIL_CHARS_MAX
from protocol.messages import NO_HASH, FailedFrame, RunAnnouncement
from runtime.engine import Digest
from runtime.trainer import BadPayload, Fit, FitProgress, Fitted, Prepared, Trainer, TrainerError


@dataclass(frozen=True)
class Task:
    """A round as its coordinator wants it; see `RoundTask`."""

    round: int
    since: bytes
    state: bytes
    payload: bytes


@dataclass
class Round:
    """A round under way, and how it ended: exactly one of `result` and `failure` is set when `done` is."""

    run: bytes
    task: Task
    steps: int
    step: int = 0
    is_training: bool = False
    result: Result | None = None
    failure: FailedFrame | None = None
    done: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Fitting:
    """Trains rounds of runs that were agreed to."""

    def __init__(
        self,
        *,
        trainer: Trainer,
        data: DataSets,
        privacy: PrivacyBook,
        blobs: Blobs,
        named: NamedBlobs,
        exchange: BlobExchange,
        book: EnlistedBook,
        journal: Journal,
    ) -> None:
        self.trainer = trainer
        self._data = data
        self._privacy = privacy
        self._blobs = blobs
        self._named = named
        self._exchange = exchange
        self._book = book
        self._journal = journal

    async def fit(
        self, known: EnlistedRun, wanted: RunAnnouncement, cohort: list[PeerId], under_way: Round
    ) -> None:
        """Train a round to its end; never raises for what a peer or the trainer did."""
        try:
            with under_way.scope:
                under_way.result = await self._fit(known, wanted, cohort, under_way)
        except BadPayload as error:
            under_way.failure = _failed("prompt", error)
        except TrainerError as error:
            under_way.failure = _failed("engine", error)
        except AgoraError as error:
            under_way.failure = _failed("refused", error)
        finally:
            if under_way.result is None and under_way.failure is None:
                under_way.failure = FailedFrame(reason="refused", detail="the run has ended")
            under_way.done.set()
        if under_way.failure is not None:
            self._journal.write(
                "fit_refused", run=known.run, round=under_way.task.round, reason=under_way.failure.detail
            )

    async def _fit(
        self, known: EnlistedRun, wanted: RunAnnouncement, cohort: list[PeerId], under_way: Round
    ) -> Result:
        task, recipe = under_way.task, wanted.recipe
        data_set = self.data_set(known, wanted.data)
        for digest, size_max in (
            (wanted.replay, wanted.replay_bytes),
            (task.since, wanted.start_bytes if task.since == wanted.start else BLOB_BYTES_MAX),
        ):
            if digest != NO_HASH:
                await self._fetch(Digest(digest), size_max, [known.buyer, *cohort])
        noise = known.noise.plan if known.noise else None
        fit = Fit(
            base=Digest(wanted.base),
            data=data_set.digest,
            replay=None if wanted.replay == NO_HASH else Digest(wanted.replay),
            recipe=recipe,
            round=task.round,
            since=None if task.since == NO_HASH else Digest(task.since),
            payload=task.payload,
            state=Digest(task.state),
            noise=noise,
            seed=_seed(known.run, data_set, task.round),
        )

        async def reserve() -> None:
            refused = await self._privacy.reserve(data_set, known.run, task.round, noise, recipe.steps)
            if refused is not None:
                raise TrainingRefused(refused.detail)

        fitted = await self._train(fit, under_way, reserve)
        if hashlib.sha256(fitted.state).digest() != task.state:
            raise TrainerError("the trainer began from another state than the task names")
        result = Result(
            round=task.round,
            state=task.state,
            payload=fitted.payload,
            steps=fitted.steps,
            samples=fitted.samples,
            epsilon_milli=self._privacy.run_milli(data_set, known.run),
            seconds=fitted.seconds,
        )
        await self._keep(known, result, fitted.state)
        return result

    async def _fetch(self, digest: Digest, size_max: int, holders: list[PeerId]) -> None:
        """Ask the run's own people first; a line's public set may lie with whoever published it, and with none of them."""
        try:
            await self._exchange.fetch(digest, size_max, holders)
        except BlobNotFound:
            await self._exchange.gather(digest, size_max)

    async def _train(
        self, fit: Fit, under_way: Round, before_first_step: Callable[[], Awaitable[None]]
    ) -> Fitted:
        async with aclosing(self.trainer.fit(fit)) as frames:
            async for frame in frames:
                match frame:
                    case Prepared():
                        await before_first_step()
                        under_way.is_training = True
                    case FitProgress(step, _):
                        under_way.step = step
                    case Fitted():
                        return frame
        raise TrainerError("the trainer ended without a result")

    async def _keep(self, known: EnlistedRun, result: Result, state: bytes) -> None:
        """Keep the result, and the state that the next round's change refers to; the one before is no more needed."""
        older = known.newest.state if known.newest else NO_HASH
        await self._blobs.put(state)
        known.newest = result
        await self._book.keep(known)
        # beside its own coordinator the same blobs are the checkpoint, which is not ours to drop
        if known.award:
            await self._named.drop([older])

    def data_set(self, known: EnlistedRun, name: str) -> DataSet:
        """Return the data set that was agreed to.

        Raises:
            TrainingRefused: its owner has removed it since.
        """
        for each in self._data.named(name):
            if each.digest == known.data_digest:
                return each
        raise TrainingRefused(f"the data set {name!r} has been removed")


class TrainingRefused(AgoraError):
    """The round is not trained here; the message says why."""


def _failed(reason: str, error: AgoraError) -> FailedFrame:
    return FailedFrame(reason=reason, detail=str(error)[:DETAIL_CHARS_MAX])  # type: ignore[arg-type]  # one of its words


def _seed(run: bytes, data_set: DataSet, number: int) -> int:
    """Each member and round draws other records; the noise itself comes from a CSPRNG."""
    return int.from_bytes(hashlib.sha256(run + data_set.digest + number.to_bytes(4)).digest()[:4])
