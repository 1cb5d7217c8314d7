"""The gate in front of every aggregate: what a member sent becomes a contribution, or a reason.

Flower's strategies believe what they are given: a NaN makes the global model NaN, a wrong shape is broadcast or raises,
a weight of 10^12 outweighs everybody (measured with Flower 1.41). So nothing reaches them that has not passed here, in
this order, cheap checks first: is it from the authenticated member, for this run and round, the answer to the task that
this member was given, its first, within what it enlisted with; are the bytes those that were signed; do they decode;
do names, shapes and type fit; is every value finite and small enough.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from federation.codec import VALUE_MAX, BadChange, apply
from federation.lora import State
from protocol.envelope import Sealed
from protocol.identity import PeerId
from protocol.messages import RoundTask, RoundUpdate


@dataclass(frozen=True)
class Contribution:
    """What a member's update adds to the state it was trained from. Only a gate makes one.

    Attributes:
        samples: what it weighs, no more than the member enlisted with.
    """

    peer: PeerId
    round: int
    samples: int
    change: State


@dataclass(frozen=True)
class Refused:
    """Why an update may not enter the aggregate."""

    reason: str


class Gate:
    """The gate of one round. Late updates of a round pass by its own gate, so it is kept for one round more.

    Args:
        state: what the members were given to train from.
        tasks: as sent, by member.
        samples_max: what each member enlisted with.
        steps_max: of the recipe.
    """

    def __init__(
        self,
        state: State,
        tasks: Mapping[PeerId, Sealed[RoundTask]],
        *,
        samples_max: Mapping[PeerId, int],
        steps_max: int,
    ) -> None:
        self._state = state
        self._tasks = tasks
        self._samples_max = samples_max
        self._steps_max = steps_max
        self._taken: set[PeerId] = set()

    def examine(self, sender: str, update: Sealed[RoundUpdate], payload: bytes) -> Contribution | Refused:
        """Return what an update contributes; `sender` is the authenticated peer at the other end of the stream."""
        peer = PeerId(sender)
        if reason := self._why_not(peer, update, payload):
            return Refused(reason)
        try:
            new = apply(self._state, payload)
        except BadChange as error:
            return Refused(str(error))
        if reason := why_unfit(self._state, new):
            return Refused(reason)
        self._taken.add(peer)
        said = update.message
        return Contribution(
            peer, said.round, said.samples, {name: new[name] - self._state[name] for name in new}
        )

    def _why_not(self, peer: PeerId, update: Sealed[RoundUpdate], payload: bytes) -> str:
        said = update.message
        task = self._tasks.get(peer)
        if update.sender != peer:
            return "signed by another than who sent it"
        if task is None:
            return "by a device that was not asked"
        if (said.run, said.round, said.task) != (task.message.run, task.message.round, task.id):
            return "not the answer to the task that this member was given"
        if peer in self._taken:
            return "the second of this round"
        most = self._samples_max.get(peer, 0)
        if said.samples > most:
            return f"a weight of {said.samples} samples, {most} enlisted"
        if said.steps > self._steps_max:
            return f"{said.steps} steps, {self._steps_max} were asked for"
        if len(payload) != said.payload_bytes or hashlib.sha256(payload).digest() != said.payload:
            return "a payload that is not the one it signed"
        return ""


def why_unfit(state: State, new: Mapping[str, object]) -> str:
    """Return why arrays cannot be a state of this run; empty: they can."""
    if new.keys() != state.keys():
        return f"{len(new.keys() ^ state.keys())} tensors too many or missing"
    for name in sorted(state):
        array = new[name]
        if not isinstance(array, np.ndarray) or array.dtype != np.float32:
            return f"{name} is not of float32"
        if array.shape != state[name].shape:
            return f"{name} is {array.shape}, expected {state[name].shape}"
        if not np.isfinite(array).all():
            return f"a value of {name} is not finite"
        if (np.abs(array) > VALUE_MAX).any():
            return f"a value of {name} is over {VALUE_MAX:g}"
    return ""
