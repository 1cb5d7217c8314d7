"""The behaviours of devices that misbehave, by the names that `World.add` and `World.mix_in` know them by."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from node.simulation.adversaries.adversary import Adversary
from node.simulation.adversaries.double_awarder import DoubleAwarder
from node.simulation.adversaries.double_voter import DoubleVoter
from node.simulation.adversaries.eclipse import Eclipse
from node.simulation.adversaries.faithless_sellers import CapacityLiar, DripFeeder, SilentWinner
from node.simulation.adversaries.false_scorer import FalseScorer
from node.simulation.adversaries.garbage_sender import GarbageSender
from node.simulation.adversaries.lying_coordinator import LyingCoordinator
from node.simulation.adversaries.model_swappers import FalseReader, ModelSwapper
from node.simulation.adversaries.poisoner import Poisoner
from node.simulation.adversaries.receipt_forger import ReceiptForger
from node.simulation.adversaries.replayer import Replayer
from node.simulation.adversaries.sybil_swarm import SybilSwarm

if TYPE_CHECKING:
    from node.simulation.daemon import Daemon
    from node.simulation.world import World

# Each says in `about`, in one line, what it tries.
_TRADERS: Final = (
    CapacityLiar,
    SilentWinner,
    DripFeeder,
    DoubleAwarder,
    Replayer,
    GarbageSender,
    ReceiptForger,
    SybilSwarm,
    Eclipse,
    ModelSwapper,
    FalseReader,
)
_LEARNERS: Final = (Poisoner, LyingCoordinator, DoubleVoter, FalseScorer)

BEHAVIOURS: Final[Mapping[str, type[Adversary]]] = MappingProxyType(
    {each.name: each for each in (*_TRADERS, *_LEARNERS)}
)
TRADING: Final = tuple(each.name for each in _TRADERS)  # those that matter wherever people chat
LEARNING: Final = tuple(each.name for each in _LEARNERS)  # those that matter where somebody learns


def turn(world: "World", daemon: "Daemon", name: str) -> None:
    """Make a device that has not started yet misbehave.

    Raises:
        ValueError: no such behaviour.
    """
    if name not in BEHAVIOURS:
        raise ValueError(f"no behaviour {name!r}, expected one of {', '.join(BEHAVIOURS)}")
    daemon.adversary = BEHAVIOURS[name](world, daemon)


def draw_adversaries(world: "World", share: float, behaviours: Sequence[str]) -> list["Daemon"]:
    """Turn a share of a world's devices, never its founder, into adversaries; see `World.mix_in`.

    The behaviours are dealt in turn, so that each is there as soon as there are as many adversaries.
    """
    if not 0 <= share <= 1 or not behaviours:
        raise ValueError(
            f"a share of {share} with {len(behaviours)} behaviours, expected 0 to 1 with one or more"
        )
    honest = [each for each in world.daemons.values() if each is not world.founder and not each.behaviour]
    drawn = world.random("adversaries").sample(honest, round(share * len(honest)))
    for daemon, name in zip(drawn, cycle(behaviours), strict=False):
        turn(world, daemon, name)
    return drawn
