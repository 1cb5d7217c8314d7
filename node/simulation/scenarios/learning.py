"""Devices with private data train an adapter together while some of them come and go; voters and a human let it in."""

from node.simulation.workload import Workload
from node.simulation.world import World

VOTERS = 3  # beside the founder
TRAINERS = 6
BUDGETS_MILLI = (0, 8_000)  # epsilon, in thousandths: without privacy, and with it


async def story(world: World) -> None:
    """The coordinator dies in mid-round, and so does a participant; both are back soon, and the run goes on."""
    learning = world.learning
    voters = await learning.seat(VOTERS)
    await learning.line()
    trainers = []
    for number in range(TRAINERS):  # of an owner each: devices of one do not hide each other's data
        trainers += await world.add(1, profile="laptop", owner=f"trainer-{number + 1}", is_seller=True)
        learning.give_data(trainers[-1], budget_milli=BUDGETS_MILLI[number % len(BUDGETS_MILLI)])
    await world.add(max(0, world.nodes - VOTERS - TRAINERS - 1))
    world.ask_everywhere(Workload(), chats_per_node_hour=20)
    await world.run(20)

    run = await learning.train(by=voters[0], rounds=8)
    await world.run(15)  # the bids are in, and the first rounds are under way
    await world.kill(voters[0], trainers[0])
    await world.run(10)
    await world.restart(voters[0], trainers[0])

    patch = await learning.until_proposed(run)
    await learning.until_certified(patch)
    await learning.approve(patch)
    await world.run(max(0.0, world.seconds - world.now))
