"""Runs the chapters one after another, each on a machine that is as quiet as it gets, and leaves no process behind."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from node.bench.figure import Chapter, Conditions
from node.bench.figures import CHAPTERS, Bench
from node.bench.report import ROOT, Table, markdown
from node.bench.sizes import FULL, QUICK
from node.errors import StartError
from node.local_mesh.processes import LocalMeshFailed
from node.store import measure_fsync_p50_s

TINY_MODEL: Final = ROOT / "examples" / "tiny_model" / "tiny-q8_0.gguf"
REPORT: Final = ROOT / "docs" / "BENCHMARKS.md"
FSYNCS: Final = 50


def run(*, quick: bool = False, only: Sequence[str] = (), output: Path | None = None) -> None:
    """Measure, print, and write the report.

    Args:
        quick: everything small: a trial of the bench itself.
        only: chapters; all of them when empty.
        output: where the report goes; by default docs/BENCHMARKS.md for a whole run, and nowhere for a part of one.

    Raises:
        StartError: no such chapter, or this is no checkout.
        LocalMeshFailed: a chapter broke off; the others were measured and the report was written all the same.
    """
    unknown = [name for name in only if name not in CHAPTERS]
    if unknown:
        raise StartError(f"no chapter {unknown[0]!r}, expected one of {', '.join(CHAPTERS)}")
    if not TINY_MODEL.is_file():
        raise StartError(
            f"no model {TINY_MODEL}, expected a checkout; clone the repository and run 'make bench'"
        )
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _interrupt)
    if output is None and not quick and not only:
        output = REPORT
    directory = Path(tempfile.mkdtemp(prefix="agora-bench-"))
    table = Table()
    try:
        plots = None if output is None else output.parent / "plots"
        if plots is not None:
            plots.mkdir(exist_ok=True)
        bench = Bench(directory, QUICK if quick else FULL, TINY_MODEL, table.say, plots)
        table.begin()
        chapters = [_measure(name, bench, table) for name in CHAPTERS if not only or name in only]
        if output is not None:
            output.write_text(markdown(chapters, is_quick=quick, directory=directory))
    finally:
        table.end()
        shutil.rmtree(directory, ignore_errors=True)
    broken = [chapter.name for chapter in chapters if chapter.failure]
    if broken:
        raise LocalMeshFailed(f"{', '.join(broken)} broke off, expected every figure; read the lines above")


def _measure(name: str, bench: Bench, table: Table) -> Chapter:
    """Measure one chapter; when it breaks off, keep what it has given until then."""
    chapter = Chapter(name)
    fsync_ms = measure_fsync_p50_s(bench.directory, FSYNCS) * 1000
    load_before, began_s = os.getloadavg()[0], time.monotonic()
    try:
        for figure in CHAPTERS[name](bench):
            chapter.figures.append(figure)
            table.add(figure)
    except LocalMeshFailed as error:
        chapter.failure = str(error)
        table.fail(chapter, error.log)
    took_s = time.monotonic() - began_s
    chapter.conditions = Conditions(load_before, os.getloadavg()[0], fsync_ms, took_s)
    return chapter


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """Take a request to end as Ctrl-C, so that no daemon is left behind."""
    raise KeyboardInterrupt
