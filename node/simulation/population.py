"""The people of a world: they ask when their workload says so, on devices that happen to be online."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio

from node.chat import ChatRequest
from node.simulation.devices import PROFILES
from node.simulation.observations import Outcome
from node.simulation.workload import Question, Workload
from runtime.engine import ChatMessage

if TYPE_CHECKING:
    from node.simulation.daemon import Daemon
    from node.simulation.world import World


PIECE_WORDS: Final = 60  # of a document that is embedded: a paragraph


class Askers:
    """Asks every question in its turn; one task waits for all of them."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def begin(
        self, daemons: Sequence["Daemon"], workload: Workload, chats_per_node_hour: float | None
    ) -> None:
        """Ask on these devices from now to the world's end; see `World.ask_everywhere`."""
        rates = {
            daemon.name: PROFILES[daemon.profile].chats_per_hour * self._world.attendance.online_share(daemon)
            for daemon in daemons
        }
        asked = sum(rates.values())
        scale = 1.0 if chats_per_node_hour is None else chats_per_node_hour * len(daemons) / asked
        self._world.nursery.start_soon(
            self._run, [self._of(daemon, workload, scale) for daemon in daemons], self._world.now
        )

    def _of(
        self, daemon: "Daemon", workload: Workload, scale: float
    ) -> Iterator[tuple[float, str, Question]]:
        """The questions of one device's user, who is away as often as the device is."""
        per_hour = PROFILES[daemon.profile].chats_per_hour * scale
        rng = self._world.random(f"user {daemon.name}")
        seconds = self._world.seconds - self._world.now
        for question in workload.questions(rng, per_hour, seconds):
            yield question.at_s, daemon.name, question

    async def _run(self, streams: list[Iterator[tuple[float, str, Question]]], began: float) -> None:
        world = self._world
        for at_s, name, question in heapq.merge(*streams, key=lambda each: each[:2]):
            await trio.sleep(max(0.0, began + at_s - world.now))
            daemon = world.daemons[name]
            if not daemon.is_online:
                continue  # nobody is there to ask
            outcome = Outcome(at_s=trio.current_time(), buyer=name, kind=question.kind)
            world.outcomes.append(outcome)
            world.nursery.start_soon(daemon.ask, request_of(question), outcome)


def request_of(question: Question) -> ChatRequest:
    """What a program or a person asks the node for."""
    request = ChatRequest(
        model="auto",
        messages=(),
        tokens_max=question.tokens_max,
        privacy=question.privacy,
        session=question.session,
    )
    match question.kind:
        case "completion":
            return replace(request, task="completion", inputs=(question.words,))
        case "embedding":
            return replace(request, task="embedding", inputs=_pieces(question.words))
        case _:
            return replace(request, messages=(ChatMessage("user", question.words),))


def _pieces(text: str) -> tuple[str, ...]:
    words = text.split()
    return tuple(" ".join(words[at : at + PIECE_WORDS]) for at in range(0, len(words), PIECE_WORDS))
