"""Sellers that win with a price nobody honest can ask, and then do not do what they sold.

All three swap the engine alone: the node around it bids, accepts, claims and settles as any other does.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

import trio

from node.simulation.adversaries.adversary import Adversary
from node.simulation.engine import SimulatedEngine
from protocol.limits import STALL_TIMEOUT_S
from runtime.echo import token_bytes
from runtime.engine import Digest, EngineStatus, Frame, Generation, Phase, Progress, Tokens

if TYPE_CHECKING:
    from node.simulation.daemon import Daemon
    from node.simulation.world import World

SLOTS_SAID: Final = 64
TOKENS_PER_S_SAID: Final = 1_000.0
SLOWNESS: Final = 5.0  # what the liar really is: so many times slower than its profile, with one slot
DRIP_S: Final = 0.95 * STALL_TIMEOUT_S  # just often enough not to count as stalled


class BoastfulEngine(SimulatedEngine):
    """Says that it has many free slots and a great speed; `on_job` hears of each job that believed it."""

    def __init__(self, on_job: Callable[[], None], **settings: Any) -> None:
        super().__init__(**settings)
        self._on_job = on_job

    def status(self, model: Digest) -> EngineStatus:
        """See `Engine.status`; a lie."""
        return replace(
            super().status(model),
            slots=SLOTS_SAID,
            slots_free=SLOTS_SAID,
            queued=0,
            wait_s=0.0,
            tokens_per_s=TOKENS_PER_S_SAID,
            prompt_tokens_per_s=TOKENS_PER_S_SAID,
        )

    async def generate(self, request: Generation) -> AsyncGenerator[Frame, None]:
        """See `Engine.generate`; honest work, late."""
        self._on_job()
        async with aclosing(super().generate(request)) as frames:
            async for frame in frames:
                yield frame


class SilentEngine(BoastfulEngine):
    """Takes a job and never says a word."""

    async def generate(self, request: Generation) -> AsyncGenerator[Frame, None]:
        """See `Engine.generate`."""
        self.started.append(request)
        self._on_job()
        await trio.sleep_forever()
        yield Progress(Phase.QUEUED)  # never: it makes this a generator


class DrippingEngine(BoastfulEngine):
    """Says one token just before its buyer would give it up, and never that it has finished."""

    async def generate(self, request: Generation) -> AsyncGenerator[Frame, None]:
        """See `Engine.generate`."""
        self.started.append(request)
        prompt_tokens = await self.count_tokens(request.model, request.messages)
        yield Progress(Phase.PREFILL, prompt_tokens, prompt_tokens)
        for token in self._answer(request, skip=len(request.received)):
            await trio.sleep(DRIP_S)
            self._on_job()
            yield Tokens((token,), token_bytes(token).decode(errors="replace"), contrasts=(0,))


class CapacityLiar(Adversary):
    """Many slots said, one slow one there: its jobs queue behind each other."""

    name: ClassVar[str] = "capacity-liar"
    about: ClassVar[str] = "says that it has 64 fast slots and serves one job at a time, slowly"

    def __init__(self, world: "World", daemon: "Daemon") -> None:
        super().__init__(world, daemon)
        self.undercut()
        daemon.engine = BoastfulEngine(
            lambda: self.strike("job_taken"),
            seconds_per_token=SLOWNESS / self.profile.tokens_per_s,
            prompt_seconds_per_token=SLOWNESS / self.profile.prompt_tokens_per_s,
            slots=1,
            repetitions=None,
        )


class SilentWinner(Adversary):
    """Wins, accepts, says nothing: each of its buyers waits until the stall is noticed."""

    name: ClassVar[str] = "silent-winner"
    about: ClassVar[str] = "wins auctions with a price of 1, accepts the award and then says nothing"

    def __init__(self, world: "World", daemon: "Daemon") -> None:
        super().__init__(world, daemon)
        self.undercut()
        daemon.engine = SilentEngine(lambda: self.strike("silence"))


class DripFeeder(Adversary):
    """Never silent for 2 s, and never done."""

    name: ClassVar[str] = "drip-feeder"
    about: ClassVar[str] = "says one token per 1.9 s, for ever, and never that it has finished"

    def __init__(self, world: "World", daemon: "Daemon") -> None:
        super().__init__(world, daemon)
        self.undercut()
        daemon.engine = DrippingEngine(lambda: self.strike("drop"), repetitions=None)
