"""What can be seen of a world from above, without asking any node: read by the report and the plots."""

from typing import TYPE_CHECKING

from node.simulation.observations import MapNode, Propagation, Sample
from protocol.envelope import open_sealed
from protocol.errors import RemoteProtocolError

if TYPE_CHECKING:
    from node.simulation.world import World


def sample(world: "World") -> Sample:
    """The mesh at this moment."""
    online = [daemon for daemon in world.daemons.values() if daemon.is_online]
    sellers = [daemon for daemon in online if daemon.engine.models]
    status = [daemon.engine.status(next(iter(daemon.engine.models))) for daemon in sellers]
    prices = [daemon.config.price_completion_micro for daemon in sellers]
    traffic = world.network.traffic.values()
    return Sample(
        at_s=world.now,
        online=len(online),
        slots=sum(each.slots for each in status),
        slots_busy=sum(each.slots - each.slots_free for each in status),
        price_micro=sum(prices) / len(prices) if prices else 0.0,
        chats_running=sum(len(daemon.outcomes) for daemon in online),
        messages=sum(each.messages for each in traffic),
        bytes=sum(each.bytes for each in traffic),
    )


def draw_map(world: "World") -> list[MapNode]:
    """Every node and whom it is connected with now."""
    names = {daemon.peer_id: daemon.name for daemon in world.daemons.values()}
    return [
        MapNode(
            daemon.name,
            daemon.profile,
            daemon.is_online,
            tuple(names[peer] for peer in world.network.connected(daemon.peer_id) if peer in names),
        )
        for daemon in world.daemons.values()
    ]


def propagation(world: "World") -> list[Propagation]:
    """How the first gossiped messages went through the mesh; garbage goes nowhere, and is left out."""
    followed = []
    for data, times in world.network.followed.values():
        try:
            kind = open_sealed(data, mesh=world.mesh_id).message.kind
        except RemoteProtocolError:
            continue
        heard_s = tuple(time_s - times[0] for time_s in times)
        followed.append(Propagation(kind=kind, at_s=times[0] - world.began_s, heard_s=heard_s))
    return followed
