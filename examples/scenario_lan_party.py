"""Twelve laptops on one network; in the middle of it somebody trips over the cable of the switch."""

from node.simulation.workload import Workload
from node.simulation.world import World


async def story(world: World) -> None:
    """Six sell, the others buy; for half a minute each side has only itself."""
    left = await world.add(6, profile="laptop", is_seller=True)
    right = await world.add(world.nodes - 7, profile="laptop")
    world.ask_everywhere(Workload(arrivals="bursts"), chats_per_node_hour=30)
    await world.run(world.seconds / 2)

    world.partition([world.founder, *left], right)
    await world.run(30)
    world.heal()
    await world.run(world.seconds / 2 - 30)
