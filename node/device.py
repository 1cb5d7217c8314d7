"""The device's real figures in the protocol's units."""

from protocol.limits import MIB
from protocol.messages import Device
from runtime.capacity import Capacity


def as_device(capacity: Capacity, sandbox: str) -> Device:
    """Return what an advert says of the device; `sandbox` is the level that the engine's child reached, or empty."""
    return Device(
        cores=capacity.cores,
        memory_mib=capacity.memory_bytes // MIB,
        memory_free_mib=capacity.memory_free_bytes // MIB,
        load_percent=min(100, round((capacity.load or 0) * 100)),  # unknown: the slots still tell who is busy
        battery_percent=-1 if capacity.battery_percent is None else min(100, capacity.battery_percent),
        is_charging=bool(capacity.is_charging),
        gpu=capacity.gpu[:64],
        sandbox=sandbox if sandbox in {"S1", "S2", "S3"} else "",  # type: ignore[arg-type]  # one of the four
    )
