"""The report in words: sections of names and values, so that the terminal, a file and a test show the same."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

from node.simulation.summary import Learning, Moment, Network, Percentiles, Requests, Summary

NAME_WIDTH: Final = 26
MICRO: Final = 1_000_000  # micro-credits in a credit
SPARKS: Final = "▁▂▃▄▅▆▇█"
SPARKS_MAX: Final = 20  # characters; more samples are averaged

Section = tuple[str, list[tuple[str, str]]]


def lines(summary: Summary) -> list[str]:
    """Return the report as text."""
    shown = [title(summary)]
    for heading, rows in sections(summary):
        shown += ["", heading, *(f"  {name:<{NAME_WIDTH}} {value}" for name, value in rows)]
    return shown


def title(summary: Summary) -> str:
    """Return what ran, in a few words."""
    header = summary.header
    return f"{header.scenario}, seed {header.seed}: {summary.nodes:,} nodes for {duration(summary.seconds)}"


def sections(summary: Summary) -> list[Section]:
    """Return the report: headings over names and values."""
    speed = f"{summary.node_seconds_per_s:,.0f} node-seconds a second"
    return [
        ("requests", _request_rows(summary.requests)),
        ("latency", [_spread("auction", summary.auction), _spread("first token", summary.first_token)]),
        ("market", [*_market_rows(summary.market), ("ledger sum", _credits(summary.ledger_sum_micro))]),
        ("network", _network_rows(summary.network, summary.reached)),
        ("learning", _learning_rows(summary.learning)),
        ("invariants", _check_rows(summary.checks, summary.violations)),
        (
            "run",
            [
                ("events", f"{summary.events:,}"),
                ("digest", summary.digest),
                ("took", f"{summary.wall_s:,.1f} s: {speed}"),
            ],
        ),
    ]


def duration(seconds: float) -> str:
    """Return a virtual time in words: `1 h`, `1 h 30 min`, `90 s`."""
    if seconds < 120 or seconds != int(seconds):
        return f"{seconds:,.6g} s"
    hours, rest = divmod(int(seconds), 3_600)
    minutes, left = divmod(rest, 60)
    words = [f"{hours:,} h"] * (hours > 0) + [f"{minutes} min"] * (minutes > 0) + [f"{left} s"] * (left > 0)
    return " ".join(words)


def _request_rows(requests: Requests) -> list[tuple[str, str]]:
    rows = [("asked", f"{requests.asked:,}")]
    for state, count in requests.by_state.items():
        if count or state in ("finished", "unsold"):
            rows.append((state, f"{count:,}{_share(count, requests.asked)}"))
        if state == "finished":
            rows.append(("  after a failover", f"{requests.failed_over:,}"))
        if state == "unsold":
            rows += [("  because", f"{count:,}  {why}") for why, count in requests.unsold_by_reason.items()]
    declines = ", ".join(f"{count:,} {why}" for why, count in requests.declines_by_reason.items())
    if declines:
        rows.append(("declines of sellers", declines))
    return rows


def _market_rows(market: Sequence[Moment]) -> list[tuple[str, str]]:
    prices = [each.price_micro for each in market if each.price_micro is not None]
    loads = [each.utilisation for each in market]
    if not loads:
        return [("price", "not sampled"), ("slots busy", "not sampled")]
    price = (
        f"{spark(prices)}  {_number(min(prices))} to {_number(max(prices))} µ a token"
        if prices
        else "nobody sold"
    )
    mean = sum(loads) / len(loads)
    return [
        ("price over time", price),
        (
            "slots busy over time",
            f"{spark(loads, 0.0)}  {100 * mean:.1f} %, {100 * max(loads):.1f} % at most",
        ),
    ]


def _network_rows(network: Network, reached: tuple[float, float] | None) -> list[tuple[str, str]]:
    per_chat = network.messages_per_chat
    spread = (
        "not followed"
        if reached is None
        else f"half of the nodes after {_time(reached[0])}, 99 % after {_time(reached[1])}"
    )
    return [
        ("messages per node and hour", f"{network.messages_per_node_hour:,.0f}"),
        ("bytes per node and hour", _bytes(network.bytes_per_node_hour)),
        ("messages per chat", "no chat" if per_chat is None else _number(per_chat)),
        ("a gossiped message", spread),
    ]


def _learning_rows(learning: Learning) -> list[tuple[str, str]]:
    return [
        ("runs", f"{learning.runs_finished:,} finished, {learning.runs_aborted:,} aborted"),
        ("patches ratified", f"{learning.patches_ratified:,}"),
        ("votes", f"{learning.votes:,}"),
        (
            "privacy spent",
            f"epsilon {learning.epsilon_milli_max / 1000:g} at most, on {learning.sources:,} data sets"
            if learning.sources
            else "none",
        ),
    ]


def _check_rows(checks: Mapping[str, int], violations: Sequence[str]) -> list[tuple[str, str]]:
    checked: dict[int, list[str]] = {
        count: [] for count in sorted(checks.values(), reverse=True) if count
    }  # laws by how often
    for name, count in checks.items():
        if count:
            checked[count].append(name.replace("_", " "))
    rows = [
        ("held once" if count == 1 else f"held {count:,} times", ", ".join(laws))
        for count, laws in checked.items()
    ]
    rows += [("VIOLATED", " ".join(violation.split())) for violation in violations]
    return rows or [("none", "nothing was checked")]


def spark(values: Sequence[float], low: float | None = None) -> str:
    """Return values as a row of bars, from `low`, else from the smallest, to the largest; long rows are averaged."""
    width = min(len(values), SPARKS_MAX)
    edges = [number * len(values) // width for number in range(width + 1)]
    parts = [values[begin:end] for begin, end in pairwise(edges)]
    means = [sum(part) / len(part) for part in parts]
    bottom = min(means) if low is None else low
    step = (max(means) - bottom) / (len(SPARKS) - 1) or 1.0
    return "".join(SPARKS[round((mean - bottom) / step)] for mean in means)


def _spread(name: str, found: Percentiles | None) -> tuple[str, str]:
    if found is None:
        return name, "none"
    shown = ((50, found.p50_s), (90, found.p90_s), (95, found.p95_s), (99, found.p99_s))
    return f"{name}, of {found.count:,}", "  ".join(f"p{part} {_time(value_s)}" for part, value_s in shown)


def _share(count: int, of: int) -> str:
    return f"   {100 * count / of:.1f} %" if of else ""


def _time(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{_number(count)} {unit}"
        count /= 1000
    return f"{_number(count)} GB"


def _credits(micro: int) -> str:
    sign = "-" if micro < 0 else ""
    return f"{sign}{abs(micro) // MICRO:,}.{abs(micro) % MICRO:06} credits"
