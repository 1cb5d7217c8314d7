"""What it costs in accuracy that changes travel as int8: the same run twice, once with changes as they are.

    python -m node.bench.int8_effect --seed 1

Four devices with disjoint records (two of the eight codes each), the plain mean, the default recipe, the same draws of
records on both sides. Prints one JSON line. The loop is called in this process; a child's answer is always int8.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import trio

from federation import codec, lora
from federation.aggregation import Aggregator
from federation.defaults import DEFAULT_RECIPE
from federation.gate import Contribution
from federation.lora import State
from federation.strategy import strategy_of
from node.bench.cohort import examine, export, keep
from node.bench.federated import TINY
from node.local_mesh import tiny_line
from protocol.identity import PeerId
from protocol.messages import Recipe
from runtime.gguf_header import read_layout
from runtime.llama.template import RenderBounds
from runtime.model_store import ModelStore
from runtime.training.base_model import BaseModel, Sample, find_device
from runtime.training.finetune import Round, finetune

MEMBERS: Final = 4
TOKENS_MAX: Final = 1_024

# What the other side reconstructs of a new state, given the old one.
Carry = Callable[[State, State], State]


def as_int8(old: State, new: State) -> State:
    """Carry a change as it travels."""
    return codec.apply(old, codec.change(old, new))


def as_it_is(_old: State, new: State) -> State:
    """Carry a change without any loss."""
    return new


def train(base: BaseModel, recipe: Recipe, carry: Carry) -> tuple[State, float]:
    """Return the state after all rounds, and the largest error that carrying made relative to a member's change."""
    members = [
        samples(base, tiny_line.private_records(tiny_line.CODES[2 * index : 2 * index + 2]))
        for index in range(MEMBERS)
    ]
    replay = samples(base, tiny_line.replay_set())
    frozen = lora.frozen_a(recipe, base.shapes)
    aggregator = Aggregator(strategy_of(recipe))
    state = lora.seed_state(recipe, base.shapes)
    worst = 0.0
    for number in range(1, recipe.rounds + 1):
        given = []
        for index, private in enumerate(members):
            task = Round(recipe, number, None, 1_000 * number + index)
            new = finetune(base, state, frozen, private, replay, task, lambda _step: None)
            carried = carry(state, new)
            change = {name: carried[name] - state[name] for name in state}
            worst = max(worst, distance(carried, new) / distance(new, state))
            given.append(Contribution(PeerId(f"member-{index}"), number, len(private), change))
        state = carry(state, aggregator.aggregate(number, state, given).state)
    return state, worst


def samples(base: BaseModel, lines: bytes) -> list[Sample]:
    """Return JSON lines as tokens."""
    examples = map(json.loads, lines.splitlines())
    found = (base.sample(each["prompt"], each["response"], TOKENS_MAX) for each in examples)
    return [each for each in found if each is not None]


def distance(one: State, other: State) -> float:
    """Return the Euclidean distance of two states."""
    return float(np.sqrt(sum(float(np.square(one[name] - other[name]).sum()) for name in one)))


async def compare(directory: Path, recipe: Recipe) -> dict[str, object]:
    """Train with both, and let llama.cpp answer with both adapters."""
    store = ModelStore(directory / "models")
    card = await store.add(TINY)
    blobs = directory / "blobs"
    blobs.mkdir()
    base = BaseModel(store.path(card.digest), RenderBounds(), find_device())
    layout = read_layout(store.path(card.digest))
    found: dict[str, object] = {}
    for name, carry in (("float32", as_it_is), ("int8", as_int8)):
        began = time.perf_counter()
        state, worst = train(base, recipe, carry)
        adapter = keep(blobs, export(state, recipe, base.shapes, layout))
        before, after = await examine(store, blobs, card.digest, adapter, tiny_line.evaluation_set())
        results = {domain: each.right / each.total for domain, each in after.items()}
        losses = [before[each].right / before[each].total - results[each] for each in results]
        found[name] = {
            "after": results[tiny_line.NEW_DOMAIN],
            "loss_nats": round(after[tiny_line.NEW_DOMAIN].loss, 4),
            "worst_loss": round(max(losses), 4),
            "relative_error": round(worst, 4),
            "seconds": round(time.perf_counter() - began, 1),
        }
    return found


def main() -> None:
    """Compare once and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("seed", "rounds", "steps"):
        parser.add_argument(f"--{name}", type=int, default=getattr(DEFAULT_RECIPE, name))
    arguments = vars(parser.parse_args())
    recipe = msgspec.structs.replace(DEFAULT_RECIPE, strategy="mean", **arguments)
    with tempfile.TemporaryDirectory(prefix="agora-int8-") as directory:
        print(json.dumps({**arguments, **trio.run(compare, Path(directory), recipe)}))


if __name__ == "__main__":
    main()
