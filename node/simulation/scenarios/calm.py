"""Nothing goes wrong: devices come up, people chat, and every link holds."""

from typing import Any


async def story(world: Any) -> None:
    """Let the mesh be used for the whole time."""
    await world.run(world.seconds)
