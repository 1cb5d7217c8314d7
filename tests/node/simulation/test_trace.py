"""A trace is the same bytes for the same events, and a replay stops where it first differs."""

import io
import json
from pathlib import Path

import pytest

from node.simulation.commit import commit
from node.simulation.options import SimulationOptions
from node.simulation.scenario import load
from node.simulation.trace import (
    KEPT_LINES,
    Diverged,
    Header,
    Trace,
    TraceUnreadable,
    read_end,
    read_events,
    read_header,
)

HEADER = Header(agora="0.1.0", commit="abc", scenario="calm", seed=7, nodes=2, seconds=60.0)


def record(path: Path, prices: tuple[int, ...] = (10, 20, 30)) -> Trace:
    """A whole file with one bid for each price."""
    with path.open("wb") as out:
        trace = Trace(HEADER, out)
        play(trace, prices)
        trace.finish()
    return trace


def play(trace: Trace, prices: tuple[int, ...]) -> None:
    for number, price in enumerate(prices):
        trace.write(0.5 * number, f"n{number % 2}", "bid_sent", {"price_micro": price})


def test_a_file_is_its_header_its_events_and_their_digest(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"

    trace = record(path)

    lines = path.read_text().splitlines()
    assert json.loads(lines[0]) == {
        "agora": "0.1.0", "commit": "abc", "scenario": "calm", "seed": 7, "nodes": 2, "seconds": 60.0,
        "scenario_digest": "", "options": {}, "format": "agora trace 1",
    }  # fmt: skip
    assert lines[1:] == [
        '{"t":0.0,"node":"n0","event":"bid_sent","price_micro":10}',
        '{"t":0.5,"node":"n1","event":"bid_sent","price_micro":20}',
        '{"t":1.0,"node":"n0","event":"bid_sent","price_micro":30}',
        f'{{"digest":"{trace.digest}","events":3}}',
    ]
    assert read_header(path) == HEADER
    assert (read_end(path).digest, read_end(path).events) == (trace.digest, 3)
    assert [line.decode() for line in read_events(path)] == lines[1:-1]
    assert trace.event_counts == {"bid_sent": 3}


def test_time_is_kept_to_the_microsecond() -> None:
    """Sums of floats differ in their last bits between ways to the same moment."""
    trace = Trace(HEADER)

    trace.write(0.1 + 0.2, "n0", "ready", {})

    assert trace.last(1) == ['{"t":0.3,"node":"n0","event":"ready"}']


def test_a_field_cannot_pass_for_another_node() -> None:
    trace = Trace(HEADER)

    trace.write(1.0, "n0", "ready", {"node": "n9", "t": 5, "port": 1})

    assert trace.last(1) == ['{"t":1.0,"node":"n0","event":"ready","node_":"n9","t_":5,"port":1}']


def test_the_digest_speaks_of_events_alone() -> None:
    """Another commit that behaves alike has the same one; another price, order or node has not."""
    same, otherwise, other_order = (
        Trace(header) for header in (HEADER, Header("0.2.0", "def", "mine", 8, 9, 1.0), HEADER)
    )

    play(same, (10, 20))
    play(otherwise, (10, 20))
    play(other_order, (20, 10))

    assert same.digest == otherwise.digest
    assert same.digest != other_order.digest


def test_the_last_lines_of_one_node_are_at_hand() -> None:
    trace = Trace(HEADER)

    play(trace, tuple(range(KEPT_LINES + 10)))

    assert [json.loads(line)["price_micro"] for line in trace.last(2, node="n1")] == [2007, 2009]
    assert len(trace.last(KEPT_LINES * 2)) == KEPT_LINES


def test_a_replay_of_the_same_events_ends_silently(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    recorded = record(path)
    again = Trace(HEADER, expected=read_events(path))

    play(again, (10, 20, 30))
    again.finish()

    assert (again.digest, again.events) == (recorded.digest, 3)


def test_a_replay_stops_at_the_first_difference_even_when_a_guard_swallows_it(tmp_path: Path) -> None:
    """Events are journaled inside handlers whose exceptions cost a peer its stream and nothing else."""
    path = tmp_path / "trace.jsonl"
    record(path)
    again = Trace(HEADER, expected=read_events(path))
    again.write(0.0, "n0", "bid_sent", {"price_micro": 10})

    with pytest.raises(Diverged) as first:
        again.write(0.5, "n1", "bid_sent", {"price_micro": 21})

    assert first.value.line_number == 3
    assert path.read_bytes().splitlines()[first.value.line_number - 1] == first.value.expected
    assert first.value.found == b'{"t":0.5,"node":"n1","event":"bid_sent","price_micro":21}'
    for later in (again.check, again.finish, lambda: play(again, (1,))):
        with pytest.raises(Diverged) as repeated:
            later()
        assert repeated.value is first.value
    assert again.events == 2


def test_a_replay_that_goes_on_or_ends_early_differs_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    record(path)
    longer, shorter = (Trace(HEADER, expected=read_events(path)) for _ in range(2))

    with pytest.raises(Diverged) as went_on:
        play(longer, (10, 20, 30, 40))
    play(shorter, (10, 20))
    with pytest.raises(Diverged) as ended:
        shorter.finish()

    assert (went_on.value.line_number, went_on.value.expected) == (5, b"")
    assert (ended.value.line_number, ended.value.found) == (4, b"")
    assert str(ended.value) == (
        "line 4 differs: found the end, "
        'expected {"t":1.0,"node":"n0","event":"bid_sent","price_micro":30} as recorded'
    )


def test_a_full_disk_stops_the_run_with_its_own_reason() -> None:
    class FullDisk(io.BytesIO):
        def write(self, data: object) -> int:
            if self.tell():
                raise OSError(28, "No space left on device")
            return super().write(data)  # type: ignore[arg-type]

    trace = Trace(HEADER, FullDisk())

    with pytest.raises(OSError, match="No space left"):
        play(trace, (10,))
    with pytest.raises(OSError, match="No space left"):
        trace.finish()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot read TRACE (No such file or directory), expected a trace of 'agora sim'"),
        (b"", "TRACE is no trace, expected what 'agora sim --out DIR' writes"),
        (b"\x89PNG\r\n\x1a\n\0\0", "TRACE is no trace, expected what 'agora sim --out DIR' writes"),
        (b'{"seed":1}\n', "TRACE is no trace, expected what 'agora sim --out DIR' writes"),
        (b"[" * 100_000, "TRACE is no trace, expected what 'agora sim --out DIR' writes"),
        (
            b'{"agora":"9","commit":"","scenario":"calm","seed":1,"nodes":1,"seconds":1,"format":"agora trace 2"}\n',
            "TRACE has format 'agora trace 2', expected 'agora trace 1'; update agora-node",
        ),
    ],
)
def test_a_foreign_file_is_refused_in_one_line(content: bytes | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(TraceUnreadable) as refused:
        read_header(path)

    assert str(refused.value) == reason.replace("TRACE", str(path))


def test_a_trace_that_was_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    """A killed run leaves no digest, and half of one proves nothing."""
    path = tmp_path / "trace.jsonl"
    record(path)
    whole = path.read_bytes()
    header_bytes = whole.index(b"\n") + 1

    for size in range(header_bytes, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(TraceUnreadable, match="is cut off: its last line is no digest"):
            read_header(path)


def test_a_header_says_what_ran() -> None:
    made = Header.of(SimulationOptions(load("calm"), nodes=5, seconds=60.0, seed=3))

    assert (made.scenario, made.scenario_digest, made.nodes, made.seconds, made.seed) == (
        "calm",
        "",
        5,
        60.0,
        3,
    )
    assert made.commit == commit()


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path) -> None:
    """Neither a directory that is no repository nor one whose repository is broken is a reason to fail."""
    assert commit(tmp_path) == ""
    (tmp_path / ".git").touch()
    assert commit(tmp_path) == ""
