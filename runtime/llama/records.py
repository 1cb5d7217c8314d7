"""What an engine knows of each model, across the lives of its children: how fast it is, and who died under it.

A model under which children die is tried again after longer and longer pauses, and after `DEATHS_MAX` set aside. One
answer that it gives clears it.
"""

from dataclasses import dataclass

import trio

from runtime.llama import wire

DEATHS_MAX = 5  # in a row, without a request served in between
PAUSE_S_FIRST = 0.5  # after the second death in a row; twice as long after each further one
PAUSE_S_MAX = 30.0
MEASURED_TOKENS_MIN = 8  # fewer say nothing about speed
NEW_SPEED_WEIGHT = 0.3


@dataclass
class ModelRecord:
    """One model's.

    Attributes:
        deaths: of children, in a row.
        not_before: it is not tried again until then.
        set_aside: why it is not tried any more; "" while it is.
    """

    prompt_tokens_per_s: float = 0.0
    tokens_per_s: float = 0.0
    deaths: int = 0
    not_before: float = 0.0
    set_aside: str = ""

    def blame(self, model: bytes, verdict: str) -> None:
        """A child died under it."""
        self.deaths += 1
        self.not_before = trio.current_time() + pause_s(self.deaths - 1)
        if self.deaths >= DEATHS_MAX:
            self.set_aside = f"model {model.hex()[:8]} was set aside after {self.deaths} deaths: {verdict}"

    def learn(self, done: wire.Done, received: int) -> None:
        """It served: it is good, and this fast."""
        self.deaths = 0
        if done.prefill_tokens >= MEASURED_TOKENS_MIN and done.prefill_s > 0:
            self.prompt_tokens_per_s = _blend(self.prompt_tokens_per_s, done.prefill_tokens / done.prefill_s)
        if done.completion_tokens >= MEASURED_TOKENS_MIN and not received and done.decode_s > 0:
            self.tokens_per_s = _blend(self.tokens_per_s, done.completion_tokens / done.decode_s)


def pause_s(deaths: int) -> float:
    """Return how long to wait after so many deaths."""
    return min(PAUSE_S_MAX, PAUSE_S_FIRST * 2 ** (deaths - 1)) if deaths > 0 else 0.0


def _blend(old: float, new: float) -> float:
    return new if old == 0 else (1 - NEW_SPEED_WEIGHT) * old + NEW_SPEED_WEIGHT * new
