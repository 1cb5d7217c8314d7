"""The device's figures are real ones."""

import psutil
import pytest

from runtime.capacity import measure


def test_the_figures_are_this_machines() -> None:
    found = measure(gpu="a GPU")

    assert 1 <= found.cores <= (psutil.cpu_count() or 1)
    assert found.memory_bytes == psutil.virtual_memory().total
    assert 0 < found.memory_free_bytes <= found.memory_bytes
    assert found.load is not None
    assert found.load >= 0
    assert found.gpu == "a GPU"


def test_a_device_without_a_battery_says_so() -> None:
    """None is not 0 %: a server must not look like a phone about to die."""
    found = measure()

    assert (found.battery_percent is None) == (found.is_charging is None)


@pytest.mark.parametrize("refusal", [AttributeError, NotImplementedError, FileNotFoundError, OSError])
def test_a_platform_without_load_or_battery_figures_leaves_them_unknown(
    refusal: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phone hides both files; what cannot be read must not keep a device from joining."""

    def refuse() -> None:
        raise refusal

    monkeypatch.setattr(psutil, "getloadavg", refuse)
    monkeypatch.setattr(psutil, "sensors_battery", refuse)

    found = measure()

    assert (found.load, found.battery_percent, found.is_charging) == (None, None, None)


def test_a_psutil_built_without_load_or_battery_leaves_them_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(psutil, "getloadavg")
    monkeypatch.delattr(psutil, "sensors_battery")

    found = measure()

    assert (found.load, found.battery_percent, found.is_charging) == (None, None, None)
