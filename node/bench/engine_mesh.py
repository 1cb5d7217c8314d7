"""Many streams at once through gateway, auctions and mesh, against the engine that writes them."""

import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from node.bench import random_gguf
from node.bench.engine import CONTEXT_TOKENS, PROMPT_TOKENS, STREAMS, engine_of, in_turn, questions_of, what
from node.bench.figure import Figure, at_least
from node.bench.mesh import MODEL, Mesh
from node.bench.streams import Question, Stream, tokens_per_s

if TYPE_CHECKING:
    from node.bench.figures import Bench

PRICE_MICRO: Final = 40


def chapter(bench: "Bench") -> Iterator[Figure]:
    """What gateway, auctions and mesh leave of the engine's speed."""
    rounds, tokens = bench.sizes.engine_rounds, bench.sizes.engine_tokens
    bench.say(f"engine-mesh: writing a {bench.sizes.shape_name} model of random weights")
    model = random_gguf.write(bench.directory / "engine-mesh.gguf", bench.sizes.shape)
    whole: list[float] = []
    alone: list[float] = []
    with Mesh(bench.directory / "engine-mesh") as mesh:
        bench.say("engine-mesh: setting up")
        mesh.found()
        mesh.add_sellers(model, [PRICE_MICRO], f"slots = {STREAMS}\ncontext_tokens = {CONTEXT_TOKENS}")
        for number in range(rounds):
            bench.say(f"engine-mesh: {STREAMS} streams, round {number + 1} of {rounds}")
            mesh.sellers[0].stop()
            mesh.sellers[0].start()
            mesh.wait_for_bids()
            mesh.ask("Hello", tokens_max=4)
            questions = questions_of(f"mesh {number}", STREAMS, tokens)
            with engine_of(bench, model, STREAMS, CONTEXT_TOKENS) as engine:
                through, by_itself = in_turn(number, Gateway(mesh, number), engine, questions)
            whole.append(tokens_per_s(through))
            alone.append(tokens_per_s(by_itself))
    model.unlink()
    yield Figure(
        f"mesh ÷ engine alone, {STREAMS} streams",
        f"completion tokens/s of {STREAMS} streams at once at the gateway's client ÷ the same from the engine in a "
        f"process of its own; {PROMPT_TOKENS} prompt and {tokens} completion tokens each; {what(bench)}, "
        f"{STREAMS} slots",
        "",
        [mine / other for mine, other in zip(whole, alone, strict=True)],
        target=at_least(0.95),
        note=f"medians: {statistics.median(whole):.1f} tokens/s against {statistics.median(alone):.1f}",
    )


class Gateway:
    """The founder's gateway, asked many questions at once.

    Args:
        mesh: with one seller.
        number: of the round; each question is a session of its own, which is auctioned.
    """

    def __init__(self, mesh: Mesh, number: int) -> None:
        self._mesh = mesh
        self._number = number

    def ask(self, questions: Sequence[Question]) -> list[Stream]:
        """Ask all of them, each on a connection of its own."""
        began = time.monotonic()

        def stream(number: int) -> Stream:
            question = questions[number]
            first_s = ended_s = 0.0
            session = f"engine-{self._number}-{number}"
            _, text = question.turns[0]
            with self._mesh.client.ask(MODEL, text, session=session, tokens_max=question.tokens) as answer:
                for delta in answer:
                    ended_s = delta.at_s - began
                    first_s = first_s or ended_s
            return Stream(self._mesh.settled(answer.job_id)["completion_tokens"], first_s, ended_s)

        with ThreadPoolExecutor(len(questions)) as pool:
            return list(pool.map(stream, range(len(questions))))
