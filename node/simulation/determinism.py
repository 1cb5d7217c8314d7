"""Run a world so that its seed decides everything: virtual time, and the order in which trio runs what is ready.

Trio draws that order by lot, so that programs do not come to rely on one. `run` seeds the lot, for which it needs two
private names of trio: this is the one place that knows them, and a test fails when a new trio no longer has them.

Inside a world there is no thread, no socket and no wall clock: with a clock that jumps to the next deadline as soon as
nothing is ready, a timeout of 30 s passes while a thread of 0.2 s is still running.
"""

import importlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio
from trio.testing import MockClock

T = TypeVar("T")


def run(main: Callable[[], Awaitable[T]], *, seed: object, **options: Any) -> T:
    """Run an async function on virtual time and return what it returns.

    Args:
        main: takes nothing.
        seed: of the scheduler's lot; its text counts, so numbers and names both serve.
        options: further keyword arguments of `trio.run`.

    Raises:
        BaseException: what `main` raised, without the nurseries around it where it stands alone.
    """
    scheduler: Any = importlib.import_module("trio._core._run")
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING  # noqa: SLF001
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # noqa: SLF001
    scheduler._r.seed(str(seed))  # noqa: SLF001
    try:
        return trio.run(main, **{**options, "clock": MockClock(autojump_threshold=0)})
    except BaseExceptionGroup as group:
        raise _alone(group) from None
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = before  # noqa: SLF001


def _alone(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup) and len(group.exceptions) == 1:
        group = group.exceptions[0]
    return group
