"""The sweep: many small worlds, each with its seed, a storm, a calm, and all laws. `make simulate` runs 2,000 of them.

    python -m node.simulation.sweep --seeds 2000            # all cores
    python -m node.simulation.sweep --first 17 --seeds 1    # one again

Each signature is really checked, unlike in large worlds. The first law that does not hold ends the sweep; its report
says how to see that world again.
"""

# ruff: noqa: T201  it talks to a terminal

import argparse
import hashlib
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import msgspec
import trio

from node.event import Event
from node.simulation import determinism
from node.simulation.adversaries import LEARNING, TRADING, turn
from node.simulation.checkers.checks import Checks, Violation
from node.simulation.learned import Learned
from node.simulation.storm import storm
from node.simulation.world import World
from protocol.envelope import opened

STORM_S: Final = 180.0  # virtual
CALM_S: Final = 120.0  # within which everybody must find together again
LOOK_S: Final = 15.0
DEVICES: Final = (("server", True), ("laptop", True), ("laptop", True), ("laptop", False))
OTHERS: Final = 2  # besides these and the founder: what chance deals
LEARNING_SHARE: Final = 0.25  # of all worlds: in these there are voters, and members train and vote
VOTERS: Final = 3
BUDGETS_MILLI: Final = (0, 4_000, 8_000)  # epsilon of the voters' data, in thousandths
HOSTILE_SHARE: Final = 0.25  # of those: so that in four worlds of nine somebody means ill


@dataclass(frozen=True)
class Voyage:
    """What one seed came to.

    Attributes:
        digest: of every event of every node, in order.
        outcomes: how many chats ended in which state.
        learned: what was trained and voted on; nothing in most worlds.
        checked: how often each law was checked.
        violation: the report of the law that did not hold; "" when all did.
    """

    seed: int
    digest: str
    outcomes: Counter[str] = field(default_factory=Counter)
    learned: Learned = field(default_factory=Learned)
    checked: Counter[str] = field(default_factory=Counter)
    violation: str = ""

    def __str__(self) -> str:
        """Show it on one line."""
        chats = ", ".join(f"{number} {state}" for state, number in sorted(self.outcomes.items()))
        learned = f"; {self.learned}" if self.learned.runs or self.learned.votes else ""
        return f"seed {self.seed}: {chats}{learned}; {self.checked.total()} checks; trace {self.digest}"


def sail(seed: int, *, storm_s: float = STORM_S) -> Voyage:
    """Send a world of seven devices through its storm and check every law."""
    opened.clear()
    digest = hashlib.blake2b(digest_size=16)

    def write(at_s: float, node: str, event: Event) -> None:
        digest.update(msgspec.json.encode([round(at_s, 6), node, event.name, event.fields]))

    async def main() -> Voyage:
        async with trio.open_nursery() as nursery:
            world = World(
                nursery, seed=seed, nodes=len(DEVICES) + OTHERS + 1, seconds=storm_s, on_event=write
            )
            world.replay_command = f"python -m node.simulation.sweep --first {seed} --seeds 1"
            checks = Checks(world)
            learned = Learned()
            world.watch(learned.note)
            async with world.running():
                await _settle(world)
                await world.open()
                nursery.start_soon(checks.run, LOOK_S)
                await storm(world, storm_s)
                await world.run(CALM_S)
                await checks.conclude()
                outcomes = Counter(outcome.state for outcome in world.outcomes)
        return Voyage(seed, digest.hexdigest(), outcomes, learned, Counter(checks.checked))

    try:
        return determinism.run(main, seed=seed)
    except Violation as violation:
        return Voyage(seed, digest.hexdigest(), violation=str(violation))


async def _settle(world: World) -> None:
    """Let the devices of one world in."""
    behaviours: tuple[str, ...] = TRADING
    if world.random("learning").random() < LEARNING_SHARE:
        behaviours = (*TRADING, *LEARNING)
        voters = await world.learning.seat(VOTERS)
        if world.random("voters").random() < HOSTILE_SHARE:
            turn(world, voters[-1], "double-voter")
        await world.learning.line()
        for voter, budget_milli in zip(voters, BUDGETS_MILLI, strict=True):
            world.learning.give_data(voter, budget_milli=budget_milli)
    for profile, is_seller in DEVICES:
        await world.add(1, profile=profile, is_seller=is_seller)
    rng = world.random("others")
    for _ in range(OTHERS):
        is_hostile = rng.random() < HOSTILE_SHARE
        (other,) = await world.add(1, behaviour=rng.choice(sorted(behaviours)) if is_hostile else "")
        if world.learning.is_on:
            world.learning.give_data(other)


def sweep(seeds: Sequence[int], processes: int) -> Iterator[Voyage]:
    """Sail every seed, several at a time, and yield what each came to, in order."""
    if processes == 1:
        yield from map(sail, seeds)
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(sail, seeds)
    finally:
        pool.shutdown(cancel_futures=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep that the command line asks for; return its exit status: 1 when a law did not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m node.simulation.sweep",
        description="Many small worlds, each in a storm, under all laws.",
    )
    parser.add_argument("--first", type=int, default=1, help="the first seed (1)")
    parser.add_argument("--seeds", type=int, default=100, help="how many (100)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="at a time (all cores)")
    asked = parser.parse_args(arguments)
    if asked.seeds < 1 or asked.processes < 1:
        parser.error(f"{asked.seeds} seeds in {asked.processes} processes, expected 1 or more of both")
    began = time.monotonic()
    seeds = range(asked.first, asked.first + asked.seeds)
    outcomes: Counter[str] = Counter()
    checks = 0
    for number, voyage in enumerate(sweep(seeds, min(asked.processes, asked.seeds)), start=1):
        if voyage.violation:
            print(voyage.violation)
            return 1
        outcomes += voyage.outcomes
        checks += voyage.checked.total()
        took_s = time.monotonic() - began
        left_s = took_s / number * (asked.seeds - number)
        print(f"{voyage}; {number} of {asked.seeds}, {left_s:.0f} s left", flush=True)
    print(
        f"every law held: {asked.seeds} seeds, {outcomes.total():,} chats, {outcomes['finished']:,} of them finished, "
        f"{checks:,} checks, {time.monotonic() - began:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
