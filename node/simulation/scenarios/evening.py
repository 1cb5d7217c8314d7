"""People come home: questions follow the time of day, in conversations, with some batches of documents."""

from node.simulation.workload import Workload
from node.simulation.world import World


async def story(world: World) -> None:
    """Begin at five in the afternoon, three hours before the peak."""
    await world.add(world.nodes - 1)
    world.churn()
    world.ask_everywhere(
        Workload(arrivals="diurnal", begins_at_hour=17.0, batch_share=0.1), chats_per_node_hour=20
    )
    await world.run(world.seconds)
