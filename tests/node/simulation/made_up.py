"""A run as a world would show it, made up from a seed: for the report, the plots and the command line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

from node.simulation.learned import Learned
from node.simulation.observations import MapNode, Outcome, Propagation, Sample, Traffic

PROFILES = ("laptop", "laptop", "phone", "phone", "phone-charging", "server")


@dataclass
class Run:
    """Satisfies `node.simulation.summary.Seen`; empty unless told otherwise."""

    nodes: int = 0
    seconds: float = 0.0
    outcomes: list[Outcome] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    propagation: list[Propagation] = field(default_factory=list)
    map: list[MapNode] = field(default_factory=list)
    ledger_sum_micro: int = 0
    checks: Mapping[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    digest: str = "00" * 16
    events: int = 0
    learned: Learned = field(default_factory=Learned)


def run(nodes: int = 40, seconds: float = 3_600.0, chats: int = 800, seed: int = 1) -> Run:
    """Return a plausible run; a tenth of its nodes is away at the end."""
    rng = Random(seed)
    return Run(
        nodes=nodes,
        seconds=seconds,
        outcomes=sorted(
            (_outcome(rng, rng.uniform(0, seconds)) for _ in range(chats)), key=lambda each: each.at_s
        ),
        samples=[_sample(rng, nodes, minute) for minute in range(int(seconds) // 60 + 1)],
        traffic={f"n{number}": Traffic(1_200 + number, 900_000) for number in range(nodes)},
        propagation=[_propagation(rng, nodes, seconds) for _ in range(12)],
        map=_map(rng, nodes),
        checks={"ledger_sums_to_zero": 60, "no_job_is_lost": 60},
        events=chats * 12,
        learned=Learned(
            patches={"aa", "bb"},
            runs={"01": "finished", "02": "aborted", "03": ""},
            votes=9,
            spent_milli={("n0", "aa"): 3_000, ("n1", "bb"): 1_500},
        ),
    )


def _outcome(rng: Random, at_s: float) -> Outcome:
    if rng.random() < 0.03:
        return Outcome(at_s, "n0", state="unsold", reason=rng.choice(["no_seller", "price", "price"]))
    auction_s = 0.05 + rng.expovariate(1 / 0.04)
    attempts = 2 if rng.random() < 0.05 else 1
    ttft_s = auction_s + rng.expovariate(1 / 0.3) + 2.0 * (attempts - 1)
    return Outcome(
        at_s, "n0", state="finished", attempts=attempts, auction_s=auction_s, ttft_s=ttft_s, tokens=80
    )


def _sample(rng: Random, nodes: int, minute: int) -> Sample:
    slots = int(nodes * (1.2 + 0.2 * rng.random()))
    busy = int(slots * (0.3 + 0.2 * rng.random()))
    return Sample(
        minute * 60.0,
        int(nodes * 0.9),
        slots,
        busy,
        80 + 10 * rng.random(),
        busy,
        1_000 * minute,
        900_000 * minute,
    )


def _propagation(rng: Random, nodes: int, seconds: float) -> Propagation:
    heard_s = sorted(min(max(rng.gauss(0.12, 0.03), 0.01), 0.4) for _ in range(int(nodes * 0.9)))
    return Propagation("advert", rng.uniform(0, seconds), tuple(heard_s))


def _map(rng: Random, nodes: int) -> list[MapNode]:
    names = [f"n{number}" for number in range(nodes)]
    away = set(rng.sample(names, nodes // 10))
    there = [name for name in names if name not in away]
    return [
        MapNode(
            name,
            rng.choice(PROFILES),
            name not in away,
            tuple(rng.sample(there, min(4, len(there)))) if name not in away else (),
        )
        for name in names
    ]
