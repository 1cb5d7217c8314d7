"""The numbers of one coordinated run: states, changes, the gate and the strategy, behind bytes.

Imported when a run begins: it brings numpy and Flower, which a daemon that only chats does without. Nothing here waits;
all of it is called inside `Ports.compute`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from federation import codec, lora
from federation.aggregation import Aggregator
from federation.gate import Contribution, Gate, Refused
from federation.lora import Shapes, State
from federation.strategy import strategy_of
from protocol.envelope import Sealed
from protocol.errors import AgoraError
from protocol.identity import PeerId
from protocol.messages import Recipe, RoundTask, RoundUpdate

CHANGE_OVERHEAD_BYTES = 4_096  # of an int8 change that deflate makes no shorter: scales, block headers


@dataclass(frozen=True)
class Made:
    """A state, and the change that leads to it from the one before (from itself, for the first).

    Attributes:
        state: the bytes that every member reconstructs.
        payload: the change that goes to them.
        strategy: what made it; empty for the first.
        is_protected: whether the strategy withstands members that send anything.
    """

    state: bytes
    payload: bytes
    strategy: str = ""
    is_protected: bool = False


class RunNumbers:
    """The arithmetic of one run.

    Args:
        recipe: of the run.
        shapes: of the base's adapted tensors.

    Attributes:
        samples_max: what each member enlisted with; its coordinator fills it in as members take their seats.
    """

    def __init__(self, recipe: Recipe, shapes: Shapes) -> None:
        self._recipe = recipe
        self._shapes = shapes
        self.samples_max: dict[PeerId, int] = {}
        self._aggregator = Aggregator(strategy_of(recipe))
        self._state: State = {}
        self._tasks: dict[int, dict[PeerId, Sealed[RoundTask]]] = {}
        self._gates: dict[int, Gate] = {}
        self._contributions: dict[tuple[PeerId, int], Contribution] = {}
        self.change_bytes_max = 0

    def begin(self, start: bytes | None) -> Made:
        """Return the first state: the common seed's, or the bytes that the run starts from.

        Raises:
            AgoraError: the start is no state of this recipe.
        """
        seed = lora.seed_state(self._recipe, self._shapes)
        if start is None:
            self._take_on(seed)
        else:
            self.go_on(start)
            if {name: each.shape for name, each in self._state.items()} != {
                name: each.shape for name, each in seed.items()
            }:
                raise ForeignState("the state to start from is one of another recipe or base")
        return Made(codec.state_bytes(self._state), codec.change(self._state, self._state))

    def go_on(self, state: bytes) -> None:
        """Take a state on: the checkpoint after a restart.

        Raises:
            AgoraError: the bytes are no state.
        """
        self._take_on(codec.state_from(state))

    def _take_on(self, state: State) -> None:
        self._state = state
        self.change_bytes_max = (
            sum(each.size + 8 for each in state.values()) * 17 // 16 + CHANGE_OVERHEAD_BYTES
        )

    def open_round(self, number: int) -> None:
        """Updates of this round may come from now on; of the round before they may still."""
        self._tasks[number] = {}
        self._gates[number] = Gate(
            self._state,
            self._tasks[number],
            samples_max=self.samples_max,
            steps_max=self._recipe.steps,
        )
        for table in (self._tasks, self._gates):
            for old in [each for each in table if each < number - 1]:
                del table[old]

    def judge(
        self, peer: PeerId, task: Sealed[RoundTask], update: Sealed[RoundUpdate], payload: bytes
    ) -> str:
        """Return why an update may not enter an aggregate; empty: it may, and its contribution is kept."""
        number = task.message.round
        gate = self._gates.get(number)
        if gate is None:
            return f"an update of round {number}, which is long over"
        self._tasks[number][peer] = task
        match gate.examine(peer, update, payload):
            case Refused(reason):
                return reason
            case contribution:
                self._contributions[peer, number] = contribution
                return ""

    def drop(self, peer: PeerId, number: int) -> None:
        """An update does not count after all."""
        self._contributions.pop((peer, number), None)

    def aggregate(self, number: int, fresh: Sequence[PeerId], stale: Sequence[PeerId]) -> Made:
        """Return the next state, made of these members' updates of this round and of the one before.

        Raises:
            AgoraError: the strategy came to no result.
        """
        given = [self._contributions[peer, number] for peer in fresh]
        given += [self._contributions[peer, number - 1] for peer in stale]
        outcome = self._aggregator.aggregate(number, self._state, given)
        payload = codec.change(self._state, outcome.state)
        # what counts is what members reconstruct
        self._take_on(codec.apply(self._state, payload))
        kept = {key: each for key, each in self._contributions.items() if key[1] >= number}
        self._contributions = kept
        return Made(
            codec.state_bytes(self._state),
            payload,
            outcome.rule.name,
            outcome.rule.has_byzantine_protection,
        )


class ForeignState(AgoraError):
    """A checkpoint of another recipe or base cannot be started from."""
