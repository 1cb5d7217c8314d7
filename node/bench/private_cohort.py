"""Experiment C: how much a device with many records learns under a budget, and what that has spent.

Small sets under a small epsilon learn nothing (`node/utility_hint.py` says so before anything is spent), so this one is large: 8,192
records, each the report of one customer about one heat pump. They are made from the tiny model's own training questions,
each with a ticket number of its own.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Final

import msgspec

from federation.defaults import DEFAULT_RECIPE
from federation.privacy import StepsTaken, delta_for, epsilon_milli
from node.bench import federated
from node.bench.cohort import Learned, Member
from node.local_mesh import tiny_line
from runtime.trainer import NoisePlan

RECORDS: Final = 8_192
NOISE_MILLI: Final = 500
PRIVATE_BATCH: Final = 64
STEPS: Final = 60
ROUNDS: Final = 6
PPM: Final = 1_000_000


@dataclass(frozen=True)
class Spent:
    """What came of it, and the raw parameters that the accountant composed."""

    learned: Learned
    taken: Sequence[StepsTaken]
    delta: float
    epsilon_milli: int


def run(say: Callable[[str], None] = lambda _text: None) -> Spent:
    """Train one member with noise."""
    rate_ppm = -(-PRIVATE_BATCH * PPM // RECORDS)
    recipe = msgspec.structs.replace(
        DEFAULT_RECIPE, rounds=ROUNDS, steps=STEPS, batch=2 * PRIVATE_BATCH, strategy="mean", parameters=()
    )
    learned = federated.run(
        [Member(records(RECORDS), noise=NoisePlan(noise_milli=NOISE_MILLI, rate_ppm=rate_ppm))], recipe, say
    )
    taken = [StepsTaken(NOISE_MILLI, rate_ppm, STEPS) for _ in range(ROUNDS)]
    delta = delta_for(RECORDS)
    return Spent(learned, taken, delta, epsilon_milli(taken, delta))


def records(count: int) -> bytes:
    """Return so many different records of all error codes, as JSON lines."""
    known = [json.loads(line) for line in tiny_line.private_records(tiny_line.CODES).splitlines()]
    return b"".join(
        json.dumps({**record, "prompt": f"{record['prompt']} Ticket {number}."}).encode() + b"\n"
        for number, record in enumerate(islice(cycle(known), count))
    )
