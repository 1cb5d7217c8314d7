"""How the stories are told in which planted bugs show: in a world of their own, under all laws, in a few words."""

from collections.abc import Awaitable, Callable
from typing import ClassVar, Final

import trio

from node.chat import ChatRequest
from node.event import Event
from node.simulation import determinism
from node.simulation.adversaries.adversary import Adversary
from node.simulation.checkers.checks import Checks, Violation
from node.simulation.daemon import Daemon
from node.simulation.observations import Outcome
from node.simulation.world import World
from protocol.envelope import opened
from protocol.messages import Card, Privacy
from runtime.echo import ECHO_MODEL
from runtime.engine import ChatMessage

Story = Callable[[World], Awaitable[None]]

LOOK_S: Final = 1.0
SETTLED_S: Final = 30.0  # from a story's end to its judgement
SESSION: Final = b"a conversation".ljust(32)


def tell(story: Story, seed: int) -> str:
    """Tell a story in a world of its own; return which law it broke, and how; "" when all of them hold."""
    opened.clear()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            world = World(nursery, seed=seed, nodes=6, seconds=600)
            checks = Checks(world)
            async with world.running():
                nursery.start_soon(checks.run, LOOK_S)
                await story(world)
                await world.run(SETTLED_S)
                await checks.conclude()

    try:
        determinism.run(main, seed=seed)
    except Violation as violation:
        return str(violation)
    return ""


# --- words ------------------------------------------------------------------------------------------------------------
async def market(world: World, *, sellers: int = 2, buyers: int = 1) -> tuple[list[Daemon], list[Daemon]]:
    """Add servers that sell and laptops that buy, each of an owner of its own, and let them meet."""
    made: tuple[list[Daemon], list[Daemon]] = [], []
    for number in range(sellers):
        made[0].extend(await world.add(1, profile="server", owner=f"seller {number}"))
    for number in range(buyers):
        made[1].extend(await world.add(1, profile="laptop", owner=f"buyer {number}", is_seller=False))
    await world.run(12)
    return made


async def ask(
    world: World,
    daemon: Daemon,
    *,
    tokens: int = 20,
    session: bytes | None = None,
    privacy: Privacy = "mesh",
    system: str = "",
) -> Outcome:
    """Ask for so many tokens, and wait for them."""
    outcome = Outcome(trio.current_time(), daemon.name)
    world.outcomes.append(outcome)
    words = (ChatMessage("user", "what did the square mean to the city?"),)
    if system:
        words = (ChatMessage("system", system), *words)
    await daemon.ask(ChatRequest("auto", words, tokens, privacy=privacy, session=session), outcome)
    return outcome


def begin(world: World, daemon: Daemon, *, tokens: int = 20, session: bytes | None = None) -> None:
    """Ask, and wait for nothing."""

    async def in_background() -> None:
        await ask(world, daemon, tokens=tokens, session=session)

    world.nursery.start_soon(in_background)


async def publish(world: World, name: str) -> None:
    """The founder binds a name to the model."""
    founder = world.founder.node
    entry = await founder.logbook.write(
        Card, lambda index, prev: Card(index=index, prev=prev, name=name, model=ECHO_MODEL)
    )
    await founder.sync.announce(entry)


def when(world: World, name: str) -> trio.Event:
    """An event that is set as soon as somebody journals something of this name."""
    happened = trio.Event()

    def hear(_at_s: float, _node: str, event: Event) -> None:
        if event.name == name:
            happened.set()

    world.watch(hear)
    return happened


def a_frame(daemon: Daemon) -> int:
    """How many tokens its engine has said with two frames, the first being one token: engines fail between frames."""
    return 1 + daemon.engine._tokens_per_frame


class HandLed(Adversary):
    """A device whose story does by hand what no honest one would."""

    name: ClassVar[str] = "hand-led"


def lead(world: World, daemon: Daemon) -> Daemon:
    """Take a device that has not started yet by the hand."""
    daemon.adversary = HandLed(world, daemon)
    return daemon
