"""Devices with private data train an adapter together while some of them come and go; voters and a human let it in."""

from node.simulation.workload import Workload
from node.simulation.world import World

VOTERS = 3  # beside the founder
BUDGETS_MILLI = (0, 8_000)  # epsilon, in thousandths: without privacy, and with it


async def story(world: World) -> None:
    """The coordinator dies in mid-round, and so does a participant; both are back soon, and the run goes on."""
    learning = world.learning
    voters = await learning.seat(VOTERS)
    await learning.line()
    devices = await world.add(max(5, world.nodes - VOTERS - 1), profile="laptop", is_seller=True)
    trainers = devices[:6]
    for number, device in enumerate(trainers):
        learning.give_data(device, budget_milli=BUDGETS_MILLI[number % len(BUDGETS_MILLI)])
    world.ask_everywhere(Workload(), chats_per_node_hour=20)
    await world.run(20)

    run = await learning.train(by=voters[0], rounds=4)
    await world.run(20)  # the bids are in, and the first round is under way
    await world.kill(voters[0], trainers[0])
    await world.run(10)
    await world.restart(voters[0], trainers[0])

    patch = await learning.until_proposed(run)
    await learning.until_certified(patch)
    await learning.approve(patch)
    await world.run(max(0.0, world.seconds - world.now))
