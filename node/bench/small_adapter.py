"""An adapter that one device trains by itself in half a minute: a real one, for what only needs some adapter that matters."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from federation.defaults import DEFAULT_RECIPE
from node.bench import cohort
from node.bench.cohort import Member
from node.local_mesh import tiny_line

ROUNDS = 6


async def train(directory: Path, base: Path, say: Callable[[str], None]) -> Path:
    """Train on all records of the domain that the tiny model does not know.

    Args:
        directory: empty, for what training leaves behind.
        base: the tiny model.
        say: told of each round.

    Returns:
        The adapter's file, named by its digest.
    """
    recipe = msgspec.structs.replace(DEFAULT_RECIPE, rounds=ROUNDS, strategy="mean", parameters=())
    subject = f'"{tiny_line.NEW_DOMAIN}"'.encode()
    questions = [line for line in tiny_line.evaluation_set().splitlines(keepends=True) if subject in line]
    learned = await cohort.learn(
        directory,
        base,
        members=[Member(tiny_line.private_records(tiny_line.CODES))],
        replay=tiny_line.replay_set(),
        evaluation=b"".join(questions),
        recipe=recipe,
        say=say,
    )
    return directory / "blobs" / learned.adapter.hex()
