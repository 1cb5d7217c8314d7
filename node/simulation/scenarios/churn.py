"""Devices come and go as their owners use them, while people chat: five questions for each node and hour."""

from node.simulation.workload import Workload
from node.simulation.world import World

CHATS_PER_NODE_HOUR = 5.0


async def story(world: World) -> None:
    """Let every device keep its owner's hours."""
    await world.add(world.nodes - 1)
    world.churn()
    world.ask_everywhere(Workload(), chats=CHATS_PER_NODE_HOUR * world.nodes * world.seconds / 3_600)
    await world.run(world.seconds)
