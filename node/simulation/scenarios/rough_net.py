"""Bad lines: packets are lost, gossip comes twice or late, clocks are wrong and some devices are slow."""

from node.simulation.link import Link
from node.simulation.workload import Workload
from node.simulation.world import World

BAD = Link(jitter_s=0.05, loss=0.02, duplication=0.05, reordering=0.05)
SLOW = Link(slowness_s=0.3, loss=0.05)


async def story(world: World) -> None:
    """A tenth of the devices is slow on every link, and every seventh clock is half a minute ahead."""
    devices = await world.add(world.nodes - 1)
    world.weather(BAD)
    world.weather(SLOW, devices[::10])
    world.skew(*devices[::7], seconds=30)
    world.ask_everywhere(Workload(arrivals="bursts"), chats_per_node_hour=20)
    await world.run(world.seconds / 2)
    await world.publish("echo-again")  # and this is gossiped over such lines
    await world.run(world.seconds / 2)
