"""The jobs of the bench of checks: questions to the trained tiny model, made of the files that it was trained and tested on."""

import json
from dataclasses import dataclass
from random import Random
from typing import Final

from node.local_mesh.tiny_line import NEW_DOMAIN, TINY_DIRECTORY, domains
from runtime.engine import ChatMessage, Digest, Generation, Sampling

TOKENS: Final = 64
TEMPERATURE_PPM: Final = 800_000  # of drawn jobs


@dataclass(frozen=True)
class Question:
    """A job: a chat of one question, or a raw text to go on from.

    Attributes:
        seed: its answer is drawn by chance, with this one; None: it is greedy.
    """

    text: str
    is_raw: bool = False
    seed: int | None = None

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
            sampling=Sampling()
            if claimed or self.seed is None
            else Sampling(temperature_ppm=TEMPERATURE_PPM, seed=self.seed),
            received=received,
            adapter=adapter,
            task="check" if claimed else task,  # type: ignore[arg-type]
            inputs=(self.text,) if self.is_raw else (),
            claimed=claimed,
        )


def known_questions(rng: Random, count: int) -> tuple[list[Question], list[Question]]:
    """Return test questions of what the model knows, and a mixture for an adapter, half of it on the adapter's subject."""
    old = [record["prompt"] for domain in domains() if domain != NEW_DOMAIN for record in _records(domain)]
    new = [record["prompt"] for record in _records(NEW_DOMAIN)]
    known = [Question(text) for text in rng.sample(old, count)]
    half = count // 2
    mixed = [Question(text) for text in (*rng.sample(new, min(half, len(new))), *rng.sample(old, half))]
    return known, mixed


def open_questions(rng: Random, count: int) -> list[Question]:
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
