"""What a simulation is asked for, and what it says while it runs."""

from dataclasses import dataclass

from node.simulation.scenario import Scenario


@dataclass(frozen=True)
class SimulationOptions:
    """What decides a run: the same options and commit give the same trace, byte by byte."""

    scenario: Scenario
    nodes: int
    seconds: float  # virtual
    seed: int


@dataclass(frozen=True)
class Progress:
    """How far a run is, in virtual seconds."""

    at_s: float
    seconds: float
    chats_finished: int
    online: int
