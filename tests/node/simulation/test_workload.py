"""Arrivals of questions: in order, at the promised rate, from one seed."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice, pairwise
from random import Random
from statistics import fmean, median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.prompt import Prompt
from node.simulation.workload import (
    BATCH,
    BATCH_MEAN,
    BURST_GAP_MEAN_S,
    CHAT,
    DAY_SWING,
    FILLER,
    HOUR_S,
    PEAK_HOUR,
    THINK_MEAN_S,
    TURNS_MEAN,
    Lengths,
    Question,
    Shape,
    Workload,
    batch,
    bursts,
    diurnal,
    filler,
    poisson,
    sessions,
)
from protocol.messages import Turn
from runtime.echo import echo_card

Source = Callable[[Random, float, float], Iterator[Question]]

DAY_S = 24 * HOUR_S
SOURCES: dict[str, Source] = {"poisson": poisson, "bursts": bursts, "diurnal": diurnal, "batch": batch}
WORKLOADS = {
    "people": Workload(),
    "one-offs": Workload(turns_mean=1),
    "programs": Workload(arrivals="bursts", turns_mean=1),
    "everything": Workload(arrivals="bursts", batch_share=0.3),
    "editors": Workload(program_share=0.5, batch_share=0.3),
    "days": Workload(arrivals="diurnal", begins_at_hour=9),
}

seeds = st.integers(0, 2**32)
rates = st.floats(0, 100)
spans = st.floats(0, HOUR_S)


def conversations(questions: Iterator[Question]) -> list[list[Question]]:
    """Return the turns of each session."""
    by_key = defaultdict(list)
    for question in questions:
        assert question.session is not None
        by_key[question.session].append(question)
    return list(by_key.values())


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@given(seed=seeds, per_hour=rates, seconds=spans)
def test_questions_come_in_order_within_their_time_and_the_seed_tells_all(
    source: Source, seed: int, per_hour: float, seconds: float
) -> None:
    questions = list(source(Random(seed), per_hour, seconds))

    assert all(0 <= question.at_s < seconds for question in questions)
    assert all(one.at_s <= next_.at_s for one, next_ in pairwise(questions))
    assert questions == list(source(Random(seed), per_hour, seconds))


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
@given(seed=seeds, per_hour=rates, seconds=spans)
def test_so_do_those_of_every_workload(
    workload: Workload, seed: int, per_hour: float, seconds: float
) -> None:
    questions = list(workload.questions(Random(seed), per_hour, seconds))

    assert all(0 <= question.at_s < seconds for question in questions)
    assert all(one.at_s <= next_.at_s for one, next_ in pairwise(questions))
    assert questions == list(workload.questions(Random(seed), per_hour, seconds))


def test_another_seed_asks_something_else() -> None:
    first, second = (list(islice(poisson(Random(seed), 60, HOUR_S), 10)) for seed in (1, 2))

    assert {question.at_s for question in first}.isdisjoint(question.at_s for question in second)


def test_a_stream_is_lazy() -> None:
    """A world stops when its scenario is over, and asks for no more than it needs."""
    forever = Workload(batch_share=0.5).questions(Random(1), 1_000, math.inf)

    assert len(list(islice(forever, 50))) == 50


def test_a_workload_is_fixed_when_it_is_asked_for() -> None:
    """A world draws for many devices from one generator, and reads their streams in whatever order time brings."""
    rng = Random(1)
    slow, other = (Workload().questions(rng, 20, DAY_S) for _ in range(2))
    list(other)
    rng.random()

    assert list(slow) == list(Workload().questions(Random(1), 20, DAY_S))


@pytest.mark.parametrize(
    ("source", "cluster_mean"),
    [(poisson, 1.0), (diurnal, 1.0), (partial(bursts, mean=4.0), 4.0), (partial(batch, mean=4.0), 4.0)],
)
def test_the_mean_rate_is_the_one_asked_for(source: Source, cluster_mean: float) -> None:
    """30 days at 20 an hour, within four standard errors; whole days, so thinning has to keep the daily mean.

    A sum of N Poisson clusters of geometric size G has the variance N E[G^2], and E[G^2] = 2 m^2 - m.
    """
    expected = 30 * 24 * 20

    questions = sum(1 for _ in source(Random(11), 20, 30 * DAY_S))

    deviation = (expected / cluster_mean * (2 * cluster_mean**2 - cluster_mean)) ** 0.5
    assert questions == pytest.approx(expected, abs=4 * deviation)


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_a_workload_counts_all_turns_of_all_kinds_into_the_rate(workload: Workload) -> None:
    questions = list(workload.questions(Random(5), 40, 30 * DAY_S))

    assert len(questions) == pytest.approx(30 * 24 * 40, rel=0.1)
    batches = sum(question.kind == "batch" for question in questions)
    assert batches / len(questions) == pytest.approx(workload.batch_share, abs=0.05)
    for kind in ("completion", "embedding"):
        asked = sum(question.kind == kind for question in questions)
        share = (1 - workload.batch_share) * workload.program_share / 2
        assert asked / len(questions) == pytest.approx(share, abs=0.02)


def test_the_first_minutes_are_as_busy_as_the_later_ones() -> None:
    """Conversations were under way before the world began: without them its first minute had two fifths of the questions."""
    rng = Random(3)
    minutes = Counter(
        int(question.at_s // 60) for _ in range(1_000) for question in Workload().questions(rng, 60, 300)
    )

    assert [minutes[minute] / 1_000 for minute in range(5)] == [pytest.approx(1.0, abs=0.15)] * 5


def test_a_device_that_asks_nothing_asks_nothing() -> None:
    assert list(Workload(batch_share=0.5).questions(Random(1), 0, DAY_S)) == []


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_negative_rate_is_refused_instead_of_never_ending(source: Source) -> None:
    with pytest.raises(ValueError, match="expected 0 or more"):
        next(source(Random(1), -1, HOUR_S))


def test_a_burst_is_quiet_for_long_and_then_several_within_seconds() -> None:
    questions = bursts(Random(2), 10, 100 * DAY_S, mean=5)

    gaps = [next_.at_s - one.at_s for one, next_ in pairwise(questions)]

    assert median(gaps) < 2 * BURST_GAP_MEAN_S
    assert fmean(gaps) == pytest.approx(360, rel=0.05)
    assert sum(gap > 60 for gap in gaps) / len(gaps) == pytest.approx(1 / 5, abs=0.03)


def test_the_peak_hour_is_the_busiest_and_twelve_hours_away_is_the_quietest() -> None:
    """The mean of 1 + s cos over the hour around its top is 1 + s sin(π/24) / (π/24)."""
    hours = Counter(
        round(question.at_s / HOUR_S) % 24 for question in diurnal(Random(4), 60, 40 * DAY_S, PEAK_HOUR)
    )

    top = DAY_SWING * math.sin(math.pi / 24) / (math.pi / 24)
    assert hours[20] / 2_400 == pytest.approx(1 + top, rel=0.07)
    assert hours[8] / 2_400 == pytest.approx(1 - top, rel=0.2)


@pytest.mark.parametrize(
    ("hours_after_peak", "factor"), [(0, 1 + DAY_SWING), (6, 1.0), (12, 1 - DAY_SWING), (18, 1.0)]
)
def test_a_world_begins_at_the_hour_it_is_told_to(hours_after_peak: float, factor: float) -> None:
    """The hour around it has that rate. Six hours off the peak the slope is steepest, so a shifted day would show."""
    workload = Workload(arrivals="diurnal", begins_at_hour=PEAK_HOUR + hours_after_peak - 0.5)

    asked = sum(1 for seed in range(100) for _ in workload.questions(Random(seed), 60, HOUR_S))

    assert asked / 6_000 == pytest.approx(factor, abs=0.1)


def test_the_turns_of_a_conversation_share_a_key_that_no_other_has() -> None:
    openers = list(poisson(Random(6), 5, 100 * DAY_S))

    talks = conversations(sessions(Random(6), iter(openers), 200 * DAY_S))

    assert [turns[0].at_s for turns in talks] == [opener.at_s for opener in openers]
    assert {len(turns[0].session or b"") for turns in talks} == {32}


def test_conversations_are_as_long_and_as_slow_as_the_table_says() -> None:
    """A geometric number of turns: a third of the conversations with a mean of 3 ends after the first."""
    talks = conversations(sessions(Random(8), poisson(Random(9), 5, 100 * DAY_S), 200 * DAY_S))

    assert fmean(len(turns) for turns in talks) == pytest.approx(TURNS_MEAN, rel=0.03)
    assert sum(len(turns) == 1 for turns in talks) / len(talks) == pytest.approx(1 / TURNS_MEAN, rel=0.05)
    pauses = [next_.at_s - one.at_s for turns in talks for one, next_ in pairwise(turns)]
    assert fmean(pauses) == pytest.approx(THINK_MEAN_S, rel=0.03)


def test_a_conversation_stays_in_one_privacy_class_and_all_classes_have_their_share() -> None:
    chat = replace(CHAT, privacy={"owner": 0.5, "mesh": 0.4, "local": 0.1})

    talks = conversations(Workload(chat=chat, program_share=0).questions(Random(1), 20, 100 * DAY_S))

    assert all(len({turn.privacy for turn in turns}) == 1 for turns in talks)
    shares = Counter(turns[0].privacy for turns in talks)
    assert {name: shares[name] / len(talks) for name in shares} == pytest.approx(chat.privacy, abs=0.02)


def test_without_conversations_no_question_has_a_session() -> None:
    questions = Workload(turns_mean=1, batch_share=0.5, program_share=0).questions(Random(1), 20, DAY_S)

    assert {question.session for question in questions} == {None}


def test_the_jobs_of_a_batch_are_long_and_arrive_together() -> None:
    jobs = list(batch(Random(1), 10, 60 * DAY_S))
    batches = Counter(job.at_s for job in jobs)

    assert len(jobs) / len(batches) == pytest.approx(BATCH_MEAN, rel=0.15)
    assert {(job.kind, job.session) for job in jobs} == {("batch", None)}
    assert median(len(job.words.split()) for job in jobs) > 5 * CHAT.words.median
    assert median(job.tokens_max for job in jobs) > 2 * CHAT.tokens_max.median


def test_prompts_and_answers_have_the_lengths_of_chats() -> None:
    chats = list(poisson(Random(1), 20, 25 * DAY_S))
    words = [len(chat.words.split()) for chat in chats]

    assert median(words) == pytest.approx(40, abs=1)
    assert fmean(words) == pytest.approx(40 * math.exp(0.8**2 / 2), rel=0.03)
    assert median(chat.tokens_max for chat in chats) == pytest.approx(150, rel=0.03)


@given(seed=seeds, median_=st.floats(0.01, 10_000), sigma=st.floats(0, 3), most=st.integers(1, 1_000))
def test_a_length_is_at_least_one_and_never_over_its_bound(
    seed: int, median_: float, sigma: float, most: int
) -> None:
    assert 1 <= Lengths(median_, sigma, most).draw(Random(seed)) <= most


@pytest.mark.parametrize("shape", [CHAT, BATCH])
def test_the_longest_question_fits_into_an_echo_context_with_its_answer(shape: Shape) -> None:
    """Else its sellers would decline for `context`, and the world would measure that."""
    longest = max((filler(start, shape.words.most) for start in range(len(FILLER))), key=len)

    tokens = Prompt((Turn(role="user", content=longest),)).estimated_tokens + shape.tokens_max.most

    assert tokens < echo_card().context_tokens


@given(start=st.integers(0, len(FILLER) - 1), words=st.integers(1, 500))
def test_filler_is_as_many_words_as_asked_for_from_its_place_on(start: int, words: int) -> None:
    text = filler(start, words).split(" ")

    assert len(text) == words
    assert text[0] == FILLER[start]


@pytest.mark.parametrize(
    "wrong", [{"turns_mean": 0.5}, {"burst_mean": 0}, {"batch_share": 1.5}, {"day_swing": -1}]
)
def test_a_workload_whose_rate_would_be_wrong_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Workload(**wrong)
