"""What a device of a world learns with, beside the blobs and data on its disk: toys that compute what they say.

They are made anew with each start, as children of a process are. numpy is imported when the first device of a world that
learns starts, and never where nobody learns.
"""

import importlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from random import Random
from typing import TYPE_CHECKING, Any

from node.gguf_adapters import UnusableBase
from protocol.messages import Recipe
from runtime.engine import Digest
from runtime.toy_examiner import ToyExaminer
from runtime.toy_trainer import ToyData, ToyTrainer, toy_adapter, toy_shapes
from runtime.trainer import Fit, FitFrame, Fitted, Prepared

if TYPE_CHECKING:
    from node.adapter_maker import Shapes
    from node.simulation.daemon import Daemon

ROUND_S = 6.0  # of the usual number of steps


class RecordingTrainer(ToyTrainer):
    """Keeps account of each fit that it begins and ends, for the laws."""

    def __init__(self, daemon: "Daemon", *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._daemon = daemon

    async def fit(self, task: Fit) -> AsyncGenerator[FitFrame, None]:
        """See `Trainer.fit`."""
        async with aclosing(super().fit(task)) as frames:
            async for frame in frames:
                if isinstance(frame, Fitted):
                    self._daemon.fitted.append((self._daemon.starts, task))
                yield frame
                if isinstance(frame, Prepared):  # whoever asks for the next frame has it begin
                    self._daemon.fits.append(task)


class ToyAdapters:
    """See `node.adapter_maker.AdapterMaker`, for the one toy base.

    Args:
        state_from: `federation.codec`'s.
        holds: whether this device has a base.
    """

    def __init__(
        self, state_from: Callable[[bytes], dict[str, Any]], *, holds: Callable[[Digest], bool]
    ) -> None:
        self._state_from = state_from
        self._holds = holds

    def shapes(self, base: Digest, recipe: Recipe) -> "Shapes":
        """See `AdapterMaker.shapes`."""
        if not self._holds(base):
            raise UnusableBase(f"no model {base.hex()[:8]} here, expected the line's base")
        return toy_shapes(recipe)

    def export(self, state: bytes, recipe: Recipe, base: Digest) -> bytes:  # noqa: ARG002
        """See `AdapterMaker.export`."""
        return toy_adapter(self._state_from(state))


class LearningKit:
    """Makes the toys of one device."""

    def __init__(self, daemon: "Daemon") -> None:
        self._daemon = daemon
        self._codec: Any = importlib.import_module("federation.codec")
        self._lora: Any = importlib.import_module("federation.lora")

    def trainer(self, rng: Random) -> RecordingTrainer:
        """Return a trainer of this device's data."""
        daemon = self._daemon
        return RecordingTrainer(
            daemon,
            self._data,
            daemon.blobs.read,
            rng,
            codec=self._codec,
            seed_state=self._lora.seed_state,
            round_s=ROUND_S,
        )

    def examiner(self) -> ToyExaminer:
        """Return an examiner of adapters among this device's blobs."""
        daemon = self._daemon
        return ToyExaminer(daemon.blobs.read, holds=lambda base: base in daemon.engine.models)

    def adapters(self) -> ToyAdapters:
        """Return what makes adapters of a run's states."""
        daemon = self._daemon
        return ToyAdapters(self._codec.state_from, holds=lambda base: base in daemon.engine.models)

    def _data(self, digest: Digest) -> ToyData:
        known = {each.digest: each for each in self._daemon.data.sets()}
        return ToyData(known[digest].name, known[digest].samples)
