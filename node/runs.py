"""The training runs of this device: those that it coordinates and those that it takes part in, as they go and as shown.

What a run needs after a crash is on disk before anybody acts on it: a coordinator's *checkpoint* after each round names
the state that comes next, so a round that a crash broke off is asked for again, with the same bytes. How each round went
is a record of its own, since a long run has many.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from node.store import Record, Store
from node.views import View
from protocol.errors import AgoraError

RUN = "run"  # the store's record kinds: one that this device coordinates, by its id
ROUND = "run_round"  # a round of it, by run id and number
RUNS_KEPT = 100

State = Literal["enlisting", "running", "paused", "finished", "aborted", "cancelled", "unsold"]
ENDED: frozenset[State] = frozenset({"finished", "aborted", "cancelled", "unsold"})


class DomainView(View, frozen=True, kw_only=True):
    """How the adapter did in one domain of the line's public set."""

    domain: str
    right: int
    total: int
    accuracy: float  # the share that was right to the letter
    loss: float
    precision: float
    recall: float
    f1: float


class RoundView(View, frozen=True, kw_only=True):
    """One round that has ended. Bytes are of all members together; epsilon is what each has spent in this run so far."""

    round: int
    members: list[str]
    dropped: list[dict[str, str]]  # {peer_id, reason}
    late: list[str]  # whose update of an earlier round was counted in this one
    seconds: float
    bytes_down: int
    bytes_up: int
    steps: int
    epsilon_milli: dict[str, int]  # -1: without differential privacy
    epsilon_milli_max: int  # of any member; -1: nobody is private
    domains: list[DomainView]  # empty until the examiner has answered


class MemberView(View, frozen=True, kw_only=True):
    """A member of the cohort."""

    peer_id: str
    owner: str
    samples: int
    step_micro: int
    steps_per_s: float
    epsilon_milli: int  # planned for the whole run; -1: without differential privacy
    is_local: bool
    out: str = ""  # why it takes no further part
    paid_micro: int = 0


class RunView(View, frozen=True, kw_only=True):
    """A run from its announcement to its patch."""

    run_id: str
    role: Literal["coordinator", "member"]
    coordinator: str
    state: State
    reason: str
    data: str
    line: str
    base: str
    outlook: str  # what to expect of so many records at such budgets; empty: not known yet
    strategy: str  # that made the newest state
    is_protected: bool  # against members that lie
    rounds: int
    round: int  # that have ended
    steps: int
    cohort: list[MemberView]
    declines: list[dict[str, str]]  # {peer_id, reason, detail}
    history: list[RoundView]
    before: list[DomainView]
    parent: str  # the run whose checkpoint this one began from; empty: none
    checkpoint: str  # digest of the newest state
    adapter: str  # digest of what came out; empty: nothing yet
    manifest: str
    price_micro: int
    progress: dict[str, float]  # of the round under way: how far each member is, from 0 to 1
    started_at: float
    finished_at: float | None


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """A member of a coordinated run, as it is kept.

    Attributes:
        enlistment: sealed.
        award: sealed; empty for this device itself.
        out: why it takes no further part; empty: it does.
    """

    enlistment: bytes
    award: bytes = b""
    out: str = ""


class Bought(msgspec.Struct, frozen=True, kw_only=True):
    """A round of one member whose update was taken; until it is paid, the member may come for it.

    Attributes:
        state, payload: digests, as in `RoundWork`.
    """

    peer: str
    round: int
    state: bytes
    payload: bytes
    steps: int


class RunFile(msgspec.Struct, kw_only=True):
    """What is kept of a run that this device coordinates.

    Attributes:
        announcement: sealed.
        seats: the cohort, by peer id.
        done: rounds that have ended.
        since, next, payload: digests of blobs: the state that members of the last round have, the one to train from now,
            and the change from the one to the other. Of a run that has ended only `next` is left.
    """

    run: bytes
    announcement: bytes
    state: State = "enlisting"
    reason: str = ""
    outlook: str = ""
    strategy: str = ""
    is_protected: bool = False
    seats: dict[str, Seat] = msgspec.field(default_factory=dict)
    declines: list[dict[str, str]] = msgspec.field(default_factory=list)
    unpaid: list[Bought] = msgspec.field(default_factory=list)
    done: int = 0
    since: bytes = b""
    next: bytes = b""
    payload: bytes = b""
    before: list[DomainView] = msgspec.field(default_factory=list)
    adapter: bytes = b""
    manifest: bytes = b""
    started_at: float = 0.0
    finished_at: float | None = None


class RunBook:
    """The coordinated runs, on disk and in memory, the oldest first."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._files: dict[bytes, RunFile] = {}
        self._rounds: dict[bytes, dict[int, RoundView]] = {}

    def load(self, records: Iterable[Record]) -> None:
        """Take in what earlier runs of the daemon have kept."""
        for record in records:
            if record.body is None:
                continue
            if record.kind == RUN:
                file = msgspec.msgpack.decode(record.body, type=RunFile)
                self._files[file.run] = file
            elif record.kind == ROUND:
                view = msgspec.msgpack.decode(record.body, type=RoundView)
                self._rounds.setdefault(record.key[:16], {})[view.round] = view

    def files(self) -> list[RunFile]:
        """Every run, the oldest first."""
        return list(self._files.values())

    def get(self, run: bytes) -> RunFile | None:
        """The run of an id."""
        return self._files.get(run)

    def rounds(self, run: bytes) -> list[RoundView]:
        """The rounds of a run that have ended, in order."""
        known = self._rounds.get(run, {})
        return [known[number] for number in sorted(known)]

    async def keep(self, file: RunFile, *ended: RoundView) -> None:
        """Have a run on disk as it stands now, together with rounds that have ended.

        Raises:
            StoreFailed: nothing was kept.
        """
        records = [Record(RUN, file.run, msgspec.msgpack.encode(file))]
        records += [
            Record(ROUND, file.run + view.round.to_bytes(4), msgspec.msgpack.encode(view)) for view in ended
        ]
        records += self._forget_oldest(0 if file.run in self._files else 1)
        await self._store.append(records)
        self._files[file.run] = file
        for view in ended:
            self._rounds.setdefault(file.run, {})[view.round] = view

    async def keep_soon(self, file: RunFile, *ended: RoundView) -> bool:
        """The like of what is only shown: a full disk loses it, and no more; whether it is on disk."""
        try:
            await self.keep(file, *ended)
        except AgoraError:
            return False
        return True

    def _forget_oldest(self, coming: int) -> Sequence[Record]:
        forgotten: list[Record] = []
        ended = [file.run for file in self._files.values() if file.state in ENDED]
        for run in ended[: max(0, len(self._files) + coming - RUNS_KEPT)]:
            del self._files[run]
            forgotten.append(Record(RUN, run, None))
            numbers = self._rounds.pop(run, {})
            forgotten += [Record(ROUND, run + number.to_bytes(4), None) for number in numbers]
        return forgotten


def find(views: Sequence[RunView], prefix: str) -> RunView | None:
    """Return the run with this id, or the only one whose id begins so."""
    found = [view for view in views if prefix and view.run_id.startswith(prefix)]
    return found[0] if len(found) == 1 else None
