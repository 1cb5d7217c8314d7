"""Sellers of another model's answers, and readers that lie when they are asked what a model would have said."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from node.simulation.adversaries.adversary import Adversary
from node.simulation.engine import SimulatedEngine
from runtime.echo_words import contrasts
from runtime.engine import Frame, Generation, Tokens

if TYPE_CHECKING:
    from node.simulation.daemon import Daemon
    from node.simulation.world import World

LIE_MILLI: Final = 9_000  # of each token that a false reader reads
OTHER_MODEL: Final = bytes(31) + b"q"


class SwappedEngine(SimulatedEngine):
    """Answers nearly as the model would that it is paid for; `on_job` hears of each job.

    By turns in two ways. One text is another's, and all that is stated of its tokens is true, as if the right model had read
    them afterwards. The next is the right model's to the token, and computed by a coarser one.
    """

    def __init__(self, on_job: Callable[[], None], **settings: Any) -> None:
        super().__init__(**settings)
        self._on_job = on_job
        self._jobs = 0

    async def generate(self, request: Generation) -> AsyncGenerator[Frame, None]:
        """See `Engine.generate`; what it only reads it reads as it should."""
        is_writing = request.task in ("chat", "completion")
        if is_writing:
            self._jobs += 1
            self._on_job()
        is_coarse = self._jobs % 2 == 0
        place = len(request.received)
        async with aclosing(super().generate(request)) as frames:
            async for frame in frames:
                if is_writing and isinstance(frame, Tokens):
                    ids = frame.ids
                    if not is_coarse and len(ids) > 1:
                        # Real tokens of this text, and not at their places.
                        ids = (ids[1], ids[0], *ids[2:])
                    weights = OTHER_MODEL if is_coarse else request.model + (request.adapter or b"")
                    frame = replace(frame, ids=ids, contrasts=contrasts(weights, place, ids))  # noqa: PLW2901
                    place += len(ids)
                yield frame


class FalseReadingEngine(SimulatedEngine):
    """Writes as it should, and says of whatever it is to check that no token is the model's."""

    def __init__(self, on_job: Callable[[], None], **settings: Any) -> None:
        super().__init__(**settings)
        self._on_job = on_job

    async def generate(self, request: Generation) -> AsyncGenerator[Frame, None]:
        """See `Engine.generate`."""
        if request.task == "check":
            self._on_job()
        async with aclosing(super().generate(request)) as frames:
            async for frame in frames:
                if request.task == "check" and isinstance(frame, Tokens):
                    lies = (LIE_MILLI,) * len(frame.ids)
                    frame = replace(frame, ids=lies, contrasts=lies)  # noqa: PLW2901
                yield frame


class ModelSwapper(Adversary):
    """Its answers are cheap, and by another model."""

    name: ClassVar[str] = "model-swapper"
    about: ClassVar[str] = "asks a price of 1 and answers with another model than it is paid for"

    def __init__(self, world: "World", daemon: "Daemon") -> None:
        super().__init__(world, daemon)
        self.undercut()
        daemon.engine = SwappedEngine(lambda: self.strike("swap"), **_settings(self))


class FalseReader(Adversary):
    """It would have every other seller barred."""

    name: ClassVar[str] = "false-reader"
    about: ClassVar[str] = "says of each answer that it is paid to check that another model gave it"

    def __init__(self, world: "World", daemon: "Daemon") -> None:
        super().__init__(world, daemon)
        daemon.engine = FalseReadingEngine(lambda: self.strike("false_reading"), **_settings(self))


def _settings(adversary: Adversary) -> dict[str, Any]:
    profile = adversary.profile
    return {
        "seconds_per_token": 1 / profile.tokens_per_s,
        "prompt_seconds_per_token": 1 / profile.prompt_tokens_per_s,
        "slots": profile.slots,
        "repetitions": None,
        "tokens_per_frame": 4,
    }
