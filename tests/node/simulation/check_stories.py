"""Worlds in which answers are checked: somebody sells another model's, somebody lies about what it reads."""

from node.simulation.world import World
from tests.node.simulation.story import ask, market

READERS = 3  # honest sellers of owners of their own
ACQUAINTED = 24  # jobs: more than a new seller's first


async def model_swapper(world: World) -> None:
    """The cheapest seller has another model than it says; two buyers meet it, and what others sell."""
    await world.add(1, profile="server", owner="mallory", behaviour="model-swapper")
    _, buyers = await market(world, sellers=READERS, buyers=2)
    for _ in range(4):
        for buyer in buyers:
            await ask(world, buyer, tokens=24)
        await world.run(3)


async def false_reader(world: World) -> None:
    """One of the sellers says of every answer that it is to check that another model gave it."""
    await world.add(1, profile="server", owner="mallory", behaviour="false-reader")
    _, (buyer,) = await market(world, sellers=READERS)
    for _ in range(10):
        await ask(world, buyer, tokens=12)
        await world.run(2)


async def old_acquaintance(world: World) -> None:
    """A buyer stays with one seller, whose answers another one reads."""
    _, (buyer,) = await market(world, sellers=2)
    for _ in range(2 * ACQUAINTED):
        await ask(world, buyer, tokens=4)
        await world.run(1)


async def private_answer(world: World) -> None:
    """A buyer's own other device answers, and somebody else's could read it."""
    await world.add(1, profile="server", owner="buyer 0")
    _, (buyer,) = await market(world, sellers=READERS)
    for _ in range(3):
        await ask(world, buyer, privacy="owner")
        await world.run(2)
