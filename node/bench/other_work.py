"""How much a device's other work is slowed while it trains for the mesh: a trainer's child takes what is left over.

The other work is a busy loop on every core, at the usual priority: the worst case for whoever has to share.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Final

import msgspec
import psutil
import trio

from federation import codec, lora
from federation.defaults import DEFAULT_RECIPE
from node.bench.cohort import keep
from node.bench.federated import TINY
from node.local_mesh import tiny_line
from runtime.engine import Digest
from runtime.gguf_header import read_layout
from runtime.model_store import ModelStore
from runtime.trainer import Fit, FitProgress
from runtime.training.backend import TorchTrainer

SECONDS: Final = 8.0
STEPS: Final = 5_000  # more than are done meanwhile
TURNS: Final = 4  # alone and beside the trainer, in turn


def run(directory: Path, say: Callable[[str], None]) -> list[float]:
    """Return the share of its speed that the other work lost, of each turn.

    Args:
        directory: empty; for models, data and blobs.
        say: told of each turn.
    """
    return trio.run(_run, directory, say)


async def _run(directory: Path, say: Callable[[str], None]) -> list[float]:
    store = ModelStore(directory / "models")
    card = await store.add(TINY)
    blobs, home = directory / "blobs", directory / "data" / bytes(32).hex()
    blobs.mkdir()
    home.mkdir(parents=True)
    (home / "train.jsonl").write_bytes(tiny_line.private_records(tiny_line.CODES))
    layout = read_layout(store.path(card.digest))
    shapes = {name.removesuffix(".weight"): shape for name, shape in layout.shapes.items()}
    recipe = msgspec.structs.replace(DEFAULT_RECIPE, steps=STEPS)
    state = lora.seed_state(recipe, shapes)
    task = Fit(
        base=card.digest,
        data=Digest(bytes(32)),
        replay=keep(blobs, tiny_line.replay_set()),
        recipe=recipe,
        round=1,
        since=None,
        payload=codec.change(state, state),
        state=Digest(codec.digest(state)),
        noise=None,
        seed=1,
    )
    trainer = TorchTrainer(store, directory / "data", blobs)
    lost = []
    async with aclosing(trainer.fit(task)) as frames:
        async for frame in frames:
            if isinstance(frame, FitProgress) and frame.step > 0:
                break  # it is loaded, and trains
        for turn in range(TURNS):
            say(f"learning: other work beside a trainer, {turn + 1} of {TURNS}")
            beside = await trio.to_thread.run_sync(_speed)
            with _paused(trainer.child_pid):
                alone = await trio.to_thread.run_sync(_speed)
            lost.append(1 - beside / alone)
    await trainer.rest()
    return lost


@contextmanager
def _paused(pid: int | None) -> Iterator[None]:
    """Keep a process from running in the block."""
    assert pid is not None
    process = psutil.Process(pid)
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def _speed() -> float:
    """Return how many turns a loop on each core makes in a second, all together."""
    cores = os.cpu_count() or 1
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        return sum(pool.map(_count, [SECONDS] * cores, chunksize=1))


def _count(seconds: float) -> float:
    turns, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(10_000):
            turns += 1
    return turns / seconds
