"""Devices come and go while people chat."""

from typing import Any

TURNS = 4


async def story(world: Any) -> None:
    """Take a device away in each part of the time."""
    for _ in range(TURNS):
        world.kill()
        await world.run(world.seconds / TURNS)
