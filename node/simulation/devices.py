"""The devices of a simulated world: one table of profiles, and how a world draws its devices from it.

A profile says what a device is and how its owner uses it. All hold or want the same kind of model: one billion
parameters in 4 bits, about 700 MB. Where a comment says *guess*, no figure was found and the order of magnitude is meant.
A profile does not change while the world runs: a phone that is put on its charger is, for the table, another device.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Final

from protocol.messages import Device

MINUTE_S = 60.0
HOUR_S = 3_600.0
MIB_PER_GIB = 1_024
MBIT_PER_S = 125_000  # bytes/s


@dataclass(frozen=True)
class Profile:
    """What a device of one sort is.

    Attributes:
        battery_percent: -1 for a device without a battery, or one that never leaves the mains.
        tokens_per_s: decode speed of one stream that is alone; beside others it falls as `runtime/shared_speed.py` says.
        prompt_tokens_per_s: prefill speed, as well.
        holds_model: the share of such devices that hold the model, 0 to 1; the others only buy.
        latency_s: least and greatest one-way delay between the device and the internet's core; a path has two of them.
        up_bytes_per_s: what its link carries away from it.
        down_bytes_per_s: what its link carries to it.
        online_mean_s: how long it stays, on average; None: always.
        offline_mean_s: how long it is away, on average; None exactly when `online_mean_s` is.
        chats_per_hour: questions that its user asks while it is online.
        price_factor: what it asks, as a multiple of the configured default prices.
    """

    cores: int
    memory_mib: int
    memory_free_mib: int
    battery_percent: int
    is_charging: bool
    tokens_per_s: float
    prompt_tokens_per_s: float
    slots: int
    holds_model: float
    latency_s: tuple[float, float]
    up_bytes_per_s: int
    down_bytes_per_s: int
    online_mean_s: float | None
    offline_mean_s: float | None
    chats_per_hour: float
    price_factor: float

    @property
    def online_share(self) -> float:
        """The share of its time that the device is online, 0 to 1."""
        if self.online_mean_s is None or self.offline_mean_s is None:
            return 1.0
        return self.online_mean_s / (self.online_mean_s + self.offline_mean_s)


# Decode: docs/BENCHMARKS.md measured 6.0 tokens/s on one core of a server for this size of model, and cores add up until
# memory is the bottleneck. Prefill: five times decode, as in Meta's figures for Llama 3.2 1B on a OnePlus 12 (260.5 and
# 50.2 tokens/s, executorch/examples/models/llama).
# Delay: half of the idle round trips that "Measuring Broadband America" (FCC) finds for fibre, cable and DSL.
# Bandwidth: near the world's medians in Ookla's Speedtest Global Index, about 100 Mbit/s fixed and 60 mobile, down.
PROFILES: Final[Mapping[str, Profile]] = MappingProxyType(
    {
        # A small machine that a group runs for itself, in a cupboard or rented.
        "server": Profile(
            cores=16,  # a usual size to rent, and of a desktop processor made a server
            memory_mib=64 * MIB_PER_GIB,  # 4 GiB a core
            memory_free_mib=40 * MIB_PER_GIB,  # it has other services as well
            battery_percent=-1,
            is_charging=False,
            tokens_per_s=42.0,  # 24 of each of four streams: 4 cores for each, at 6.0
            prompt_tokens_per_s=210.0,  # five times decode
            slots=4,  # the configured default; eight streams together would hardly be faster
            holds_model=1.0,  # it is there to serve
            latency_s=(0.001, 0.005),  # fibre or a data centre
            up_bytes_per_s=500 * MBIT_PER_S,  # fibre is close to symmetric
            down_bytes_per_s=500 * MBIT_PER_S,
            online_mean_s=None,  # restarts are rarer than a world is long
            offline_mean_s=None,
            chats_per_hour=0.5,  # guess: nobody sits there, but a script asks now and then
            price_factor=0.8,  # guess: power and machine are paid for anyway, so it undercuts
        ),
        # A laptop or a desktop at home or at work, in somebody's use.
        "laptop": Profile(
            cores=8,  # with 6 the most common count in Steam's hardware survey
            memory_mib=16 * MIB_PER_GIB,  # the most common size there
            memory_free_mib=6 * MIB_PER_GIB,  # a browser and whatever its user works with are open
            battery_percent=-1,  # plugged in when it serves; on battery its owner would rather keep the charge
            is_charging=False,
            tokens_per_s=18.0,  # 4 fast cores at 6.0, less a quarter for heat and what else runs
            prompt_tokens_per_s=90.0,  # five times decode
            slots=4,  # the configured default
            holds_model=0.6,  # guess: most who installed the daemon added a model, many only want to ask
            latency_s=(0.005, 0.020),  # cable or DSL, and Wi-Fi before it
            up_bytes_per_s=20 * MBIT_PER_S,  # cable and DSL carry a fifth of the download upwards
            down_bytes_per_s=100 * MBIT_PER_S,
            online_mean_s=2.5 * HOUR_S,  # guess: between two closings of the lid
            offline_mean_s=3.5 * HOUR_S,  # about ten hours of a day online, then
            chats_per_hour=4.0,  # guess: somebody at work, a conversation or two an hour
            price_factor=1.0,  # this is whom the default prices are made for
        ),
        # A phone in a pocket, on its mobile network.
        "phone": Profile(
            cores=8,  # of a common system on chip: two or four of them fast
            memory_mib=8 * MIB_PER_GIB,  # the middle class
            memory_free_mib=2 * MIB_PER_GIB,  # the system fills memory with sleeping apps
            battery_percent=60,  # in the middle of a day; well above the 30 below which sellers decline
            is_charging=False,
            tokens_per_s=6.0,  # 5 to 10 are usual without tuned kernels; warm and saving power, the lower end
            prompt_tokens_per_s=30.0,  # five times decode
            slots=2,  # with a third stream, each would be slower than a person reads
            holds_model=0.15,  # guess: 700 MB of storage and a warm pocket are a lot to give
            latency_s=(0.015, 0.060),  # LTE: 30 to 120 ms for a round trip to the core
            up_bytes_per_s=10 * MBIT_PER_S,
            down_bytes_per_s=60 * MBIT_PER_S,
            online_mean_s=15 * MINUTE_S,  # guess: the system suspends what is not on the screen
            offline_mean_s=45 * MINUTE_S,
            chats_per_hour=3.0,  # guess: it is online because somebody holds it
            price_factor=1.5,  # guess: data volume and wear of the battery, beside the market's own markup
        ),
        # The same phone at night or on a desk: Wi-Fi and a charger, when federated learning uses phones (Bonawitz et
        # al. 2019, arXiv:1902.01046).
        "phone-charging": Profile(
            cores=8,
            memory_mib=8 * MIB_PER_GIB,
            memory_free_mib=3 * MIB_PER_GIB,  # nobody has just opened an app
            battery_percent=90,
            is_charging=True,
            tokens_per_s=9.0,  # no saving of power; heat still limits it
            prompt_tokens_per_s=45.0,  # five times decode
            slots=2,  # as in the pocket: the owner's setting does not change with the charger
            holds_model=0.4,  # guess: who lets a phone serve does it here
            latency_s=(0.005, 0.025),  # the laptop's line; Wi-Fi saves power between packets
            up_bytes_per_s=20 * MBIT_PER_S,  # the laptop's line
            down_bytes_per_s=100 * MBIT_PER_S,
            online_mean_s=5 * HOUR_S,  # guess: nights of seven hours, and an hour at a desk now and then
            offline_mean_s=10 * HOUR_S,
            chats_per_hour=0.5,  # guess: its user sleeps or works at something else
            price_factor=1.2,  # guess: mains power, yet the heat still wears the battery
        ),
    }
)

# Who is there unless a world says otherwise, in percent. Guess: a group's people with a laptop and a phone each, a
# third of the phones on a charger, and one server for twenty devices.
SHARES: Final[Mapping[str, float]] = MappingProxyType(
    {"server": 5, "laptop": 45, "phone": 35, "phone-charging": 15}
)


def device_message(profile: Profile) -> Device:
    """Return what an idle device of this profile says of itself in its advert."""
    return Device(
        cores=profile.cores,
        memory_mib=profile.memory_mib,
        memory_free_mib=profile.memory_free_mib,
        load_percent=0,
        battery_percent=profile.battery_percent,
        is_charging=profile.is_charging,
        gpu="",  # the speeds above are those of processors
        sandbox="S1",  # as `EchoEngine` says
    )


def draw_mix(rng: Random, count: int, shares: Mapping[str, float] = SHARES) -> list[str]:
    """Deal profile names to `count` nodes like cards: how many of each is exact, who gets which is chance.

    Exact, because a world of twenty nodes would often have no server if each node drew for itself. What does not come
    out even goes to the largest remainders, and of equal ones to the profile that stands first in the table. `shares`
    are weights by name; only their proportions matter.

    Raises:
        ValueError: a name is not in the table, a share is negative, or all are zero.
    """
    unknown = sorted(set(shares) - set(PROFILES))
    if unknown:
        raise ValueError(f"no device profile {unknown[0]!r}, expected one of {', '.join(PROFILES)}")
    total = sum(shares.values())
    if min(shares.values(), default=0) < 0 or total <= 0:
        raise ValueError(f"shares are {dict(shares)}, expected none below zero and one above it")

    names = [name for name in PROFILES if name in shares]
    exact = {name: count * shares[name] / total for name in names}
    dealt = {name: int(exact[name]) for name in names}
    by_remainder = sorted(
        names, key=lambda name: dealt[name] - exact[name]
    )  # stable: equal ones in the table's order
    for name in by_remainder[: count - sum(dealt.values())]:
        dealt[name] += 1
    mix = [name for name in names for _ in range(dealt[name])]
    rng.shuffle(mix)
    return mix


def sessions_online(rng: Random, profile: Profile, seconds: float) -> Iterator[tuple[float, float]]:
    """Yield when the device is online, as (from, to) in order, cut to a world of so many seconds; between, it is away.

    Stays and absences are exponential. Measured ones have a longer tail (Stutzbach and Rejaie 2006), but an exponential
    one has no memory, so a world can begin in the middle of a device's life with one toss of a coin.
    """
    if seconds <= 0:
        return
    if profile.online_mean_s is None or profile.offline_mean_s is None:
        yield 0.0, seconds
        return
    at_s = 0.0
    is_online = rng.random() < profile.online_share
    while at_s < seconds:
        mean_s = profile.online_mean_s if is_online else profile.offline_mean_s
        until_s = at_s + rng.expovariate(1 / mean_s)
        if is_online:
            yield at_s, min(until_s, seconds)
        at_s, is_online = until_s, not is_online
