"""What a figure says of its samples, and how the report shows it."""

from pathlib import Path

from node.bench.figure import Chapter, Conditions, Figure, at_least, at_most, spread
from node.bench.report import cells, markdown

QUIET = Conditions(load_before=0.1, load_after=0.2, fsync_p50_ms=0.9, took_s=12.0)


def figure(*samples: float, **fields: object) -> Figure:
    return Figure("auction", "what it is", "ms", samples, **fields)  # type: ignore[arg-type]


def test_a_spread_names_samples_that_were_seen() -> None:
    """The 95th percentile is the nearest rank: of few samples it is the largest, never a value in between."""
    assert spread([3.0, 1.0, 2.0]) == {"min": 1.0, "p50": 2.0, "p95": 3.0, "max": 3.0}
    assert spread([float(number) for number in range(1, 101)])["p95"] == 95.0


def test_a_promise_is_judged_by_the_statistic_that_it_names() -> None:
    assert figure(1, 2, 90, statistic="p50", target=at_most(60)).is_met is True
    assert figure(1, 2, 90, statistic="p95", target=at_most(60)).is_met is False
    assert figure(0.95, target=at_least(0.95)).is_met is True
    assert figure(1, 2, 90).is_met is None


def test_a_line_of_the_table_holds_target_value_verdict_and_spread() -> None:
    row = cells(figure(10, 20, 61.5, statistic="max", target=at_most(60)))

    assert row == ("≤ 60 ms", "61.5 ms", "NO", "3", "10", "20", "61.5", "61.5")


def test_the_report_tells_conditions_explanations_and_what_broke_off() -> None:
    """A figure that is missing must not look like one that was never promised."""
    told = Chapter("auction", [figure(5, note="the window was 50 ms")], QUIET)
    broken = Chapter("kill", [], QUIET, failure="seller0's daemon is not ready in time")

    report = markdown([told, broken], is_quick=False, directory=Path.cwd())

    assert "| auction | – | 5 ms | reported | 1 | 5 | 5 | 5 | 5 |" in report
    assert "- **auction**, p50: what it is (the window was 50 ms)." in report
    assert "| kill | 0.10 | 0.20 | 0.90 ms | 12 s |" in report
    assert "- kill: seller0's daemon is not ready in time" in report
    assert "mean nothing" not in report
