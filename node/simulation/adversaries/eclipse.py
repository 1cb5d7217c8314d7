"""The eclipse: members that surround one victim, so that it knows nobody but them, and then name their price.

They dial it again and again until it has as many connections as it wants and dials nobody itself; whatever it asks
about sellers, they name each other. What defeats it is a single connection to somebody else.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Final, cast

import msgspec

from node.simulation.adversaries.adversary import Adversary
from node.simulation.adversaries.wiretap import TappedMesh
from node.simulation.engine import SimulatedEngine
from protocol.envelope import Sealed, open_sealed
from protocol.errors import RemoteProtocolError
from protocol.identity import PeerId
from protocol.limits import ADVERTS_PER_HELLO_MAX
from protocol.mesh import Mesh
from protocol.messages import Adverts, Hello
from protocol.topics import ADVERTS_WANTED, HELLO, StreamProtocol

if TYPE_CHECKING:
    from node.simulation.daemon import Daemon
    from node.simulation.world import World

DIAL_MEAN_S: Final = 1.0
NAMING: Final = frozenset({Hello.kind, Adverts.kind})  # messages in which a peer names others


class Eclipse(Adversary):
    """One of the group; the others are the world's daemons of the same behaviour."""

    name: ClassVar[str] = "eclipse"
    about: ClassVar[str] = (
        "with its like fills a victim's connections, names it only each other, and charges the most that it pays"
    )

    def __init__(self, world: "World", daemon: "Daemon") -> None:
        super().__init__(world, daemon)
        config = daemon.config
        daemon.config = replace(
            config,
            price_prompt_micro=config.pay_prompt_micro_max,
            price_completion_micro=config.pay_completion_micro_max,
        )
        daemon.engine = SimulatedEngine.of(self.profile, is_seller=True)

    def tap(self, mesh: Mesh) -> Mesh:
        """See `Adversary.tap`."""
        return TappedMesh(mesh, self)

    @property
    def victim(self) -> "Daemon | None":
        """The honest device that was added first, whoever of the group asks."""
        others = (each for each in self.world.daemons.values() if each is not self.world.founder)
        return next((each for each in others if not each.behaviour), None)

    def incoming(self, frame: bytes, peer_id: PeerId, protocol: StreamProtocol) -> None:
        """See `Tapper`; it is not curious."""

    def outgoing(self, frame: bytes, peer_id: PeerId, protocol: StreamProtocol) -> list[bytes]:
        """See `Tapper`; the victim hears of nobody else."""
        victim = self.victim
        if victim is None or peer_id != victim.peer_id or protocol not in (HELLO, ADVERTS_WANTED):
            return [frame]
        try:
            opened = open_sealed(frame, mesh=self.world.mesh_id, kinds=NAMING)
        except RemoteProtocolError:
            return [frame]  # a question of its own
        sealed = cast("Sealed[Hello | Adverts]", opened)
        self.strike("named_allies", protocol=protocol.name)
        named = msgspec.structs.replace(sealed.message, adverts=self._allies_adverts())
        return [self.daemon.node.wire.seal(named).raw]

    def _allies_adverts(self) -> tuple[bytes, ...]:
        allies = (
            each
            for each in self.world.daemons.values()
            if each.behaviour == self.name and each is not self.daemon and each.is_online
        )
        adverts = [own.raw for ally in allies if (own := ally.node.advertiser.own())]
        return tuple(adverts[:ADVERTS_PER_HELLO_MAX])

    async def run(self) -> None:
        """See `Adversary.run`; be there whenever the victim has room."""
        while True:
            victim = self.victim
            if victim is not None and victim.peer_id not in self.daemon.mesh.connected:
                await self.attempt(self._surround, victim)
            await self.pause(DIAL_MEAN_S)

    async def _surround(self, victim: "Daemon") -> None:
        await self.daemon.mesh.dial(victim.address)
        self.strike("dialled", victim=victim.peer_id)
