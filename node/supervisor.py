"""Running a part of the node for ever: when it dies, it is brought back, and both are journaled.

The first death is repaired in a fifth of a second. A part that dies at once, again and again, is tried ever less often.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from node.guard import Journal, place_of

if TYPE_CHECKING:
    from trio_typing import TaskStatus

DELAY_S = 0.2
DELAY_S_MAX = 30.0
STEADY_S = 10.0  # a part that lived for this long has not died at once

Part = Callable[
    [Callable[[], None]], Awaitable[None]
]  # runs until it dies; calls its argument when it serves


async def supervise(
    journal: Journal, name: str, part: Part, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED
) -> None:
    """Run a part until cancelled. Only its very first start may fail: that error is the user's to see."""
    has_started = False

    def ready() -> None:
        nonlocal has_started
        if has_started:
            journal.write("host_restarted", part=name)
        else:
            has_started = True
            task_status.started()

    delay_s = DELAY_S / 2
    while True:
        began_at = trio.current_time()
        try:
            await part(ready)
        except* Exception as group:
            if not has_started:
                raise
            first: BaseException = group
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            journal.write("host_died", part=name, error=type(first).__name__, at=place_of(first))
        has_lived = trio.current_time() - began_at > STEADY_S
        delay_s = DELAY_S if has_lived else min(2 * delay_s, DELAY_S_MAX)
        await trio.sleep(delay_s)
