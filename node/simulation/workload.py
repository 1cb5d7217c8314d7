"""What the user of one device asks, and when: first the numbers, then the arrivals made of them.

Everything is a lazy stream of `Question`s in the order of time. Sources make one (`poisson`, `bursts`, `diurnal`,
`batch`), `sessions` makes conversations of one, and `Workload` puts them together. Time is seconds from the world's
beginning; the streams are open loops: they do not know when an answer comes, so whoever asks holds a turn of a session
back until the one before it is answered.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count, cycle, islice
from operator import attrgetter
from random import Random
from types import MappingProxyType
from typing import Literal, Self

from protocol.messages import Privacy

Kind = Literal["chat", "batch", "completion", "embedding"]
Arrivals = Literal["poisson", "bursts", "diurnal"]

HOUR_S = 3_600.0
DAY_HOURS = 24.0

# --- conversations ------------------------------------------------------------------------------------------------
TURNS_MEAN = 3.0  # LMSYS-Chat-1M has 2.0 (arXiv:2309.11998), WildChat 2.5, ShareGPT 3.5
# From question to question: 15 s for an answer, half a minute to read its 150 words, 45 s to type 40 at 50 a minute.
# Far below the 600 s after which a lease ends, so that most turns find their cache warm.
THINK_MEAN_S = 90.0

# --- bursts -------------------------------------------------------------------------------------------------------
BURST_MEAN = 5.0  # questions: a few tabs, or one step of a program that asks several things
BURST_GAP_MEAN_S = 2.0  # between two of them: a burst is over in some ten seconds

# --- the day ------------------------------------------------------------------------------------------------------
PEAK_HOUR = 20.0  # of 24; what people ask at home, in the evening
DAY_SWING = 0.8  # 0.2 to 1.8 times the mean: about the nights and evenings of home traffic

# --- batches ------------------------------------------------------------------------------------------------------
BATCH_MEAN = 20.0  # jobs handed in together: the documents of a folder
BATCH_SHARE = 0.0  # of all questions; a world of people alone, unless it says otherwise

# --- programs -----------------------------------------------------------------------------------------------------
# Guess, of all questions: an editor that goes on with a text, a search that embeds its documents. A world has few of them,
# so that its laws are tried with every task; nobody has measured how many there are.
PROGRAM_SHARE = 0.06


@dataclass(frozen=True)
class Lengths:
    """A log-normal distribution of lengths: most are short, a few are long.

    Attributes:
        median: half are longer.
        sigma: of the logarithm; with 0.8, the mean is 1.38 medians and one in twenty is over 3.7 medians.
        most: longer ones are cut to it, so that a question fits into a context of 4,096 tokens with its answer.
    """

    median: float
    sigma: float
    most: int

    def draw(self, rng: Random) -> int:
        """Return a length, at least 1."""
        return min(self.most, max(1, round(rng.lognormvariate(math.log(self.median), self.sigma))))


@dataclass(frozen=True)
class Shape:
    """What questions of one kind look like.

    Attributes:
        words: of the prompt.
        tokens_max: of the answer. `EchoEngine` goes on until there, so this is how long answers are.
        privacy: weights of the privacy classes. All at "mesh" asks the most of a mesh: nothing is kept from the market.
    """

    kind: Kind
    words: Lengths
    tokens_max: Lengths
    privacy: Mapping[Privacy, float] = field(default_factory=lambda: MappingProxyType({"mesh": 1.0}))


# LMSYS-Chat-1M has 69.5 tokens to a prompt and 214.5 to an answer on average: here 55 words, and 207 tokens.
CHAT = Shape("chat", words=Lengths(40, 0.8, most=600), tokens_max=Lengths(150, 0.8, most=1_024))
# Guess: a page or two of a document each, and a summary.
BATCH = Shape("batch", words=Lengths(500, 0.3, most=1_000), tokens_max=Lengths(400, 0.3, most=1_024))
# Guess: a paragraph gone on with by a sentence; a document in pieces, each of which becomes one vector.
COMPLETION = Shape("completion", words=Lengths(80, 0.5, most=600), tokens_max=Lengths(40, 0.5, most=256))
EMBEDDING = Shape("embedding", words=Lengths(200, 0.5, most=800), tokens_max=Lengths(1, 0.0, most=1))


@dataclass(frozen=True)
class Question:
    """One thing that a user asks.

    Attributes:
        at_s: when, in seconds from the world's beginning.
        words: the prompt, or the text to go on from or to embed.
        session: 32 bytes that the turns of one conversation share; None: it belongs to none.
        tokens_max: of the answer.
    """

    at_s: float
    words: str
    session: bytes | None
    tokens_max: int
    privacy: Privacy
    kind: Kind

    @classmethod
    def draw(cls, rng: Random, shape: Shape, at_s: float) -> Self:
        """Return a question of this shape that belongs to no session."""
        classes, weights = zip(*shape.privacy.items(), strict=True)
        return cls(
            at_s=at_s,
            words=filler(rng.randrange(len(FILLER)), shape.words.draw(rng)),
            session=None,
            tokens_max=shape.tokens_max.draw(rng),
            privacy=rng.choices(classes, weights)[0],
            kind=shape.kind,
        )


@dataclass(frozen=True)
class Workload:
    """How the users of a world ask; how much each of them asks is their device's business.

    Attributes:
        arrivals: of conversations: at any time, in bursts, or by the time of day.
        turns_mean: questions of a conversation; 1: no conversations, and no question has a session.
        batch_share: of all questions, how many come as batch jobs.
        program_share: of the others, how many are no chats: completions and embeddings, one as often as the other.
        begins_at_hour: the time of day at which the world begins.
    """

    arrivals: Arrivals = "poisson"
    turns_mean: float = TURNS_MEAN
    think_mean_s: float = THINK_MEAN_S
    burst_mean: float = BURST_MEAN
    burst_gap_mean_s: float = BURST_GAP_MEAN_S
    peak_hour: float = PEAK_HOUR
    day_swing: float = DAY_SWING
    begins_at_hour: float = 0.0
    batch_share: float = BATCH_SHARE
    batch_mean: float = BATCH_MEAN
    program_share: float = PROGRAM_SHARE
    chat: Shape = CHAT
    batch: Shape = BATCH

    def __post_init__(self) -> None:
        """Check what would make a stream endless or its rate wrong.

        Raises:
            ValueError: a mean number is below 1, or a share is not between 0 and 1.
        """
        for name in ("turns_mean", "burst_mean", "batch_mean"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("day_swing", "batch_share", "program_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to 1")

    def questions(self, rng: Random, device_rate_per_hour: float, seconds: float) -> Iterator[Question]:
        """Return what the user of one device asks in `seconds`; on average `device_rate_per_hour`, all turns counted.

        All that is drawn depends on `rng` as it is now, however slowly the stream is read and whatever `rng` is used for
        meanwhile.
        """
        chats, batches, texts, vectors = (
            Random(rng.getrandbits(64))  # noqa: S311  # a world's chance, no secret
            for _ in range(4)
        )
        batch_per_hour = device_rate_per_hour * self.batch_share
        other_per_hour = device_rate_per_hour - batch_per_hour
        chats_per_hour = other_per_hour * (1 - self.program_share)
        each_per_hour = other_per_hour * self.program_share / 2
        return heapq.merge(
            self._chats(chats, chats_per_hour, seconds),
            batch(batches, batch_per_hour, seconds, mean=self.batch_mean, shape=self.batch),
            poisson(texts, each_per_hour, seconds, shape=COMPLETION),
            poisson(vectors, each_per_hour, seconds, shape=EMBEDDING),
            key=attrgetter("at_s"),
        )

    def _chats(self, rng: Random, per_hour: float, seconds: float) -> Iterator[Question]:
        """Yield the chats of users who talked long before the world began: else its first minutes were too quiet."""
        before_s = 10 * (self.turns_mean * self.think_mean_s + self.burst_mean * self.burst_gap_mean_s)
        until_s = before_s + seconds
        chats = self._openers(rng, per_hour / self.turns_mean, until_s, before_s)
        if self.turns_mean > 1:
            chats = sessions(
                rng, chats, until_s, mean=self.turns_mean, think_mean_s=self.think_mean_s, shape=self.chat
            )
        for question in chats:
            at_s = question.at_s - before_s
            if 0 <= at_s < seconds:
                yield replace(question, at_s=at_s)

    def _openers(self, rng: Random, per_hour: float, seconds: float, before_s: float) -> Iterator[Question]:
        match self.arrivals:
            case "poisson":
                return poisson(rng, per_hour, seconds, shape=self.chat)
            case "bursts":
                mean, gap_mean_s = self.burst_mean, self.burst_gap_mean_s
                return bursts(rng, per_hour, seconds, mean=mean, gap_mean_s=gap_mean_s, shape=self.chat)
            case "diurnal":
                peak = self.peak_hour - self.begins_at_hour + before_s / HOUR_S
                return diurnal(rng, per_hour, seconds, peak, swing=self.day_swing, shape=self.chat)


# --- sources ------------------------------------------------------------------------------------------------------
def poisson(rng: Random, per_hour: float, seconds: float, *, shape: Shape = CHAT) -> Iterator[Question]:
    """Yield questions that know nothing of each other."""
    for at_s in _poisson_times(rng, per_hour, seconds):
        yield Question.draw(rng, shape, at_s)


def bursts(
    rng: Random,
    per_hour: float,
    seconds: float,
    *,
    mean: float = BURST_MEAN,
    gap_mean_s: float = BURST_GAP_MEAN_S,
    shape: Shape = CHAT,
) -> Iterator[Question]:
    """Yield nothing for long, and then several questions within seconds: a geometric number, `mean` on average."""
    firsts = poisson(rng, per_hour / mean, seconds, shape=shape)
    return _followed(rng, firsts, seconds, mean, gap_mean_s, lambda _, at_s: Question.draw(rng, shape, at_s))


def diurnal(
    rng: Random,
    per_hour: float,
    seconds: float,
    peak_hour: float = PEAK_HOUR,
    *,
    swing: float = DAY_SWING,
    shape: Shape = CHAT,
) -> Iterator[Question]:
    """Yield questions at a rate that goes up and down once a day, as a cosine, with `per_hour` as its mean.

    The peak is so many hours after second 0, and each 24 hours from there.

    Source: thinning, Lewis and Shedler 1979: draw at the peak's rate, keep each with the share of it that now is.
    """
    for at_s in _poisson_times(rng, per_hour * (1 + swing), seconds):
        factor = 1 + swing * math.cos(2 * math.pi * (at_s / HOUR_S - peak_hour) / DAY_HOURS)
        if rng.random() * (1 + swing) < factor:
            yield Question.draw(rng, shape, at_s)


def batch(
    rng: Random, per_hour: float, seconds: float, *, mean: float = BATCH_MEAN, shape: Shape = BATCH
) -> Iterator[Question]:
    """Yield long jobs that are handed in together: a burst without gaps."""
    return bursts(rng, per_hour, seconds, mean=mean, gap_mean_s=0.0, shape=shape)


# --- what is made of them -----------------------------------------------------------------------------------------
def sessions(
    rng: Random,
    openers: Iterator[Question],
    seconds: float,
    *,
    mean: float = TURNS_MEAN,
    think_mean_s: float = THINK_MEAN_S,
    shape: Shape = CHAT,
) -> Iterator[Question]:
    """Yield conversations: each opener, and a geometric number of turns after it with time to think between them.

    The turns of one share its key and its privacy class; conversations may overlap.
    """

    def next_turn(before: Question, at_s: float) -> Question:
        drawn = Question.draw(rng, shape, at_s)
        return replace(drawn, session=before.session, privacy=before.privacy)

    keyed = (replace(opener, session=rng.randbytes(32)) for opener in openers)
    return _followed(rng, keyed, seconds, mean, think_mean_s, next_turn)


FILLER_TEXT = """
we have a small garden behind the house and would like to grow beans there. the soil is heavy, and in spring water
stands on it for days. how should we prepare it before sowing? last year half of the plants rotted, so please say first
what went wrong. then give a plan for each month, with the tools we need and what they cost. our neighbour says that
sand helps, but another one warns against it. who is right, and why?
"""
FILLER = tuple(FILLER_TEXT.split())


def filler(start: int, words: int) -> str:
    """Return so many words of a text that repeats itself, from any place in it."""
    return " ".join(islice(cycle(FILLER), start, start + words))


def _poisson_times(rng: Random, per_hour: float, seconds: float) -> Iterator[float]:
    """Yield times with exponential gaps.

    Raises:
        ValueError: the rate is negative: its times would never pass the end.
    """
    if per_hour < 0:
        raise ValueError(f"a rate of {per_hour} questions an hour, expected 0 or more")
    if per_hour == 0:
        return
    gap_mean_s = HOUR_S / per_hour
    at_s = rng.expovariate(1.0) * gap_mean_s
    while at_s < seconds:
        yield at_s
        at_s += rng.expovariate(1.0) * gap_mean_s


def _followed(
    rng: Random,
    firsts: Iterator[Question],
    seconds: float,
    mean: float,
    gap_mean_s: float,
    follow: Callable[[Question, float], Question],
) -> Iterator[Question]:
    """Yield each first question and, merged by time, those that follow it: after each, one more with 1 - 1/mean.

    `follow` makes the next question from the one before it and the new time.
    """
    first = next(firsts, None)
    waiting: list[tuple[float, int, Question]] = []
    numbers = count()  # of two at the same time, the one drawn first
    while first is not None or waiting:
        if first is not None and (not waiting or first.at_s <= waiting[0][0]):
            question, first = first, next(firsts, None)
        else:
            question = heapq.heappop(waiting)[2]
        yield question
        if rng.random() < 1 - 1 / mean:
            at_s = question.at_s + rng.expovariate(1.0) * gap_mean_s
            if at_s < seconds:
                heapq.heappush(waiting, (at_s, next(numbers), follow(question, at_s)))
