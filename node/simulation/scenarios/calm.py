"""Nothing goes wrong: devices come up, people chat, and every link holds."""

from node.simulation.workload import Workload
from node.simulation.world import World


async def story(world: World) -> None:
    """Let the mesh be used for the whole time."""
    await world.add(world.nodes - 1)
    world.ask_everywhere(Workload())
    await world.run(world.seconds)
