"""One device in five means ill: liars, silent winners, forgers, replayers, a swarm and an eclipse."""

from node.simulation.adversaries import TRADING
from node.simulation.workload import Workload
from node.simulation.world import World


async def story(world: World) -> None:
    """All kinds at once; the laws hold for the others, and their chats are answered."""
    await world.add(world.nodes - 1)
    world.mix_in(share=0.2, behaviours=list(TRADING))
    world.ask_everywhere(Workload(), chats_per_node_hour=10)
    await world.run(world.seconds)
