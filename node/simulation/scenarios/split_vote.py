"""The voters are cut in two during a ballot, and each half is asked for another patch; a third one passes afterwards."""

from node.simulation.toys import SKILL, crafted_adapter
from node.simulation.workload import Workload
from node.simulation.world import World

VOTERS = 4  # beside the founder: four of five have to agree


async def story(world: World) -> None:
    """Neither half has two thirds of the roll, a yes is given once, and silence is no consent: neither patch passes."""
    learning = world.learning
    voters = await learning.seat(VOTERS)
    await learning.line()
    devices = await world.add(max(2, world.nodes - VOTERS - 1), profile="laptop", is_seller=True)
    world.ask_everywhere(Workload(), chats_per_node_hour=20)
    await world.run(20)

    here, there = [world.founder, *voters[:2], *devices[::2]], [*voters[2:], *devices[1::2]]
    world.partition(here, there)
    for half, skill in ((here, 800_000), (there, 900_000)):
        await learning.propose(half[1], crafted_adapter({SKILL: skill}))
    await world.run(world.seconds / 4)
    world.heal()
    await world.run(60)

    patch = await learning.propose(voters[0], crafted_adapter({SKILL: 950_000}), version=2)
    await learning.until_certified(patch.id)
    await learning.approve(patch.id)
    await world.run(max(0.0, world.seconds - world.now))
