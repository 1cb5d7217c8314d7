"""The device's figures are real ones."""

import psutil

from runtime.capacity import measure


def test_the_figures_are_this_machines() -> None:
    found = measure(gpu="a GPU")

    assert 1 <= found.cores <= (psutil.cpu_count() or 1)
    assert found.memory_bytes == psutil.virtual_memory().total
    assert 0 < found.memory_free_bytes <= found.memory_bytes
    assert found.load >= 0
    assert found.gpu == "a GPU"


def test_a_device_without_a_battery_says_so() -> None:
    """None is not 0 %: a server must not look like a phone about to die."""
    found = measure()

    assert (found.battery_percent is None) == (found.is_charging is None)
