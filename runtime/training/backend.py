"""`TorchTrainer`: the Trainer port in the daemon, in front of one sandboxed child that is kept alive across rounds.

The child starts with the first fit and keeps the base loaded until `rest`. It may die at any time: memory, a kill. Then the
fit ends with `TrainerDied`, and the next one starts a new child. Nothing here imports torch, numpy or flwr.

The child runs at the lowest usual priority and with one thread, so that its machine stays usable: beside other work it
takes a tenth of a core, and an idle core whole.
"""

import importlib.util
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

import psutil
import trio

from protocol.errors import AgoraError
from protocol.limits import MIB, PROGRESS_INTERVAL_S
from runtime.child_end import printable
from runtime.engine import Digest, ModelCard
from runtime.trainer import (
    BadPayload,
    Fit,
    FitFrame,
    FitProgress,
    Fitted,
    Prepared,
    TrainerDied,
    TrainerError,
)
from runtime.training import wire
from runtime.training.process import TrainerChild

MAIN: Final = "node.children.trainer"
PACKAGES: Final = ("torch", "transformers", "peft", "opacus", "flwr", "gguf", "numpy")
MEMORY_SHARE: Final = 0.5  # of the machine, at most, for the model and its training
# What torch and its company take before a model is loaded, resident, and what a small one trains in.
MEMORY_FREE_BYTES_MIN: Final = 700 * MIB
# Address space without a model, of which 600 MB are resident with the tiny one: libraries are mapped whole, and each thread
# has a stack.
OVERHEAD_BYTES: Final = 1_536 * MIB
BYTES_PER_PARAMETER: Final = (
    10  # float32, read once more while it is loaded, and what a step keeps for its way back
)
NICENESS: Final = 10
FRAME_S: Final = 0.8 * PROGRESS_INTERVAL_S  # a frame comes at least so often; the child beats twice as fast


class Models(Protocol):
    """What is needed of `runtime.model_store.ModelStore`."""

    @property
    def directory(self) -> Path:
        """Where the files are."""

    @property
    def models(self) -> Mapping[Digest, ModelCard]:
        """All of them."""

    async def verify(self, digest: Digest) -> Path:
        """Return a model's file after making sure that it is the one it is named after."""


class TorchTrainer:
    """Fits in a child.

    Args:
        models: where bases are.
        data_directory: where private data sets are: `DIGEST/train.jsonl`.
        blobs_directory: where blobs are: `DIGEST`.
        threads: that compute. Two are slower than one for small models, and take the machine from its user.
        niceness: added to the daemon's own.
        memory_bytes_max: address space of the child; by default a share of the machine and what the libraries take.
        main: of the child; a test's own misbehaves.
    """

    def __init__(
        self,
        models: Models,
        data_directory: Path,
        blobs_directory: Path,
        *,
        threads: int = 1,
        niceness: int = NICENESS,
        memory_bytes_max: int | None = None,
        main: str = MAIN,
    ) -> None:
        self._models = models
        self._data_directory = data_directory.absolute()
        self._blobs_directory = blobs_directory.absolute()
        self._threads = threads
        self._niceness = niceness
        self._memory_bytes_max = memory_bytes_max
        self._main = main
        self._turn = trio.Semaphore(1)  # no lock: a generator may be closed by another task than began it
        self._child: TrainerChild | None = None
        self._steps_per_s = 0.0

    @property
    def why_not(self) -> str:
        """Why this device cannot train; "" if it can. Looks for packages without importing them."""
        missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            return f"{missing[0]} is not installed; run 'pip install agora-node[train]'"
        free = psutil.virtual_memory().available
        if self._child is None and free < MEMORY_FREE_BYTES_MIN:
            return f"{free // MIB} MiB of memory are free, expected {MEMORY_FREE_BYTES_MIN // MIB} at least"
        return ""

    @property
    def steps_per_s(self) -> float:
        """Measured in the last fit; 0 before the first."""
        return self._steps_per_s

    @property
    def sandbox(self) -> str:
        """The level that the child reached; "" while there is none."""
        return self._child.sandbox if self._child else ""

    @property
    def child_pid(self) -> int | None:
        """The child's process id, while there is one."""
        return self._child.pid if self._child and self._child.is_alive else None

    async def fit(self, task: Fit) -> AsyncGenerator[FitFrame, None]:
        """Yield the frames of one fit. See the port."""
        step, steps = 0, task.recipe.steps
        while True:
            with trio.move_on_after(FRAME_S):
                await self._turn.acquire()
                break
            yield FitProgress(0, steps)
        child, call, is_open, has_begun = None, 0, False, False
        try:
            order = await self._order(task)
            child = await self._living_child()
            while not child.is_ready:
                await child.hear(FRAME_S)
                yield FitProgress(0, steps)
            call, is_open = child.next_call(), True
            await child.say(order(call))
            while True:
                for message in await child.hear(FRAME_S):
                    match _of(message, call):
                        case wire.Beat() as beat:
                            step = min(beat.step, steps)
                        case wire.Prepared() if not has_begun:
                            yield Prepared()
                            has_begun = True
                            await child.say(wire.Begin(call))
                        case wire.Fitted() as fitted if has_begun:
                            is_open = False
                            if fitted.steps != steps:
                                raise TrainerError(
                                    f"the child trained {fitted.steps} steps, expected {steps}"
                                )
                            if fitted.steps and fitted.seconds:
                                self._steps_per_s = fitted.steps / fitted.seconds
                            yield Fitted(
                                fitted.payload, fitted.state, fitted.steps, fitted.samples, fitted.seconds
                            )
                            return
                        case wire.Failed(_, kind, text):
                            is_open = False
                            raise (BadPayload if kind == "payload" else TrainerError)(printable(text))
                        case wire.Cancelled():
                            raise TrainerError("the trainer's child gave up what nobody cancelled")
                        case wire.Prepared() | wire.Fitted():
                            raise TrainerError("the trainer's child prepared twice, or trained unasked")
                yield FitProgress(step, steps)
        except TrainerDied:
            is_open = False
            raise
        finally:
            if child is not None and is_open:
                child.cancel(call)
            self._turn.release()

    async def rest(self) -> None:
        """End the child. Another run's fit that is under way goes on; its own `rest` comes later."""
        try:
            self._turn.acquire_nowait()
        except trio.WouldBlock:
            return
        try:
            await self._end_child()
        finally:
            self._turn.release()

    async def _living_child(self) -> TrainerChild:
        if self._child is not None and self._child.is_alive:
            return self._child
        await self._end_child()
        readable = (self._models.directory, self._data_directory, self._blobs_directory)
        environment = {
            "OMP_NUM_THREADS": str(self._threads),
            "OPENBLAS_NUM_THREADS": "1",  # numpy's; a thread made before the sandbox closes would stay outside
            "AGORA_NICENESS": str(self._niceness),
            "HF_HUB_OFFLINE": "1",
            "TQDM_DISABLE": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
        }
        try:
            self._child = TrainerChild(self._main, readable, self._memory_max(), environment)
        except OSError as error:
            raise TrainerDied(f"the trainer's child cannot be started: {error}") from None
        return self._child

    async def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            await child.end()

    def _memory_max(self) -> int:
        return self._memory_bytes_max or int(psutil.virtual_memory().total * MEMORY_SHARE) + OVERHEAD_BYTES

    async def _order(self, task: Fit) -> Callable[[int], wire.Fit]:
        """Find what the task names; return the message for the child, but for the number of its call.

        Raises:
            TrainerError: something of it is not here, or does not fit into memory.
        """
        if why_not := self.why_not:
            raise TrainerError(why_not)
        try:
            base = await self._models.verify(task.base)
        except AgoraError as error:
            raise TrainerError(str(error)) from error
        needed = OVERHEAD_BYTES + self._models.models[task.base].parameters * BYTES_PER_PARAMETER
        if needed > self._memory_max():
            raise TrainerError(
                f"to train this base takes about {needed // MIB} MiB of address space, "
                f"expected at most {self._memory_max() // MIB} MiB"
            )
        data = self._data_directory / task.data.hex() / "train.jsonl"
        if not await trio.Path(data).is_file():
            raise TrainerError(f"no data set {task.data.hex()[:8]} on this device")
        return lambda call: wire.Fit(
            call=call,
            base=str(base),
            data=str(data),
            replay=None if task.replay is None else str(self._blobs_directory / task.replay.hex()),
            since=None if task.since is None else str(self._blobs_directory / task.since.hex()),
            recipe=task.recipe,
            round=task.round,
            payload=task.payload,
            state=task.state,
            noise=task.noise,
            seed=task.seed,
        )


def _of(message: wire.FromChild, call: int) -> wire.FromChild | None:
    """Return the message if it is about this call; what is said about cancelled ones crossed with the cancelling."""
    return message if not isinstance(message, wire.Ready) and message.call == call else None
