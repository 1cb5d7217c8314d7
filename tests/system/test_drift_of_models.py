"""Real models, judged by what they state of each token: the right one passes however it draws, a coarser one never does."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import trio

from marketplace.verification import TOLERANCE_DEFAULT, Reading, Verdict, judge
from node.bench import cheats
from runtime.engine import ChatMessage, Digest, Generation, Sampling, Tokens
from runtime.llama.backend import LlamaEngine
from runtime.model_store import ModelStore

pytestmark = pytest.mark.system

DIRECTORY = Path(__file__).parents[2] / "examples" / "tiny_model"
PRECISE = DIRECTORY / "tiny-f16.gguf"
KINDS = gguf.GGMLQuantizationType
MODELS = ("paid", "precise", "four bits", "another model")
SLOTS = 4
RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 8, "maxLength": 20},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
STORY = "Please tell me the story of the baker of Brenwick."
CHANCE = Sampling(temperature_ppm=800_000, seed=11)
SAMPLINGS = {
    "greedy": Sampling(),
    "chance": CHANCE,
    "chance among few": Sampling(temperature_ppm=1_500_000, seed=4, top_k=40, top_p_ppm=950_000),
    "penalties": Sampling(repeat_penalty_ppm=1_300_000, presence_penalty_ppm=400_000),
    "bias": Sampling(logit_bias=((300, 6_000), (17, -20_000))),
    "schema": Sampling(schema=json.dumps(RECORD)),
    "grammar by chance": Sampling(grammar="root ::= [a-z ]{30,60}", temperature_ppm=800_000, seed=2),
    "log-probabilities": Sampling(logprobs=True, top_logprobs=2),
}
Paid = tuple[LlamaEngine, dict[str, Digest]]


def known_questions(count: int) -> list[str]:
    lines = (DIRECTORY / "data" / "stories.test.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines[:count]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("models-of-cheats")
    coarse = cheats.rewrite(PRECISE, made / "q4.gguf", KINDS.Q4_0, cheats.disturbed(0))
    other = cheats.rewrite(PRECISE, made / "other.gguf", KINDS.F16, cheats.disturbed(0.3))
    return dict(zip(MODELS, (DIRECTORY / "tiny-q8_0.gguf", PRECISE, coarse, other), strict=True))


@pytest.fixture
async def mesh(files: dict[str, Path], tmp_path: Path) -> AsyncIterator[Paid]:
    store = ModelStore(tmp_path / "models")
    digests = {name: (await store.add(path)).digest for name, path in files.items()}
    engine = LlamaEngine(store, slots=SLOTS, context_tokens=512, threads=1, queue_max=16)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        yield engine, digests
        nursery.cancel_scope.cancel()


async def said(engine: LlamaEngine, request: Generation) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids, or words, of a generation, and its contrasts."""
    async with aclosing(engine.generate(request)) as frames:
        tokens = [frame async for frame in frames if isinstance(frame, Tokens)]
    ids = tuple(id_ for frame in tokens for id_ in frame.ids)
    return ids, tuple(each for frame in tokens for each in frame.contrasts)


async def verdict(
    mesh: Paid, seller: str, question: str, sampling: Sampling, received: tuple[int, ...] = ()
) -> tuple[Verdict, tuple[int, ...]]:
    """Have a seller's model answer, and judge its part of the answer by the model that is paid for."""
    engine, digests = mesh
    chat = Generation(digests["paid"], (ChatMessage("user", question),), 64)
    sold = replace(chat, model=digests[seller], sampling=sampling, received=received)
    ids, stated = await said(engine, sold)
    claimed = (*received, *ids)
    read = Reading(*await said(engine, replace(chat, task="check", claimed=claimed, tokens_max=len(claimed))))
    found = judge(
        read.last(len(ids)),
        stated,
        TOLERANCE_DEFAULT,
        is_greedy=sampling in (Sampling(), SAMPLINGS["log-probabilities"]),
    )
    return found, claimed


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
async def test_an_honest_answer_passes_however_its_tokens_were_chosen(mesh: Paid, sampling: Sampling) -> None:
    """What is stated is what the model computed, before anything was made of it."""
    for question in known_questions(4):
        found, _ = await verdict(mesh, "paid", question, sampling)

        assert found.tokens >= 8
        assert found.drift_milli is not None
        assert found.is_passed, found.to_text()


async def test_honest_answers_pass_when_they_are_written_beside_each_other(mesh: Paid) -> None:
    found: list[Verdict] = []

    async def buy(question: str, sampling: Sampling) -> None:
        found.append((await verdict(mesh, "paid", question, sampling))[0])

    async with trio.open_nursery() as nursery:
        for number, question in enumerate(known_questions(8)):
            nursery.start_soon(buy, question, replace(CHANCE, seed=number))

    assert [each.to_text() for each in found if not each.is_passed] == []
    assert len(found) == 8


async def test_a_successor_passes_with_what_it_states_of_its_own_tokens(mesh: Paid) -> None:
    """Its predecessor was another model: what that wrote is before the successor's tokens, and not judged with them."""
    _, whole = await verdict(mesh, "another model", STORY, CHANCE)

    found, _ = await verdict(mesh, "paid", STORY, CHANCE, received=whole[:6])

    assert len(whole) >= 6
    assert found.tokens >= 8
    assert found.is_passed, found.to_text()


async def test_four_bits_whose_text_is_the_honest_one_are_caught(mesh: Paid) -> None:
    """The attack: questions that the model knows by heart are answered with half of the memory."""
    questions = known_questions(12)
    honest = [await verdict(mesh, "paid", question, Sampling()) for question in questions]
    coarse = [await verdict(mesh, "four bits", question, Sampling()) for question in questions]

    same = [found for (found, text), (_, right) in zip(coarse, honest, strict=True) if text == right]
    assert len(same) >= 10
    assert all(each.is_passed for each, _ in honest)
    assert {each.strays for each in same} == {0}, "no gap shows them"
    assert sum(not each.is_passed for each in same) >= len(same) - 1


@pytest.mark.parametrize("seller", ["four bits", "another model"])
async def test_an_answer_drawn_by_chance_from_another_model_is_caught(mesh: Paid, seller: str) -> None:
    found = [
        (await verdict(mesh, seller, question, replace(CHANCE, seed=number)))[0]
        for number, question in enumerate(known_questions(8))
    ]

    assert sum(not each.is_passed for each in found) >= 7
    assert {each.strays for each in found} == {0}


async def test_the_same_weights_in_more_bits_pass(mesh: Paid) -> None:
    """Its buyer gets what it paid for, and a little more."""
    for question in known_questions(4):
        found, _ = await verdict(mesh, "precise", question, CHANCE)

        assert found.is_passed, found.to_text()
