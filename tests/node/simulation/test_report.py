"""The report says what was seen, in figures that can be checked by hand."""

import json

import msgspec
import pytest

from node.simulation.learned import Learned
from node.simulation.observations import Outcome, Propagation, Sample, Traffic
from node.simulation.report import duration, lines, sections
from node.simulation.summary import Percentiles, percentiles, rank, summarise
from node.simulation.trace import Header
from tests.node.simulation.made_up import Run, run

HEADER = Header(agora="0.1.0", commit="abc", scenario="churn", seed=7, nodes=4, seconds=7_200.0)


def small_run() -> Run:
    """Seven chats on four nodes in two hours; auctions of 10, 20, 30 ms, and one under a lease."""
    return Run(
        nodes=4,
        seconds=7_200.0,
        outcomes=[
            Outcome(0.0, "n0", state="finished", attempts=1, auction_s=0.01, ttft_s=0.1, tokens=9),
            Outcome(1.0, "n1", state="finished", attempts=2, auction_s=0.02, ttft_s=2.5, tokens=9),
            Outcome(2.0, "n0", state="unsold", reason="no_seller", declines={"context": 2, "busy": 1}),
            Outcome(3.0, "n0", state="unsold", reason="price", declines={"busy": 4, "price": 2}),
            Outcome(4.0, "n2", state="unsold", reason="price"),
            Outcome(5.0, "n2", state="failed", attempts=1, auction_s=0.03),
            Outcome(6.0, "n1", state="running", attempts=1, auction_s=0.0, ttft_s=0.05),
        ],
        samples=[Sample(0.0, 4, 8, 0, 80.0, 0, 0, 0), Sample(60.0, 3, 4, 3, 90.0, 3, 100, 1_000)],
        traffic={"n0": Traffic(300, 1_000_000), "n1": Traffic(100, 1_400_000)},
        propagation=[Propagation("advert", 5.0, (0.3, 0.1, 0.2)), Propagation("lonely", 6.0, ())],
        checks={"no_job_is_lost": 120, "credits_sum_to_zero": 12},
        digest="ab" * 16,
        events=1_234,
        learned=Learned({"aa"}, {"01": "finished", "02": "aborted"}, 5, {("n0", "bb"): 2_500}),
    )


def test_a_report_is_these_lines() -> None:
    assert lines(summarise(small_run(), HEADER, wall_s=4.0)) == [
        "churn, seed 7: 4 nodes for 2 h",
        "",
        "requests",
        "  asked                      7",
        "  finished                   2   28.6 %",
        "    after a failover         1",
        "  unsold                     3   42.9 %",
        "    because                  2  price",
        "    because                  1  no_seller",
        "  failed                     1   14.3 %",
        "  running                    1   14.3 %",
        "  declines of sellers        5 busy, 2 context, 2 price",
        "",
        "latency",
        "  auction, of 3              p50 20 ms  p90 30 ms  p95 30 ms  p99 30 ms",
        "  first token, of 3          p50 100 ms  p90 2.50 s  p95 2.50 s  p99 2.50 s",
        "",
        "market",
        "  price over time            ▁█  80 to 90 µ a token",
        "  slots busy over time       ▁█  37.5 %, 75.0 % at most",
        "  ledger sum                 0.000000 credits",
        "",
        "network",
        "  messages per node and hour 50",
        "  bytes per node and hour    300 kB",
        "  messages per chat          57.1",
        "  a gossiped message         half of the nodes after 200 ms, 99 % after 300 ms",
        "",
        "learning",
        "  runs                       1 finished, 1 aborted",
        "  patches ratified           1",
        "  votes                      5",
        "  privacy spent              epsilon 2.5 at most, on 1 data sets",
        "",
        "invariants",
        "  held 120 times             no job is lost",
        "  held 12 times              credits sum to zero",
        "",
        "run",
        "  events                     1,234",
        f"  digest                     {'ab' * 16}",
        "  took                       4.0 s: 7,200 node-seconds a second",
    ]


def test_a_world_in_which_nothing_happened_has_a_report_too() -> None:
    rows = dict(row for _, rows in sections(summarise(Run(), HEADER, wall_s=0.0)) for row in rows)

    assert rows == {
        "asked": "0",
        "finished": "0",
        "  after a failover": "0",
        "unsold": "0",
        "auction": "none",
        "first token": "none",
        "price": "not sampled",
        "slots busy": "not sampled",
        "ledger sum": "0.000000 credits",
        "messages per node and hour": "0",
        "bytes per node and hour": "0 B",
        "messages per chat": "no chat",
        "a gossiped message": "not followed",
        "runs": "0 finished, 0 aborted",
        "patches ratified": "0",
        "votes": "0",
        "privacy spent": "none",
        "none": "nothing was checked",
        "events": "0",
        "digest": "00" * 16,
        "took": "0.0 s: 0 node-seconds a second",
    }


def test_money_from_nowhere_and_violations_are_not_overlooked() -> None:
    seen = run()
    seen.ledger_sum_micro = -1_500_000
    seen.violations = ["no_job_is_lost\n  job 3f9a at 12 s"]

    shown = lines(summarise(seen, HEADER, wall_s=1.0))

    assert "  ledger sum                 -1.500000 credits" in shown
    assert "  VIOLATED                   no_job_is_lost job 3f9a at 12 s" in shown


def test_the_summary_is_json_that_holds_every_figure() -> None:
    summary = summarise(small_run(), HEADER, wall_s=4.0)

    found = json.loads(json.dumps(summary.as_json()))

    assert found["header"] == msgspec.to_builtins(HEADER)
    assert found["requests"] == {
        "asked": 7,
        "by_state": {"finished": 2, "unsold": 3, "failed": 1, "lost": 0, "running": 1},
        "failed_over": 1,
        "unsold_by_reason": {"price": 2, "no_seller": 1},
        "declines_by_reason": {"busy": 5, "context": 2, "price": 2},
    }
    assert found["auction"] == {"count": 3, "p50_s": 0.02, "p90_s": 0.03, "p95_s": 0.03, "p99_s": 0.03}
    assert found["market"] == [
        {"at_s": 0.0, "price_micro": 80.0, "utilisation": 0.0},
        {"at_s": 60.0, "price_micro": 90.0, "utilisation": 0.75},
    ]
    assert found["network"]["messages_per_chat"] == 400 / 7
    assert (found["ledger_sum_micro"], found["digest"], found["node_seconds_per_s"]) == (0, "ab" * 16, 7_200)


def test_percentiles_are_samples_that_occurred() -> None:
    """Nearest rank: of 1 to 100 the 99th percentile is 99, and one sample is all of them."""
    hundred = [float(number) for number in range(100, 0, -1)]

    assert percentiles(hundred) == Percentiles(100, 50.0, 90.0, 95.0, 99.0)
    assert percentiles([7.0, None]) == Percentiles(1, 7.0, 7.0, 7.0, 7.0)
    assert percentiles([None]) is None
    assert rank([1.0, 2.0], 0.0) == 1.0


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(60, "60 s"), (0.5, "0.5 s"), (600, "10 min"), (3_600, "1 h"), (5_430, "1 h 30 min 30 s"), (977.6, "977.6 s")],
)  # fmt: skip
def test_durations_read_as_people_say_them(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
