"""What the fake engine has of its own, beyond the port's contract: it is as slow as it says, and says so before."""

from collections.abc import Sequence
from contextlib import aclosing

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from runtime.echo import ECHO_MODEL, EchoEngine
from runtime.engine import ChatMessage, Frame, Generation, ModelLoading, Phase, Progress, Tokens
from runtime.shared_speed import stream_share

WORDS = (ChatMessage("user", "how warm is it?"),)


def asked(tokens_max: int = 40, payer: str = "somebody") -> Generation:
    return Generation(ECHO_MODEL, WORDS, tokens_max, payer=payer)


async def take(engine: EchoEngine, frames: list[tuple[float, Frame]], request: Generation) -> None:
    """Run a generation; note each frame with its time."""
    async with aclosing(engine.generate(request)) as generation:
        frames.extend([(trio.current_time(), frame) async for frame in generation])


def token_times(frames: Sequence[tuple[float, Frame]]) -> list[float]:
    return [at for at, frame in frames if isinstance(frame, Tokens)]


async def test_streams_slow_each_other_as_in_a_batch(autojump_clock: MockClock) -> None:  # noqa: ARG001
    """Three of them take as long as the status had promised for one more beside two."""
    engine = EchoEngine(seconds_per_token=0.1, prompt_seconds_per_token=0.0, slots=3, repetitions=None)
    streams: list[list[tuple[float, Frame]]] = [[], [], []]

    async with trio.open_nursery() as nursery:
        for number, frames in enumerate(streams):
            if number == 2:
                await trio.testing.wait_all_tasks_blocked()
                promised = engine.status(ECHO_MODEL).tokens_per_s
            nursery.start_soon(take, engine, frames, asked())

    assert promised == pytest.approx(10 * stream_share(3))
    for frames in streams:
        times = token_times(frames)
        assert 39 / (times[-1] - times[0]) == pytest.approx(promised, rel=0.05)


async def test_the_wait_it_says_is_the_wait_that_comes(autojump_clock: MockClock) -> None:  # noqa: ARG001
    engine = EchoEngine(seconds_per_token=0.1, prompt_seconds_per_token=0.01, slots=1, repetitions=None)
    first: list[tuple[float, Frame]] = []
    second: list[tuple[float, Frame]] = []

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, engine, first, asked(30))
        await trio.sleep(1.0)
        status, now = engine.status(ECHO_MODEL), trio.current_time()
        nursery.start_soon(take, engine, second, asked(1))

    assert (status.slots_free, status.queue_free) == (0, 8)
    begun_s = next(at for at, frame in second if isinstance(frame, Progress) and frame.phase is Phase.PREFILL)
    assert begun_s - now == pytest.approx(status.wait_s, abs=0.1), "to a token"


async def test_the_first_token_comes_alone_however_many_come_at_a_time(autojump_clock: MockClock) -> None:  # noqa: ARG001
    """Whoever compares it with a bid's first token would else measure a frame's length."""
    engine = EchoEngine(tokens_per_frame=16, repetitions=None)
    frames: list[tuple[float, Frame]] = []

    await take(engine, frames, asked(40))

    assert [len(frame.ids) for _, frame in frames if isinstance(frame, Tokens)] == [1, 16, 16, 7]


async def test_the_first_request_loads_a_model_and_the_status_counts_down(autojump_clock: MockClock) -> None:  # noqa: ARG001
    """A buyer waits with progress; what was loaded once is there for the next."""
    engine = EchoEngine(load_seconds=3.0, slots=2)
    assert engine.status(ECHO_MODEL).load_s == 3.0
    frames: list[tuple[float, Frame]] = []

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, engine, frames, asked(5))
        await trio.sleep(1.0)
        assert engine.status(ECHO_MODEL).load_s == pytest.approx(2.0)

    loading = [
        frame.done for _, frame in frames if isinstance(frame, Progress) and frame.phase is Phase.LOADING
    ]
    assert loading == sorted(set(loading))
    assert loading[-1] > 80
    assert token_times(frames)[0] > 3.0
    assert engine.status(ECHO_MODEL).load_s == 0


async def test_the_own_user_is_told_of_a_long_load_at_once_and_it_goes_on(autojump_clock: MockClock) -> None:  # noqa: ARG001
    engine = EchoEngine(load_seconds=20.0)

    with pytest.raises(ModelLoading, match="ready in about 20 s") as caught:
        await take(engine, [], asked(5, payer=""))
    await trio.sleep(16.0)
    frames: list[tuple[float, Frame]] = []
    await take(engine, frames, asked(5, payer=""))

    assert (caught.value.done, caught.value.retry_after_s) == (0.0, 20.0)
    assert token_times(frames)
    assert engine.status(ECHO_MODEL).slots_free == 1
