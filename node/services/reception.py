"""Receive one attempt's tokens from a seller: check each frame, pass its text on, and notice when the seller is gone.

The seller has failed when its stream breaks, when it says so, or when for 2 s neither a token nor a sign of progress
came. What was accepted until then is exact: every frame names the index of its first token, so a gap or a repeat is
seen at once.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

import trio

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
                        attempt.ids.extend(frame.ids)
                        attempt.last_token_s = now()
                        if attempt.first_token_s is None:
                            attempt.first_token_s = attempt.last_token_s
                        if job.first_token_s is None:
                            job.first_token_s = attempt.last_token_s
                        advance.by_tokens(now())
                        await on_delta(ChatDelta(frame.text, len(frame.ids)))
                        if _is_dripping(attempt):
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
                        if frame.completion_tokens != job.tokens:
                            raise RemoteProtocolError(
                                f"seller counts {frame.completion_tokens} tokens, {job.tokens} came"
                            )
                        if frame.text:
                            await on_delta(ChatDelta(frame.text, 0))
                        ending.append(Ending(End.FINISHED, frame.reason, frame))
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


def _is_dripping(attempt: Attempt) -> bool:
    """Whether a seller answers so much slower than it had bid that it must mean it: each drop would keep the job alive."""
    assert attempt.first_token_s is not None
    took_s = attempt.last_token_s - attempt.first_token_s
    least = attempt.promised_tokens_per_s * limits.PACE_SHARE_MIN
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


def _check_place(frame: TokensFrame, job: Job, attempt: Attempt) -> None:
    expected = job.tokens
    if frame.first != expected or not frame.ids:
        raise RemoteProtocolError(f"token frame begins at {frame.first}, expected {expected}")
    assert attempt.work is not None
    if expected + len(frame.ids) > attempt.work.completion_tokens_max:
        # It would be billed: a lease's hold covers far more than this one answer.
        raise RemoteProtocolError(
            f"{expected + len(frame.ids)} tokens came, at most {attempt.work.completion_tokens_max} were asked for"
        )


async def _cancel_when_client_leaves(stream: Stream, wire: Wire, job: Job, attempt: Attempt) -> None:
    await job.client_left.wait()
    try:
        await wire.send(stream, Cancel(job_id=job.job_id, attempt=attempt.number))
    except MeshError:
        return  # gone as well: nothing is left to stop
