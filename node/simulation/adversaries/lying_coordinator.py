"""The lying coordinator: runs a training run, and tells each member of it something else.

It is a coordinator with a wire tap: what its node says on the streams of a run is changed on its way out, signed anew
with its own key. A member is shown a cohort without the others, a state that the payload does not lead to, a round that
it has trained before, or one that was never announced.
"""

from itertools import cycle
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec

from node.simulation.adversaries.adversary import Adversary
from node.simulation.adversaries.wiretap import TappedMesh
from protocol.envelope import open_sealed
from protocol.errors import RemoteProtocolError
from protocol.identity import PeerId
from protocol.mesh import Mesh
from protocol.messages import RoundTask, RunOpening
from protocol.topics import ROUND, StreamProtocol

if TYPE_CHECKING:
    from node.simulation.daemon import Daemon
    from node.simulation.world import World

LIES: Final = ("another_state", "an_old_round", "a_later_round", "the_truth")
HONEST_OPENINGS: Final = 2  # of three: so that some members do train for it


class LyingCoordinator(Adversary):
    """Lies to its cohort, in turn."""

    name: ClassVar[str] = "lying-coordinator"
    about: ClassVar[str] = "shows members of its runs false cohorts, states and rounds"

    def __init__(self, world: "World", daemon: "Daemon") -> None:
        super().__init__(world, daemon)
        self._lies = cycle(self.rng.sample(LIES, len(LIES)))
        self._openings = 0

    def tap(self, mesh: Mesh) -> Mesh:
        """See `Adversary.tap`."""
        return TappedMesh(mesh, self)

    def incoming(self, frame: bytes, peer_id: PeerId, protocol: StreamProtocol) -> None:
        """See `Tapper`; it listens to nothing."""

    def outgoing(self, frame: bytes, peer_id: PeerId, protocol: StreamProtocol) -> list[bytes]:
        """See `Tapper`."""
        if protocol is not ROUND:
            return [frame]
        try:
            opened = open_sealed(
                frame, mesh=self.world.mesh_id, kinds=frozenset({RoundTask.kind, RunOpening.kind})
            )
        except RemoteProtocolError:
            return [frame]
        if opened.sender != self.daemon.peer_id:
            return [frame]
        match opened.message:
            case RunOpening():
                return [self._false_opening(opened.message, frame, peer_id)]
            case RoundTask():
                return [self._false_task(opened.message, frame, peer_id)]
            case _:
                return [frame]

    def _false_opening(self, opening: RunOpening, frame: bytes, peer_id: PeerId) -> bytes:
        """Every third member is shown itself alone, as often as the others are many."""
        self._openings += 1
        if self._openings % (HONEST_OPENINGS + 1):
            return frame
        own = [
            raw for raw in opening.enlistments if open_sealed(raw, mesh=self.world.mesh_id).sender == peer_id
        ]
        alone = tuple(own * len(opening.enlistments))
        self.strike("a_false_cohort", member=peer_id)
        return self.daemon.node.wire.seal(msgspec.structs.replace(opening, enlistments=alone)).raw

    def _false_task(self, task: RoundTask, frame: bytes, peer_id: PeerId) -> bytes:
        match lie := next(self._lies):
            case "another_state":
                changed = msgspec.structs.replace(task, state=self.rng.randbytes(32))
            case "an_old_round":
                changed = msgspec.structs.replace(task, round=max(1, task.round - 1))
            case "a_later_round":
                changed = msgspec.structs.replace(task, round=task.round + 500)
            case _:
                return frame
        self.strike(lie, member=peer_id)
        return self.daemon.node.wire.seal(changed).raw
