"""A cohort without a mesh: real trainer children, the real codec and strategies, and one examiner; for experiments.

What a run's services do around this (bids, awards, streams, privacy) costs no accuracy; what it costs in time is measured
elsewhere.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import trio

from federation import codec, lora
from federation.aggregation import Aggregator
from federation.gate import Contribution, why_unfit
from federation.lora import State
from federation.strategy import strategy_of
from node.evaluation_set import read_questions
from protocol.identity import PeerId
from protocol.messages import Recipe
from runtime import adapter_file
from runtime.engine import Digest
from runtime.examiner import DomainResult
from runtime.gguf_header import Layout, read_layout
from runtime.llama.examiner import LlamaExaminer
from runtime.model_store import ModelStore
from runtime.trainer import Fit, Fitted, NoisePlan
from runtime.training.backend import TorchTrainer

AT_ONCE: Final = 2  # children that train at the same time: a core for each

# What a bad member sends instead of its own new state and its number of records.
Attack = Callable[[State, State, int], tuple[State, int]]


@dataclass(frozen=True)
class Member:
    """One device's part.

    Attributes:
        records: JSON lines.
        attack: given the round's state, its own new one and its number of records; None: it is honest.
        noise: None: without differential privacy.
    """

    records: bytes
    attack: Attack | None = None
    noise: NoisePlan | None = None


@dataclass
class Learned:
    """What came of an experiment.

    Attributes:
        before, after: by domain.
        down_bytes, up_bytes: of a member's changes, in each round.
        round_s: of each round, with `AT_ONCE` members at a time.
        training_s: in all of the children's loops.
        cpu_s: of all children, with what they import and load: on a busy machine it says more than the seconds.
        refused: by reason.
        adapter: the blob that came of it.
    """

    before: Mapping[str, DomainResult]
    after: Mapping[str, DomainResult]
    down_bytes: list[int]
    up_bytes: list[int]
    round_s: list[float]
    training_s: float
    cpu_s: float
    refused: list[str]
    adapter: bytes = b""

    def accuracy(self, domain: str) -> tuple[float, float]:
        """Return the share of right answers before and after."""
        return tuple(each[domain].right / each[domain].total for each in (self.before, self.after))  # type: ignore[return-value]

    def losses(self, besides: str) -> dict[str, float]:
        """Return what each other domain lost."""
        return {
            domain: before - after
            for domain in self.before
            if domain != besides
            for before, after in [self.accuracy(domain)]
        }


async def learn(
    directory: Path,
    base: Path,
    *,
    members: Sequence[Member],
    replay: bytes,
    evaluation: bytes,
    recipe: Recipe,
    say: Callable[[str], None] = lambda _text: None,
) -> Learned:
    """Train a run from the seed to its end, and examine what it made.

    Args:
        directory: empty; for models, data and blobs.
        base: a GGUF.
        members: whose children train.
        replay: JSON lines, public.
        evaluation: JSON lines with domains.
        recipe: of all of them.
        say: told of each round.
    """
    store = ModelStore(directory / "models")
    card = await store.add(base)
    blobs, data = directory / "blobs", directory / "data"
    blobs.mkdir()
    layout = read_layout(store.path(card.digest))
    shapes = {name.removesuffix(".weight"): shape for name, shape in layout.shapes.items()}
    replay_digest = keep(blobs, replay)
    for number, member in enumerate(members):
        home = data / bytes([number] * 32).hex()
        home.mkdir(parents=True)
        (home / "train.jsonl").write_bytes(member.records)
    # At the usual priority: what is measured is the training, not what else the machine does.
    trainers = [TorchTrainer(store, data, blobs, niceness=0) for _ in members]
    aggregator = Aggregator(strategy_of(recipe))
    limit = trio.Semaphore(AT_ONCE)
    state = lora.seed_state(recipe, shapes)
    learned = Learned({}, {}, [], [], [], 0.0, 0.0, [])
    since: Digest | None = None
    down = codec.change(state, state)

    async def member_round(number: int, index: int, contributions: list[Contribution]) -> None:
        member = members[index]
        task = Fit(
            base=card.digest,
            data=Digest(bytes([index] * 32)),
            replay=replay_digest,
            recipe=recipe,
            round=number,
            since=since,
            payload=down,
            state=Digest(codec.digest(state)),
            noise=member.noise,
            seed=1_000 * number + index,
        )
        async with limit:
            fitted = await fit(trainers[index], task)
        learned.training_s += fitted.seconds
        learned.up_bytes.append(len(fitted.payload))
        new, samples = codec.apply(state, fitted.payload), fitted.samples
        if member.attack is not None:
            new, samples = member.attack(state, new, samples)
        if why_not := why_unfit(state, new):
            learned.refused.append(why_not)
            return
        change = {name: new[name] - state[name] for name in state}
        contributions.append(Contribution(PeerId(f"member-{index}"), number, samples, change))

    async with AsyncExitStack() as stack:
        for trainer in trainers:
            stack.push_async_callback(trainer.rest)
        for number in range(1, recipe.rounds + 1):
            began = time.perf_counter()
            contributions: list[Contribution] = []
            async with trio.open_nursery() as nursery:
                for index in range(len(members)):
                    nursery.start_soon(member_round, number, index, contributions)
            aggregate = aggregator.aggregate(number, state, contributions).state
            since = keep(blobs, codec.state_bytes(state))
            down = codec.change(state, aggregate)
            state = codec.apply(state, down)
            learned.down_bytes.append(len(down))
            learned.round_s.append(time.perf_counter() - began)
            times = [psutil.Process(trainer.child_pid).cpu_times() for trainer in trainers]
            learned.cpu_s = sum(each.user + each.system for each in times)
            say(f"round {number} of {recipe.rounds}: {learned.round_s[-1]:.1f} s")
    learned.adapter = keep(blobs, export(state, recipe, shapes, layout))
    say("examining")
    learned.before, learned.after = await examine(store, blobs, card.digest, learned.adapter, evaluation)
    return learned


async def fit(trainer: TorchTrainer, task: Fit) -> Fitted:
    """Return the end of a fit."""
    async with aclosing(trainer.fit(task)) as frames:
        async for frame in frames:
            if isinstance(frame, Fitted):
                return frame
    raise AssertionError("a fit without an end")


async def examine(
    store: ModelStore, blobs: Path, base: Digest, adapter: Digest, evaluation: bytes
) -> tuple[dict[str, DomainResult], dict[str, DomainResult]]:
    """Return the results of the bare base and of the base with the adapter, by domain, as llama.cpp answers."""
    questions = read_questions(evaluation)
    examiner = LlamaExaminer(store, blobs)
    async with trio.open_nursery() as nursery:
        await nursery.start(examiner.run)
        before = await examiner.examine(base, None, questions)
        after = await examiner.examine(base, adapter, questions)
        nursery.cancel_scope.cancel()
    return {each.domain: each for each in before}, {each.domain: each for each in after}


def export(state: State, recipe: Recipe, shapes: Mapping[str, tuple[int, int]], layout: Layout) -> bytes:
    """Return a state as the adapter file that llama.cpp loads."""
    return adapter_file.write(lora.both_halves(state, recipe, shapes), recipe.shape, layout)


def keep(blobs: Path, data: bytes) -> Digest:
    """Write a blob and return its digest."""
    digest = Digest(hashlib.sha256(data).digest())
    (blobs / digest.hex()).write_bytes(data)
    return digest
