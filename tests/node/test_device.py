"""What a device says of itself, in the protocol's units."""

from dataclasses import replace

from node.device import as_device
from protocol.messages import Device
from runtime.capacity import Capacity

LAPTOP = Capacity(
    cores=8,
    memory_bytes=16 * 2**30,
    memory_free_bytes=9 * 2**30,
    load=0.256,
    battery_percent=80,
    is_charging=True,
    gpu="",
)
ADVERTISED = Device(
    cores=8,
    memory_mib=16_384,
    memory_free_mib=9_216,
    load_percent=26,
    battery_percent=80,
    is_charging=True,
    gpu="",
    sandbox="S3",
)


def test_figures_are_told_in_mebibytes_and_percent() -> None:
    assert as_device(LAPTOP, "S3") == ADVERTISED


def test_a_device_that_cannot_read_its_load_and_battery_still_has_something_to_say() -> None:
    """The wire has no word for an unknown load: it counts as none, and a battery that cannot be read as none."""
    blind = replace(LAPTOP, load=None, battery_percent=None, is_charging=None)

    told = as_device(blind, "S3")

    assert (told.load_percent, told.battery_percent, told.is_charging) == (0, -1, False)
