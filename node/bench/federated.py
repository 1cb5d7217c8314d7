"""What a cohort learns: the experiments behind `federation/defaults.py`, each a function, on the tiny model.

    python -m node.bench.federated disjoint --seed 1

prints one JSON line. Children are real and trained two at a time; answers are llama.cpp's own, on the exported adapter.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import trio

from federation.defaults import DEFAULT_RECIPE
from federation.lora import State
from node.bench.cohort import Attack, Learned, Member, learn
from node.local_mesh import tiny_line
from protocol.messages import Recipe

TINY: Final = tiny_line.TINY_DIRECTORY / "tiny-q8_0.gguf"

Say = Callable[[str], None]


def disjoint(recipe: Recipe = DEFAULT_RECIPE, say: Say = lambda _text: None) -> Learned:
    """Experiment A: four devices, each with the records of two of the eight codes; the plain mean; no privacy.

    Nobody's records overlap, so no robust rule could tell an honest member from a bad one: the mean is the only choice.
    """
    parts = [tiny_line.CODES[2 * index : 2 * index + 2] for index in range(4)]
    recipe = msgspec.structs.replace(recipe, strategy="mean", parameters=())
    return run([Member(tiny_line.private_records(codes)) for codes in parts], recipe, say)


def overlapping(
    recipe: Recipe = DEFAULT_RECIPE, attack: Attack | None = None, say: Say = lambda _text: None
) -> Learned:
    """Experiment B: five devices, each with the records of half of the codes; the default strategy; maybe one attacker."""
    members = [
        Member(
            tiny_line.private_records([tiny_line.CODES[(2 * index + step) % 8] for step in range(4)]),
            attack=attack if index == 0 else None,
        )
        for index in range(5)
    ]
    return run(members, recipe, say)


def sign_flip(old: State, new: State, samples: int) -> tuple[State, int]:
    """Push three times as hard the other way."""
    return {name: old[name] - 3 * (new[name] - old[name]) for name in old}, samples


def scale(old: State, new: State, samples: int) -> tuple[State, int]:
    """Push thirty times as hard."""
    return {name: old[name] + 30 * (new[name] - old[name]) for name in old}, samples


def not_a_number(_old: State, new: State, samples: int) -> tuple[State, int]:
    """Send no numbers."""
    return {name: np.full_like(matrix, np.nan) for name, matrix in new.items()}, samples


def wrong_shape(_old: State, new: State, samples: int) -> tuple[State, int]:
    """Send what broadcasts."""
    return {name: matrix[:1] for name, matrix in new.items()}, samples


def absurd_weight(old: State, new: State, _samples: int) -> tuple[State, int]:
    """Push the other way, in the name of a billion records."""
    return {name: old[name] - (new[name] - old[name]) for name in old}, 10**9


ATTACKS: Final[dict[str, Attack]] = {
    "sign-flip": sign_flip,
    "scale": scale,
    "nan": not_a_number,
    "wrong-shape": wrong_shape,
    "absurd-weight": absurd_weight,
}


def run(members: Sequence[Member], recipe: Recipe, say: Say) -> Learned:
    """Train a cohort on the tiny model's line, in a directory that is removed."""
    with tempfile.TemporaryDirectory(prefix="agora-cohort-") as directory:

        async def go() -> Learned:
            return await learn(
                Path(directory),
                TINY,
                members=members,
                replay=tiny_line.replay_set(),
                evaluation=tiny_line.evaluation_set(),
                recipe=recipe,
                say=say,
            )

        return trio.run(go)


def summary(learned: Learned) -> dict[str, object]:
    """Return an experiment's figures."""
    before, after = learned.accuracy(tiny_line.NEW_DOMAIN)
    losses = learned.losses(besides=tiny_line.NEW_DOMAIN)
    return {
        "before": before,
        "after": after,
        "worst_loss": round(max(losses.values()), 4),
        "mean_loss": round(sum(losses.values()) / len(losses), 4),
        "losses": {domain: round(loss, 4) for domain, loss in losses.items() if loss},
        "down_bytes": round(float(np.mean(learned.down_bytes))),
        "up_bytes": round(float(np.mean(learned.up_bytes))),
        "training_s": round(learned.training_s, 1),
        "cpu_s": round(learned.cpu_s, 1),
        "rounds_s": round(sum(learned.round_s), 1),
        "first_round_s": round(learned.round_s[0], 1),
        "refused": len(learned.refused),
    }


def main() -> None:
    """Run one experiment and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", choices=["disjoint", "overlapping"])
    parser.add_argument("--attack", choices=list(ATTACKS))
    for name in ("seed", "rounds", "steps", "batch", "learning_rate_ppm", "replay_percent"):
        parser.add_argument(f"--{name}", type=int, default=getattr(DEFAULT_RECIPE, name))
    arguments = vars(parser.parse_args())
    experiment, attack = arguments.pop("experiment"), arguments.pop("attack")
    recipe = msgspec.structs.replace(DEFAULT_RECIPE, **arguments)
    began = time.perf_counter()
    if experiment == "disjoint":
        learned = disjoint(recipe, print)
    else:
        learned = overlapping(recipe, ATTACKS.get(attack), print)
    print(json.dumps({**arguments, **summary(learned), "all_s": round(time.perf_counter() - began, 1)}))


if __name__ == "__main__":
    main()
