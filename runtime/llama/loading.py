"""A model on its way into memory, and somebody's wish that it should be there."""

from dataclasses import dataclass, field

import trio

from runtime.engine import Digest, EngineError, ModelCard
from runtime.llama.call import Call
from runtime.llama.memory import Footprint


@dataclass(eq=False)
class Wish:
    """Somebody wants a model in memory, who has no call for it (yet).

    Attributes:
        is_modest: only if it has a place already: nobody is to go for it.
    """

    model: Digest
    is_modest: bool = False
    done: trio.Event = field(default_factory=trio.Event)
    error: EngineError | None = None

    def end(self, error: EngineError | None = None) -> None:
        """It was loaded, or cannot be."""
        self.error = error
        self.done.set()


@dataclass(eq=False)
class Loading:
    """A model that is being loaded.

    Attributes:
        card: the model's, which may be removed meanwhile.
        given: what it gets in memory.
        cause: the call for which it was begun, if it was one.
        expected_s: what it will take, as far as was known before.
        share: of it that is done.
    """

    card: ModelCard
    given: Footprint
    cause: Call | None
    began: float
    expected_s: float
    share: float = 0.0

    @property
    def model(self) -> Digest:
        """Which one."""
        return self.card.digest

    @property
    def remaining_s(self) -> float:
        """What it will still take."""
        passed_s = trio.current_time() - self.began
        if self.share > 0.1:  # sooner, a stall of a moment would be taken for the speed
            return passed_s * (1 - self.share) / self.share
        return max(0.0, self.expected_s - passed_s)
