"""How surely checks tell who sells another model from who only rounds otherwise, on the trained tiny model.

Each kind of seller answers the same jobs with a real engine; the answers are read as a buyer's verifier reads them, and
judged by the rule and the calibrated tolerance that it uses. A seller's first 20 jobs are all checked: so the figure is the
chance that at least one of 20, drawn from those jobs without putting any back, fails its check.

Three kinds of jobs, since they are told apart very differently. *Known* ones are the questions that the model was trained to
answer to the letter, with margins that a coarser quantisation seldom crosses: its text is mostly the same to the token, and
only what it states of its tokens shows it. *Open* ones it has no answer to by heart, as other models have none to nearly
anything that they are asked: they are made from the same files. *Drawn* ones are of both, answered by chance.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from math import comb
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

import gguf
import trio

from marketplace.verification import NEWCOMERS_JOBS, Reading, Tolerance, Verdict, judge
from node import calibration
from node.bench import cheats
from node.bench.check_jobs import TOKENS, Question, known_questions, open_questions
from node.bench.figure import Figure, Target, at_least, at_most
from node.calibration import Answer
from runtime.engine import Digest, Generation, Tokens
from runtime.llama.backend import LlamaEngine
from runtime.model_store import ModelStore

if TYPE_CHECKING:
    from node.bench.figures import Bench

SLOTS: Final = 8
CONTEXT_TOKENS: Final = 1_024
EDITED: Final = 0.05  # of the tokens
TWO_THREADS_EVERY: Final = (
    8  # jobs: where another process takes one of two cores, a step takes twenty times as long
)
CAUGHT: Final = at_least(0.99)
ACCUSED: Final = at_most(0.001)


Answers = list[Answer]
Said = tuple[tuple[int, ...], tuple[int, ...]]  # tokens, or words; and their contrasts


def chapter(bench: "Bench") -> Iterator[Figure]:
    """Cheats caught and honest sellers accused."""
    directory = bench.directory / "verification"
    directory.mkdir()
    figures: list[Figure] = []
    trio.run(_measure, bench, directory, figures)
    yield from figures


async def _measure(bench: "Bench", directory: Path, figures: list[Figure]) -> None:
    rng = Random(0)  # noqa: S311  # the same jobs each time
    known, new = known_questions(rng, bench.sizes.check_jobs)
    opened = open_questions(rng, bench.sizes.check_jobs)
    precise = bench.tiny.with_name("tiny-f16.gguf")
    kinds = gguf.GGMLQuantizationType
    store = ModelStore(directory / "models")
    paid = (await store.add(bench.tiny)).digest

    async def add(name: str, kind: gguf.GGMLQuantizationType, change: cheats.Change) -> Digest:
        return (await store.add(cheats.rewrite(precise, directory / name, kind, change))).digest

    as_is: cheats.Change = cheats.disturbed(0)
    others = {
        "another model": await add("other.gguf", kinds.F16, cheats.disturbed(0.3)),
        "4 bits (Q4_0)": await add("q4.gguf", kinds.Q4_0, as_is),
        "2 bits": await add("2bit.gguf", kinds.F16, cheats.rounded(2)),
        "5 bits (Q5_0)": await add("q5.gguf", kinds.Q5_0, as_is),
        "float16": (await store.add(precise)).digest,
    }
    training = directory / "adapter"
    training.mkdir()
    adapter_path = await _adapter(bench, training)
    adapter = Digest(bytes.fromhex(adapter_path.name))
    engine = LlamaEngine(
        store,
        adapters_directory=adapter_path.parent,
        slots=SLOTS,
        context_tokens=CONTEXT_TOKENS,
        threads=1,
        queue_max=SLOTS,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        bench.say("verification: calibrating")
        tolerance = (await calibration.calibrate(engine, paid, now_s=0.0)).tolerance
        seller = _Sellers(engine, paid, tolerance, bench.say)
        by_chance = [
            replace(question, seed=seed) for seed, question in enumerate((*known[::2], *opened[1::2]))
        ]
        kinds_of_jobs = {"known": known, "open": opened, "drawn": by_chance}
        honest = await _honest(seller, figures, kinds_of_jobs)
        await _cheating(seller, figures, kinds_of_jobs, honest, others)
        await engine.load_adapter(paid, adapter, adapter_path)
        await _without_adapter(seller, figures, adapter, new)
        nursery.cancel_scope.cancel()


@dataclass
class _Sellers:
    """Engines that answer, and the buyer's that checks.

    Attributes:
        paid: the model that is paid for.
    """

    engine: LlamaEngine
    paid: Digest
    tolerance: Tolerance
    say: Callable[[str], None]

    async def answers(
        self,
        questions: Sequence[Question],
        model: Digest | None = None,
        *,
        adapter: Digest | None = None,
        at_once: int = SLOTS,
        received: Answers | None = None,
    ) -> Answers:
        """Have all questions answered by a model, so many at a time; the first halves of `received` have come before."""
        halves = [each.ids[: len(each.ids) // 2] for each in received] if received else [()] * len(questions)
        wanted = [
            question.generation(model or self.paid, adapter=adapter, received=half)
            for question, half in zip(questions, halves, strict=True)
        ]
        rests = await _at_once(self.engine, wanted, at_once)
        return [Answer((*half, *ids), stated) for half, (ids, stated) in zip(halves, rests, strict=True)]

    async def verdicts(
        self, questions: Sequence[Question], answers: Answers, *, adapter: Digest | None = None
    ) -> list[Verdict]:
        """Check answers as a verifier does, but several at a time: a little more rounding, and it is done sooner."""
        # An answer that ended at once is not read: nobody is paid for it, and it passes.
        asked = [(question, each) for question, each in zip(questions, answers, strict=True) if each.stated]
        wanted = [
            question.generation(self.paid, adapter=adapter, claimed=each.ids) for question, each in asked
        ]
        found = await _at_once(self.engine, wanted, SLOTS)
        none = [(Question(""), Answer((), ()))] * (len(questions) - len(asked))
        return [
            judge(
                Reading(*said).last(len(each.stated)),
                each.stated,
                self.tolerance,
                is_greedy=question.seed is None,
            )
            for (question, each), said in zip((*asked, *none), (*found, *[((), ())] * len(none)), strict=True)
        ]


async def _honest(
    seller: _Sellers, figures: list[Figure], jobs: dict[str, list[Question]]
) -> dict[str, Answers]:
    """Judge honest sellers; return what one of them answers alone, by the kind of job."""
    seller.say("verification: honest sellers")
    kinds = [kind for kind, questions in jobs.items() for _ in questions]
    questions = [question for each in jobs.values() for question in each]
    alone = await seller.answers(questions, at_once=1)
    ways = {"alone": alone, "with seven others": await seller.answers(questions)}
    ways["from the middle on"] = await seller.answers(questions, received=alone, at_once=1)
    ways["with the prompt in the cache"] = await seller.answers(questions, at_once=3)
    found: list[Verdict] = []
    for answers in ways.values():
        found += await seller.verdicts(questions, answers)
    seller.engine.set_threads(2)
    few = questions[::TWO_THREADS_EVERY]
    ways["with two threads"] = await seller.answers(few, at_once=SLOTS // 2)
    seller.engine.set_threads(1)
    found += await seller.verdicts(few, ways["with two threads"])
    tokens = sum(verdict.tokens for verdict in found)
    gap = max(verdict.worst_milli for verdict in found if verdict.is_greedy)
    drift = max(verdict.drift_milli or 0 for verdict in found)
    figures.append(
        Figure(
            "honest sellers accused over 20 jobs",
            f"share of sellers of the right model of whom at least one of {NEWCOMERS_JOBS} jobs fails its check; "
            f"{len(questions)} jobs, {', '.join(jobs)}, each answered {', '.join(ways)}",
            "",
            [_share_caught(found)],
            target=ACCUSED,
            note=f"{sum(not verdict.is_passed for verdict in found)} of {len(found)} answers ({tokens:,} tokens) failed; the "
            f"largest gap of greedy ones was {gap / 1000:.2f} logits, the tolerance {seller.tolerance.gap_milli / 1000:.2f}; "
            f"the largest mean drift {drift / 1000:.3f}, the tolerance {seller.tolerance.drift_milli / 1000:.3f}",
        )
    )
    return {
        kind: [each for each, its_kind in zip(alone, kinds, strict=True) if its_kind == kind] for kind in jobs
    }


async def _cheating(
    seller: _Sellers,
    figures: list[Figure],
    jobs: dict[str, list[Question]],
    honest: dict[str, Answers],
    others: dict[str, Digest],
) -> None:
    """Judge sellers of other models and of edited answers; `jobs` and their honest answers are by kind."""
    targets: dict[str, Target | None] = dict.fromkeys(others, CAUGHT)
    # Closer to the model that is paid for than its users could tell: reported, and not promised.
    targets["5 bits (Q5_0)"] = targets["float16"] = None
    for name, model in others.items():
        seller.say(f"verification: {name}")
        found = {
            kind: await _found(seller, questions, await seller.answers(questions, model), honest[kind])
            for kind, questions in jobs.items()
        }
        figures.append(_caught(name, "served instead of 8 bits", found, targets[name]))
    seller.say("verification: edited answers")
    rng = Random(1)  # noqa: S311
    edited = {
        kind: await _found(seller, questions, _edited(honest[kind], rng), honest[kind])
        for kind, questions in jobs.items()
    }
    figures.append(_caught("5 % of tokens edited", "replaced by others of its answers", edited, CAUGHT))


Found = tuple[list[Verdict], int]  # and how many have the honest text


async def _found(
    seller: _Sellers,
    questions: list[Question],
    answers: Answers,
    honest: Answers,
    adapter: Digest | None = None,
) -> Found:
    same = sum(one.ids == other.ids for one, other in zip(answers, honest, strict=True))
    return await seller.verdicts(questions, answers, adapter=adapter), same


async def _without_adapter(
    seller: _Sellers, figures: list[Figure], adapter: Digest, questions: list[Question]
) -> None:
    seller.say("verification: without the adapter")
    right = await seller.answers(questions, adapter=adapter)
    bare = await seller.answers(questions)
    found = await _found(seller, questions, bare, right, adapter)
    figures.append(
        _caught(
            "no adapter",
            "though one was bought, half of the jobs on its subject",
            {"mixed": found},
            CAUGHT,
        )
    )
    honest = await seller.verdicts(questions, right, adapter=adapter)
    figures.append(
        Figure(
            "honest sellers with the adapter accused",
            f"share of them of whom at least one of {NEWCOMERS_JOBS} jobs fails its check",
            "",
            [_share_caught(honest)],
            target=ACCUSED,
            note=f"the largest gap was {max(each.worst_milli for each in honest) / 1000:.2f} logits, the largest mean drift "
            f"{max(each.drift_milli or 0 for each in honest) / 1000:.3f}",
        )
    )


def _caught(name: str, how: str, by_kind: dict[str, Found], target: Target | None) -> Figure:
    """The chance that a seller is caught over its first jobs, of the kind that shows it least; all are told."""
    return Figure(
        f"caught over 20 jobs: {name}",
        f"share of sellers of whom at least one of {NEWCOMERS_JOBS} jobs of at most {TOKENS} tokens fails its check, the least "
        f"over {', '.join(by_kind)} jobs; {name} {how}",
        "",
        [min(_share_caught(verdicts) for verdicts, _ in by_kind.values())],
        target=target,
        note="; ".join(_told(kind, *found) for kind, found in by_kind.items()),
    )


def _told(kind: str, verdicts: list[Verdict], same: int) -> str:
    drifts = sorted(each.drift_milli for each in verdicts if each.drift_milli is not None) or [0]
    low, middle = drifts[0] / 1000, drifts[len(drifts) // 2] / 1000
    return (
        f"{kind} jobs: {sum(not each.is_passed for each in verdicts)} of {len(verdicts)} fail, "
        f"{sum(100 * each.strays > each.tokens for each in verdicts)} by their gaps, {same} have the honest text, mean drift from "
        f"{low:.2f}, median {middle:.2f}, {_share_caught(verdicts):.4f} of sellers are caught over {NEWCOMERS_JOBS}"
    )


def _share_caught(verdicts: Sequence[Verdict]) -> float:
    """Return the chance that of so many jobs, drawn from these, one or more fails."""
    drawn = min(NEWCOMERS_JOBS, len(verdicts))
    passed = sum(verdict.is_passed for verdict in verdicts)
    return 1 - comb(passed, drawn) / comb(len(verdicts), drawn)


def _edited(answers: Answers, rng: Random) -> Answers:
    """Replace some tokens, and state what was computed of those that stood there."""
    tokens = sorted({token for answer in answers for token in answer.ids})
    return [
        Answer(
            tuple(rng.choice(tokens) if rng.random() < EDITED else token for token in answer.ids),
            answer.stated,
        )
        for answer in answers
    ]


async def _at_once(engine: LlamaEngine, wanted: Sequence[Generation], at_once: int) -> list[Said]:
    """Return what generations say, in order."""
    results: list[Said] = [((), ())] * len(wanted)
    limit = trio.CapacityLimiter(at_once)

    async def run(number: int) -> None:
        ids: list[int] = []
        contrasts: list[int] = []
        async with limit, aclosing(engine.generate(wanted[number])) as frames:
            async for frame in frames:
                if isinstance(frame, Tokens):
                    ids.extend(frame.ids)
                    contrasts.extend(frame.contrasts)
        results[number] = tuple(ids), tuple(contrasts)

    async with trio.open_nursery() as nursery:
        for number in range(len(wanted)):
            nursery.start_soon(run, number)
    return results


async def _adapter(bench: "Bench", directory: Path) -> Path:
    """Train an adapter for the subject that the model does not know, as a cohort of one would."""
    from node.bench import small_adapter  # noqa: PLC0415 - torch comes with the `train` extra alone

    bench.say("verification: training an adapter")
    return await small_adapter.train(directory, bench.tiny, bench.say)
