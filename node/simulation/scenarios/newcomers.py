"""A small mesh grows fourfold: each newcomer is admitted by the founder, and everybody hears of it."""

from node.simulation.workload import Workload
from node.simulation.world import World


async def story(world: World) -> None:
    """What an admission costs the others is one gossiped entry of some hundred bytes."""
    founding = max(1, world.nodes // 4)
    await world.add(founding - 1, is_seller=True)
    world.ask_everywhere(Workload(), chats_per_node_hour=20)
    await world.run(world.seconds * 0.2)

    newcomers = world.nodes - founding
    for _ in range(newcomers):
        await world.add()
        await world.run(world.seconds * 0.6 / newcomers)
    await world.run(world.seconds * 0.2)
