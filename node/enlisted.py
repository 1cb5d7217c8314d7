"""The training runs that this device takes part in: what it has agreed to, and its newest result.

Kept on disk, since a round is trained and spent for once: after a crash on either side the same round gets the same
bytes again. The result is no blob: it was made from private data, and goes to the run's coordinator alone.
"""

from collections.abc import Iterable

import msgspec

from node.store import Record, Store
from protocol.identity import PeerId
from runtime.engine import Digest
from runtime.trainer import NoisePlan

ENLISTED = "enlisted"  # the store's record kind, by run id
ENLISTED_KEPT = 64


class Noise(msgspec.Struct, frozen=True):
    """A `NoisePlan` as it is kept."""

    noise_milli: int
    rate_ppm: int
    clip_milli: int

    @property
    def plan(self) -> NoisePlan:
        """As the trainer wants it."""
        return NoisePlan(self.noise_milli, self.rate_ppm, self.clip_milli)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one round.

    Attributes:
        state: digest of the state that it was trained from.
        payload: the change, as it goes to the coordinator.
        epsilon_milli: spent in this run until then; -1: without differential privacy.
    """

    round: int
    state: bytes
    payload: bytes
    steps: int
    samples: int
    epsilon_milli: int
    seconds: float


class EnlistedRun(msgspec.Struct, kw_only=True):
    """One run that this device has joined.

    Attributes:
        announcement, award: sealed; the award is empty when this device coordinates the run itself.
        enlistments: of the whole cohort, sealed.
        data: the data set that trains.
        noise: None: without differential privacy.
        newest: the newest result; older ones are not asked for again.
        ended: why nothing more is trained; empty: it goes on.
    """

    run: bytes
    coordinator: str
    announcement: bytes
    enlistments: list[bytes]
    award: bytes
    data: bytes
    noise: Noise | None
    newest: Result | None = None
    ended: str = ""
    started_at: float = 0.0

    @property
    def buyer(self) -> PeerId:
        """Who coordinates it."""
        return PeerId(self.coordinator)

    @property
    def data_digest(self) -> Digest:
        """Which data set trains."""
        return Digest(self.data)


class EnlistedBook:
    """The runs that this device has joined, the oldest first."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._runs: dict[bytes, EnlistedRun] = {}

    def load(self, records: Iterable[Record]) -> None:
        """Take in what earlier runs of the daemon have kept."""
        for record in records:
            if record.kind == ENLISTED and record.body is not None:
                known = msgspec.msgpack.decode(record.body, type=EnlistedRun)
                self._runs[known.run] = known

    def get(self, run: bytes) -> EnlistedRun | None:
        """The run of an id."""
        return self._runs.get(run)

    def runs(self) -> list[EnlistedRun]:
        """Every run, the oldest first."""
        return list(self._runs.values())

    async def keep(self, known: EnlistedRun) -> None:
        """Have a run on disk as it stands now.

        Raises:
            StoreFailed: nothing was kept.
        """
        records = [Record(ENLISTED, known.run, msgspec.msgpack.encode(known))]
        self._runs[known.run] = known
        for run in list(self._runs)[: max(0, len(self._runs) - ENLISTED_KEPT)]:
            del self._runs[run]
            records.append(Record(ENLISTED, run, None))
        await self._store.append(records)
