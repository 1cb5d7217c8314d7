"""Asking the running daemon of a home, over its admin socket."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import trio

from node.admin_client import AdminClient
from node.cli.options import home_of

Answer = TypeVar("Answer")


def ask(home: Path | None, question: Callable[[AdminClient], Awaitable[Answer]]) -> Answer:
    """Ask the daemon of this home one thing and return what it says.

    Raises:
        AgoraError: no daemon runs there, or it refuses; one line.
    """
    found = home_of(home)
    found.check()

    async def converse() -> Answer:
        async with AdminClient(found) as client:
            return await question(client)

    return trio.run(converse)
