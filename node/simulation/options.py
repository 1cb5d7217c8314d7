"""What a simulation is asked for, and what it says while it runs."""

import math
from dataclasses import dataclass

from node.errors import StartError
from node.simulation.scenario import Scenario


@dataclass(frozen=True)
class SimulationOptions:
    """What decides a run: the same options and commit give the same trace, byte by byte.

    Raises:
        StartError: no world has so many nodes, or so much time.
    """

    scenario: Scenario
    nodes: int
    seconds: float  # virtual
    seed: int

    def __post_init__(self) -> None:
        """Check what a person or a file may have got wrong."""
        if self.nodes < 1:
            raise StartError(f"a world of {self.nodes} nodes, expected 1 or more")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise StartError(f"a world that lasts {self.seconds:g} s, expected more than 0")


@dataclass(frozen=True)
class Progress:
    """How far a run is, in virtual seconds."""

    at_s: float
    seconds: float
    chats_finished: int
    online: int
