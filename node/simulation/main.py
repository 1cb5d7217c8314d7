"""The second main: a world of the daemon's own nodes, one scenario, one seed.

`simulate` runs a scenario to its end on virtual time and returns what was seen. The first law that does not hold stops
it; so does the first line that differs from the trace of a replay.
"""

import gc
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import trio

from node.event import Event
from node.simulation import determinism
from node.simulation.checkers.checks import Checks
from node.simulation.learned import Learned
from node.simulation.observations import MapNode, Outcome, Propagation, Sample, Traffic
from node.simulation.options import Progress, SimulationOptions
from node.simulation.trace import Trace
from node.simulation.world import World
from protocol.envelope import opened

OPENED_ENTRIES: Final = 65_536  # verified envelopes kept: each is delivered within a few virtual seconds
LOOK_S: Final = 300.0  # virtual, between two looks at the laws
PROGRESS_S: Final = 10.0  # virtual
GARBAGE_OBJECTS: Final = 200_000  # between two collections: most of a world lives as long as the world


@dataclass(frozen=True)
class Sight:
    """What a world had to show at its end; see `node.simulation.summary.Seen`."""

    outcomes: Sequence[Outcome]
    samples: Sequence[Sample]
    traffic: Mapping[str, Traffic]
    propagation: Sequence[Propagation]
    map: Sequence[MapNode]
    nodes: int
    seconds: float
    ledger_sum_micro: int
    digest: str
    events: int
    learned: Learned
    checks: Mapping[str, int]
    violations: Sequence[str] = ()  # the first one stops the run


def simulate(
    options: SimulationOptions, trace: Trace, on_progress: Callable[[Progress], None] = lambda _: None
) -> Sight:
    """Run a scenario.

    Raises:
        Violation: a law of the world did not hold.
        Diverged: the trace is a replay, and this run did something else.
        StartError: the scenario asks for what no world has.
    """
    with _opened_is_remembered(), _garbage_is_rare():
        return determinism.run(partial(_tell, options, trace, on_progress), seed=options.seed)


async def _tell(options: SimulationOptions, trace: Trace, on_progress: Callable[[Progress], None]) -> Sight:
    def write(at_s: float, node: str, event: Event) -> None:
        trace.write(at_s, node, event.name, event.fields)

    async with trio.open_nursery() as nursery:
        world = World(
            nursery, seed=options.seed, nodes=options.nodes, seconds=options.seconds, on_event=write
        )
        world.replay_command = (
            f"agora sim --scenario {shlex.quote(options.scenario.name)} --nodes {options.nodes} "
            f"--minutes {options.seconds / 60:g} --seed {options.seed}"
        )
        checks = Checks(world)
        learned = Learned()
        world.watch(learned.note)
        async with world.running():
            nursery.start_soon(_report, world, on_progress)
            nursery.start_soon(checks.run, LOOK_S)
            await options.scenario.story(world)
            trace.check()
            await checks.conclude(is_calm=False)  # a story may end in the middle of its faults
            sight = _look(world, trace, checks, learned)
    return sight


async def _report(world: World, on_progress: Callable[[Progress], None]) -> None:
    while True:
        online = sum(daemon.is_online for daemon in world.daemons.values())
        on_progress(Progress(world.now, world.seconds, world.chats_finished, online))
        await trio.sleep(PROGRESS_S)


def _look(world: World, trace: Trace, checks: Checks, learned: Learned) -> Sight:
    names = {daemon.peer_id: name for name, daemon in world.daemons.items()}
    ledgers = [daemon.node.logbook.ledger for daemon in world.daemons.values() if daemon.is_online]
    return Sight(
        outcomes=[replace(outcome) for outcome in world.outcomes],  # those that run are cut off after this
        samples=world.samples,
        traffic={names[peer]: traffic for peer, traffic in world.network.traffic.items() if peer in names},
        propagation=world.propagation,
        map=world.map(),
        nodes=len(world.daemons),
        seconds=float(round(world.now)),
        ledger_sum_micro=sum(ledger.total_micro() for ledger in ledgers),
        digest=trace.digest,
        events=trace.events,
        learned=learned,
        checks=checks.checked,
    )


@contextmanager
def _opened_is_remembered() -> Iterator[None]:
    """Check each signature where it is made: all nodes are in this process, and half of its time would go there."""
    before = opened.entries_max, opened.is_own_remembered
    opened.clear()
    opened.entries_max, opened.is_own_remembered = OPENED_ENTRIES, True
    try:
        yield
    finally:
        opened.entries_max, opened.is_own_remembered = before
        opened.clear()


@contextmanager
def _garbage_is_rare() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(GARBAGE_OBJECTS, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
