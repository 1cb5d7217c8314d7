"""Receive one attempt's tokens from a seller: check each frame, pass its text on, and notice when the seller is gone.

The seller has failed when its stream breaks, when it says so, or when for 2 s neither a token nor a sign of progress
came. What was accepted until then is exact: every frame names the index of its first token, so a gap or a repeat is
seen at once.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

import trio

from marketplace.prompt import WORD_MAX
from node.chat import ChatDelta
from node.jobs import Attempt, Job
from node.wire import Wire
from protocol import limits
from protocol.envelope import decode
from protocol.errors import MeshError, RemoteProtocolError, TooLarge
from protocol.mesh import Stream
from protocol.messages import (
    Cancel,
    FailedFrame,
    FinishedFrame,
    JobFrame,
    ProgressFrame,
    TokensFrame,
)
from runtime.engine import TokenLogprob

PHASES = ("queued", "loading", "prefill", "decode")  # of progress, in their order


class End(Enum):
    """How an attempt ended, as the buyer sees it."""

    FINISHED = "finished"
    PROMPT = "prompt"  # the client's fault, as the seller says
    FAILED = "failed"  # the seller's: ask another


@dataclass(frozen=True)
class Ending:
    """The end of an attempt.

    Attributes:
        frame: there when the seller finished.
        is_lease_over: the seller serves the award no more (it was restarted, say), and may win the next.
    """

    end: End
    reason: str = ""
    frame: FinishedFrame | None = None
    is_lease_over: bool = False


async def receive_tokens(
    stream: Stream,
    wire: Wire,
    job: Job,
    attempt: Attempt,
    *,
    on_delta: Callable[[ChatDelta], Awaitable[None]],
    now: Callable[[], float],
) -> Ending:
    """Receive until the attempt ends, whoever ends it; a client that leaves makes the seller stop and settle.

    Raises:
        RemoteProtocolError: a frame that the protocol does not allow.
    """
    ending: list[Ending] = []
    attempt.began_s = now()
    advance = _Advance(now())
    offence: RemoteProtocolError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_when_client_leaves, stream, wire, job, attempt)
        try:
            while not ending:
                frame = await _next_frame(stream)
                match frame:
                    case TokensFrame():
                        _check_place(frame, job, attempt)
                        _check_content(frame, attempt)
                        attempt.take(frame, now())
                        if job.first_token_s is None:
                            job.first_token_s = attempt.last_token_s
                        advance.by_tokens(now())
                        await on_delta(_delta(frame, job))
                        if _is_dripping(job, attempt):
                            ending.append(Ending(End.FAILED, "far slower than it had bid"))
                    case ProgressFrame():
                        attempt.prompt_tokens = attempt.prompt_tokens or frame.total
                        if not advance.by_progress(frame, now()):
                            ending.append(
                                Ending(End.FAILED, f"no step forward in {limits.STANDSTILL_S:.0f} s")
                            )
                    case FinishedFrame():
                        attempt.prompt_tokens = frame.prompt_tokens
                        if frame.reason == "cancelled" and not job.client_left.is_set():
                            raise RemoteProtocolError("seller says cancelled, and nobody has")
                        if frame.completion_tokens != (came := _place(job, attempt)):
                            raise RemoteProtocolError(
                                f"seller counts {frame.completion_tokens} tokens, {came} came"
                            )
                        ending.append(_finished(frame, job))
                        if frame.text and not job.is_reading:
                            await on_delta(ChatDelta(frame.text, 0))
                    case FailedFrame():
                        end = End.PROMPT if frame.reason == "prompt" else End.FAILED
                        ending.append(Ending(end, frame.detail, is_lease_over=frame.reason == "lease"))
        except trio.TooSlowError:
            ending.append(Ending(End.FAILED, f"silent for {limits.STALL_TIMEOUT_S:.0f} s"))
        except MeshError as error:
            ending.append(Ending(End.FAILED, str(error) or "stream broken"))
        except RemoteProtocolError as error:
            offence = error
        nursery.cancel_scope.cancel()
    if offence is not None:
        raise offence
    return ending[0]


async def _next_frame(stream: Stream) -> TokensFrame | ProgressFrame | FinishedFrame | FailedFrame:
    with trio.fail_after(limits.STALL_TIMEOUT_S):
        raw = await stream.receive()
    if len(raw) > limits.TOKEN_FRAME_BYTES_MAX:
        raise TooLarge(f"frame of {len(raw)} bytes, at most {limits.TOKEN_FRAME_BYTES_MAX} allowed")
    frame: TokensFrame | ProgressFrame | FinishedFrame | FailedFrame = decode(raw, JobFrame)
    return frame


def _finished(frame: FinishedFrame, job: Job) -> Ending:
    """A text may end where it likes; of a reading all words must have come."""
    if job.is_reading and frame.reason != "cancelled" and job.tokens < job.tokens_max:
        return Ending(End.FAILED, f"finished after {job.tokens} of {job.tokens_max} words")
    return Ending(End.FINISHED, frame.reason, frame)


def _is_dripping(job: Job, attempt: Attempt) -> bool:
    """Whether a seller answers so much slower than it had bid that it must mean it: each drop would keep the job alive.

    For words nobody bids a speed, so there is a least one.
    """
    assert attempt.first_token_s is not None
    took_s = attempt.last_token_s - attempt.first_token_s
    least = attempt.promised_tokens_per_s * limits.PACE_SHARE_MIN
    if job.is_reading:
        least = job.dimensions / limits.INPUT_READ_S_MAX if job.dimensions else limits.GAPS_PER_S_MIN
    return took_s >= limits.PACE_JUDGED_S and len(attempt.ids) < least * took_s


class _Advance:
    """Whether an attempt gets anywhere. Else a seller could say for ever, every half second, that it is about to begin."""

    def __init__(self, now: float) -> None:
        self._at = now
        self._furthest = (-1, 0)

    def by_tokens(self, now: float) -> None:
        self._at = now

    def by_progress(self, frame: ProgressFrame, now: float) -> bool:
        """Note a progress frame; False when none has told anything new for too long."""
        place = (PHASES.index(frame.phase), frame.done)
        if place > self._furthest:
            self._furthest = place
            self._at = now
        return now - self._at <= limits.STANDSTILL_S


def _place(job: Job, attempt: Attempt) -> int:
    assert attempt.work is not None
    return job.place_in(attempt.work)


def _check_place(frame: TokensFrame, job: Job, attempt: Attempt) -> None:
    expected = _place(job, attempt)
    if frame.first != expected or not frame.ids:
        raise RemoteProtocolError(f"token frame begins at {frame.first}, expected {expected}")
    assert attempt.work is not None
    if expected + len(frame.ids) > attempt.work.completion_tokens_max:
        # It would be billed: a lease's hold covers far more than this one answer.
        raise RemoteProtocolError(
            f"{expected + len(frame.ids)} tokens came, at most {attempt.work.completion_tokens_max} were asked for"
        )


def _check_content(frame: TokensFrame, attempt: Attempt) -> None:
    """Refuse what was not asked for: the client's program would take each of these for granted."""
    assert attempt.work is not None
    sampling, task = attempt.work.sampling, attempt.work.task
    wanted = len(frame.ids) if sampling.logprobs else 0
    if len(frame.logprobs) != wanted:
        raise RemoteProtocolError(f"{len(frame.logprobs)} log-probabilities came, expected {wanted}")
    top = max((len(each.top) for each in frame.logprobs), default=0)
    if top > sampling.top_logprobs:
        raise RemoteProtocolError(f"{top} likeliest tokens came, at most {sampling.top_logprobs} asked for")
    wanted = 0 if task == "embedding" else len(frame.ids)
    if len(frame.contrasts) != wanted:
        raise RemoteProtocolError(f"{len(frame.contrasts)} contrasts came, expected {wanted}")
    if task in WORD_MAX:
        if frame.text:
            raise RemoteProtocolError(f"a text came with the words of a task {task!r}, expected none")
        if max(frame.ids) > WORD_MAX[task]:
            raise RemoteProtocolError(f"the word {max(frame.ids)} came, at most {WORD_MAX[task]} allowed")


def _delta(frame: TokensFrame, job: Job) -> ChatDelta:
    """What the client gets of a frame."""
    if job.is_reading:
        return ChatDelta("", 0, words=frame.ids, contrasts=frame.contrasts)
    logprobs = tuple(TokenLogprob(each.text, each.micronats, each.top) for each in frame.logprobs)
    return ChatDelta(frame.text, len(frame.ids), logprobs)


async def _cancel_when_client_leaves(stream: Stream, wire: Wire, job: Job, attempt: Attempt) -> None:
    await job.client_left.wait()
    try:
        await wire.send(stream, Cancel(job_id=job.job_id, attempt=attempt.number))
    except MeshError:
        return  # gone as well: nothing is left to stop
