"""The main of the trainer child: `python -m node.children.trainer CONFINEMENT`, inside a sandbox it closes itself.

It composes what may not know each other: the coordinator's bytes are read by `federation.codec`, a round is one message to
Flower's own `ClientApp` (`federation.client`), and what that calls is the loop of `runtime.training.finetune`. The base and
the tokenised records stay loaded for the next round.
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from federation import client, codec, lora
from federation.flower import Settings
from federation.lora import State
from federation.strategy import proximal_mu
from protocol.errors import AgoraError
from runtime import sandbox
from runtime.llama.template import RenderBounds, TemplateError
from runtime.trainer import BadPayload, TrainerError
from runtime.training import wire
from runtime.training.base_model import BadBase, BaseModel, Device, Sample, find_device
from runtime.training.child import CallCancelled, Connection
from runtime.training.finetune import Round, finetune

TOKENS_MAX: Final = 1_024  # of one example; longer ones are cut


class Example(msgspec.Struct):
    """A line of a data set or of a replay set; what else a line says is not looked at."""

    prompt: str
    response: str


_example = msgspec.json.Decoder(Example)


@dataclass
class Loaded:
    """What is kept between rounds."""

    path: str
    base: BaseModel
    samples: dict[str, list[Sample]] = field(default_factory=dict)  # by file


class Child:
    """Does one fit after another."""

    def __init__(self, connection: Connection, bounds: RenderBounds, device: Device) -> None:
        self._connection = connection
        self._bounds = bounds
        self._device = device
        self._loaded: Loaded | None = None

    def run(self) -> None:
        """Work until the reading thread ends the process."""
        while True:
            task = self._connection.inbox.get()
            try:
                answer: wire.FromChild = self._fit(task)
            except CallCancelled:
                answer = wire.Cancelled(task.call)
            except BadPayload as error:
                answer = wire.Failed(task.call, "payload", str(error)[:512])
            except (AgoraError, BadBase, TemplateError, OSError, msgspec.MsgspecError) as error:
                answer = wire.Failed(task.call, "trainer", " ".join(str(error).split())[:512])
            except (MemoryError, RuntimeError) as error:  # torch says both of no memory with the second
                self._loaded = None
                text = " ".join(str(error).split())[:384]
                answer = wire.Failed(task.call, "trainer", f"not enough memory, or torch refused: {text}")
            self._connection.rest()
            self._connection.say(answer)

    def _fit(self, task: wire.Fit) -> wire.Fitted:
        def on_step(step: int) -> None:
            self._connection.work_on(task.call, step, task.recipe.steps)

        on_step(0)
        loaded = self._load(task.base)
        old = starting_state(task, loaded.base)
        private = self._samples(loaded, task.data, on_step)
        if not private:
            raise TrainerError("no record of the data set fits into the model's context")
        replay = self._samples(loaded, task.replay, on_step) if task.replay else []
        loaded.samples = {path: loaded.samples[path] for path in (task.data, task.replay) if path}
        self._connection.wait_to_begin(task.call)
        seconds = 0.0

        def train(state: State, _settings: Settings) -> tuple[State, client.Metrics]:
            nonlocal seconds
            began = time.perf_counter()
            new = finetune(
                loaded.base,
                state,
                lora.frozen_a(task.recipe, loaded.base.shapes) if task.recipe.is_a_frozen else {},
                private,
                replay,
                Round(task.recipe, task.round, task.noise, task.seed, proximal_mu(task.recipe)),
                on_step,
            )
            seconds = time.perf_counter() - began
            return new, {client.WEIGHT: len(private)}

        new, _metrics = client.fit(client.client_app(train), old, {"round": task.round})
        try:
            payload = codec.change(old, new)
            codec.apply(old, payload)
        except (ValueError, codec.BadChange) as error:
            raise TrainerError(f"the training diverged: {error}; a lower learning rate helps") from None
        return wire.Fitted(
            call=task.call,
            payload=payload,
            state=codec.state_bytes(old),
            steps=task.recipe.steps,
            samples=len(private),
            seconds=seconds,
        )

    def _samples(self, loaded: Loaded, path: str, on_step: Callable[[int], None]) -> list[Sample]:
        """Return a file's examples as tokens; those of the last round are still there."""
        if path not in loaded.samples:
            samples = []
            for line in Path(path).read_bytes().splitlines():
                on_step(0)  # many records take a while: say so, and hear of a cancel
                example = _example.decode(line)
                if sample := loaded.base.sample(example.prompt, example.response, TOKENS_MAX):
                    samples.append(sample)
            loaded.samples[path] = samples
        return loaded.samples[path]

    def _load(self, path: str) -> Loaded:
        """Return the base, loaded anew only if it is another one."""
        if self._loaded is None or self._loaded.path != path:
            self._loaded = None  # never two in memory
            self._loaded = Loaded(path, BaseModel(Path(path), self._bounds, self._device))
        return self._loaded


def starting_state(task: wire.Fit, base: BaseModel) -> State:
    """Return the state that the coordinator's change leads to.

    Raises:
        BadPayload: it leads nowhere, or to another state than the task names.
    """
    seed = lora.seed_state(task.recipe, base.shapes)
    try:
        since = codec.state_from(Path(task.since).read_bytes()) if task.since else seed
        if {name: array.shape for name, array in since.items()} != {
            name: array.shape for name, array in seed.items()
        }:
            raise BadPayload("the change is to a state of other tensors than the recipe's")
        state = codec.apply(since, task.payload)
    except (codec.BadChange, codec.BadState) as error:
        raise BadPayload(str(error)) from None
    if hashlib.sha256(codec.state_bytes(state)).digest() != task.state:
        raise BadPayload("the change leads to another state than the task names")
    return state


def main() -> None:
    """Import, close the sandbox, say so, and work."""
    confinement = sandbox.Confinement.from_arguments(sys.argv[1:])
    os.nice(int(os.environ.get("AGORA_NICENESS", "0")))
    bounds = RenderBounds()
    device = find_device()
    level = confinement.enter()
    connection = Connection(confinement.take_socket())
    connection.say(wire.Ready(level, str(device)))
    connection.start()
    Child(connection, bounds, device).run()


if __name__ == "__main__":
    main()
