"""`sim`, `sim list`: a whole mesh in one process on virtual time; what it came to, and the same run once more."""

import contextlib
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from node.cli.show import cell, out, print_json, table
from node.cli.simulation_show import live, show, tell_of_difference
from node.errors import StartError
from protocol.errors import AgoraError

if TYPE_CHECKING:
    from node.simulation.options import Progress, SimulationOptions
    from node.simulation.summary import Seen, Summary
    from node.simulation.trace import Trace

    Simulate = Callable[[SimulationOptions, Trace, Callable[[Progress], None]], Seen]

sim_group = typer.Typer()

NODES = 100
MINUTES = 10.0
SEED = 1
SCENARIO = "calm"
TRACE_FILE = "trace.jsonl"
SUMMARY_FILE = "summary.json"
BUFFER_BYTES = 1024 * 1024  # a line each would be a million writes


@sim_group.callback(invoke_without_command=True)
def sim(
    context: typer.Context,
    nodes: Annotated[
        int | None, typer.Option("--nodes", metavar="N", help=f"How many devices; else {NODES}.")
    ] = None,
    hours: Annotated[
        float | None, typer.Option("--hours", metavar="H", help="How long, in virtual time.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", metavar="M", help=f"The same; else {MINUTES:g} minutes.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="S", help=f"The same seed gives the same run; else {SEED}."),
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            "--scenario", metavar="NAME|FILE", help=f"What happens, or your own file; else {SCENARIO}."
        ),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write the trace, the summary and the plots there."),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option("--replay", metavar="TRACE", help="Run a trace again, and stop where it first differs."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Run a simulated mesh: the real node on virtual time, everything else from one seed; `list` names the scenarios.

    Example: `agora sim --nodes 1000 --hours 1 --seed 7 --scenario churn --out run7`
    """
    if context.invoked_subcommand is not None:
        return
    if hours is not None and minutes is not None:
        raise StartError("--hours and --minutes contradict each other, expected one of them")
    if replay is None:
        seconds = 60 * (MINUTES if minutes is None else minutes) if hours is None else 3_600 * hours
        options = options_of(
            scenario or SCENARIO,
            nodes=NODES if nodes is None else nodes,
            seconds=seconds,
            seed=SEED if seed is None else seed,
        )
    else:
        said = {
            "--nodes": nodes,
            "--hours": hours,
            "--minutes": minutes,
            "--seed": seed,
            "--scenario": scenario,
        }
        refuse_beside_replay([name for name, value in said.items() if value is not None])
        options = options_in(replay)
    from node.simulation.main import simulate

    run(options, simulate, directory=directory, replay=replay, as_json=as_json)


@sim_group.command("list")
def listing(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Name the scenarios that Agora ships, and what each shows.

    Example: `agora sim list`
    """
    from node.simulation.scenario import shipped

    if as_json:
        print_json([{"name": each.name, "about": each.about} for each in shipped()])
        return
    shown = table("scenario", "what it shows", fold=("what it shows",))
    for each in shipped():
        shown.add_row(each.name, cell(each.about))
    out.print(shown)


def options_of(scenario: str, *, nodes: int, seconds: float, seed: int) -> "SimulationOptions":
    """Return the options of a new run."""
    from node.simulation.options import SimulationOptions
    from node.simulation.scenario import load

    return SimulationOptions(load(scenario), nodes, seconds, seed)


def options_in(path: Path) -> "SimulationOptions":
    """Return the options that a trace was recorded with."""
    from node.simulation.options import SimulationOptions
    from node.simulation.scenario import load
    from node.simulation.trace import read_header

    header = read_header(path)
    return SimulationOptions(
        load(header.scenario, header.scenario_digest), header.nodes, header.seconds, header.seed
    )


def refuse_beside_replay(options: list[str]) -> None:
    """Refuse options that a trace already answers."""
    if options:
        raise StartError(
            f"--replay takes scenario, nodes, time and seed from the trace, found {', '.join(options)} as well; "
            "leave out one or the other"
        )


def run(
    options: "SimulationOptions",
    simulate: "Simulate",
    *,
    directory: Path | None = None,
    replay: Path | None = None,
    as_json: bool = False,
) -> None:
    """Run a world, show what it came to, and write it down.

    Args:
        options: what to run.
        simulate: `node.simulation.main.simulate`.
        directory: where the files go, or None for none; made if it is not there.
        replay: the trace to compare with.
        as_json: print the summary as JSON.

    Raises:
        AgoraError: a replay differs, or an invariant does not hold; the details are on stdout by then.
    """
    from node.simulation.summary import summarise
    from node.simulation.trace import Header, Trace, read_events

    draw = None if directory is None else plotter()
    with ExitStack() as stack:
        file = None
        if directory is not None:
            if replay is not None and replay.resolve() == (directory / TRACE_FILE).resolve():
                raise StartError(
                    f"--out would overwrite {replay}, which --replay reads; name another directory"
                )
            directory.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((directory / TRACE_FILE).open("wb", buffering=BUFFER_BYTES))
        trace = Trace(Header.of(options), file, None if replay is None else read_events(replay))
        start_s = time.monotonic()
        seen = told(options, simulate, trace, replay=replay, as_json=as_json)
        summary = summarise(seen, trace.header, time.monotonic() - start_s)
    files: list[Path] = []
    if directory is not None and draw is not None:
        (directory / SUMMARY_FILE).write_text(json.dumps(summary.as_json(), indent=2) + "\n")
        files = [directory / TRACE_FILE, directory / SUMMARY_FILE, *draw(seen, summary, directory)]
    if as_json:
        extra = {"files": [str(path) for path in files], "is_replayed": replay is not None}
        print_json(summary.as_json() | extra)
    else:
        show(summary, files, replay)
    if summary.violations:
        first = summary.violations[0].splitlines()[0]
        raise AgoraError(
            f"{len(summary.violations)} violations of invariants, expected none; the first: {first}"
        )


def told(
    options: "SimulationOptions", simulate: "Simulate", trace: "Trace", *, replay: Path | None, as_json: bool
) -> "Seen":
    """Run a world with a live line, and tell of what stopped it: in full on stdout, in one line by what is raised."""
    from node.simulation.trace import Diverged

    try:
        with live(options, trace) as on_progress:
            seen = simulate(options, trace, on_progress)
        trace.finish()
    except Exception as error:
        stopped: BaseException = error
        try:
            trace.check()  # a guard may have swallowed a difference, and then something else broke
        except Diverged as difference:
            stopped = difference
        if isinstance(stopped, Diverged):
            assert replay is not None
            raise AgoraError(tell_of_difference(stopped, trace, replay, as_json=as_json)) from error
        lines = str(stopped).splitlines()
        if not isinstance(stopped, AgoraError) or len(lines) < 2:
            raise
        with contextlib.suppress(Diverged):
            trace.finish()  # a run that ends in a violation can be replayed up to it
        if as_json:
            print_json({"violation": lines})
        else:
            out.print(Text("\n".join(lines)), soft_wrap=True)
        raise AgoraError(lines[0]) from error
    return seen


def plotter() -> "Callable[[Seen, Summary, Path], list[Path]]":
    """Return what draws the plots; asked before a run, since afterwards minutes would be lost.

    Raises:
        StartError: matplotlib is not installed.
    """
    try:
        from node.simulation.plots import draw
    except ModuleNotFoundError as error:
        raise StartError(
            f"no {error.name}, expected it for the plots of --out; run \"pip install 'agora-node[sim]'\""
        ) from error
    return draw
