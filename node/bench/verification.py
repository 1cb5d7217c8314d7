"""How surely checks tell who sells another model from who only rounds otherwise, on the trained tiny model.

Each kind of seller answers the same jobs with a real engine; the answers are read as a buyer's verifier reads them, and
judged by the rule and the calibrated tolerance that it uses. A seller's first 20 jobs are all checked: so the figure is the
chance that at least one of 20, drawn from those jobs without putting any back, fails its check.

Two kinds of jobs, since they are told apart very differently. *Known* ones are the questions that the model was trained to
answer to the letter, with margins that a coarser quantisation seldom crosses: where its text is the same to the token, no
check of the text can see it, and the buyer has got what it paid for. *Open* ones it has no answer to by heart, as other
models have none to nearly anything that they are asked: they are made from the same files.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from math import comb
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

import gguf
import trio

from marketplace.verification import NEWCOMERS_JOBS, Verdict, judge
from node import calibration
from node.bench import cheats
from node.bench.figure import Figure, Target, at_least, at_most
from node.local_mesh.tiny_line import NEW_DOMAIN, TINY_DIRECTORY, domains
from runtime.engine import ChatMessage, Digest, Generation, Tokens
from runtime.llama.backend import LlamaEngine
from runtime.model_store import ModelStore

if TYPE_CHECKING:
    from node.bench.figures import Bench

TOKENS: Final = 64
SLOTS: Final = 8
CONTEXT_TOKENS: Final = 1_024
EDITED: Final = 0.05  # of the tokens
TWO_THREADS_EVERY: Final = (
    8  # jobs: where another process takes one of two cores, a step takes twenty times as long
)
CAUGHT: Final = at_least(0.99)
ACCUSED: Final = at_most(0.001)


@dataclass(frozen=True)
class Question:
    """A greedy job: a chat of one question, or a raw text to go on from."""

    text: str
    is_raw: bool = False

    def generation(
        self,
        model: Digest,
        *,
        adapter: Digest | None = None,
        received: tuple[int, ...] = (),
        claimed: tuple[int, ...] = (),
    ) -> Generation:
        """The request that answers it, or checks an answer."""
        task = "completion" if self.is_raw else "chat"
        return Generation(
            model,
            () if self.is_raw else (ChatMessage("user", self.text),),
            tokens_max=len(claimed) or TOKENS,
            received=received,
            adapter=adapter,
            task="check" if claimed else task,  # type: ignore[arg-type]
            inputs=(self.text,) if self.is_raw else (),
            claimed=claimed,
        )


Answers = list[tuple[int, ...]]


def chapter(bench: "Bench") -> Iterator[Figure]:
    """Cheats caught and honest sellers accused."""
    directory = bench.directory / "verification"
    directory.mkdir()
    figures: list[Figure] = []
    trio.run(_measure, bench, directory, figures)
    yield from figures


async def _measure(bench: "Bench", directory: Path, figures: list[Figure]) -> None:
    rng = Random(0)  # noqa: S311  # the same jobs each time
    known, new = _known(rng, bench.sizes.check_jobs)
    opened = _open(rng, bench.sizes.check_jobs)
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
        tolerance = (await calibration.calibrate(engine, paid, now_s=0.0)).tolerance_milli
        seller = _Sellers(engine, paid, tolerance, bench.say)
        honest = await _honest(seller, figures, known + opened)
        await _cheating(
            seller,
            figures,
            {"open": (opened, honest[len(known) :]), "known": (known, honest[: len(known)])},
            others,
        )
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
    tolerance_milli: int
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
        halves = [each[: len(each) // 2] for each in received] if received else [()] * len(questions)
        wanted = [
            question.generation(model or self.paid, adapter=adapter, received=half)
            for question, half in zip(questions, halves, strict=True)
        ]
        rests = await _at_once(self.engine, wanted, at_once)
        return [(*half, *rest) for half, rest in zip(halves, rests, strict=True)]

    async def verdicts(
        self, questions: Sequence[Question], answers: Answers, *, adapter: Digest | None = None
    ) -> list[Verdict]:
        """Check answers as a verifier does, but several at a time: a little more rounding, and it is done sooner."""
        wanted = [
            question.generation(self.paid, adapter=adapter, claimed=answer)
            for question, answer in zip(questions, answers, strict=True)
            if answer
        ]
        gaps = await _at_once(self.engine, wanted, SLOTS)
        none = [()] * (len(questions) - len(gaps))  # an answer that ended at once: nobody is paid for it
        return [judge(each, self.tolerance_milli) for each in (*gaps, *none)]


async def _honest(seller: _Sellers, figures: list[Figure], questions: list[Question]) -> Answers:
    """Judge honest sellers; return what one of them answers alone."""
    seller.say("verification: honest sellers")
    alone = await seller.answers(questions, at_once=1)
    ways = {"alone": alone, "with seven others": await seller.answers(questions)}
    ways["from the middle on"] = await seller.answers(questions, received=alone, at_once=1)
    ways["with the prompt in the cache"] = await seller.answers(questions, at_once=3)
    found = [verdict for answers in ways.values() for verdict in await seller.verdicts(questions, answers)]
    seller.engine.set_threads(2)
    few = questions[::TWO_THREADS_EVERY]
    ways["with two threads"] = await seller.answers(few, at_once=SLOTS // 2)
    seller.engine.set_threads(1)
    found += await seller.verdicts(few, ways["with two threads"])
    tokens = sum(verdict.tokens for verdict in found)
    worst = max(verdict.worst_milli for verdict in found)
    figures.append(
        Figure(
            "honest sellers accused over 20 jobs",
            f"share of sellers of the right model of whom at least one of {NEWCOMERS_JOBS} jobs fails its check; "
            f"{len(questions)} jobs, known and open, each answered {', '.join(ways)}",
            "",
            [_share_caught(found)],
            target=ACCUSED,
            note=f"{sum(not verdict.is_passed for verdict in found)} of {len(found)} answers ({tokens:,} tokens) failed; the "
            f"largest gap was {worst / 1000:.2f} logits, the tolerance {seller.tolerance_milli / 1000:.2f}",
        )
    )
    return alone


async def _cheating(
    seller: _Sellers,
    figures: list[Figure],
    jobs: dict[str, tuple[list[Question], Answers]],
    others: dict[str, Digest],
) -> None:
    """Judge sellers of other models and of edited answers; `jobs` are questions with their honest answers, by kind."""
    targets: dict[str, Target | None] = dict.fromkeys(others, CAUGHT)
    # Closer to the model that is paid for than its users could tell: reported, and not promised.
    targets["5 bits (Q5_0)"] = targets["float16"] = None
    for name, model in others.items():
        seller.say(f"verification: {name}")
        by_kind = {}
        for kind, (questions, honest) in jobs.items():
            answers = await seller.answers(questions, model)
            same = sum(one == other for one, other in zip(answers, honest, strict=True))
            by_kind[kind] = await seller.verdicts(questions, answers), same
        figures.append(_caught(name, "served instead of 8 bits", by_kind, targets[name]))
    seller.say("verification: edited answers")
    rng = Random(1)  # noqa: S311
    edited = {}
    for kind, (questions, honest) in jobs.items():
        answers = _edited(honest, rng)
        same = sum(one == other for one, other in zip(answers, honest, strict=True))
        edited[kind] = await seller.verdicts(questions, answers), same
    figures.append(_caught("5 % of tokens edited", "replaced by others of its answers", edited, CAUGHT))


async def _without_adapter(
    seller: _Sellers, figures: list[Figure], adapter: Digest, questions: list[Question]
) -> None:
    seller.say("verification: without the adapter")
    right = await seller.answers(questions, adapter=adapter)
    bare = await seller.answers(questions)
    same = sum(one == other for one, other in zip(right, bare, strict=True))
    verdicts = await seller.verdicts(questions, bare, adapter=adapter)
    figures.append(
        _caught(
            "no adapter",
            "though one was bought, half of the jobs on its subject",
            {"mixed": (verdicts, same)},
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
            note=f"the largest gap was {max(each.worst_milli for each in honest) / 1000:.2f} logits",
        )
    )


def _caught(
    name: str, how: str, by_kind: dict[str, tuple[list[Verdict], int]], target: Target | None
) -> Figure:
    """The chance that a seller is caught over its first jobs, of the first kind; the others are told beside."""
    told = [
        f"{kind} jobs: {sum(not each.is_passed for each in verdicts)} of {len(verdicts)} fail, {same} have the honest text, "
        f"{_share_caught(verdicts):.4f} of sellers are caught over {NEWCOMERS_JOBS}"
        for kind, (verdicts, same) in by_kind.items()
    ]
    (kind, (first, _)), *_ = by_kind.items()
    return Figure(
        f"caught over 20 jobs: {name}",
        f"share of sellers of whom at least one of {NEWCOMERS_JOBS} {kind} greedy jobs of at most {TOKENS} tokens fails its "
        f"check; {name} {how}",
        "",
        [_share_caught(first)],
        target=target,
        note="; ".join(told),
    )


def _share_caught(verdicts: Sequence[Verdict]) -> float:
    """Return the chance that of so many jobs, drawn from these, one or more fails."""
    drawn = min(NEWCOMERS_JOBS, len(verdicts))
    passed = sum(verdict.is_passed for verdict in verdicts)
    return 1 - comb(passed, drawn) / comb(len(verdicts), drawn)


def _edited(answers: Answers, rng: Random) -> Answers:
    tokens = sorted({token for answer in answers for token in answer})
    return [
        tuple(rng.choice(tokens) if rng.random() < EDITED else token for token in answer)
        for answer in answers
    ]


async def _at_once(engine: LlamaEngine, wanted: Sequence[Generation], at_once: int) -> Answers:
    """Return the words of generations, in order."""
    results: Answers = [()] * len(wanted)
    limit = trio.CapacityLimiter(at_once)

    async def run(number: int) -> None:
        words: list[int] = []
        async with limit, aclosing(engine.generate(wanted[number])) as frames:
            async for frame in frames:
                if isinstance(frame, Tokens):
                    words.extend(frame.ids)
        results[number] = tuple(words)

    async with trio.open_nursery() as nursery:
        for number in range(len(wanted)):
            nursery.start_soon(run, number)
    return results


# --- jobs ---------------------------------------------------------------------------------------------------------------
def _known(rng: Random, count: int) -> tuple[list[Question], list[Question]]:
    """Return test questions of what the model knows, and a mixture for an adapter, half of it on the adapter's subject."""
    old = [record["prompt"] for domain in domains() if domain != NEW_DOMAIN for record in _records(domain)]
    new = [record["prompt"] for record in _records(NEW_DOMAIN)]
    known = [Question(text) for text in rng.sample(old, count)]
    half = count // 2
    mixed = [Question(text) for text in (*rng.sample(new, min(half, len(new))), *rng.sample(old, half))]
    return known, mixed


def _open(rng: Random, count: int) -> list[Question]:
    """Return jobs that no training example answers, in turn of three kinds made of the same files."""
    stories = [record["response"] for record in _records("stories")]
    prompts = [record["prompt"] for domain in domains() for record in _records(domain)]
    words = sorted({word for record in _records("echo") for word in record["response"].split()})
    jobs: list[Question] = []
    for number in range(count):
        match number % 3:
            case 0:  # on from the middle of a story
                story = rng.choice(stories)
                begin = rng.randrange(len(story) // 2)
                jobs.append(Question(story[begin : begin + 120], is_raw=True))
            case 1:  # words of two questions in any order
                both = f"{rng.choice(prompts)} {rng.choice(prompts)}".split()
                jobs.append(Question(" ".join(rng.sample(both, len(both)))))
            case _:  # more words to repeat than it ever had to
                jobs.append(Question(f'Repeat "{" ".join(rng.choices(words, k=12))}"'))
    return jobs


def _records(domain: str) -> list[dict[str, str]]:
    path = TINY_DIRECTORY / "data" / f"{domain}.test.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


async def _adapter(bench: "Bench", directory: Path) -> Path:
    """Train an adapter for the subject that the model does not know, as a cohort of one would."""
    from node.bench import small_adapter  # noqa: PLC0415 - torch comes with the `train` extra alone

    bench.say("verification: training an adapter")
    return await small_adapter.train(directory, bench.tiny, bench.say)
