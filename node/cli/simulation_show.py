"""How a simulation looks in a terminal: while it runs, when it is over, and when a replay of it differs."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from node.cli.show import cell, err, out, print_json

if TYPE_CHECKING:
    from node.simulation.options import Progress, SimulationOptions
    from node.simulation.summary import Summary
    from node.simulation.trace import Diverged, Trace

REDRAW_S = 0.1
LAST_EVENTS = 8  # of the node whose replay differs
THE_END = "the end"


@contextmanager
def live(options: "SimulationOptions", trace: "Trace") -> "Iterator[Callable[[Progress], None]]":
    """Show on stderr how far a run is, and stop it where a replay differs.

    Redrawn by the run itself: a thread of its own would take the interpreter from it.
    """
    start_s = drawn_s = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[told]}"))
    bar = Bar(*columns, console=err, transient=True, auto_refresh=False, disable=not err.is_terminal)
    with bar:
        task = bar.add_task(options.scenario.name, total=options.seconds, told="founding the mesh")
        bar.refresh()

        def on_progress(progress: "Progress") -> None:
            nonlocal drawn_s
            trace.check()
            now_s = time.monotonic()
            if now_s - drawn_s >= REDRAW_S:
                drawn_s = now_s
                bar.update(task, completed=progress.at_s, told=progress_line(progress, now_s - start_s))
                bar.refresh()

        yield on_progress


def progress_line(progress: "Progress", wall_s: float) -> str:
    """Return how far a run is, in a few words."""
    return (
        f"{_clock(progress.at_s)} of {_clock(progress.seconds)} · {progress.chats_finished:,} chats finished · "
        f"{progress.online:,} online · {progress.at_s / max(wall_s, 1e-9):,.0f} times as fast as life"
    )


def show(summary: "Summary", files: list[Path], replay: Path | None) -> None:
    """Print the report, where the files are, and how to run it again."""
    from node.simulation.report import NAME_WIDTH, sections, title

    out.print(Text(title(summary), "bold"))
    for heading, rows in sections(summary):
        shown = Table(
            box=None,
            show_header=False,
            title=heading,
            title_justify="left",
            title_style="cyan",
            pad_edge=False,
        )
        shown.add_column(style="dim", width=NAME_WIDTH, overflow="fold")
        shown.add_column(overflow="fold")
        for name, value in rows:
            shown.add_row(name, cell(value, "bold red" if name == "VIOLATED" else ""))
        out.print()
        out.print(shown)
    if files:
        names = " ".join(path.name for path in files)
        out.print(Text.assemble(("\nfiles  ", "dim"), f"{files[0].parent}: {names}"), soft_wrap=True)
        out.print(Text.assemble(("again  ", "dim"), f"agora sim --replay {files[0]}"), soft_wrap=True)
    if replay is not None:
        out.print(Text(f"\nthe same {summary.events:,} events as {replay}", "green"), soft_wrap=True)


def tell_of_difference(difference: "Diverged", trace: "Trace", replay: Path, *, as_json: bool) -> str:
    """Show where a replay first differs; return it in one line."""
    from node.simulation.trace import read_header

    now, recorded = _decoded(difference.found), _decoded(difference.expected)
    first = now or recorded
    before = [
        line for line in trace.last(LAST_EVENTS, first.get("node")) if line.encode() != difference.found
    ]
    if as_json:
        line_number = difference.line_number
        print_json({"line": line_number, "recorded": recorded or None, "now": now or None, "before": before})
    else:
        shown = Table(box=None, show_header=False, pad_edge=False)
        shown.add_column(style="dim", no_wrap=True)
        shown.add_column(overflow="fold")
        for line in before:
            shown.add_row("before", cell(line))
        for name, said, style in (
            ("recorded", difference.expected, "green"),
            ("now", difference.found, "red"),
        ):
            shown.add_row(name, cell(said.decode(errors="backslashreplace") or THE_END, style))
        out.print(shown)
    header = read_header(replay)
    commits = (header.commit or "unknown", trace.header.commit or "unknown")
    versions = "" if commits[0] == commits[1] else f" (recorded at commit {commits[0]}, run at {commits[1]})"
    return (
        f"the run differs from {replay} at line {difference.line_number}, {first.get('t', 0):g} s: "
        f"found {_event(difference.found)}, expected {_event(difference.expected)}{versions}"
    )


def _decoded(line: bytes) -> dict[str, Any]:
    """Return an event, or nothing when the line is none: a recording may have been edited by hand."""
    try:
        decoded = json.loads(line)
        return (
            decoded if isinstance(decoded["t"] + 0.0, float) and decoded["node"] and decoded["event"] else {}
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}


def _event(line: bytes) -> str:
    event = _decoded(line)
    return f"{event['event']} of {event['node']}" if event else "no event" if line else THE_END


def _clock(seconds: float) -> str:
    minutes, left = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{left:02}"
