"""The mesh is cut in two for a fifth of the time, then heals; people go on asking on both sides."""

from node.simulation.workload import Workload
from node.simulation.world import World


async def story(world: World) -> None:
    """Cut by halves, not by owners: some are parted from their own devices."""
    devices = await world.add(world.nodes - 1)
    world.ask_everywhere(Workload(), chats_per_node_hour=20)
    await world.run(world.seconds * 0.4)

    half = len(devices) // 2
    world.partition([world.founder, *devices[:half]], devices[half:])
    await world.publish("echo-again")  # the other half hears of it when the cut is healed
    await world.run(world.seconds * 0.2)

    world.heal()
    await world.run(world.seconds * 0.4)
