"""One generation in the daemon, between the child that produces its frames and the task that reads them.

What the child says is checked here against what was asked. Frames wait in a short list: new tokens are merged while
nobody reads, so a slow reader costs memory for its tokens and nothing else, and the child never waits for it.
"""

from collections import deque
from dataclasses import astuple

import trio

from protocol.limits import PROGRESS_INTERVAL_S, TOKENS_PER_REQUEST_MAX
from runtime.engine import (
    ChatMessage,
    Digest,
    EngineError,
    Finished,
    FinishReason,
    Frame,
    Generation,
    Phase,
    Progress,
    TokenLogprob,
    Tokens,
)
from runtime.llama import wire
from runtime.llama.process import Unasked, error_from
from runtime.llama.request import READINGS
from runtime.llama.speed import Mark

MERGED_IDS_MAX = 64  # a merged frame stays well below a token frame of the wire (4 KiB)
MERGED_TEXT_MAX = 1_024
TEXT_PER_TOKEN_MAX = 1_024  # characters; the child refuses longer pieces
_PHASES = {
    "queued": Phase.QUEUED,
    "loading": Phase.LOADING,
    "template": Phase.PREFILL,
    "prefill": Phase.PREFILL,
    "decode": Phase.DECODE,
}


class Call:
    """A request from its queueing to its last frame.

    Attributes:
        phase: where it stands; the template counts as prefill, but `in_template` remembers it.
        progress: how much of how much of it is done.
        is_dropped: nobody reads it any more.
        mark, decode_mark: when it was sent to the child, and when its first token came.
    """

    def __init__(self, number: int, request: Generation) -> None:
        self.number = number
        self.request = request
        self.phase = Phase.QUEUED
        self.in_template = False
        self.progress = (0, 0)
        self.is_dropped = False
        self.mark: Mark = (0.0, 0.0)
        self.decode_mark: Mark | None = None
        self._frames: deque[Frame] = deque()
        self._error: EngineError | None = None
        self._said_tokens = False  # since the last beat
        self._ids = len(request.received)
        self._text = 0
        self._changed = trio.Event()

    @property
    def model(self) -> Digest:
        """The model that was asked for."""
        return self.request.model

    @property
    def completion_tokens(self) -> int:
        """Received, and said so far."""
        return self._ids

    @property
    def prompt_tokens_left(self) -> int:
        """Of the prompt, as far as is known; 0 before the child has counted them."""
        done, total = self.progress if self.phase is Phase.PREFILL else (0, 0)
        return total - done

    def as_message(self) -> wire.Generate:
        """Return what the child is told of it."""
        request = self.request
        return wire.Generate(
            call=self.number,
            model=request.model,
            turns=turns(request.messages),
            tokens_max=min(request.tokens_max, TOKENS_PER_REQUEST_MAX),
            sampling=wire.SamplingParameters(*astuple(request.sampling)),
            stop=request.stop,
            received=request.received,
            adapter=request.adapter,
            task=request.task,
            inputs=request.inputs,
            claimed=request.claimed,
            tokens_wanted=request.tokens_wanted,
        )

    # --- the reader's side ---------------------------------------------------------------------------------------

    async def next_frame(self) -> Frame:
        """Return the next frame; while the call waits for a slot or its model, a `Progress` at intervals.

        From prefill on only the child's own beats count as progress: a child that hangs must look like one.

        Raises:
            EngineError: it ended with one.
        """
        while True:
            if self._frames:
                return self._frames.popleft()
            if self._error:
                raise self._error
            self._changed = trio.Event()
            with trio.move_on_after(PROGRESS_INTERVAL_S / 2):
                await self._changed.wait()
                continue
            if self.phase in (Phase.QUEUED, Phase.LOADING):
                return Progress(self.phase, *self.progress)

    # --- the engine's side ---------------------------------------------------------------------------------------

    def waits(self, phase: Phase = Phase.QUEUED, done: int = 0, total: int = 0) -> None:
        """It waits for its turn, or for its model, so much of which is loaded."""
        self.phase, self.in_template, self.progress = phase, False, (done, total)

    def fail(self, error: EngineError) -> None:
        """End it with an error, after the frames that are there."""
        self._error = self._error or error
        self._changed.set()

    def take(self, message: wire.Beat | wire.NewTokens | wire.Done | wire.Failed) -> None:
        """Take what the child says about this call.

        Raises:
            Unasked: it says more than it was asked for.
        """
        match message:
            case wire.Beat():
                self._beat(message)
            case wire.NewTokens():
                self._tokens(message)
            case wire.Done():
                self._finish(message)
            case wire.Failed():
                self.fail(error_from(message))
        self._changed.set()

    def _beat(self, beat: wire.Beat) -> None:
        self.in_template = beat.phase == "template"
        self.phase, self.progress = _PHASES[beat.phase], (beat.done, max(beat.done, beat.total))
        if not self._said_tokens:
            if self._frames and isinstance(self._frames[-1], Progress):
                self._frames.pop()
            self._frames.append(Progress(self.phase, beat.done, beat.total))
        self._said_tokens = False

    def _tokens(self, new: wire.NewTokens) -> None:
        if len(new.logprobs) != (len(new.ids) if self.request.sampling.logprobs else 0):
            raise Unasked(
                f"call {self.number} has {len(new.logprobs)} log-probabilities for {len(new.ids)} tokens"
            )
        if any(len(each.top) > self.request.sampling.top_logprobs for each in new.logprobs):
            raise Unasked(f"call {self.number} has more likeliest tokens than it asked for")
        wanted = 0 if self.request.task == "embedding" else len(new.ids)
        if len(new.contrasts) != wanted:
            raise Unasked(
                f"call {self.number} has {len(new.contrasts)} contrasts for {len(new.ids)} ids, expected {wanted}"
            )
        self._count(len(new.ids), len(new.text))
        logprobs = tuple(TokenLogprob(each.text, each.micronats, each.top) for each in new.logprobs)
        self.phase, self.in_template, self._said_tokens = Phase.DECODE, False, True
        last = self._frames[-1] if self._frames else None
        if (
            isinstance(last, Tokens)
            and len(last.ids) + len(new.ids) <= MERGED_IDS_MAX
            and len(last.text) + len(new.text) <= MERGED_TEXT_MAX
        ):
            self._frames[-1] = Tokens(
                last.ids + new.ids,
                last.text + new.text,
                last.logprobs + logprobs,
                last.contrasts + new.contrasts,
            )
        else:
            self._frames.append(Tokens(new.ids, new.text, logprobs, new.contrasts))

    def _finish(self, done: wire.Done) -> None:
        self._count(0, len(done.text))
        if done.completion_tokens != self._ids:
            raise Unasked(
                f"call {self.number} ended with {done.completion_tokens} tokens, expected {self._ids}"
            )
        self._frames.append(
            Finished(
                reason=FinishReason(done.reason),
                text=done.text,
                prompt_tokens=done.prompt_tokens,
                completion_tokens=done.completion_tokens,
                prefill_s=done.prefill_s,
                decode_s=done.decode_s,
            ),
        )

    def _count(self, ids: int, text: int) -> None:
        self._ids += ids
        self._text += text
        if ids and self._ids > self.request.tokens_max:
            raise Unasked(
                f"call {self.number} has {self._ids} tokens, expected at most {self.request.tokens_max}"
            )
        if self._text and self.request.task in READINGS:
            raise Unasked(f"call {self.number} has a text, expected words alone")
        if self._text > TEXT_PER_TOKEN_MAX * (self._ids + 1):
            raise Unasked(f"call {self.number} has {self._text} characters for {self._ids} tokens")


def turns(messages: tuple[ChatMessage, ...]) -> wire.Turns:
    """Return a chat as the child is told of it."""
    return tuple((message.role, message.content) for message in messages)
