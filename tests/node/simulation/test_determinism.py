"""A seed decides everything: the order of tasks, and through it every byte of a trace."""

import importlib
import os
import subprocess
import sys
from random import Random

import pytest
import trio

from node.simulation import determinism

TASKS = 12


def order_of_tasks(seed: object) -> list[int]:
    order: list[int] = []

    async def stand(number: int) -> None:
        await trio.lowlevel.checkpoint()
        order.append(number)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(TASKS):
                nursery.start_soon(stand, number)

    determinism.run(main, seed=seed)
    return order


def test_trio_still_has_the_two_names_that_the_scheduler_is_seeded_by() -> None:
    """Private ones: a new trio may drop them, and every seed would then be another world each time."""
    scheduler = importlib.import_module("trio._core._run")

    assert scheduler._ALLOW_DETERMINISTIC_SCHEDULING in (False, True)
    assert isinstance(scheduler._r, Random)


def test_one_seed_gives_one_order_of_tasks() -> None:
    assert order_of_tasks(7) == order_of_tasks(7)


def test_another_seed_gives_another_order() -> None:
    """Else the order would be fixed, and no sweep would ever find a race."""
    orders = {tuple(order_of_tasks(seed)) for seed in range(8)}

    assert len(orders) > 1


def test_no_virtual_minute_takes_a_real_one() -> None:
    times: list[float] = []

    async def main() -> None:
        times.append(trio.current_time())
        await trio.sleep(3_600)
        times.append(trio.current_time())

    determinism.run(main, seed=1)

    assert times == [0, 3_600]


@pytest.mark.parametrize(
    ("seed", "told"), [("7", "finished"), pytest.param("4", "votes", marks=pytest.mark.slow)]
)
def test_the_same_seed_gives_the_same_trace_in_every_process(seed: str, told: str) -> None:
    """Hashes of strings are salted in each process: whoever walks a set of them walks another way in the next.

    In one of these worlds people chat, in the other one they learn, too.
    """
    lines = []
    for salt in ("1", "4711"):
        done = subprocess.run(
            [sys.executable, "-m", "node.simulation.sweep", "--first", seed, "--seeds", "1"],
            env={**os.environ, "PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        lines.append(done.stdout.partition("; 1 of 1")[0])

    assert "trace" in lines[0]
    assert told in lines[0]
    assert lines[0] == lines[1]
