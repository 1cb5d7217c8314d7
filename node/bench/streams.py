"""Many answers at once, from whatever writes them: the engine, llama.cpp's own server, or the bare library.

Each takes the same questions and says when the first and the last token of each answer came. Prompts are rendered by
the random model's own template, so that all of them read the same tokens.
"""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Final, Protocol

import httpx

from node.bench.mesh import THREADS, Bare, helper
from node.bench.random_gguf import rendered
from node.local_mesh.processes import LocalMeshFailed, until
from runtime.llama.process import ENVIRONMENT

SERVER: Final = "llama-server"
ANSWER_S_MAX: Final = 300.0  # without a byte
LOAD_S_MAX: Final = 120.0


@dataclass(frozen=True)
class Question:
    """One stream.

    Attributes:
        turns: (role, text) of the chat.
        tokens: of the answer, which goes on to this cap.
        after_s: when it is asked.
        adapter: number of the adapter, -1 for none.
    """

    turns: tuple[tuple[str, str], ...]
    tokens: int
    after_s: float = 0.0
    adapter: int = -1


@dataclass(frozen=True)
class Stream:
    """One answer: tokens, and seconds from its question to its first token, and from the first question to its end."""

    tokens: int
    first_s: float
    ended_s: float


class Writer(Protocol):
    """Answers questions at once."""

    def ask(self, questions: Sequence[Question]) -> list[Stream]:
        """Return when all answers are there."""


def tokens_per_s(streams: Sequence[Stream]) -> float:
    """Return what all of them got together, reading the prompts included."""
    return sum(stream.tokens for stream in streams) / max(stream.ended_s for stream in streams)


class Helper:
    """One of this package's processes that answers JSON lines."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.pid = process.pid
        self._lines = Bare(process)
        self.ready: dict[str, int] = json.loads(self._lines.line())

    def ask(self, questions: Sequence[Question]) -> list[Stream]:
        """Hand the questions over, and return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([asdict(question) for question in questions]) + "\n")
        self._process.stdin.flush()
        return [Stream(**stream) for stream in json.loads(self._lines.line())]


@contextmanager
def engine(
    directory: Path, model: Path, *, slots: int, context_tokens: int, adapters: Sequence[Path] = ()
) -> Iterator[Helper]:
    """Run the engine, with its child, in a process beside this one."""
    numbers = (str(THREADS), str(slots), str(context_tokens))
    with helper("engine_host", str(directory), str(model), *numbers, *map(str, adapters)) as process:
        yield Helper(process)


@contextmanager
def bare_batch(model: Path, *, slots: int, context_tokens: int) -> Iterator[Helper]:
    """Run the bare library: prompts one after another, then all answers in one batch."""
    numbers = (str(THREADS), str(slots), str(context_tokens))
    # In pages as large as the engine's child has, so that both sides compute alike.
    with helper("bare_batch", str(model), *numbers, environment=ENVIRONMENT) as process:
        yield Helper(process)


class Server:
    """llama.cpp's own server."""

    def __init__(self, url: str, slots: int) -> None:
        limits = httpx.Limits(max_connections=slots)
        self._http = httpx.Client(base_url=url, timeout=ANSWER_S_MAX, limits=limits, trust_env=False)

    def ask(self, questions: Sequence[Question]) -> list[Stream]:
        """Ask all of them over HTTP, each on a connection of its own."""
        began = time.perf_counter()
        with ThreadPoolExecutor(len(questions)) as pool:
            return list(pool.map(lambda question: self._stream(question, began), questions))

    def is_ready(self) -> bool:
        """Whether it has loaded its model."""
        try:
            return self._http.get("/health").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _stream(self, question: Question, began: float) -> Stream:
        body = {
            "prompt": rendered(question.turns),
            "n_predict": question.tokens,
            "stream": True,
            "return_tokens": True,
            "samplers": ["top_k"],  # greedy, as cheap as it has it
            "top_k": 1,
        }
        time.sleep(max(0.0, began + question.after_s - time.perf_counter()))
        asked = time.perf_counter()
        first_s, tokens = 0.0, 0
        with self._http.stream("POST", "/completion", json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    count = len(json.loads(line.removeprefix("data: ")).get("tokens", ()))
                    tokens += count
                    if count and not first_s:
                        first_s = time.perf_counter() - asked
        if tokens != question.tokens:
            raise LocalMeshFailed(f"{SERVER} wrote {tokens} tokens, expected {question.tokens}")
        return Stream(tokens, first_s, time.perf_counter() - began)


@contextmanager
def server(model: Path, *, slots: int, context_tokens: int) -> Iterator[Server]:
    """Run llama.cpp's server with as many slots, as large a context and as many threads as the engine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    numbers = {"-c": slots * context_tokens, "-np": slots, "-t": THREADS, "-tb": THREADS, "--port": port}
    options = [str(word) for pair in numbers.items() for word in pair]
    program = [SERVER, "-m", str(model), "--host", "127.0.0.1", *options]
    command = [sys.executable, "-m", "node.bench.without_amx", *program]
    quiet = subprocess.DEVNULL
    with (
        TemporaryFile() as words,
        subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=words) as process,
    ):
        peer = Server(f"http://127.0.0.1:{port}", slots)
        try:
            until(
                "llama-server has loaded its model",
                lambda: _is_up(process, peer, words),
                timeout_s=LOAD_S_MAX,
            )
            yield peer
        finally:
            peer.close()
            process.kill()


def _is_up(process: "subprocess.Popen[bytes]", peer: Server, words: IO[bytes]) -> bool:
    if process.poll() is not None:
        words.seek(0)
        log = words.read().decode(errors="replace")
        raise LocalMeshFailed(f"{SERVER} ended with status {process.returncode}, expected it to serve", log)
    return peer.is_ready()


def has_server() -> bool:
    """Whether llama.cpp's own server is on the PATH."""
    return shutil.which(SERVER) is not None
