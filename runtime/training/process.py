"""One life of a trainer child, seen from the daemon: started, spoken to, and reaped.

Nobody waits on it between rounds, so there is no task either: whoever wants something of it `hear`s for a while. The child
is untrusted: what it says is decoded strictly, and its end, its silence or a breach of the protocol is `TrainerDied`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import trio

from runtime import sandbox
from runtime.child_end import LAST_WORDS_S, STDERR_BYTES_MAX, last_words, reap
from runtime.llama.wire import BadFrame
from runtime.trainer import TrainerDied
from runtime.training import wire

START_S_MAX: Final = (
    120.0  # to import torch and its company: 5 s on an idle machine, at the lowest priority on a busy one
)
SILENCE_S_MAX: Final = 30.0  # it beats four times a second, also within a step
PIECE_BYTES: Final = 1 << 18


class TrainerChild:
    """A child process. End it with `end`.

    Args:
        main: the child's main.
        readable: directories of models, data and blobs.
        memory_bytes_max: address space that it can never go over.
        environment: of the child, beside what every child has.

    Attributes:
        sandbox: the level it reached, once it is ready.
        device: what it computes with.
        is_ready: it has imported everything and can be asked.
    """

    def __init__(
        self, main: str, readable: tuple[Path, ...], memory_bytes_max: int, environment: Mapping[str, str]
    ) -> None:
        self._process, self._socket = sandbox.spawn(main, readable, memory_bytes_max, environment)
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)
        self._socket.setblocking(False)
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(self._socket))
        self._frames = wire.frame_reader()
        self._newest_call = 0
        self._heard_at = trio.current_time()
        self._stderr = bytearray()
        self._is_sending = False
        self._verdict = ""
        self.is_ready = False
        self.sandbox = ""
        self.device = ""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can still be spoken to."""
        return not self._verdict and self._process.poll() is None

    def next_call(self) -> int:
        """Return a number for a call; they rise."""
        self._newest_call += 1
        return self._newest_call

    async def say(self, message: wire.ToChild) -> None:
        """Send a message whole.

        Raises:
            TrainerDied: it does not listen any more.
        """
        self._is_sending = True
        self._heard_at = trio.current_time()  # an idle child says nothing, and that is no silence
        try:
            await self._stream.send_all(wire.encode(message))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise await self._death() from None
        self._is_sending = False

    def cancel(self, call: int) -> None:
        """Have a call ended within a step, without waiting; a child that cannot be told is killed."""
        if self._is_sending:  # half a frame is out: whatever came next would be read as its rest
            self._kill("the trainer's child was ended in mid-sentence")
            return
        try:
            frame = wire.encode(wire.Cancel(call))
            if self._socket.send(frame) != len(frame):
                self._kill("the trainer's child does not listen")
        except OSError:
            self._kill("the trainer's child does not listen")

    async def hear(self, seconds: float) -> list[wire.FromChild]:
        """Return what it says within this time, as soon as it says something.

        Raises:
            TrainerDied: it ended, broke the protocol, or was silent for too long.
        """
        data: bytes | bytearray | None = None
        with trio.move_on_after(seconds):
            try:
                data = await self._stream.receive_some(PIECE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
        if data is None:
            messages = []
        elif not data:
            raise await self._death()
        else:
            self._heard_at = trio.current_time()
            try:
                messages = [wire.decode_from_child(body) for body in self._frames.feed(data)]
                for message in messages:
                    self._take(message)
            except BadFrame as error:
                self._kill(f"the trainer's child broke the protocol: {error}")
                raise await self._death() from None
        self._read_stderr()
        silent_s = trio.current_time() - self._heard_at
        if silent_s > (SILENCE_S_MAX if self.is_ready else START_S_MAX):
            self._kill(f"the trainer's child was silent for {silent_s:.0f} s")
            raise await self._death()
        return messages

    def _take(self, message: wire.FromChild) -> None:
        if isinstance(message, wire.Ready):
            if self.is_ready:
                raise BadFrame("ready twice")
            self.is_ready, self.sandbox, self.device = True, message.sandbox, message.device
        elif not 0 < message.call <= self._newest_call:
            raise BadFrame(f"{type(message).__name__} for call {message.call}, which nobody made")

    async def end(self) -> None:
        """Kill and reap it, whatever its state; a second time does nothing."""
        with trio.CancelScope(shield=True):
            self._process.kill()
            await reap(self._process)
            await trio.aclose_forcefully(self._stream)
            if self._process.stderr:
                self._process.stderr.close()

    def _kill(self, verdict: str) -> None:
        self._verdict = self._verdict or verdict
        self._process.kill()

    async def _death(self) -> TrainerDied:
        """Return the error that says what it died of; it is gone then."""
        if not self._verdict:
            with trio.move_on_after(LAST_WORDS_S):  # it ends by itself: hear what of
                await reap(self._process)
        self._read_stderr()
        await self.end()
        status = self._process.returncode
        self._verdict = self._verdict or last_words("the trainer's child", status, bytes(self._stderr))
        return TrainerDied(self._verdict)

    def _read_stderr(self) -> None:
        """Keep the last of what it wrote there; a pipe that nobody empties would stop it."""
        stderr = self._process.stderr
        assert stderr is not None
        try:
            while data := os.read(stderr.fileno(), PIECE_BYTES):
                self._stderr += data
                del self._stderr[:-STDERR_BYTES_MAX]
        except BlockingIOError:
            pass
