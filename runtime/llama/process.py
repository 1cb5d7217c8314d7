"""One life of a llama.cpp child, seen from the daemon: started, spoken to, watched, and reaped.

The child is untrusted. What it says is decoded strictly; an answer that nobody asked for, or silence while it owes
one, ends its life. Whoever is waiting then gets `EngineDied`, and `run` returns the child's last words.
"""

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import trio

from protocol.limits import STALL_TIMEOUT_S
from runtime import sandbox
from runtime.child_end import LAST_WORDS_S, STDERR_BYTES_MAX, last_words, printable, reap
from runtime.engine import AdapterRefused, BadRequest, BadTemplate, EngineDied, EngineError, PromptTooLong
from runtime.llama import wire

START_S_MAX = 20.0  # to import and to close the sandbox: 0.2 s on an idle machine
READ_FIRST_S = 0.1
# Weights in pages of 2 MB instead of 4 kB, where glibc is 2.35 or newer: batches of a 1B model took 2 to 3 % less time. The
# kernel gives such pages to whoever asks, and most systems leave it at that.
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_ERRORS: dict[str, type[EngineError]] = {
    "too_long": PromptTooLong,
    "template": BadTemplate,
    "request": BadRequest,
    "model": EngineError,
    "adapter": AdapterRefused,
    "engine": EngineError,
}

Question = wire.Load | wire.LoadAdapter | wire.Inspect | wire.CountTokens | wire.Grade
Answer = wire.Header | wire.Loaded | wire.AdapterLoaded | wire.Counted | wire.Graded
GenerationMessage = wire.Beat | wire.NewTokens | wire.Done | wire.Cancelled | wire.Deferred | wire.Failed


class Unasked(wire.BadFrame):
    """The child answered what nobody asked, or more than was asked."""


class LlamaChild:
    """A child process. `run` it in a task; it is gone when that returns.

    Args:
        readable: model files, or the directory of them.
        memory_bytes_max: address space that it can never go over.
        handle: takes what it says about generations; may raise `Unasked`.
        main: the child's main; a test's own misbehaves.

    Attributes:
        sandbox: the level it reached, once it is ready.
        gpu: what llama.cpp calls the GPU, "" without one.
        ready: set when it can be asked.
        was_struck: somebody else killed it (a user, a system out of memory): nothing that it worked on is to blame alone.
    """

    def __init__(
        self,
        readable: tuple[Path, ...],
        memory_bytes_max: int,
        handle: Callable[[GenerationMessage], None],
        main: str = "runtime.llama.child",
    ) -> None:
        self._process, sock = sandbox.spawn(main, readable, memory_bytes_max, ENVIRONMENT)
        sock.setblocking(False)
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._handle = handle
        self._outbox: list[wire.ToChild] = []
        self._outbox_filled = trio.Event()
        self._questions: dict[int, _OpenQuestion] = {}
        self._owed: set[int] = set()  # calls without an end
        self._has_debts = trio.Event()
        self._heard_at = trio.current_time()
        self._stderr = bytearray()
        self._stderr_ended = trio.Event()
        self._verdict = ""
        self.sandbox = ""
        self.gpu = ""
        self.ready = trio.Event()
        self.was_struck = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def begin(self, message: wire.Generate) -> None:
        """Send a generation; `handle` gets what comes of it."""
        self._owe(message.call)
        self.tell(message)

    def tell(self, message: wire.ToChild) -> None:
        """Send a message without waiting."""
        self._outbox.append(message)
        self._outbox_filled.set()

    async def ask(
        self, message: Question, on_beat: Callable[[wire.Beat], None] = lambda _beat: None
    ) -> Answer:
        """Send a question and return its answer; `on_beat` hears how far it is.

        Raises:
            EngineError: the child says why not, or died.
        """
        question = _OpenQuestion(on_beat)
        self._questions[message.call] = question
        self._owe(message.call)
        self.tell(message)
        await question.answered.wait()
        match question.answer:
            case (
                wire.Header()
                | wire.Loaded()
                | wire.AdapterLoaded()
                | wire.Counted()
                | wire.Graded() as answer
            ):
                return answer
            case wire.Failed() as failed:
                raise error_from(failed)
            case _ if question.in_template and not self.was_struck:
                raise BadTemplate(f"the chat template ended the process that rendered it: {self._verdict}")
            case _:
                raise EngineDied(self._verdict)

    async def run(self) -> str:
        """Serve until the child is dead, and return why, in one line. Cancelling kills it."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._read_stderr)
                nursery.start_soon(self._watch)
                await self._read()
                if not self._verdict:
                    with trio.move_on_after(LAST_WORDS_S):  # it ends by itself: hear what of
                        await self._stderr_ended.wait()
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await self._reap()
        return self._verdict

    # --- tasks ---------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        frames = wire.FrameReader()
        try:
            while data := await self._stream.receive_some(1 << 16):
                self._heard_at = trio.current_time()
                for body in frames.feed(data):
                    for message in wire.decode_from_child(body):
                        self._take(message)
        except wire.BadFrame as error:
            self._verdict = f"the engine's child broke the protocol: {error}"
        except trio.BrokenResourceError:
            pass  # it died with unread messages

    def _take(self, message: wire.FromChild) -> None:
        if isinstance(message, wire.Ready):
            if self.ready.is_set():
                raise Unasked("ready twice")
            self.sandbox, self.gpu = message.sandbox, message.gpu
            self.ready.set()
            return
        if message.call not in self._owed:
            if isinstance(message, wire.Beat | wire.Cancelled):
                return  # crossed with the end of its call
            raise Unasked(f"{type(message).__name__} for call {message.call}, which is not open")
        if not isinstance(message, wire.Beat | wire.NewTokens):
            self._owed.discard(message.call)
        question = self._questions.get(message.call)
        match message:
            case wire.Beat() if question:
                question.in_template = message.phase == "template"
                question.on_beat(message)
            case (
                wire.Header()
                | wire.Loaded()
                | wire.AdapterLoaded()
                | wire.Counted()
                | wire.Graded()
                | wire.Failed()
            ) if question:
                self._close(message.call, message)
            case (
                wire.Beat()
                | wire.NewTokens()
                | wire.Done()
                | wire.Cancelled()
                | wire.Deferred()
                | wire.Failed()
            ) if not question:
                self._handle(message)
            case _:
                raise Unasked(
                    f"{type(message).__name__} for call {message.call}, which asked for something else"
                )

    def _close(self, call: int, answer: Answer | wire.Failed | None) -> None:
        question = self._questions.pop(call)
        question.answer = answer
        question.answered.set()

    async def _write(self) -> None:
        try:
            while True:
                await self._outbox_filled.wait()
                self._outbox_filled = trio.Event()
                messages, self._outbox = self._outbox, []
                await self._stream.send_all(wire.encode(messages))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the reader sees its end

    async def _read_stderr(self) -> None:
        """Keep the last of what it writes there, and keep the pipe from filling up, which would stop it."""
        assert self._process.stderr is not None
        pipe = trio.lowlevel.FdStream(os.dup(self._process.stderr.fileno()))
        async with pipe:
            while data := await pipe.receive_some(STDERR_BYTES_MAX):
                self._stderr += data
                del self._stderr[:-STDERR_BYTES_MAX]
        self._stderr_ended.set()

    async def _watch(self) -> None:
        """Kill it when it owes an answer and says nothing: stopped, swapping, or in a loop that holds the GIL."""
        with trio.move_on_after(START_S_MAX):
            await self.ready.wait()
        if not self.ready.is_set():
            self._kill(f"the engine's child did not start within {START_S_MAX:.0f} s")
            return
        while True:
            await self._has_debts.wait()  # an idle child costs no wake-up
            if self._is_silent():
                await trio.sleep(
                    READ_FIRST_S
                )  # if it was this process that stood still, words are waiting to be read
            silent_s = trio.current_time() - self._heard_at
            if self._is_silent():
                self._kill(f"the engine's child was silent for {silent_s:.1f} s")
                return
            await trio.sleep(STALL_TIMEOUT_S - silent_s if self._owed else STALL_TIMEOUT_S)
            if not self._owed:
                self._has_debts = trio.Event()

    def _is_silent(self) -> bool:
        return bool(self._owed) and trio.current_time() - self._heard_at >= STALL_TIMEOUT_S

    # --- ends ----------------------------------------------------------------------------------------------------

    def _owe(self, call: int) -> None:
        if not self._owed:
            self._heard_at = trio.current_time()  # an idle child says nothing, and that is no silence
        self._owed.add(call)
        self._has_debts.set()

    def _kill(self, verdict: str) -> None:
        self._verdict = verdict
        self._process.kill()

    async def _reap(self) -> None:
        """End the process, whatever its state, and everybody's waiting."""
        self._process.kill()
        await reap(self._process)
        await trio.aclose_forcefully(self._stream)
        if self._process.stderr:
            self._process.stderr.close()
        self.was_struck = not self._verdict and self._process.returncode == -signal.SIGKILL
        self._verdict = self._verdict or last_words(
            "the engine's child", self._process.returncode, bytes(self._stderr)
        )
        for call in list(self._questions):
            self._close(call, None)


class _OpenQuestion:
    def __init__(self, on_beat: Callable[[wire.Beat], None]) -> None:
        self.on_beat = on_beat
        self.answered = trio.Event()
        self.answer: Answer | wire.Failed | None = None
        self.in_template = False


def error_from(failed: wire.Failed) -> EngineError:
    """Return what the child's failure is to the engine's user."""
    return _ERRORS[failed.kind](printable(failed.text))


def adapter_memory(size_bytes: int) -> int:
    """Return the address space that loading adapters of so many bytes takes: numpy, the file, what is made of it."""
    return 3 * size_bytes + 256 * 1024 * 1024


def memory_needed(size_bytes: int, kv_bytes: int) -> int:
    """Return the address space for one model: its weights (some are held twice while they load), cache and batches."""
    return math.ceil(size_bytes * 1.3) + kv_bytes + 768 * 1024 * 1024
