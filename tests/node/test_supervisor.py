"""A part that dies is brought back: at once the first time, ever less often when it cannot live."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from node.supervisor import DELAY_S, DELAY_S_MAX, supervise


class Journal:
    def __init__(self) -> None:
        self.events: list[tuple[float, str]] = []

    def write(self, event: str, /, **_fields: object) -> None:
        self.events.append((trio.current_time(), event))

    def times_of(self, event: str) -> list[float]:
        return [at for at, name in self.events if name == event]


async def test_a_part_that_dies_is_back_in_a_fifth_of_a_second(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    assert autojump_clock.autojump_threshold == 0
    journal = Journal()

    async def part(ready: Callable[[], None]) -> None:
        ready()
        await trio.sleep(60)
        raise ZeroDivisionError

    await nursery.start(supervise, journal, "part", part)
    await trio.sleep(200)

    died, restarted = journal.times_of("host_died"), journal.times_of("host_restarted")
    assert len(died) == 3
    assert [back - gone for gone, back in zip(died, restarted, strict=True)] == pytest.approx([DELAY_S] * 3)
    nursery.cancel_scope.cancel()


async def test_a_part_that_cannot_live_is_tried_ever_less_often(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    assert autojump_clock.autojump_threshold == 0
    journal = Journal()

    async def part(ready: Callable[[], None]) -> None:
        ready()
        raise ZeroDivisionError

    await nursery.start(supervise, journal, "part", part)
    await trio.sleep(300)

    died = journal.times_of("host_died")
    waits = [after - before for before, after in pairwise(died)]
    assert waits[:4] == pytest.approx([DELAY_S, 2 * DELAY_S, 4 * DELAY_S, 8 * DELAY_S])
    assert waits[-1] == pytest.approx(DELAY_S_MAX)
    nursery.cancel_scope.cancel()


async def test_a_part_that_cannot_even_start_is_the_users_to_see() -> None:
    async def part(_ready: Callable[[], None]) -> None:
        raise OSError("address already in use")

    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="in use")):
        await supervise(Journal(), "part", part)
