"""The world that the stories of whole nodes are told in."""

import os
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio

from node.simulation import determinism
from node.simulation import world as simulation
from tests.node.patch_town import Town
from tests.node.world import World

SEED = os.environ.get("AGORA_SEED", "1")  # another one runs the same stories in another order of tasks

run_on_virtual_time = partial(determinism.run, seed=SEED)


@pytest.fixture
def virtual_time(request: pytest.FixtureRequest) -> None:
    """Whatever waits, waits for nothing."""
    request.node.add_marker(pytest.mark.trio(run=run_on_virtual_time), append=False)


@pytest.fixture
async def town(virtual_time: None, nursery: trio.Nursery) -> AsyncIterator[Town]:  # noqa: ARG001  its effect
    """A mesh that learns; the story seats its voters and opens it."""
    world = simulation.World(nursery)
    async with world.running():
        yield Town(world)


@pytest.fixture
async def world(virtual_time: None, nursery: trio.Nursery) -> AsyncIterator[World]:  # noqa: ARG001  its effect
    """A founded mesh on virtual time; the laws of every story are checked at its end."""
    made = World(nursery)
    async with made.running():
        await made.open()
        yield made
        made.check()
