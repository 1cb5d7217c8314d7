"""How the figures are shown: a table that grows while they come, and `docs/BENCHMARKS.md`."""

import datetime as dt
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil
from rich.console import Console
from rich.text import Text

from node.bench.figure import Chapter, Figure, Target, spread
from node.node import VERSION

ROOT: Final = Path(__file__).resolve().parent.parent.parent
NAME_WIDTH: Final = 46
COLUMNS: Final = ("target", "measured", "met", "samples", "min", "p50", "p95", "max")
LIBRARIES: Final = ("llama-cpp-python", "libp2p", "trio")


class Table:
    """The table on the terminal, one line a figure as soon as it is known, and one line that says what goes on."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._status = self._console.status("")

    def begin(self) -> None:
        """Print the head."""
        self._row("figure", COLUMNS, "dim")
        self._status.start()

    def end(self) -> None:
        """Stop saying what goes on."""
        self._status.stop()

    def say(self, text: str) -> None:
        """Say what goes on."""
        self._status.update(text)

    def add(self, figure: Figure) -> None:
        """Print a figure, and below it what its note says."""
        self._row(figure.name, cells(figure), {None: "", True: "green", False: "red"}[figure.is_met])
        if figure.note:
            self._console.print(Text(f"  {figure.note}", "dim"), soft_wrap=True)

    def fail(self, chapter: Chapter, log: str) -> None:
        """Say that a chapter broke off, and what its daemons last logged."""
        self._console.print(Text(f"{chapter.name} broke off: {chapter.failure}", "bold red"), soft_wrap=True)
        if log:
            self._console.print(Text(log, "dim"), soft_wrap=True)

    def _row(self, name: str, values: Sequence[str], style: str) -> None:
        line = f"{name:<{NAME_WIDTH}}" + "".join(f"{value:>11}" for value in values)
        self._console.print(Text(line, style), soft_wrap=True)


def cells(figure: Figure) -> tuple[str, ...]:
    """Return a figure's cells under `COLUMNS`."""
    verdict = {None: "reported", True: "yes", False: "NO"}[figure.is_met]
    spreading = spread(figure.samples)
    return (
        _target(figure.target, figure.unit),
        f"{number(figure.value)} {figure.unit}".strip(),
        verdict,
        str(len(figure.samples)),
        *(number(spreading[name]) for name in ("min", "p50", "p95", "max")),
    )


def number(value: float) -> str:
    """Return a number with three digits that mean something, or all of them before the point."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.1 else f"{value:.3f}"


def markdown(chapters: Sequence[Chapter], *, is_quick: bool, directory: Path) -> str:
    """Return the report.

    Args:
        chapters: what was measured, in order.
        is_quick: it was only a trial of the bench itself.
        directory: where the homes were, for the kind of its file system.
    """
    figures = [figure for chapter in chapters for figure in chapter.figures]
    lines = ["# Benchmarks", ""]
    if is_quick:
        lines += ["**A trial of the bench itself (`--quick`): these figures mean nothing.**", ""]
    lines += [
        "Written by `make bench`; do not edit. Every daemon was a process of its own with its own home, on loopback.",
        "",
        *_machine(directory),
        "",
        f"| figure | {' | '.join(COLUMNS)} |",
        f"|---|{'---:|' * len(COLUMNS)}",
        *(f"| {figure.name} | {' | '.join(cells(figure))} |" for figure in figures),
        "",
        "A figure's value is the statistic named below; `samples` counts what min, p50, p95 and max were taken from.",
        "",
        "## What was measured",
        "",
        *(_explained(figure) for figure in figures),
        "",
        "## Conditions",
        "",
        "| chapter | load before | load after | fsync p50 | took |",
        "|---|---:|---:|---:|---:|",
    ]
    for chapter in chapters:
        if chapter.conditions is not None:
            was = chapter.conditions
            lines.append(
                f"| {chapter.name} | {was.load_before:.2f} | {was.load_after:.2f} "
                f"| {was.fsync_p50_ms:.2f} ms | {was.took_s:.0f} s |"
            )
    broken = [f"- {chapter.name}: {chapter.failure}" for chapter in chapters if chapter.failure]
    if broken:
        lines += ["", "## Broke off", "", *broken]
    return "\n".join(lines) + "\n"


def _target(target: Target | None, unit: str) -> str:
    if target is None:
        return "–"
    return f"{'≤' if target.is_upper else '≥'} {number(target.limit)} {unit}".strip()


def _explained(figure: Figure) -> str:
    note = f" ({figure.note})" if figure.note else ""
    return f"- **{figure.name}**, {figure.statistic}: {figure.what}{note}."


def _machine(directory: Path) -> list[str]:
    memory_gb = psutil.virtual_memory().total / 1e9
    libraries = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    return [
        "| | |",
        "|---|---|",
        f"| date | {dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC |",
        f"| commit | {_commit()} |",
        f"| versions | agora-node {VERSION}, {libraries} |",
        f"| processor | {_processor()}, {os.cpu_count()} logical cores |",
        f"| memory | {memory_gb:.0f} GB |",
        f"| system | {platform.system()} {platform.release()}, Python {platform.python_version()} |",
        f"| homes on | {_file_system(directory)} |",
    ]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _file_system(directory: Path) -> str:
    """Return the kind of file system: a commit costs nothing on one in memory."""
    path = directory.resolve()
    around = [
        partition
        for partition in psutil.disk_partitions(all=True)
        if path.is_relative_to(partition.mountpoint)
    ]
    return max(around, key=lambda partition: len(partition.mountpoint)).fstype if around else "unknown"


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments],  # noqa: S607  # the git that the checkout was made with
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = " with uncommitted changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    except FileNotFoundError:
        return "unknown"
    return f"{commit}{changed}" or "unknown"
