"""A real server on a free port in front of a fake node, and a client that holds the key."""

from collections.abc import AsyncIterator
from functools import partial

import httpx
import pytest
import trio

from node.gateway.app import gateway_app
from node.gateway.bounds import Bounds
from node.gateway.server import serve_tcp
from tests.node.gateway.fake_node import KEY, FakeNode, OneKey


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def bounds() -> Bounds:
    """Overridden by tests that wait for a bound."""
    return Bounds()


@pytest.fixture
async def url(node: FakeNode, bounds: Bounds, nursery: trio.Nursery) -> str:
    app = gateway_app(node, OneKey(), bounds)
    started: str = await nursery.start(partial(serve_tcp, app, "127.0.0.1:0", node.journal, bounds))
    return started


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=5, trust_env=False) as client:
        yield client
