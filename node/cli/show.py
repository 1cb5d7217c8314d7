"""How things look in a terminal: tables, amounts, ids, and text of strangers made harmless."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, JustifyMethod
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

FOLD_WIDTH_MIN = 6  # characters; a terminal too narrow for its table cuts the others
MICRO = 1_000_000  # micro-credits in a credit

out = Console(highlight=False)
err = Console(highlight=False, stderr=True)


def print_json(value: object) -> None:
    """Print a view as the mesh API gives it."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def table(*columns: str, title: str = "", right: Iterable[str] = (), fold: Iterable[str] = ()) -> Table:
    """Return an empty table; the columns named in `right` hold figures, those in `fold` text of any length."""
    made = Table(title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False)
    figures, folding = set(right), set(fold)
    for column in columns:
        justify: JustifyMethod = "right" if column in figures else "left"
        is_folding = column in folding
        made.add_column(
            column,
            justify=justify,
            header_style="dim",
            no_wrap=not is_folding,
            min_width=FOLD_WIDTH_MIN if is_folding else None,
            overflow="fold",
        )
    return made


def printable(text: str, keep: str = "") -> str:
    r"""Return text of a stranger so that no terminal obeys it: control characters become `\x1b`, direction marks too."""
    if text.isprintable():
        return text
    return "".join(
        char
        if char.isprintable() or char in keep
        else char.encode("unicode_escape", "backslashreplace").decode("ascii")
        for char in text
    )


def cell(value: object, style: str = "") -> Text:
    """Return a table's cell; what looks like markup in it stays text."""
    return Text(printable(str(value)), style=style)


def short(ident: str) -> str:
    """Return the part of a peer id, digest or job id that tells it from others."""
    return f"…{ident[-8:]}" if ident.startswith("12D3KooW") else ident[:8]


def credit(micro: int) -> str:
    """Return an amount in credits: 412 micro-credits are `0.000412`."""
    sign = "-" if micro < 0 else ""
    whole, rest = divmod(abs(micro), MICRO)
    return f"{sign}{whole:,}.{rest:06}"


def milliseconds(seconds: float | None) -> str:
    """Return a duration as `34 ms`, or a dash."""
    return "–" if seconds is None else f"{seconds * 1000:.0f} ms"


def clock(unix_s: float) -> str:
    """Return a moment in this machine's time zone."""
    return _local(unix_s).strftime("%Y-%m-%d %H:%M:%S")


def short_clock(unix_s: float) -> str:
    """Return a moment of today as its time, another one as its day."""
    moment = _local(unix_s)
    is_today = moment.date() == datetime.now(UTC).astimezone().date()
    return moment.strftime("%H:%M:%S" if is_today else "%Y-%m-%d")


def _local(unix_s: float) -> datetime:
    return datetime.fromtimestamp(unix_s, UTC).astimezone()


def ago(seconds: float | None) -> str:
    """Return how long ago something was."""
    if seconds is None:
        return "never"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def pairs(values: Mapping[str, object]) -> Table:
    """Return names and values below each other."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="dim")
    made.add_column(overflow="fold")
    for name, value in values.items():
        made.add_row(name, cell(value))
    return made


def sizes(count_bytes: float) -> str:
    """Return a number of bytes as people say it."""
    for unit in ("B", "KiB", "MiB"):
        if count_bytes < 1024:
            return f"{count_bytes:.0f} {unit}"
        count_bytes /= 1024
    return f"{count_bytes:.1f} GiB"


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show on stderr that something of unknown length goes on."""
    with err.status(what):
        yield


class Bytes:
    """A bar that counts bytes; `update(done, total)` moves it."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def update(self, done: int, total: int) -> None:
        """Set the bar."""
        self._progress.update(self._task, completed=done, total=total)


@contextmanager
def bytes_bar(what: str) -> Iterator[Bytes]:
    """Show a bar on stderr for something that reads or writes many bytes."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    # off a terminal it would leave an empty line, and a refusal is one line
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        yield Bytes(progress, progress.add_task(what, total=None))


def device_line(device: Mapping[str, Any]) -> str:
    """Return a device's figures in a few words."""
    words = [f"{device.get('cores', '?')} cores", f"{device.get('memory_free_mib', '?')} MiB free"]
    if device.get("gpu"):
        words.append(printable(str(device["gpu"])))
    battery = device.get("battery_percent", -1)
    if isinstance(battery, int) and battery >= 0:
        words.append(f"battery {battery} %{' charging' if device.get('is_charging') else ''}")
    return ", ".join(words)
