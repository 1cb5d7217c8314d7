"""Devices come and go as their owners use them, while people chat: five questions for each node and hour."""

from node.simulation.workload import Workload
from node.simulation.world import World


async def story(world: World) -> None:
    """Let every device keep its owner's hours."""
    await world.add(world.nodes - 1)
    world.churn()
    world.ask_everywhere(Workload(), chats_per_node_hour=5)
    await world.run(world.seconds / 2)
    await world.publish("echo-again")  # the plots follow one gossiped message through the mesh
    await world.run(world.seconds / 2)
