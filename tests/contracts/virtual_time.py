"""Contracts hold for fakes and real backends; those that only pretend to work need not be waited for."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock


def on_virtual_time(request: pytest.FixtureRequest) -> None:
    """Let the test of this fixture jump from one moment in which something is due to the next."""
    request.node.add_marker(pytest.mark.trio(run=_run), append=False)


def _run(test: Callable[[], Awaitable[None]], **options: Any) -> None:
    trio.run(test, **{**options, "clock": MockClock(autojump_threshold=0)})
