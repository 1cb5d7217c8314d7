"""What an engine knows of each model, across the lives of its children: how fast it is, and who died under it.

A model under which children die is tried again after longer and longer pauses, and after `DEATHS_MAX` set aside. One
answer that it gives clears it.
"""

from dataclasses import dataclass, field

import trio

from runtime.engine import Digest, ModelSetAside, UnknownModel
from runtime.llama.speed import DECODE_SLOWDOWN, NEW_WEIGHT, PROMPT_SLOWDOWN, SpeedTable
from runtime.model_store import ModelStore

DEATHS_MAX = 5  # in a row, without a request served in between
PAUSE_S_FIRST = 0.5  # after the second death in a row; twice as long after each further one
PAUSE_S_MAX = 30.0
MEASURED_TOKENS_MIN = 8  # fewer say nothing about speed


@dataclass(frozen=True)
class Measured:
    """What one answer took, and beside how many streams: itself and all others of the engine, on average.

    Attributes:
        prompt_tokens: that were computed for it; the others came from the cache.
        completion_tokens: that it drew.
    """

    prompt_tokens: int
    prompt_s: float
    prompt_streams: int
    completion_tokens: int
    completion_s: float
    completion_streams: int


@dataclass
class ModelRecord:
    """One model's.

    Attributes:
        prompt, decode: its speeds.
        completion_tokens: of an answer, on average; 0 before the first one.
        load_s: what loading it took; 0 before it was.
        deaths: of children, in a row.
        not_before: it is not tried again until then.
        set_aside: why it is not tried any more; "" while it is.
    """

    prompt: SpeedTable = field(default_factory=lambda: SpeedTable(PROMPT_SLOWDOWN))
    decode: SpeedTable = field(default_factory=lambda: SpeedTable(DECODE_SLOWDOWN))
    completion_tokens: float = 0.0
    load_s: float = 0.0
    deaths: int = 0
    not_before: float = 0.0
    set_aside: str = ""

    def blame(self, model: bytes, verdict: str) -> None:
        """A child died under it."""
        self.deaths += 1
        self.not_before = trio.current_time() + pause_s(self.deaths - 1)
        if self.deaths >= DEATHS_MAX:
            self.set_aside = f"model {model.hex()[:8]} was set aside after {self.deaths} deaths: {verdict}"

    def learn_first(self, prompt_tokens_per_s: float, tokens_per_s: float) -> None:
        """It was loaded, and measured alone if these are not 0: that counts until it has answered."""
        if prompt_tokens_per_s > 0 and not self.prompt:
            self.prompt.learn(1, 1 / prompt_tokens_per_s)
        if tokens_per_s > 0 and not self.decode:
            self.decode.learn(1, 1 / tokens_per_s)

    def learn(self, measured: Measured) -> None:
        """It answered: it is good, and this fast."""
        self.deaths = 0
        if measured.prompt_tokens >= MEASURED_TOKENS_MIN and measured.prompt_s > 0:
            self.prompt.learn(measured.prompt_streams, measured.prompt_s / measured.prompt_tokens)
        if measured.completion_tokens >= MEASURED_TOKENS_MIN and measured.completion_s > 0:
            # The first token comes with the prompt's last step.
            steps = measured.completion_tokens - 1
            self.decode.learn(measured.completion_streams, measured.completion_s / steps)
        if measured.completion_tokens:
            old = self.completion_tokens or measured.completion_tokens
            self.completion_tokens = (1 - NEW_WEIGHT) * old + NEW_WEIGHT * measured.completion_tokens


class Records:
    """Those of all models that were asked for.

    Attributes:
        last_good: the model that served last, or was loaded first: the likeliest to be asked for.
    """

    def __init__(self) -> None:
        self._all: dict[Digest, ModelRecord] = {}
        self.last_good: Digest | None = None

    def of(self, model: Digest) -> ModelRecord:
        """Return what is known of a model."""
        return self._all.setdefault(model, ModelRecord())

    def check(self, model: Digest, store: ModelStore) -> None:
        """Return if a model can be asked for.

        Raises:
            UnknownModel: it is not here, or was set aside.
        """
        if model not in store.models:
            raise UnknownModel(f"no model {model.hex()[:8]} on this engine")
        if reason := self.of(model).set_aside:
            raise ModelSetAside(reason)


def pause_s(deaths: int) -> float:
    """Return how long to wait after so many deaths."""
    return min(PAUSE_S_MAX, PAUSE_S_FIRST * 2 ** (deaths - 1)) if deaths > 0 else 0.0
