"""The main of the llama.cpp child: `python -m runtime.llama.child SOCKET_FD …`, inside a sandbox it closes itself.

Two threads. The main one handles messages and runs steps; the other reads the socket, sets the abort flag when a
running call is cancelled, and sends a `Beat` for each call at intervals. It runs while llama.cpp computes, since
ctypes releases the GIL. A third one reads the weights of a model that is being loaded.

The child ends when its socket does: it never outlives the daemon.
"""

import hashlib
import math
import os
import queue
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.limits import BLOB_BYTES_MAX, PROGRESS_INTERVAL_S
from runtime import gguf_header, sandbox
from runtime.engine import BadRequest
from runtime.examiner import BadAdapter
from runtime.llama import wire
from runtime.llama.batching import SPARE_SEQUENCES, Batcher, NoCells, TooLong
from runtime.llama.denormals import flush_denormals
from runtime.llama.embedding import Embedder
from runtime.llama.embedding_model import EmbeddingModel
from runtime.llama.lowlevel import AbortFlag, FirstError, ModelError, gpu_name, llama
from runtime.llama.model import Model, NotFinite, Row
from runtime.llama.sampling import ONE_THREAD
from runtime.llama.template import RenderBounds, TemplateError
from runtime.llama.weights import LOAD_S_MAX, WeightsLoader

if TYPE_CHECKING:
    from runtime.llama.grading import Grader

BEAT_INTERVAL_S = PROGRESS_INTERVAL_S / 2
STEP_S_MAX = 60.0  # after this long in one step the beats end, and the daemon kills the child
CALIBRATION_TOKENS = 32
CALIBRATION_S_MAX = 1.0


class Connection:
    """The socket to the daemon, and the thread that reads it.

    Attributes:
        inbox: the daemon's messages.
        calls: what the main thread is working on: call id -> (phase, done, total), for the beats.
        stuck_at: the time after which the present step is taken for a hang.
        loader: that reads weights, if one does.
    """

    def __init__(self, sock: socket.socket, abort: AbortFlag) -> None:
        self._sock = sock
        self._abort = abort
        self._lock = threading.Lock()
        self.inbox: queue.SimpleQueue[wire.ToChild | WeightsLoader] = queue.SimpleQueue()
        self.calls: dict[int, Callable[[], tuple[str, int, int]]] = {}
        self.stuck_at = 0.0
        self.loader: WeightsLoader | None = None

    def start(self) -> None:
        """Begin to read."""
        threading.Thread(target=self._read, daemon=True).start()

    def say(self, messages: list[wire.FromChild]) -> None:
        """Send one frame."""
        if messages:
            frame = wire.encode(messages)
            with self._lock:
                self._sock.sendall(frame)

    def _read(self) -> None:
        try:
            self._read_until_end()
        finally:  # the daemon is gone, or this thread is broken: without it the child is of no use
            os._exit(0)

    def _read_until_end(self) -> None:
        frames = wire.FrameReader()
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        beat_at = time.monotonic()
        while True:
            wait_s = max(0.0, beat_at - time.monotonic())
            if poll.poll(1000 * wait_s):
                data = self._sock.recv(1 << 16)
                if not data:
                    return
                for body in frames.feed(data):
                    self._take(wire.decode_to_child(body))
            now = time.monotonic()
            if now >= beat_at:
                beat_at = now + BEAT_INTERVAL_S
                if (loader := self.loader) and now > loader.until:
                    sys.stderr.write(f"reading a model's weights took over {LOAD_S_MAX:.0f} s")
                    return
                if now < self.stuck_at:
                    self.say([wire.Beat(call, *state()) for call, state in list(self.calls.items())])

    def _take(self, messages: list[wire.ToChild]) -> None:
        for message in messages:
            self.inbox.put(message)
            if isinstance(message, wire.Cancel) and message.call in self.calls:
                # After the put: an abort that comes too late only repeats a step.
                self._abort.set()


class Child:
    """Handles the daemon's messages, and runs the models' steps in between."""

    def __init__(self, connection: Connection, abort: AbortFlag, bounds: RenderBounds) -> None:
        self._connection = connection
        self._abort = abort
        self._bounds = bounds
        self._log = FirstError()
        self._threads = 0  # as wished since; 0: as each load says
        self._batchers: dict[bytes, Batcher | Embedder] = {}
        self._graders: dict[bytes, Grader] = {}

    def run(self) -> None:
        """Work until the reading thread ends the process."""
        inbox = self._connection.inbox
        while True:
            if not self._busy:
                self._connection.stuck_at = math.inf
                self._handle(inbox.get())
            while not inbox.empty():
                self._handle(inbox.get())
            self._abort.clear()
            for batcher in list(self._batchers.values()):
                if batcher.busy:
                    self._begin_step()
                    self._say(batcher.step())

    @property
    def _busy(self) -> bool:
        return any(batcher.busy for batcher in self._batchers.values())

    def _begin_step(self) -> None:
        self._connection.stuck_at = time.monotonic() + STEP_S_MAX

    def _say(self, messages: list[wire.FromChild]) -> None:
        for message in messages:
            if not isinstance(message, wire.Ready | wire.Beat | wire.NewTokens):
                self._connection.calls.pop(message.call, None)
        self._connection.say(messages)

    def _handle(self, event: wire.ToChild | WeightsLoader) -> None:
        self._begin_step()
        message = event.order if isinstance(event, WeightsLoader) else event
        try:
            self._say(self._end_load(event) if isinstance(event, WeightsLoader) else self._answer(event))
        except NoCells:
            assert isinstance(message, wire.Generate)
            self._say([wire.Deferred(message.call)])
        except TemplateError as error:
            self._fail(message, "template", str(error))
        except TooLong as error:
            self._fail(message, "too_long", str(error))
        except BadRequest as error:
            self._fail(message, "request", str(error))
        except BadAdapter as error:
            self._fail(message, "adapter", str(error))
        except (ModelError, gguf_header.BadModelFile) as error:
            self._fail(message, "model", str(error))
        except MemoryError:
            self._fail(message, "engine", "not enough memory")

    def _fail(self, message: wire.ToChild, kind: str, text: str) -> None:
        if not isinstance(message, wire.Unload | wire.UnloadAdapter | wire.Cancel | wire.SetThreads):
            self._say([wire.Failed(message.call, kind, text[:512])])

    def _answer(self, message: wire.ToChild) -> list[wire.FromChild]:
        match message:
            case wire.Generate():
                # Said before the template runs: should it hang, the daemon knows whose fault it is.
                self._begin_template(message.call)
                batcher = self._batcher(message.model)
                said = batcher.admit(message)
                self._connection.calls[message.call] = lambda: _phase(*batcher.progress(message.call))
                return [wire.Beat(message.call, *_phase(*batcher.progress(message.call))), *said]
            case wire.CountTokens():
                self._begin_template(message.call)
                return [wire.Counted(message.call, self._batcher(message.model).count_tokens(message.turns))]
            case wire.Cancel():
                found = any(batcher.cancel(message.call) for batcher in self._batchers.values())
                return [wire.Cancelled(message.call)] if found else []
            case wire.Load():
                return self._begin_load(message)
            case wire.Unload():
                loaded = self._graders if message.model in self._graders else self._batchers
                loaded.pop(message.model).close()
                return []
            case wire.LoadAdapter():
                return self._load_adapter(message)
            case wire.UnloadAdapter():
                model = self._model(message.model)
                if model:
                    model.unload_adapter(message.adapter)
                return []
            case wire.Grade():
                return self._grade(message)
            case wire.Inspect():
                self._connection.calls[message.call] = lambda: ("loading", 0, 0)
                return [wire.Header(message.call, *astuple(gguf_header.read(message.path)))]
            case wire.SetThreads():
                self._threads = message.threads
                for batcher in self._batchers.values():
                    batcher.model.set_threads(message.threads)
                return []

    def _begin_template(self, call: int) -> None:
        """Say so, now and at intervals: on a busy machine the CPU time that a template may take lasts seconds."""
        self._connection.calls[call] = lambda: ("template", 0, 0)
        self._connection.say([wire.Beat(call, "template", 0, 0)])

    def _batcher(self, model: bytes) -> Batcher | Embedder:
        if model not in self._batchers:
            raise ModelError("the model is not loaded")
        return self._batchers[model]

    def _model(self, digest: bytes) -> Model | None:
        holder = self._graders.get(digest) or self._batchers.get(digest)
        if isinstance(holder, Embedder):
            raise BadAdapter("the adapter's base embeds texts, expected one that writes")
        return holder.model if holder else None

    def _begin_load(self, message: wire.Load) -> list[wire.FromChild]:
        sandbox.limit_memory(message.memory_bytes_max)
        if message.for_exams:
            self._connection.stuck_at = time.monotonic() + LOAD_S_MAX
            self._connection.calls[message.call] = lambda: ("loading", 0, 0)
            return self._load_for_exams(message)
        loader = WeightsLoader(message, self._log, self._connection.inbox.put)
        self._bounds.others_bytes = 2 * loader.size_bytes
        self._connection.loader = loader
        self._connection.calls[message.call] = loader.progress
        loader.start()
        return []

    def _end_load(self, loader: WeightsLoader) -> list[wire.FromChild]:
        """Make a model of the weights that were read. What else runs waits for it, and a moment is what it takes."""
        self._connection.loader = None
        self._bounds.others_bytes = 0
        self._connection.stuck_at = time.monotonic() + LOAD_S_MAX
        if loader.error:
            raise loader.error
        message = loader.order
        if message.dimensions:
            return self._end_load_for_embedding(loader)
        model = Model(
            message.path,
            weights=loader.weights,
            cells=message.cells,
            context_tokens=message.context_tokens,
            slots=message.slots,
            threads=self._threads or message.threads,
            abort=self._abort,
            log=self._log,
            bounds=self._bounds,
            spare=SPARE_SEQUENCES,
        )
        prompt_tokens_per_s, tokens_per_s = 0.0, message.tokens_per_s
        batcher = Batcher(model, message.slots)
        if tokens_per_s == 0 and not self._busy:  # beside others it would slow them down, and measure little
            self._abort.clear()
            prompt_tokens_per_s, tokens_per_s = calibrate(model)
        batcher.step_s = 1 / tokens_per_s if tokens_per_s else 0.0
        batcher.read_opening()
        self._batchers[message.model] = batcher
        return [wire.Loaded(message.call, model.context_tokens, prompt_tokens_per_s, tokens_per_s)]

    def _end_load_for_embedding(self, loader: WeightsLoader) -> list[wire.FromChild]:
        message = loader.order
        model = EmbeddingModel(
            loader.weights,
            dimensions=message.dimensions,
            context_tokens=message.context_tokens,
            threads=self._threads or message.threads,
            abort=self._abort,
            log=self._log,
        )
        embedder = Embedder(model, message.slots)
        prompt_tokens_per_s = 0.0
        if not self._busy:
            self._abort.clear()
            try:
                prompt_tokens_per_s = embedder.calibrate()
            except ModelError:
                embedder.close()
                raise
        self._batchers[message.model] = embedder
        return [wire.Loaded(message.call, model.context_tokens, prompt_tokens_per_s, 0.0)]

    def _load_for_exams(self, message: wire.Load) -> list[wire.FromChild]:
        os.environ.setdefault(*ONE_THREAD)
        from runtime.llama import grading  # noqa: PLC0415  (numpy: 24 MB that an engine does without)

        model = Model(
            message.path,
            context_tokens=message.context_tokens,
            slots=grading.SEQUENCES,
            threads=message.threads,
            abort=self._abort,
            log=self._log,
            bounds=self._bounds,
            exam_cells=grading.EXAM_CELLS,
        )
        self._graders[message.model] = grading.Grader(model, self._begin_step)
        return [wire.Loaded(message.call, model.context_tokens, 0.0, 0.0)]

    def _load_adapter(self, message: wire.LoadAdapter) -> list[wire.FromChild]:
        """Digest, strict check, llama.cpp's own, and for exams a trial: the next gate opens when one has been passed."""
        sandbox.limit_memory(message.memory_bytes_max)
        self._connection.calls[message.call] = lambda: ("loading", 0, 0)
        os.environ.setdefault(*ONE_THREAD)
        from runtime import adapter_file  # noqa: PLC0415  (numpy: 24 MB that an engine without adapters does without)

        try:
            data = _read(message.path)
        except OSError as error:
            raise ModelError(f"the adapter's file cannot be read: {error.strerror}") from None
        if hashlib.sha256(data).digest() != message.adapter:  # a fault of this disk, not of the adapter
            raise ModelError("the adapter's file does not have the digest that names it")
        adapter_file.check(data, gguf_header.read_layout(message.base_path))
        model = self._model(message.model)
        if model:
            try:
                model.load_adapter(message.adapter, data)
                if grader := self._graders.get(message.model):
                    grader.try_adapter(message.adapter)
            except NotFinite:
                model.unload_adapter(message.adapter)
                raise BadAdapter("with the adapter the model computes numbers that are not finite") from None
            except ModelError as error:
                raise BadAdapter(str(error)) from None
        return [wire.AdapterLoaded(message.call)]

    def _grade(self, message: wire.Grade) -> list[wire.FromChild]:
        self._connection.calls[message.call] = lambda: ("decode", 0, 0)
        if message.model not in self._graders:
            raise ModelError("the model is not loaded for exams")
        try:
            marks = self._graders[message.model].grade(message.adapter, message.questions)
        except NotFinite:
            if message.adapter is None:
                raise
            raise BadAdapter("with the adapter the model computes numbers that are not finite") from None
        return [wire.Graded(message.call, tuple(marks))]


def _read(path: str) -> bytes:
    """Return a file's bytes; one that is too long is cut, so that its digest is another."""
    with Path(path).open("rb") as file:
        return file.read(BLOB_BYTES_MAX + 1)


def calibrate(model: Model) -> tuple[float, float]:
    """Return measured prompt and completion tokens per second of one sequence; the cache is empty after."""
    size = max(1, min(model.chunk_tokens, model.context_tokens // 2))
    prompt = [Row(i % model.vocabulary_size, i, 0, output=i == size - 1) for i in range(size)]
    model.decode(prompt[:1])  # the first step also touches all weights
    model.rewind(0, 0)
    began = time.perf_counter()
    model.decode(prompt)
    prefilled = time.perf_counter()
    tokens = 0
    while (
        tokens < min(CALIBRATION_TOKENS, model.context_tokens - size)
        and time.perf_counter() - prefilled < CALIBRATION_S_MAX
    ):
        model.decode([Row(tokens % model.vocabulary_size, size + tokens, 0, output=True)])
        tokens += 1
    ended = time.perf_counter()
    model.rewind(0, 0)
    return size / (prefilled - began), tokens / (ended - prefilled)


def _phase(done: int, total: int) -> tuple[str, int, int]:
    return ("prefill" if done < total - 1 else "decode"), done, total


def main() -> None:
    """Close the sandbox, say so, and work."""
    confinement = sandbox.Confinement.from_arguments(sys.argv[1:])
    abort = AbortFlag()
    bounds = RenderBounds()
    flush_denormals()
    llama.llama_backend_init()
    gpu = gpu_name()
    level = confinement.enter()
    connection = Connection(confinement.take_socket(), abort)
    connection.say([wire.Ready(level, gpu)])
    connection.start()
    Child(connection, abort, bounds).run()


if __name__ == "__main__":
    main()
