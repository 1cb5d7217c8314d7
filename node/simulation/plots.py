"""The plots of a run: latency over time, price and load over time, how a message spread, and the map of the mesh.

Colours are those of Okabe and Ito, which people with any colour vision tell apart; where two things share a plot they
differ in width or shape too. Files of the same run are the same bytes. Importing this needs matplotlib, the extra `sim`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from node.simulation.map_layout import layout, links_of
from node.simulation.observations import Propagation
from node.simulation.report import duration
from node.simulation.summary import Seen, Summary, rank

INK: Final = "#222222"
GREY: Final = "#8a8a8a"
FAINT: Final = "#e4e4e4"
BLUE: Final = "#0072B2"
ORANGE: Final = "#E69F00"
VERMILION: Final = "#D55E00"
PROFILE_LOOKS: Final = (
    ("s", "#D55E00"),
    ("o", "#0072B2"),
    ("^", "#009E73"),
    ("D", "#CC79A7"),
    ("v", "#E69F00"),
    ("P", "#56B4E9"),
)
PERCENTILES: Final = (("p50", 0.50, BLUE, 2.2), ("p90", 0.90, ORANGE, 1.6), ("p99", 0.99, VERMILION, 1.2))

WIDTH_IN: Final = 9.0
DOTS_PER_IN: Final = 150
WINDOWS_MAX: Final = 60
WINDOW_CHATS: Final = 20  # a percentile of fewer says little
LINKS_AS_SHAPES_MAX: Final = 5_000  # more are one picture inside the SVG
DOTS_AS_SHAPES_MAX: Final = 1_000  # the same
LOGARITHMIC_FROM: Final = 30.0  # times between the lowest and the highest value
NOTHING: Final = "nothing to show"

THOUSANDS: Final = FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
Numbers = npt.NDArray[np.float64]

STYLE: Final[dict[Any, Any]] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",  # words stay words: they can be found and read aloud
    "svg.hashsalt": "agora",  # ids in the file would be random
}


def draw(seen: Seen, summary: Summary, directory: Path) -> list[Path]:
    """Draw all plots into a directory that exists; return the files, a PNG and an SVG each."""
    with mpl.rc_context(STYLE):
        figures = {
            "latency": latency(seen, summary),
            "market": market(seen, summary),
            "propagation": propagation(seen, summary),
            "map": mesh_map(seen, summary),
        }
        return [path for name, figure in figures.items() for path in _save(figure, directory / name)]


def latency(seen: Seen, summary: Summary) -> Figure:
    """How long people waited, over the time of the run."""
    figure = _figure(5.6, "How long a chat waits", summary)
    scale, unit = _time_scale(seen.seconds)
    panels: Sequence[Axes] = figure.subplots(2, 1, sharex=True)
    for axes, name, attribute in (
        (panels[0], "until the award, ms", "auction_s"),
        (panels[1], "until the first token, ms", "ttft_s"),
    ):
        points = [
            (outcome.at_s, value)
            for outcome in seen.outcomes
            if (value := getattr(outcome, attribute))  # a chat under a lease has no auction
        ]
        axes.set_ylabel(name)
        if not points:
            _say_nothing(axes)
            continue
        middles, windows = _windows(points, seen.seconds)
        for label, share, colour, width in PERCENTILES:
            values = [rank(sorted(window), share) * 1000 if window else np.nan for window in windows]
            axes.plot(
                middles / scale,
                values,
                color=colour,
                linewidth=width,
                label=label,
                marker="o" if len(windows) < 15 else None,
                markersize=3.5,
            )
        axes.scatter(
            [at_s / scale for at_s, _ in points],
            [value * 1000 for _, value in points],
            s=float(np.clip(4_000 / len(points), 3, 12)),
            color=GREY,
            alpha=0.4,
            linewidths=0,
            rasterized=len(points) > DOTS_AS_SHAPES_MAX,
            label="a chat",
        )
        _choose_scale(axes, [value for _, value in points])
    if panels[0].lines:
        panels[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, borderaxespad=0.2)
    panels[1].set_xlabel(f"virtual time, {unit}")
    panels[1].set_xlim(0, seen.seconds / scale)
    return figure


def market(seen: Seen, summary: Summary) -> Figure:
    """What a token cost, how many slots were busy, and who was there."""
    figure = _figure(7.0, "Price and load", summary)
    scale, unit = _time_scale(seen.seconds)
    panels: Sequence[Axes] = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))
    panels[0].set_ylabel("price, µ-credits a token")
    panels[1].set_ylabel("slots")
    panels[2].set_ylabel("devices online")
    if seen.samples:
        at = np.array([sample.at_s for sample in seen.samples]) / scale
        price = [sample.price_micro or np.nan for sample in seen.samples]
        panels[0].plot(at, price, color=VERMILION, linewidth=1.8)
        slots, busy = ([getattr(sample, name) for sample in seen.samples] for name in ("slots", "slots_busy"))
        panels[1].fill_between(at, slots, color=FAINT, label="on offer")
        panels[1].plot(at, slots, color=GREY, linewidth=1)
        panels[1].fill_between(at, busy, color=BLUE, alpha=0.75, linewidth=0, label="busy")
        panels[1].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
        panels[2].plot(at, [sample.online for sample in seen.samples], color=INK, linewidth=1.5)
        for axes in panels[1:]:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.yaxis.set_major_formatter(THOUSANDS)
    else:
        for axes in panels:
            _say_nothing(axes)
    panels[2].set_xlabel(f"virtual time, {unit}")
    panels[2].set_xlim(0, seen.seconds / scale)
    return figure


def propagation(seen: Seen, summary: Summary) -> Figure:
    """Which share of the nodes had heard a gossiped message, by the time since it was published."""
    figure = _figure(4.8, "How a message spreads", summary)
    axes = figure.subplots()
    axes.set_xlabel("time since it was published, ms")
    axes.set_ylabel("nodes that have heard it")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(0, 1.04)
    messages = sorted(
        (message for message in seen.propagation if message.heard_s), key=lambda each: _until(each, 0.99)
    )
    if not messages:
        _say_nothing(axes)
        return figure
    typical = messages[(len(messages) - 1) // 2]
    for message in messages:
        is_typical = message is typical
        times, shares = _heard(message, _audience(seen, message))
        axes.step(
            times * 1000,
            shares,
            where="post",
            color=BLUE if is_typical else GREY,
            linewidth=2.2 if is_typical else 0.6,
            alpha=1.0 if is_typical else 0.45,
            zorder=3 if is_typical else 2,
            label=f"{typical.kind.replace('_', ' ')} at {duration(round(typical.at_s, 1))}"
            if is_typical
            else None,
        )
    for share in (0.5, 0.99):
        time_ms = _until(typical, share) * 1000
        reached = share * len(typical.heard_s) / _audience(seen, typical)
        axes.plot([time_ms], [reached], "o", color=BLUE, markersize=6, zorder=4)
        axes.annotate(
            f"{share:.0%} of those reached after {time_ms:,.0f} ms",
            (time_ms, reached),
            xytext=(9, -13),
            textcoords="offset points",
        )
    axes.set_xlim(0, _until(typical, 0.99) * 1000 * 1.8)
    if len(messages) > 1:
        axes.plot([], [], color=GREY, linewidth=0.8, label=f"{len(messages) - 1:,} others")
    axes.legend(loc="lower right")
    return figure


def mesh_map(seen: Seen, summary: Summary) -> Figure:
    """Who is connected with whom at the end."""
    figure = _figure(8.4, "The mesh at the end", summary)
    axes = figure.subplots()
    axes.set_aspect("equal")
    axes.set_axis_off()
    nodes = seen.map
    if not nodes:
        _say_nothing(axes)
        return figure
    places, links = layout(nodes, summary.header.seed), links_of(nodes)
    axes.add_collection(
        LineCollection(
            list(places[links]),
            colors=GREY,
            linewidths=0.5,
            alpha=float(np.clip(400 / (len(links) + 1), 0.06, 0.6)),
            rasterized=len(links) > LINKS_AS_SHAPES_MAX,
            zorder=1,
        )
    )
    area = float(np.clip(9_000 / len(nodes), 4, 90))
    online = np.array([node.is_online for node in nodes])
    profiles = sorted({node.profile for node in nodes})
    for number, profile in enumerate(profiles):
        marker, colour = PROFILE_LOOKS[number % len(PROFILE_LOOKS)]
        chosen = np.array([node.profile == profile for node in nodes])
        here, away = places[chosen & online], places[chosen & ~online]
        axes.scatter(
            here[:, 0],
            here[:, 1],
            s=area,
            marker=marker,
            color=colour,
            edgecolors="white",
            linewidths=0.3,
            zorder=3,
            label=f"{profile} ({len(here):,})",
        )
        axes.scatter(
            away[:, 0],
            away[:, 1],
            s=area * 0.8,
            marker=marker,
            facecolors="none",
            edgecolors=GREY,
            linewidths=0.6,
            zorder=2,
        )
    if not online.all():
        axes.scatter(
            [],
            [],
            s=40,
            facecolors="none",
            edgecolors=GREY,
            label=f"away ({int((~online).sum()):,}), in its own shape",
        )
    legend = axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, title=f"{len(links):,} links"
    )
    for handle in legend.legend_handles:
        if handle is not None and hasattr(handle, "set_sizes"):
            handle.set_sizes([45])
    return figure


def _figure(height_in: float, title: str, summary: Summary) -> Figure:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    header = summary.header
    figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
    what = f"{Path(header.scenario).stem} · {summary.nodes:,} nodes · {duration(summary.seconds)} · seed {header.seed}"
    figure.text(0.99, 0.985, what, ha="right", va="top", fontsize=9, color="#5c5c5c")
    return figure


def _save(figure: Figure, stem: Path) -> Iterator[Path]:
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        path = stem.with_suffix(suffix)
        figure.savefig(path, dpi=DOTS_PER_IN, metadata=metadata)
        yield path


def _say_nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, NOTHING, transform=axes.transAxes, ha="center", va="center", color=GREY)


def _time_scale(seconds: float) -> tuple[float, str]:
    """Return how many seconds the unit of the time axis has, and its name."""
    if seconds <= 180:
        return 1.0, "s"
    return (60.0, "minutes") if seconds <= 4 * 3_600 else (3_600.0, "hours")


def _windows(points: Sequence[tuple[float, float]], seconds: float) -> tuple[Numbers, list[list[float]]]:
    """Part the run into equal windows; return their middles and the values that fall into each."""
    count = min(WINDOWS_MAX, max(1, len(points) // WINDOW_CHATS))
    width_s = seconds / count
    windows: list[list[float]] = [[] for _ in range(count)]
    for at_s, value in points:
        windows[min(count - 1, int(at_s / width_s))].append(value)
    middles: Numbers = np.arange(0.5, count) * width_s
    return middles, windows


def _choose_scale(axes: Axes, values: Sequence[float]) -> None:
    lowest, highest = rank(sorted(values), 0.01), max(values)
    if 0 < lowest * LOGARITHMIC_FROM < highest:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(THOUSANDS)


def _until(message: Propagation, share: float) -> float:
    return rank(sorted(message.heard_s), share)


def _audience(seen: Seen, message: Propagation) -> int:
    """Return how many nodes could have heard a message: those online when it was published."""
    nearest = min(seen.samples, key=lambda sample: abs(sample.at_s - message.at_s), default=None)
    return max(nearest.online if nearest else seen.nodes, len(message.heard_s))


def _heard(message: Propagation, audience: int) -> tuple[Numbers, Numbers]:
    times = np.array([0.0, *sorted(message.heard_s)])
    return times, np.arange(len(times)) / audience
