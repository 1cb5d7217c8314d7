"""Half of the devices lose their power at one moment, and come back one after the other."""

from node.simulation.workload import Workload
from node.simulation.world import World


async def story(world: World) -> None:
    """Whoever was answering is taken over from; whoever comes back finds its disk as it was acknowledged."""
    devices = await world.add(world.nodes - 1)
    world.ask_everywhere(Workload(), chats_per_node_hour=20)
    await world.run(world.seconds / 3)

    dark = devices[::2]
    await world.kill(*dark)
    await world.run(world.seconds / 3)

    for device in dark:
        await world.restart(device)
        await world.run(world.seconds / 6 / len(dark))
    await world.run(world.seconds / 6)
