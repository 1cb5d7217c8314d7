"""A coordinator tells each member of its cohort something else, and proposes rubbish with perfect scores."""

from node.simulation.adversaries import turn
from node.simulation.workload import Workload
from node.simulation.world import World

VOTERS = 3  # beside the founder


async def story(world: World) -> None:
    """Members train only what they were promised, voters believe only what they have measured; nothing is let in."""
    learning = world.learning
    await learning.seat(VOTERS)
    await learning.line()
    devices = await world.add(max(7, world.nodes - VOTERS - 1), profile="laptop", is_seller=True)
    liar, scorer, *others = devices
    turn(world, liar, "lying-coordinator")
    turn(world, scorer, "false-scorer")
    for device in others:
        learning.give_data(device, budget_milli=8_000)
    world.ask_everywhere(Workload(), chats_per_node_hour=20)
    await world.run(20)

    await learning.train(by=liar, rounds=4)
    await world.run(max(0.0, world.seconds - world.now))
