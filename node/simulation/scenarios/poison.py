"""A minority of a cohort poisons its updates; what comes out is as good as without it, and is let in."""

from node.simulation.adversaries import turn
from node.simulation.workload import Workload
from node.simulation.world import World

VOTERS = 3  # beside the founder
TRAINERS = 7
POISONERS = 2  # of them: as many as the default strategy stands


async def story(world: World) -> None:
    """Not finite, misshapen and absurdly weighted updates are refused; flipped and huge ones are outweighed."""
    learning = world.learning
    voters = await learning.seat(VOTERS)
    await learning.line()
    devices = await world.add(max(TRAINERS, world.nodes - VOTERS - 1), profile="laptop", is_seller=True)
    for device in devices[:TRAINERS]:
        learning.give_data(device)
    for device in devices[:POISONERS]:
        turn(world, device, "poisoner")
    world.ask_everywhere(Workload(), chats_per_node_hour=20)
    await world.run(20)

    patch = await learning.until_proposed(await learning.train(by=voters[0], rounds=4))
    await learning.until_certified(patch)
    await learning.approve(patch)
    await world.run(max(0.0, world.seconds - world.now))
