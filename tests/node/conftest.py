"""The world that the stories of whole nodes are told in."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.node.world import World

SEED = os.environ.get("AGORA_SEED", "1")  # another one runs the same stories in another order of tasks


def run_on_virtual_time(test: Callable[[], Awaitable[None]], **options: Any) -> None:
    scheduler: Any = (
        trio._core._run
    )  # trio draws the order of ready tasks by lot; with a seed it is the same each time
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(SEED)
    try:
        trio.run(test, **{**options, "clock": MockClock(autojump_threshold=0)})
    except BaseExceptionGroup as group:
        alone: BaseException = group
        while isinstance(alone, BaseExceptionGroup) and len(alone.exceptions) == 1:
            alone = alone.exceptions[0]
        raise alone from None  # what failed, not the nurseries around it


@pytest.fixture
def virtual_time(request: pytest.FixtureRequest) -> None:
    """Whatever waits, waits for nothing."""
    request.node.add_marker(pytest.mark.trio(run=run_on_virtual_time), append=False)


@pytest.fixture
async def world(virtual_time: None, nursery: trio.Nursery) -> AsyncIterator[World]:  # noqa: ARG001  its effect
    """A founded mesh on virtual time; the laws of every story are checked at its end."""
    made = World(nursery)
    await made.found()
    try:
        yield made
        made.check()
    finally:
        await made.close()
