"""A run's curves as an SVG, written by hand: accuracy by domain, mean loss and epsilon, round by round.

It reads the JSON of `agora runs show --json`, so a run can be drawn anywhere, and needs no library.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

WIDTH, PANEL_HEIGHT, MARGIN, LEGEND = 760, 200, 46, 150
# Okabe and Ito's colours, which people tell apart whatever their eyes
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")

Points = Sequence[tuple[int, float]]  # (round, value); round 0 is before the run


@dataclass(frozen=True)
class Curve:
    """One line of a panel."""

    name: str
    points: Points


def draw(run: Mapping[str, Any]) -> str:
    """Return the SVG of a run's view."""
    history = [(0, run["before"]), *((each["round"], each["domains"]) for each in run["history"])]
    domains = list(dict.fromkeys(domain["domain"] for _, found in history for domain in found))
    accuracy = [
        Curve(
            name,
            [
                (number, each["accuracy"])
                for number, found in history
                for each in found
                if each["domain"] == name
            ],
        )
        for name in domains
    ]
    loss = Curve("mean loss", [(number, _mean(found, "loss")) for number, found in history if found])
    epsilon = Curve(
        "epsilon, the most of any member",
        [(each["round"], max(0, each["epsilon_milli_max"]) / 1000) for each in run["history"]],
    )
    rounds = max(1, run["rounds"])
    panels = [
        _panel("accuracy on the public set, by domain", accuracy, rounds, 1.0, 0),
        _panel("loss, nats a token", [loss], rounds, _top([loss]), 1),
        _panel("privacy spent", [epsilon], rounds, _top([epsilon]), 2),
    ]
    height = len(panels) * (PANEL_HEIGHT + MARGIN) + MARGIN
    title = f"run {run['run_id'][:8]}: {run['data']} for {run['line']}, {run['state']}"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11">'
    )
    ground = f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
    heading = f'<text x="{MARGIN}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>'
    return "\n".join((head, ground, heading, *panels, "</svg>", ""))


def _panel(title: str, curves: Sequence[Curve], rounds: int, top: float, index: int) -> str:
    left, right = MARGIN, WIDTH - LEGEND
    upper = MARGIN + index * (PANEL_HEIGHT + MARGIN)
    lower = upper + PANEL_HEIGHT - MARGIN // 2
    parts = [f'<text x="{left}" y="{upper - 6}" font-weight="bold">{escape(title)}</text>']
    for share in (0.0, 0.5, 1.0):
        y = lower - share * (lower - upper)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{left - 4}" y="{y + 4:.1f}" text-anchor="end">{share * top:.3g}</text>')
    for number in {0, rounds // 2, rounds}:
        x = left + (right - left) * number / rounds
        parts.append(f'<text x="{x:.1f}" y="{lower + 14}" text-anchor="middle">{number}</text>')
    for place, curve in enumerate(curves):
        colour = COLOURS[place % len(COLOURS)]
        path = " ".join(
            f"{left + (right - left) * number / rounds:.1f},{lower - min(value, top) / top * (lower - upper):.1f}"
            for number, value in curve.points
        )
        if path:
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        parts.append(
            f'<text x="{right + 8}" y="{upper + 12 + 14 * place}" fill="{colour}">{escape(curve.name)}</text>'
        )
    return "\n".join(parts)


def _mean(domains: Sequence[Mapping[str, Any]], figure: str) -> float:
    return sum(float(each[figure]) for each in domains) / len(domains)


def _top(curves: Sequence[Curve]) -> float:
    """The upper end of a scale: a little over the largest value, never zero."""
    return max((value for curve in curves for _, value in curve.points), default=0.0) * 1.05 or 1.0
