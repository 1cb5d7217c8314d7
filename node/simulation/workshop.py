"""Where a world's devices come from: a profile, and chance of their own, so that none depends on who came before it."""

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from node.config import Config
from node.event import Event
from node.simulation.daemon import Daemon, Parts
from node.simulation.devices import PROFILES, device_message
from node.simulation.disk import Disk
from node.simulation.engine import SimulatedEngine
from node.simulation.link import Uplink

if TYPE_CHECKING:
    from node.simulation.world import World

BOOTSTRAP_PEERS = 4  # members that each device knows an address of, from earlier runs or an invitation
SYNC_S = 0.002  # of a disk, a common SSD's


def make_device(
    world: "World",
    name: str,
    *,
    profile: str,
    owner: str,
    is_seller: bool,
    on_event: Callable[[Event], None] | None = None,
) -> Daemon:
    """Make a device that is not in the world yet; its access to the network is.

    Args:
        world: it decides by chance, and holds the network.
        name: which no other device has.
        profile: a name of `devices.PROFILES`.
        owner: whose it is.
        is_seller: whether it holds the model.
        on_event: told of each event of its journal.
    """
    kind = PROFILES[profile]
    rng = world.random(f"device {name}")
    identity = world.identity(name)
    world.network.set_uplink(identity.peer_id, Uplink(rng.uniform(*kind.latency_s), kind.up_bytes_per_s))
    config = Config(
        owner=owner,
        bootstrap=_bootstrap(world, rng),
        price_prompt_micro=round(10 * kind.price_factor),
        price_completion_micro=round(40 * kind.price_factor * rng.uniform(0.8, 1.25)),
        battery_percent_min=30,
        buy_checks=not world.is_large,
    )
    parts = Parts(
        identity=identity,
        engine=SimulatedEngine.of(kind, is_seller=is_seller),
        device=device_message(kind),
        disk=Disk(world.random(f"disk {name}"), sync_s=SYNC_S, is_large_world=world.is_large),
        config=config,
        profile=profile,
        on_event=on_event,
    )
    return Daemon(world, name, parts)


def _bootstrap(world: "World", rng: Random) -> tuple[str, ...]:
    """Whom a device dials first: one that is always there, which its invitation named, and whom it met before."""
    if not world.anchors:
        return ()
    known = list(world.daemons.values())
    met = rng.sample(known, min(BOOTSTRAP_PEERS - 1, len(known)))
    return tuple(dict.fromkeys(daemon.address for daemon in (rng.choice(world.anchors), *met)))
