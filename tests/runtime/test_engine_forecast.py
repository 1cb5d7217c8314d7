"""What an engine says of its speed and of the time that somebody will wait: from measurements, or that it knows none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine import ChatMessage, Digest, Generation, Phase, Tokens
from runtime.llama import wire
from runtime.llama.call import Call
from runtime.llama.forecast import LOAD_BYTES_PER_S, LOAD_S_LEAST, Forecast
from runtime.llama.records import Measured, ModelRecord
from runtime.llama.speed import Crowd, SpeedTable, wait_s

MODEL = Digest(bytes(32))


def call(number: int = 1, tokens_max: int = 100, words: str = "") -> Call:
    return Call(number, Generation(MODEL, (ChatMessage("user", words),), tokens_max))


def record(*, completion_tokens: float = 0.0) -> ModelRecord:
    """Of a model that reads 100 tokens a second and writes 10, whatever runs beside it."""
    known = ModelRecord(completion_tokens=completion_tokens)
    for streams in (1, 2, 4):
        known.prompt.learn(streams, 0.01)
        known.decode.learn(streams, 0.1)
    return known


# --- speed -----------------------------------------------------------------------------------------------------------


def test_nothing_is_said_before_the_first_measurement() -> None:
    table = SpeedTable(0.3)

    assert (bool(table), table.tokens_per_s(1), table.tokens_per_s(4)) == (False, 0.0, 0.0)


def test_what_was_measured_beside_so_many_is_said_of_so_many() -> None:
    table = SpeedTable(0.3)
    table.learn(1, 0.05)
    table.learn(4, 0.2)

    assert table.tokens_per_s(1) == pytest.approx(20)
    assert table.tokens_per_s(4) == pytest.approx(5)


def test_a_number_of_streams_that_was_never_met_is_scaled_from_the_nearest() -> None:
    table = SpeedTable(0.5)
    table.learn(2, 0.3)

    assert table.seconds_per_token(1) == pytest.approx(0.2)
    assert table.seconds_per_token(3) == pytest.approx(0.4)


def test_new_measurements_move_it_and_one_outlier_does_not_decide() -> None:
    table = SpeedTable(0.3)
    for _ in range(20):
        table.learn(1, 0.1)
    table.learn(1, 1.0)

    assert table.seconds_per_token(1) == pytest.approx(0.37)
    for _ in range(20):
        table.learn(1, 0.2)
    assert table.seconds_per_token(1) == pytest.approx(0.2, rel=0.01)


def test_a_crowd_is_averaged_over_time() -> None:
    crowd = Crowd(10.0)
    crowd.set(1, 10.0)
    start = crowd.mark(12.0)
    crowd.set(3, 14.0)

    assert crowd.mean(start, crowd.mark(18.0)) == pytest.approx((2 * 1 + 4 * 3) / 6)
    assert crowd.mean(start, start) == 3


def test_an_answer_teaches_its_speed_and_clears_its_model() -> None:
    known = ModelRecord(deaths=3)

    known.learn(Measured(64, 0.64, 1, 11, 1.0, 2))

    assert known.deaths == 0
    assert known.prompt.tokens_per_s(1) == pytest.approx(100)
    assert known.decode.tokens_per_s(2) == pytest.approx(
        10
    )  # ten steps: the first token came with the prompt's last
    assert known.completion_tokens == 11


@pytest.mark.parametrize("measured", [Measured(7, 9.0, 1, 7, 9.0, 1), Measured(64, 0.0, 1, 64, 0.0, 1)])
def test_too_little_to_measure_teaches_no_speed(measured: Measured) -> None:
    known = ModelRecord()

    known.learn(measured)

    assert (bool(known.prompt), bool(known.decode)) == (False, False)


def test_a_measurement_at_loading_counts_until_there_is_a_better_one() -> None:
    known = ModelRecord()

    known.learn_first(100.0, 10.0)
    known.learn_first(1.0, 1.0)

    assert known.prompt.tokens_per_s(1) == pytest.approx(100)
    assert known.decode.tokens_per_s(1) == pytest.approx(10)
    assert not ModelRecord().decode
    fresh = ModelRecord()
    fresh.learn_first(0.0, 0.0)  # it was loaded beside others, and not measured
    assert fresh.decode.tokens_per_s(1) == 0.0


# --- waiting ---------------------------------------------------------------------------------------------------------


def test_a_free_slot_is_no_wait() -> None:
    assert wait_s(2, [5.0], []) == 0.0


def test_the_next_one_comes_after_all_who_wait() -> None:
    assert wait_s(2, [1.0, 4.0], []) == 1.0
    assert wait_s(2, [1.0, 4.0], [2.0]) == 3.0
    assert wait_s(2, [1.0, 4.0], [2.0, 2.0]) == 4.0


@given(
    running=st.lists(st.floats(0, 100), min_size=3, max_size=3),
    waiting=st.lists(st.floats(0, 100), max_size=6),
    more=st.floats(0, 100),
)
def test_another_one_in_the_queue_never_shortens_the_wait(
    running: list[float], waiting: list[float], more: float
) -> None:
    before = wait_s(3, running, waiting)

    assert before <= wait_s(3, running, [*waiting, more]) <= before + more + 1e-9


def test_what_a_running_call_has_said_is_not_still_to_come() -> None:
    running = call()
    running.take(wire.NewTokens(1, tuple(range(60)), "", contrasts=(0,) * 60))

    assert Forecast().wait_s(1, [running], [], {MODEL: record()}) == pytest.approx(4.0)


def test_a_prompt_that_is_being_read_counts_with_what_is_left_of_it() -> None:
    running = call()
    running.take(wire.Beat(1, "prefill", 100, 300))

    assert Forecast().wait_s(1, [running], [], {MODEL: record()}) == pytest.approx(2.0 + 10.0)


def test_answers_are_expected_to_be_as_long_as_they_mostly_are() -> None:
    """A cap of 4,096 that nobody reaches would make every queue look endless."""
    known = record(completion_tokens=20)

    assert Forecast().wait_s(1, [call(tokens_max=4_096)], [], {MODEL: known}) == pytest.approx(2.0)
    assert Forecast().wait_s(1, [call(tokens_max=5)], [], {MODEL: known}) == pytest.approx(0.5)


def test_who_waits_has_a_prompt_to_be_read_first() -> None:
    waiting = call(2, tokens_max=10, words="word" * 200)

    assert Forecast().wait_s(1, [call()], [waiting], {MODEL: record()}) == pytest.approx(10.0 + 2.0 + 1.0)


def test_words_of_a_reading_come_with_its_prompt() -> None:
    reading = Call(3, Generation(MODEL, (), 2_048, task="embedding", inputs=("word" * 100,)))

    assert Forecast().wait_s(1, [call(tokens_max=0)], [reading], {MODEL: record()}) == pytest.approx(1.0)


def test_an_unmeasured_model_is_taken_for_a_slow_one() -> None:
    assert Forecast().wait_s(1, [call()], [], {MODEL: ModelRecord()}) == pytest.approx(10.0)


# --- loading ---------------------------------------------------------------------------------------------------------


def test_loading_is_guessed_by_size_then_by_the_disk_then_known() -> None:
    forecast, first, second = Forecast(), ModelRecord(), ModelRecord()
    size = 1_000_000_000
    assert forecast.load_s(first, size) == pytest.approx(LOAD_S_LEAST + size / LOAD_BYTES_PER_S)

    forecast.learn_load(first, size, 2.0)

    assert forecast.load_s(first, size) == pytest.approx(2.0)
    assert forecast.load_s(second, 2 * size) == pytest.approx(LOAD_S_LEAST + 4.0)


def test_a_small_file_says_nothing_about_the_disk() -> None:
    forecast, small = Forecast(), ModelRecord()

    forecast.learn_load(small, 1_000_000, 0.5)

    assert forecast.load_s(small, 1_000_000) == pytest.approx(0.5)
    assert forecast.load_s(ModelRecord(), 10**9) == pytest.approx(LOAD_S_LEAST + 10**9 / LOAD_BYTES_PER_S)


# --- what a call says of itself --------------------------------------------------------------------------------------


async def test_a_call_that_waits_again_is_in_no_template_and_says_so() -> None:
    waiting = call()
    waiting.take(wire.Beat(1, "template", 0, 0))
    waiting.waits(Phase.LOADING, 300, 1_000)

    assert not waiting.in_template
    frames = [await waiting.next_frame() for _ in range(2)]
    assert (frames[-1].phase, frames[-1].done, frames[-1].total) == (Phase.LOADING, 300, 1_000)
    waiting.take(wire.NewTokens(1, (5,), "x", contrasts=(9,)))
    assert await waiting.next_frame() == Tokens((5,), "x", contrasts=(9,))
