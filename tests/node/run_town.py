"""Stories of training runs are told in this town: its founder publishes a line, and devices hold data of one name."""

from typing import Any

from node.runs import ENDED, RunView
from node.services.coordinator import TrainOptions
from node.simulation.learning import LINE, SKILL
from protocol.messages import Spend
from tests.node.world import Daemon, Engine, World

STEP_MICRO = 1_000  # the default price
STEPS = 12
ROUNDS = 3
APART = 1_000  # first records of two devices: their sets share none


async def settle_town(
    world: World,
    members: int = 3,
    *,
    budget_milli: int = 0,
    device: dict[str, Any] | None = None,
    **founder: Any,
) -> list[Daemon]:
    """Found a mesh that learns; return the devices that hold data, who know each other and the founder."""
    world.learning.is_on = True
    await world.found_again(**{"engine": Engine(), **founder})
    devices = [await world.add(f"device-{number}", **(device or {})) for number in range(1, members + 1)]
    for number, each in enumerate(devices):
        world.learning.give_data(each, samples=400, first=APART * number, budget_milli=budget_milli)
    await world.learning.line()
    await world.acquaint(world.founder, *devices)
    return devices


def options(**changes: Any) -> TrainOptions:
    """Three short rounds."""
    fields: dict[str, Any] = {
        "data": SKILL, "line": LINE, "rounds": ROUNDS, "steps": STEPS, "window_s": 2.0, "round_s": 60.0
    }  # fmt: skip
    return TrainOptions(**{**fields, **changes})


async def in_round(world: World, coordinator: Daemon, run: str, number: int) -> None:
    """Wait until members are at work on a round."""
    await world.until(
        lambda: (
            (view := coordinator.node.training_run(run)).round == number - 1 and any(view.progress.values())
        ),
        120,
    )


async def finish(world: World, coordinator: Daemon, run: str, *, within_s: float = 600.0) -> RunView:
    """Wait until a run has ended and everybody has heard of it."""
    await world.until(lambda: coordinator.node.training_run(run).state in ENDED, within_s)
    await world.run(30)
    return coordinator.node.training_run(run)


def spends(device: Daemon) -> list[Spend]:
    """What stands in a device's own log as spent."""
    entries = device.node.logbook.entries(device.peer_id, "bilateral", 0)
    return [entry.message for entry in entries if isinstance(entry.message, Spend)]


def trained(device: Daemon) -> list[int]:
    """The rounds that a device's trainer has begun, in order; its disk remembers those of its earlier lives."""
    return [fit.round for fit in device.fits]
