"""What this device can give now: cores, memory, load, power. Real figures, read in well under a millisecond."""

from dataclasses import dataclass
from typing import Any

import psutil

# What psutil does where a platform has no such figure: the function is missing, says so, or finds no file to read.
UNKNOWN = (AttributeError, NotImplementedError, OSError)


@dataclass(frozen=True)
class Capacity:
    """The device's figures at one moment.

    Attributes:
        cores: that this process may use.
        memory_bytes: of the machine.
        memory_free_bytes: what could be taken without swapping.
        load: runnable processes per core, averaged over a minute; 1 is busy; None where nobody counts them.
        battery_percent: None on a device without a battery, or with one that cannot be read.
        is_charging: whether it is on mains power; None when `battery_percent` is.
        gpu: what llama.cpp calls the GPU, as a child reported it; "" without one.
    """

    cores: int
    memory_bytes: int
    memory_free_bytes: int
    load: float | None
    battery_percent: int | None
    is_charging: bool | None
    gpu: str


def measure(gpu: str = "") -> Capacity:
    """Return the figures as of now.

    Args:
        gpu: from `LlamaEngine.gpu`: the daemon itself loads no GPU library.
    """
    memory = psutil.virtual_memory()
    cores = (
        len(psutil.Process().cpu_affinity())
        if hasattr(psutil.Process, "cpu_affinity")
        else psutil.cpu_count()
    )
    cores = max(1, cores or 1)
    load, battery = _load(), _battery()
    return Capacity(
        cores=cores,
        memory_bytes=memory.total,
        memory_free_bytes=memory.available,
        load=None if load is None else load / cores,
        battery_percent=round(battery.percent) if battery else None,
        is_charging=battery.power_plugged if battery else None,
        gpu=gpu,
    )


def _load() -> float | None:
    try:
        return float(psutil.getloadavg()[0])
    except UNKNOWN:
        return None


def _battery() -> Any:
    """What psutil knows of the battery; None where there is none."""
    try:
        return psutil.sensors_battery()
    except UNKNOWN:
        return None
