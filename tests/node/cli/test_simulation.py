"""`agora sim` around a world that is a few lines long: what it shows, writes, replays and refuses."""

import contextlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console

from node.cli import app, simulation, simulation_show
from node.simulation.options import Progress, SimulationOptions
from node.simulation.scenario import SHAPE, load, names
from node.simulation.summary import Seen
from node.simulation.trace import Header, Trace, read_end
from protocol.errors import AgoraError
from tests.node.simulation.made_up import run as made_up_run

VIOLATION = """no job is lost: job 3f9a1c2b is neither settled nor refunded after 60 s
  seed 7, commit abc, at 61.5 s on laptop-3
  replay it: agora sim --replay run/trace.jsonl"""


@dataclass(frozen=True)
class Told:
    """What a run came to: what is on stdout, and the one line with which it was refused."""

    out: str
    refused: str = ""


def world(options: SimulationOptions, trace: Trace, on_progress: Callable[[Progress], None]) -> Seen:
    """Ten awards, of prices that the seed decides."""
    for second in range(10):
        trace.write(float(second), f"n{second % 2}", "award_sent", {"price_micro": options.seed * second})
        on_progress(Progress(float(second), options.seconds, second, options.nodes))
    return replace(made_up_run(options.nodes, options.seconds), digest=trace.digest, events=trace.events)


def swallowing_world(
    options: SimulationOptions, trace: Trace, on_progress: Callable[[Progress], None]
) -> Seen:
    """As guards do: what a handler raises stays inside."""
    for second in range(10):
        with contextlib.suppress(AgoraError):
            trace.write(float(second), f"n{second % 2}", "award_sent", {"price_micro": 99})
        on_progress(Progress(float(second), options.seconds, second, options.nodes))
    raise AssertionError("the run went on after its first difference")


def broken_world(options: SimulationOptions, trace: Trace, on_progress: Callable[[Progress], None]) -> Seen:
    world(options, trace, on_progress)
    raise AgoraError(VIOLATION)


@pytest.fixture
def sim(capsys: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    """Run one of the worlds above, as the verb does with the real one."""

    def run(simulate: Callable[..., Seen] = world, seed: int = 7, **settings: object) -> Told:
        options = simulation.options_of("churn", nodes=40, seconds=600.0, seed=seed)
        if "replay" in settings:
            options = simulation.options_in(settings["replay"])
        try:
            simulation.run(options, simulate, **settings)
        except AgoraError as error:
            return Told(capsys.readouterr().out, str(error))
        return Told(capsys.readouterr().out)

    return run


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """The trace of a run with seed 7."""
    path = tmp_path / "trace.jsonl"
    options = simulation.options_of("churn", nodes=40, seconds=600.0, seed=7)
    with path.open("wb") as file:
        trace = Trace(Header.of(options), file)
        world(options, trace, lambda _: None)
        trace.finish()
    return path


def test_a_run_prints_its_report(sim: Callable[..., Told]) -> None:
    told = sim()

    for part in (
        "churn, seed 7: 40 nodes for 10 min",
        "requests",
        "finished",
        "p50",
        "ledger sum",
        "0.000000 credits",
        "ledger sums to zero",
        "held 60 times",
        "digest",
    ):
        assert part in told.out
    assert told.refused == ""
    assert "again" not in told.out


def test_out_holds_the_trace_the_summary_and_the_plots(sim: Callable[..., Told], tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "run7"

    told = sim(directory=directory, as_json=True)

    summary = json.loads(told.out)
    plots = {
        f"{name}.{suffix}"
        for name in ("latency", "market", "propagation", "map")
        for suffix in ("png", "svg")
    }
    assert {path.name for path in directory.iterdir()} == plots | {"trace.jsonl", "summary.json"}
    assert {Path(path).name for path in summary.pop("files")} == plots | {"trace.jsonl", "summary.json"}
    assert summary.pop("is_replayed") is False
    assert json.loads((directory / "summary.json").read_text()) == summary
    end = read_end(directory / "trace.jsonl")
    assert (end.digest, end.events) == (summary["digest"], 10)
    assert summary["header"]["seed"] == 7


def test_a_replay_of_the_same_run_says_so(sim: Callable[..., Told], recorded: Path) -> None:
    """Scenario, seed, nodes and time come from the trace."""
    told = sim(replay=recorded)

    assert "churn, seed 7: 40 nodes for 10 min" in told.out
    assert told.out.splitlines()[-1] == f"the same 10 events as {recorded}"
    assert told.refused == ""
    assert json.loads(sim(replay=recorded, as_json=True).out)["is_replayed"] is True


def test_a_replay_that_differs_stops_there_and_shows_both_lines(
    sim: Callable[..., Told], recorded: Path
) -> None:
    """Whatever a guard swallowed, and whatever breaks because of it."""
    told = sim(swallowing_world, replay=recorded)
    as_json = sim(swallowing_world, replay=recorded, as_json=True)

    assert told.refused.startswith(
        f"the run differs from {recorded} at line 2, 0 s: found award_sent of n0, expected award_sent of n0"
    )
    assert as_json.refused == told.refused
    assert json.loads(as_json.out) == {
        "line": 2,
        "recorded": {"t": 0.0, "node": "n0", "event": "award_sent", "price_micro": 0},
        "now": {"t": 0.0, "node": "n0", "event": "award_sent", "price_micro": 99},
        "before": [],
    }
    words = told.out.split()
    assert words.index("recorded") < words.index("now")


def test_a_replay_that_ends_early_shows_what_the_node_did_before(
    sim: Callable[..., Told], recorded: Path
) -> None:
    def shorter(options: SimulationOptions, trace: Trace, _: Callable[[Progress], None]) -> Seen:
        for second in range(9):
            trace.write(float(second), f"n{second % 2}", "award_sent", {"price_micro": options.seed * second})
        return made_up_run()

    told = sim(shorter, replay=recorded, as_json=True)

    assert "at line 11, 9 s: found the end, expected award_sent of n1" in told.refused
    shown = json.loads(told.out)
    assert (shown["line"], shown["now"], shown["recorded"]["price_micro"]) == (11, None, 63)
    assert [json.loads(line)["t"] for line in shown["before"]] == [1.0, 3.0, 5.0, 7.0]


@pytest.mark.parametrize("line", [b"not json", b"[]", b'{"t":"late","node":"n0","event":"x"}', b"\xff\xfe"])
def test_a_recording_that_somebody_edited_is_a_difference_like_any_other(
    line: bytes, sim: Callable[..., Told], recorded: Path
) -> None:
    lines = recorded.read_bytes().splitlines()
    recorded.write_bytes(b"\n".join([*lines[:4], line, *lines[5:]]) + b"\n")

    told = sim(replay=recorded)

    assert told.refused.startswith(
        f"the run differs from {recorded} at line 5, 3 s: found award_sent of n1, expected no event"
    )


def test_a_difference_between_commits_names_both(sim: Callable[..., Told], recorded: Path) -> None:
    header, rest = recorded.read_bytes().split(b"\n", 1)
    recorded.write_bytes(json.dumps(json.loads(header) | {"commit": "0ld"}).encode() + b"\n" + rest)

    told = sim(swallowing_world, replay=recorded)

    assert "(recorded at commit 0ld, run at " in told.refused


def test_a_violation_is_told_in_full_and_its_trace_can_be_replayed(
    sim: Callable[..., Told], tmp_path: Path
) -> None:
    trace = tmp_path / "trace.jsonl"

    told = sim(broken_world, directory=tmp_path)
    again = sim(broken_world, replay=trace)
    as_json = sim(broken_world, as_json=True)

    assert told == Told(VIOLATION + "\n", VIOLATION.splitlines()[0])
    assert again == told
    assert json.loads(as_json.out) == {"violation": VIOLATION.splitlines()}
    assert read_end(trace).events == 10


def test_violations_that_were_collected_refuse_the_run_after_its_report(sim: Callable[..., Told]) -> None:
    def violating(options: SimulationOptions, trace: Trace, on_progress: Callable[[Progress], None]) -> Seen:
        return replace(world(options, trace, on_progress), violations=[VIOLATION, "two awards are live"])

    told = sim(violating)

    assert "VIOLATED" in told.out
    assert told.refused == (
        f"2 violations of invariants, expected none; the first: {VIOLATION.splitlines()[0]}"
    )


def test_a_run_that_broke_leaves_a_trace_that_is_no_whole_one(
    sim: Callable[..., Told], tmp_path: Path
) -> None:
    """An interrupted run was not decided by its seed."""

    def interrupted(
        options: SimulationOptions, trace: Trace, on_progress: Callable[[Progress], None]
    ) -> Seen:
        world(options, trace, on_progress)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sim(interrupted, directory=tmp_path)

    with pytest.raises(AgoraError, match="is cut off"):
        sim(replay=tmp_path / "trace.jsonl")


def test_a_replay_does_not_overwrite_what_it_reads(
    sim: Callable[..., Told], recorded: Path, tmp_path: Path
) -> None:
    before = recorded.read_bytes()

    told = sim(directory=tmp_path / "x" / "..", replay=recorded)

    assert told.refused.endswith("which --replay reads; name another directory")
    assert recorded.read_bytes() == before


def test_without_matplotlib_a_run_with_plots_is_refused_before_it_begins(
    sim: Callable[..., Told], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "node.simulation.plots", raising=False)

    told = sim(directory=tmp_path / "run")

    assert told.refused == (
        "no matplotlib, expected it for the plots of --out; run \"pip install 'agora-node[sim]'\""
    )
    assert not (tmp_path / "run").exists()


def test_progress_is_drawn_on_a_terminal_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr, so that stdout holds the report alone; a refusal stays one line."""
    options = simulation.options_of("churn", nodes=40, seconds=3_600.0, seed=7)
    drawn = {}
    for is_terminal in (True, False):
        screen = io.StringIO()
        monkeypatch.setattr(
            simulation_show, "err", Console(file=screen, force_terminal=is_terminal, width=150)
        )
        monkeypatch.setattr(simulation_show, "REDRAW_S", 0.0)
        with simulation_show.live(options, Trace(Header.of(options))) as on_progress:
            on_progress(Progress(754.2, 3_600.0, 1_234, 987))
        drawn[is_terminal] = screen.getvalue()

    assert "0:12:34 of 1:00:00 · 1,234 chats finished · 987 online · " in drawn[True]
    assert drawn[False] == ""


def test_the_line_of_progress_says_how_fast_time_goes() -> None:
    line = simulation_show.progress_line(Progress(90.0, 36_000.0, 0, 5), wall_s=3.0)

    assert line == "0:01:30 of 10:00:00 · 0 chats finished · 5 online · 30 times as fast as life"


def test_the_scenarios_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    shown = app.run(["sim", "list"]), capsys.readouterr().out
    as_json = app.run(["sim", "list", "--json"]), capsys.readouterr().out

    assert shown[0] == as_json[0] == 0
    assert [each["name"] for each in json.loads(as_json[1])] == names()
    for name in names():
        assert name in shown[1]
        assert load(name).about[:20] in shown[1]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--hours 1 --minutes 5", "--hours and --minutes contradict each other, expected one of them"),
        (
            "--replay none --seed 0 --hours 1",
            "--replay takes scenario, nodes, time and seed from the trace, found --hours, --seed as well; leave out one or the other",
        ),
        ("--replay none", "cannot read none (No such file or directory), expected a trace of 'agora sim'"),
        ("--replay foreign", "foreign is no trace, expected what 'agora sim --out DIR' writes"),
        (
            "--scenario hurricane",
            f"no scenario 'hurricane', expected {', '.join(names())}, or {SHAPE}",
        ),
        ("--nodes 0", "a world of 0 nodes, expected 1 or more"),
        ("--minutes 0", "a world that lasts 0 s, expected more than 0"),
        ("--hours -1", "a world that lasts -3600 s, expected more than 0"),
        ("--hours inf", "a world that lasts inf s, expected more than 0"),
        ("--hours nan", "a world that lasts nan s, expected more than 0"),
        (
            "--nodes many",
            "invalid value for '--nodes': 'many' is not a valid integer; run 'agora sim --help'",
        ),
    ],
)
def test_what_contradicts_itself_or_cannot_be_read_is_refused_in_one_line(
    words: str,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign").write_bytes(b"\x89PNG\n")

    status = app.run(["sim", *words.split()])

    told = capsys.readouterr()
    assert status != 0
    assert (told.out, told.err) == ("", line + "\n")
