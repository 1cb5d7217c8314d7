"""The engine of a simulated device: `EchoEngine` at the speed that its profile has, and what befalls engines."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Self

import trio

from node.simulation.devices import Profile
from protocol.limits import PROGRESS_INTERVAL_S
from runtime.echo import EchoEngine
from runtime.engine import EngineDied, Frame, Generation, Tokens


class SimulatedEngine(EchoEngine):
    """It can stall or die after some tokens of the next generation; without cards it holds no model."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.stall_after: int | None = None
        self.die_after: int | None = None
        self.is_stopped = False
        self.started: list[Generation] = []

    @classmethod
    def of(cls, profile: Profile, *, is_seller: bool) -> Self:
        """Make the engine of a device. It says as many tokens at a time as half a second brings."""
        engine = cls(
            seconds_per_token=1 / profile.tokens_per_s,
            prompt_seconds_per_token=1 / profile.prompt_tokens_per_s,
            slots=profile.slots,
            repetitions=None,
            tokens_per_frame=max(1, int(profile.tokens_per_s * PROGRESS_INTERVAL_S)),
        )
        if not is_seller:
            engine.forget_models()
        return engine

    def forget_models(self) -> None:
        """Hold no model: this device only buys."""
        self._cards = {}

    async def generate(self, request: Generation) -> AsyncGenerator[Frame, None]:
        """See `EchoEngine.generate`."""
        self.started.append(request)
        sent = 0
        async with aclosing(super().generate(request)) as frames:
            async for frame in frames:
                if isinstance(frame, Tokens):
                    if sent == self.stall_after or self.is_stopped:
                        await trio.sleep_forever()
                    if sent == self.die_after:
                        raise EngineDied("the child process died")
                    sent += len(frame.ids)
                yield frame
