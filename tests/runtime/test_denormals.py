"""Denormals count as zero in the child's threads, and only there."""

import sys
import threading

import pytest

from runtime.llama.denormals import flush_denormals


def quarter_of_least() -> float:
    """Return a number that only a denormal can hold."""
    return sys.float_info.min / 4


def test_denormals_are_zero_in_the_thread_that_asks_and_in_those_it_starts_and_nowhere_else() -> None:
    found: dict[str, float | bool] = {}

    def ask() -> None:
        found["before"] = quarter_of_least()
        found["is_known"] = flush_denormals()
        found["after"] = quarter_of_least()
        found["least"] = sys.float_info.min  # what is no denormal stays
        started = threading.Thread(target=lambda: found.update(started=quarter_of_least()))
        started.start()
        started.join()

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join()
    if not found["is_known"]:
        pytest.skip("it is not known how this system does it")
    assert found["before"] > 0
    assert found["after"] == 0
    assert found["started"] == 0
    assert found["least"] == 2.0**-1022
    assert quarter_of_least() > 0
