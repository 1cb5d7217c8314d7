"""What a run came to: the figures of the report, of `summary.json` and of the plots' captions, from one computation.

Nothing here reads a clock or a world's inside: a summary is a function of what was seen.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from node.simulation.learned import Learned
from node.simulation.observations import MapNode, Outcome, Propagation, Sample, Traffic
from node.simulation.trace import Header

HOUR_S: Final = 3_600.0
STATES: Final = ("finished", "unsold", "failed", "lost", "running")


class Seen(Protocol):
    """What a world has to show when its time is over.

    Attributes:
        map: the mesh at the end.
        nodes: all that ever took part.
        seconds: virtual.
        ledger_sum_micro: over all accounts of all books; anything but 0 is money from nowhere.
        checks: how often each invariant was checked, by its name.
        violations: one text for each that did not hold.
        digest: of the trace, and `events` its number of lines.
        learned: what was trained, voted on and ratified.
    """

    @property
    def outcomes(self) -> Sequence[Outcome]: ...  # noqa: D102  # see the class
    @property
    def samples(self) -> Sequence[Sample]: ...  # noqa: D102
    @property
    def traffic(self) -> Mapping[str, Traffic]: ...  # noqa: D102
    @property
    def propagation(self) -> Sequence[Propagation]: ...  # noqa: D102
    @property
    def map(self) -> Sequence[MapNode]: ...  # noqa: D102
    @property
    def nodes(self) -> int: ...  # noqa: D102
    @property
    def seconds(self) -> float: ...  # noqa: D102
    @property
    def ledger_sum_micro(self) -> int: ...  # noqa: D102
    @property
    def checks(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def violations(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    @property
    def events(self) -> int: ...  # noqa: D102
    @property
    def learned(self) -> Learned: ...  # noqa: D102


@dataclass(frozen=True)
class Percentiles:
    """Nearest rank, in seconds, of `count` samples."""

    count: int
    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float


@dataclass(frozen=True)
class Requests:
    """How many were asked, and how they ended.

    Attributes:
        by_state: see `Outcome.state`; each state is there, with 0 when nothing ended so.
        failed_over: finished by another seller than the first.
        unsold_by_reason: the commonest first.
        declines_by_reason: what single sellers said, over all chats; the commonest first.
    """

    asked: int
    by_state: Mapping[str, int]
    failed_over: int
    unsold_by_reason: Mapping[str, int]
    declines_by_reason: Mapping[str, int]


@dataclass(frozen=True)
class Moment:
    """The market at one moment.

    Attributes:
        price_micro: of a completion token on offer; None while nobody sold.
        utilisation: the share of the slots that were busy, 0 to 1.
    """

    at_s: float
    price_micro: float | None
    utilisation: float


@dataclass(frozen=True)
class Network:
    """What was sent, as means over all nodes."""

    messages_per_node_hour: float
    bytes_per_node_hour: float
    messages_per_chat: float | None  # all that any node sent, for whatever reason; None without a chat


@dataclass(frozen=True)
class Learning:
    """What the mesh trained and agreed on.

    Attributes:
        epsilon_milli_max: the most that was spent on any one data set, in thousandths.
        sources: data sets that something was spent on.
    """

    runs_finished: int
    runs_aborted: int
    patches_ratified: int
    votes: int
    epsilon_milli_max: int
    sources: int


@dataclass(frozen=True)
class Summary:
    """Everything the report says.

    Attributes:
        auction: of those that were held; a chat under a lease has none.
        reached: until half, and until 99 %, of those whom one gossiped message reached had heard it: medians over the
            messages; None when none was followed.
        wall_s: what the run took; with `nodes` and `seconds` the only part that another machine changes.
    """

    header: Header
    nodes: int
    seconds: float
    requests: Requests
    auction: Percentiles | None
    first_token: Percentiles | None
    market: tuple[Moment, ...]
    ledger_sum_micro: int
    network: Network
    reached: tuple[float, float] | None
    learning: Learning
    checks: Mapping[str, int]
    violations: tuple[str, ...]
    digest: str
    events: int
    wall_s: float

    @property
    def node_seconds_per_s(self) -> float:
        """How many seconds of one node's life a second of the machine simulated."""
        return self.nodes * self.seconds / max(self.wall_s, 1e-9)

    def as_json(self) -> dict[str, Any]:
        """Return the summary as `summary.json` holds it."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain | {"node_seconds_per_s": self.node_seconds_per_s}


def summarise(seen: Seen, header: Header, wall_s: float) -> Summary:
    """Return what a run came to."""
    messages = sum(traffic.messages for traffic in seen.traffic.values())
    sent_bytes = sum(traffic.bytes for traffic in seen.traffic.values())
    node_hours = max(seen.nodes * seen.seconds / HOUR_S, 1e-9)
    chats = len(seen.outcomes)
    return Summary(
        header=header,
        nodes=seen.nodes,
        seconds=seen.seconds,
        requests=_requests(seen.outcomes),
        auction=percentiles(outcome.auction_s or None for outcome in seen.outcomes),
        first_token=percentiles(outcome.ttft_s for outcome in seen.outcomes),
        market=tuple(moment(sample) for sample in seen.samples),
        ledger_sum_micro=seen.ledger_sum_micro,
        network=Network(
            messages_per_node_hour=messages / node_hours,
            bytes_per_node_hour=sent_bytes / node_hours,
            messages_per_chat=messages / chats if chats else None,
        ),
        reached=_reached(seen.propagation),
        learning=Learning(
            runs_finished=sum(end == "finished" for end in seen.learned.runs.values()),
            runs_aborted=sum(end == "aborted" for end in seen.learned.runs.values()),
            patches_ratified=len(seen.learned.patches),
            votes=seen.learned.votes,
            epsilon_milli_max=seen.learned.epsilon_milli_max,
            sources=len(seen.learned.spent_milli),
        ),
        checks=dict(sorted(seen.checks.items())),
        violations=tuple(seen.violations),
        digest=seen.digest,
        events=seen.events,
        wall_s=wall_s,
    )


def percentiles(samples: Iterable[float | None]) -> Percentiles | None:
    """Return the percentiles of what is there, or None when nothing is."""
    ordered = sorted(sample for sample in samples if sample is not None)
    if not ordered:
        return None
    return Percentiles(len(ordered), *(rank(ordered, share) for share in (0.50, 0.90, 0.95, 0.99)))


def rank(ordered: Sequence[float], share: float) -> float:
    """Return the smallest sample that `share` of them do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def moment(sample: Sample) -> Moment:
    """Return what a sample says of the market."""
    return Moment(
        sample.at_s,
        sample.price_micro or None,
        sample.slots_busy / sample.slots if sample.slots else 0.0,
    )


def _requests(outcomes: Sequence[Outcome]) -> Requests:
    found = Counter(outcome.state for outcome in outcomes)
    reasons = Counter(outcome.reason or "unknown" for outcome in outcomes if outcome.state == "unsold")
    declines: Counter[str] = Counter()
    for outcome in outcomes:
        declines.update(outcome.declines)
    return Requests(
        asked=len(outcomes),
        by_state={state: found.pop(state, 0) for state in STATES} | dict(sorted(found.items())),
        failed_over=sum(outcome.state == "finished" and outcome.attempts > 1 for outcome in outcomes),
        unsold_by_reason=_commonest_first(reasons),
        declines_by_reason=_commonest_first(declines),
    )


def _commonest_first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _reached(propagation: Sequence[Propagation]) -> tuple[float, float] | None:
    heard = [sorted(message.heard_s) for message in propagation if message.heard_s]
    if not heard:
        return None
    half, nearly_all = (rank(sorted(rank(times, share) for times in heard), 0.5) for share in (0.5, 0.99))
    return half, nearly_all
