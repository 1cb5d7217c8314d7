"""The child's output is a stranger's: whatever it says, the daemon gets an answer or `EngineDied`, and a dead child."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from runtime.engine import (
    BadRequest,
    ChatMessage,
    Digest,
    EngineDied,
    Finished,
    Generation,
    Progress,
    Sampling,
    TokenLogprob,
    Tokens,
)
from runtime.llama import wire
from runtime.llama.call import Call
from runtime.llama.process import LlamaChild, Unasked, error_from
from runtime.llama.scheduler import Scheduler
from runtime.model_store import ModelStore


@asynccontextmanager
async def rogue(directory: Path, name: str) -> AsyncIterator[tuple[LlamaChild, list[str]]]:
    """Start the rogue; the list gets the verdict on it when it is gone."""
    path = directory / name
    path.touch()
    child = LlamaChild((path,), 1 << 30, lambda _message: None, main="tests.system.rogue_child")
    verdicts: list[str] = []

    async def run() -> None:
        verdicts.append(await child.run())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield child, verdicts


QUESTION = wire.CountTokens(5, bytes(32), (("user", "Hi"),))


@pytest.mark.system
@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("garbage", "broke the protocol"),
        ("huge", "a frame of 4294967295 bytes"),
        ("ready twice", "ready twice"),
        ("unasked", "call 6, which is not open"),
        ("generates", "which asked for something else"),
        ("silent", r"was silent for 2\.\d s"),
        ("dies", "ended with status 1: no such luck"),
    ],
)
async def test_a_child_that_misbehaves_is_ended(tmp_path: Path, name: str, verdict: str) -> None:
    async with rogue(tmp_path, name) as (child, verdicts):
        with pytest.raises(EngineDied, match=verdict):
            await child.ask(QUESTION)

    assert len(verdicts) == 1
    assert not psutil.pid_exists(child.pid)


@pytest.mark.system
async def test_a_child_that_floods_its_stderr_is_not_stopped_by_it(tmp_path: Path) -> None:
    async with rogue(tmp_path, "floods") as (child, _):
        assert await child.ask(QUESTION) == wire.Counted(5, 3)
        child.tell(wire.SetThreads(1))  # it ends by itself after one more message


def call(tokens_max: int = 3, received: tuple[int, ...] = (), **fields: Any) -> Call:
    request = Generation(
        Digest(bytes(32)), (ChatMessage("user", "Hi"),), tokens_max, received=received, **fields
    )
    return Call(5, request)


def said(ids: tuple[int, ...], text: str, logprobs: tuple[wire.Logprob, ...] = ()) -> wire.NewTokens:
    """What a child in order says, each token with ten times its id for a contrast."""
    return wire.NewTokens(5, ids, text, logprobs, tuple(10 * each for each in ids))


async def test_tokens_are_merged_while_nobody_reads() -> None:
    asked = call()

    asked.take(wire.Beat(5, "prefill", 1, 9))
    asked.take(wire.Beat(5, "prefill", 8, 9))
    asked.take(said((1,), "a"))
    asked.take(said((2,), "b"))
    asked.take(wire.Beat(5, "decode", 0, 0))  # tokens say more
    asked.take(wire.Done(5, "stop", "c", 9, 2, 9, 0.0, 0.0))

    frames = [await asked.next_frame() for _ in range(3)]
    assert isinstance(frames[0], Progress)
    assert frames[0].done == 8
    assert frames[1] == Tokens((1, 2), "ab", contrasts=(10, 20))
    assert isinstance(frames[2], Finished)


async def test_merged_frames_stay_small() -> None:
    asked = call(tokens_max=1_000)
    for token in range(1_000):
        asked.take(said((token,), "word "))

    frames = [await asked.next_frame() for _ in range(16)]

    assert all(isinstance(frame, Tokens) and len(frame.ids) <= 64 for frame in frames)


def test_more_tokens_than_asked_for_are_refused() -> None:
    asked = call(tokens_max=3, received=(7,))
    asked.take(said((1, 2), ""))

    with pytest.raises(Unasked, match="has 4 tokens, expected at most 3"):
        asked.take(said((3,), ""))


def test_more_text_than_tokens_can_write_is_refused() -> None:
    with pytest.raises(Unasked, match="5000 characters for 1 tokens"):
        call().take(said((1,), "x" * 5_000))


@pytest.mark.parametrize(
    ("sampling", "logprobs", "message"),
    [
        (Sampling(), (wire.Logprob(b"a", 1),), "1 log-probabilities for 1 tokens"),
        (Sampling(logprobs=True), (), "0 log-probabilities for 1 tokens"),
        (Sampling(logprobs=True), (wire.Logprob(b"a", 1),) * 2, "2 log-probabilities for 1 tokens"),
        (
            Sampling(logprobs=True),
            (wire.Logprob(b"a", 1, ((b"a", 1),)),),
            "more likeliest tokens than it asked for",
        ),
    ],
)
def test_log_probabilities_that_were_not_asked_for_are_refused(
    sampling: Sampling, logprobs: tuple[wire.Logprob, ...], message: str
) -> None:
    """A client reads them one for each token."""
    with pytest.raises(Unasked, match=message):
        call(sampling=sampling).take(said((1,), "a", logprobs))


def test_merged_tokens_keep_their_log_probabilities() -> None:
    asked = call(sampling=Sampling(logprobs=True))

    asked.take(said((1,), "a", (wire.Logprob(b"a", 1),)))
    asked.take(said((2,), "b", (wire.Logprob(b"b", 2),)))

    logprobs = TokenLogprob(b"a", 1), TokenLogprob(b"b", 2)
    assert trio.run(asked.next_frame) == Tokens((1, 2), "ab", logprobs, (10, 20))


@pytest.mark.parametrize("contrasts", [(), (1,), (1, 2, 3)])
def test_a_child_that_states_another_number_of_contrasts_than_tokens_is_broken(
    contrasts: tuple[int, ...],
) -> None:
    """A seller that passed them on would be broken itself, in its buyer's eyes."""
    with pytest.raises(Unasked, match=f"has {len(contrasts)} contrasts for 2 ids, expected 2"):
        call().take(wire.NewTokens(5, (1, 2), "a", contrasts=contrasts))
    with pytest.raises(Unasked, match="expected 2"):
        call(task="check", claimed=(1, 2)).take(wire.NewTokens(5, (0, 0), "", contrasts=contrasts))


def test_a_vector_with_contrasts_is_refused() -> None:
    asked = call(task="embedding", inputs=("a",))
    asked.take(wire.NewTokens(5, (1,), ""))

    with pytest.raises(Unasked, match="has 1 contrasts for 1 ids, expected 0"):
        asked.take(wire.NewTokens(5, (1,), "", contrasts=(4,)))


def test_a_text_among_words_is_refused() -> None:
    asked = call(task="check", claimed=(1, 2))
    asked.take(said((0,), ""))

    with pytest.raises(Unasked, match="has a text, expected words alone"):
        asked.take(said((0,), "by the way"))


def test_what_a_child_cannot_do_with_a_request_is_the_clients_fault() -> None:
    error = error_from(wire.Failed(5, "request", "schema at # has 'not'\x1b, which cannot be kept here"))

    assert isinstance(error, BadRequest)
    assert "\x1b" not in str(error)


def test_a_false_count_at_the_end_is_refused() -> None:
    """Money is paid for it."""
    asked = call()
    asked.take(said((1,), "a"))

    with pytest.raises(Unasked, match="ended with 3 tokens, expected 1"):
        asked.take(wire.Done(5, "stop", "", 9, 3, 9, 0.0, 0.0))


async def test_a_child_that_defers_a_call_for_nobody_breaks_the_protocol(tmp_path: Path) -> None:
    """It would be asked again and again, and nobody would be told."""
    scheduler = Scheduler(
        ModelStore(tmp_path),
        slots=2,
        queue_max=2,
        context_tokens=512,
        threads=1,
        memory_bytes_max=1 << 30,
    )
    alone = call()
    scheduler.running[alone.number] = alone

    with pytest.raises(Unasked, match="was deferred, and nothing else runs"):
        scheduler.take(wire.Deferred(alone.number))

    assert scheduler.running == {alone.number: alone}
    assert not scheduler.waiting
