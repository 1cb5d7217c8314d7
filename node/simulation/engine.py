"""The engine of a simulated device: `EchoEngine` at the speed that its profile has, and what befalls engines."""

from collections import deque
from collections.abc import AsyncGenerator
from math import ceil
from typing import Any, Final, Self

import trio

from node.simulation.devices import Profile
from protocol.limits import PROGRESS_INTERVAL_S
from runtime.echo import EchoEngine, echo_card
from runtime.engine import Digest, EngineDied, Frame, Generation

ECHO_VECTORS: Final = Digest(bytes(31) + b"v")
DIMENSIONS: Final = 16  # few: a world has no use for the words of a vector but to count them
STARTED_KEPT: Final = 64  # of the newest generations, for tests


class SimulatedEngine(EchoEngine):
    """It can stall or die after some tokens of the next generation; without cards it holds no model."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.stall_after: int | None = None
        self.die_after: int | None = None
        self.is_stopped = False
        self.started: deque[Generation] = deque(maxlen=STARTED_KEPT)

    @classmethod
    def of(cls, profile: Profile, *, is_seller: bool) -> Self:
        """Make the engine of a device, with a model that writes and one that embeds. It says as many tokens at a time as come between two frames of progress."""
        engine = cls(
            cards=(echo_card(), echo_card(ECHO_VECTORS, "echo-vectors", dimensions=DIMENSIONS)),
            seconds_per_token=1 / profile.tokens_per_s,
            prompt_seconds_per_token=1 / profile.prompt_tokens_per_s,
            slots=profile.slots,
            repetitions=None,
            tokens_per_frame=max(1, ceil(profile.tokens_per_s * PROGRESS_INTERVAL_S) - 1),
        )
        if not is_seller:
            engine.forget_models()
        return engine

    def forget_models(self) -> None:
        """Hold no model: this device only buys."""
        self._cards = {}

    def forget_adapters(self) -> None:
        """The process that held them is gone."""
        self._adapters = {}

    def generate(self, request: Generation) -> AsyncGenerator[Frame, None]:
        """See `EchoEngine.generate`."""
        self.started.append(request)
        return super().generate(request)

    async def before_tokens(self, said: int) -> None:
        """See `EchoEngine.before_tokens`."""
        if said == self.stall_after or self.is_stopped:
            await trio.sleep_forever()
        if said == self.die_after:
            raise EngineDied("the child process died")
