"""The replayer: whatever was said once to or by this node is said again, to the same peer or another, now or later.

Signatures hold for ever, so a copy is as genuine as the original; only sequence numbers, ids and places can tell.
"""

from collections import deque
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

from node.simulation.adversaries.adversary import Adversary
from node.simulation.adversaries.wiretap import TappedMesh
from node.simulation.engine import SimulatedEngine
from protocol.identity import PeerId
from protocol.mesh import Mesh
from protocol.topics import ADVERT, StreamProtocol

if TYPE_CHECKING:
    from node.simulation.daemon import Daemon
    from node.simulation.world import World

KEPT_FRAMES: Final = 512
FRAMES_AT_ONCE_MAX: Final = 4  # a hello, a request with its award and work, a receipt with what follows
REPLAY_MEAN_S: Final = 0.5
TWICE_SHARE: Final = 0.05  # of its own frames, at once and on the same stream


class Recorded(NamedTuple):
    """A frame that passed."""

    protocol: StreamProtocol
    peer_id: PeerId
    frame: bytes


class Replayer(Adversary):
    """Records everything, and plays it back."""

    name: ClassVar[str] = "replayer"
    about: ClassVar[str] = "sends frames that it once sent or received again, to whoever is connected"

    def __init__(self, world: "World", daemon: "Daemon") -> None:
        super().__init__(world, daemon)
        self.undercut()  # so that somebody deals with it, and there is something to repeat
        daemon.engine = SimulatedEngine.of(self.profile, is_seller=True)
        self._tape: deque[Recorded] = deque(maxlen=KEPT_FRAMES)

    def tap(self, mesh: Mesh) -> Mesh:
        """See `Adversary.tap`."""
        return TappedMesh(mesh, self)

    def outgoing(self, frame: bytes, peer_id: PeerId, protocol: StreamProtocol) -> list[bytes]:
        """See `Tapper`; now and then a frame goes out twice."""
        self._tape.append(Recorded(protocol, peer_id, frame))
        if self.rng.random() >= TWICE_SHARE:
            return [frame]
        self.strike("doubled", protocol=protocol.name)
        return [frame, frame]

    def incoming(self, frame: bytes, peer_id: PeerId, protocol: StreamProtocol) -> None:
        """See `Tapper`."""
        self._tape.append(Recorded(protocol, peer_id, frame))

    async def run(self) -> None:
        """See `Adversary.run`."""
        while True:
            await self.pause(REPLAY_MEAN_S)
            peers = self.neighbours()
            if self._tape and peers:
                await self.attempt(self._replay, self.rng.randrange(len(self._tape)), self.rng.choice(peers))

    async def _replay(self, begin: int, to: PeerId) -> None:
        """Play what was said with one peer on one protocol, from some place on."""
        first = self._tape[begin]
        same = [
            each.frame
            for each in list(self._tape)[begin:]
            if (each.protocol, each.peer_id) == (first.protocol, first.peer_id)
        ][:FRAMES_AT_ONCE_MAX]
        if first.protocol is ADVERT:
            self.daemon.mesh.post(to, ADVERT, first.frame)
            self.strike("replayed", protocol=ADVERT.name, peer=to)
            return
        async with self.stream(to, first.protocol) as stream:
            for frame in same:
                await stream.send(frame)
            self.strike("replayed", protocol=first.protocol.name, peer=to)
            await stream.receive()  # leave the victim time to act on it
