"""How fast one stream goes beside how many others, from what was measured. Pure.

A batch makes each stream slower and all of them together faster. What a token took is kept by the number of streams
that ran meanwhile; for a number that was never met, the nearest one that was is scaled by a factor measured once on a
1B model on a CPU (14.4 tokens/s alone, 8.2 each of four, 4.5 each of eight), until it is met.
"""

from collections.abc import Iterable
from heapq import heapify, heapreplace

NEW_WEIGHT = 0.3  # of a measurement, against what was known before
DECODE_SLOWDOWN = 0.3  # for each further stream: a step of four takes 1.9 times one of one
# A prompt is read in chunks beside which the others' single tokens weigh little, unless they are reading too.
PROMPT_SLOWDOWN = 0.2


class SpeedTable:
    """Seconds per token of one stream, by the number of streams that run.

    Args:
        slowdown: what each further stream adds, as a share of a token alone, where nothing was measured.
    """

    def __init__(self, slowdown: float) -> None:
        self._slowdown = slowdown
        self._seconds: dict[int, float] = {}

    def __bool__(self) -> bool:
        return bool(self._seconds)

    def learn(self, streams: int, seconds_per_token: float) -> None:
        """Take a measurement in."""
        streams = max(1, streams)
        old = self._seconds.get(streams, seconds_per_token)
        self._seconds[streams] = (1 - NEW_WEIGHT) * old + NEW_WEIGHT * seconds_per_token

    def seconds_per_token(self, streams: int) -> float:
        """Return what a token of one of so many streams takes; 0 when nothing was measured yet."""
        if not self._seconds:
            return 0.0
        nearest = min(self._seconds, key=lambda known: (abs(known - streams), known))
        return self._seconds[nearest] * self._factor(streams) / self._factor(nearest)

    def tokens_per_s(self, streams: int) -> float:
        """Return the speed of one of so many streams; 0 when nothing was measured yet."""
        seconds = self.seconds_per_token(streams)
        return 1 / seconds if seconds > 0 else 0.0

    def _factor(self, streams: int) -> float:
        return 1 + self._slowdown * (max(1, streams) - 1)


Mark = tuple[float, float]  # a time, and the streams summed up over the time until then


class Crowd:
    """How many streams ran, over time: the mean over any stretch comes from the marks at its ends."""

    def __init__(self, now: float) -> None:
        self._streams = 0
        self._at = now
        self._sum = 0.0

    def set(self, streams: int, now: float) -> None:
        """So many run from now on."""
        self._sum += self._streams * (now - self._at)
        self._at, self._streams = now, streams

    def mark(self, now: float) -> Mark:
        """Return a mark of this moment."""
        return now, self._sum + self._streams * (now - self._at)

    def mean(self, since: Mark, until: Mark) -> float:
        """Return how many streams ran between two marks, on average; of no time at all: those that run now."""
        passed_s = until[0] - since[0]
        return (until[1] - since[1]) / passed_s if passed_s > 0 else float(self._streams)


def wait_s(slots: int, running_s: Iterable[float], waiting_s: Iterable[float]) -> float:
    """Return when one more request gets a slot: after all who wait, each in the slot that is free first.

    Args:
        slots: requests at a time.
        running_s: what each that runs will still take; at most `slots` of them.
        waiting_s: what each that waits will take, in their order.
    """
    free_at = [*running_s]
    free_at += [0.0] * (slots - len(free_at))
    heapify(free_at)
    for duration_s in waiting_s:
        heapreplace(free_at, free_at[0] + duration_s)
    return free_at[0]
