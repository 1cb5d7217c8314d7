"""The poisoner: a member of a cohort that trains, and sends something else than what came of it.

Its node plays by the protocol; only what its trainer hands over is changed: turned round and enlarged, enlarged thirty
times, not finite, of another size, or said to stand for a trillion records.
"""

import math
import struct
import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Final

from node.node import Ports
from node.simulation.adversaries.adversary import Adversary
from runtime.trainer import Fit, FitFrame, Fitted, Trainer

if TYPE_CHECKING:
    from node.simulation.daemon import Daemon
    from node.simulation.world import World

FLIPPED_TIMES: Final = 3.0
SCALED_TIMES: Final = 30.0
SAMPLES_SAID: Final = 2**40
SCALE_BYTES: Final = 4
KINDS: Final = ("flip", "scale", "nan", "shape", "weight")


class PoisonedTrainer:
    """See `runtime.trainer.Trainer`; honest work, garbled on its way out."""

    def __init__(self, trainer: Trainer, poisoner: "Poisoner") -> None:
        self._trainer = trainer
        self._poisoner = poisoner

    @property
    def why_not(self) -> str:
        """See `Trainer.why_not`."""
        return self._trainer.why_not

    @property
    def steps_per_s(self) -> float:
        """See `Trainer.steps_per_s`."""
        return self._trainer.steps_per_s

    async def fit(self, task: Fit) -> AsyncGenerator[FitFrame, None]:
        """See `Trainer.fit`."""
        async with aclosing(self._trainer.fit(task)) as frames:
            async for frame in frames:
                yield self._poisoner.poison(frame, task) if isinstance(frame, Fitted) else frame

    async def rest(self) -> None:
        """See `Trainer.rest`."""
        await self._trainer.rest()


class Poisoner(Adversary):
    """Poisons each of its updates in one way, which its lot decides."""

    name: ClassVar[str] = "poisoner"
    about: ClassVar[str] = (
        "trains in a cohort and sends updates that are flipped, huge, not finite or misshapen"
    )

    def __init__(self, world: "World", daemon: "Daemon") -> None:
        super().__init__(world, daemon)
        self.kind = self.rng.choice(KINDS)

    def equip(self, ports: Ports) -> Ports:
        """See `Adversary.equip`."""
        return replace(ports, trainer=PoisonedTrainer(ports.trainer, self)) if ports.trainer else ports

    def poison(self, fitted: Fitted, task: Fit) -> Fitted:
        """Return what is sent in the place of a fit's result."""
        self.strike(self.kind, round=task.round)
        if self.kind == "weight":
            return replace(fitted, samples=SAMPLES_SAID)
        return replace(fitted, payload=self._garbled(fitted.payload, tensors=_tensors(fitted.state)))

    def _garbled(self, payload: bytes, *, tensors: int) -> bytes:
        """Change the change: a byte of version, then scales and steps, deflated; see `federation.codec`."""
        body = zlib.decompress(payload[1:])
        scales = struct.unpack(f"<{tensors}f", body[: SCALE_BYTES * tensors])
        steps = body[SCALE_BYTES * tensors :]
        match self.kind:
            case "flip":
                scales = tuple(FLIPPED_TIMES * scale for scale in scales)
                steps = bytes(-step % 256 for step in steps)
            case "scale":
                scales = tuple(SCALED_TIMES * scale for scale in scales)
            case "nan":
                scales = (math.nan,) * tensors
            case _:
                steps += bytes(8)
        return payload[:1] + zlib.compress(struct.pack(f"<{tensors}f", *scales) + steps)


def _tensors(state: bytes) -> int:
    """How many tensors a state has, from the header of its file; the state is its own trainer's."""
    (length,) = struct.unpack("<Q", state[:8])
    return state[8 : 8 + length].count(b'"dtype"')
