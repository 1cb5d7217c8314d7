"""Starts hosts."""

from typing import Any

import pytest
import trio

from tests.node.host.peers import Peer, Start


@pytest.fixture
async def start(nursery: trio.Nursery) -> Start:
    """Each call is a host that listens on loopback, with the settings given."""

    async def start(**settings: Any) -> Peer:
        peer = Peer(**settings)
        await nursery.start(peer.host.run)
        return peer

    return start
