"""A mesh to measure: one founder that only buys, and sellers that hold one model; every daemon a process on loopback."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self

from node.config import Config
from node.local_mesh.client import Client
from node.local_mesh.processes import Daemon, LocalMeshFailed, until, verb

MODEL: Final = "measured"
OWNER: Final = "bench"
BARE_READY_S_MAX: Final = 120.0
THREADS: Final = max(1, (os.cpu_count() or 2) - 1)  # what the engine takes by itself


@dataclass(frozen=True)
class Exchange:
    """One question and its answer, as the client saw them.

    Attributes:
        piece_s: when each piece of text came, in seconds since the question was sent; a piece has one token or more.
        job: its story, from the mesh's API.
    """

    text: str
    piece_s: tuple[float, ...]
    job: dict[str, Any]

    @property
    def tokens(self) -> int:
        """How many tokens the answer has."""
        count: int = self.job["completion_tokens"]
        return count

    @property
    def tokens_per_s(self) -> float:
        """From the question to the last token."""
        return self.tokens / self.piece_s[-1]

    @property
    def decode_tokens_per_s(self) -> float:
        """From the first token to the last."""
        return (self.tokens - 1) / (self.piece_s[-1] - self.piece_s[0])


class Mesh:
    """The daemons, and a client of the founder's gateway."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._sessions = 0
        self.founder = Daemon("founder", directory / "founder")
        self.sellers: list[Daemon] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def found(self) -> None:
        """Make the mesh, and start its founder."""
        home = self.founder.home
        secret = {"AGORA_PASSPHRASE": os.urandom(16).hex()}
        key = verb("init", "--name", "bench", "--owner", OWNER, home=home, environ=secret)["api_key"]
        self.start(self.founder)
        self.client = self.client_of(self.founder, key)

    def client_of(self, daemon: Daemon, key: str) -> Client:
        """Return a client of a daemon's gateway; it is closed with the mesh."""
        client = Client(daemon.gateway, key)
        self._stack.callback(client.close)
        return client

    def join(self, name: str, config: str = "") -> tuple[Daemon, str]:
        """Admit a device, which is not started yet; return it and its API key."""
        device = Daemon(name, self._directory / name)
        invited = verb("invite", home=self.founder.home)
        joined = verb("join", invited["invitation"], home=device.home)
        with (device.home / "config.toml").open("a") as file:
            file.write(f"\n{config}\n")
        return device, joined["api_key"]

    def start(self, daemon: Daemon) -> None:
        """Start a daemon, which ends with the mesh at the latest."""
        self._stack.callback(daemon.stop)
        daemon.start()

    def add_sellers(self, model: Path, prices_micro: Sequence[int], config: str = "") -> None:
        """Let one device for each price join and hold the model, the cheapest first, and give the model its name."""
        digest = ""
        for number, price_micro in enumerate(prices_micro):
            device, _ = self.join(f"seller{number}", f"price_completion_micro = {price_micro}\n{config}")
            self.start(device)
            self.sellers.append(device)
            digest = verb("model", "add", str(model), home=device.home)["digest"]
        until("the founder sees every seller's model", lambda: self._holders(digest) == len(prices_micro))
        verb("model", "publish", digest, "--name", MODEL, home=self.founder.home)
        self.wait_for_bids()

    def ask(
        self,
        question: str,
        *,
        tokens_max: int,
        session: str = "",
        on_piece: Callable[[int], None] = lambda _: None,
    ) -> Exchange:
        """Ask the founder's gateway, and return when the job is settled.

        Args:
            question: the prompt.
            tokens_max: of the answer.
            session: of a lease; without one, each question is a session of its own and is auctioned.
            on_piece: called with the number of each piece of text as it comes, from 1.
        """
        self._sessions += 1
        piece_s = []
        pieces = []
        name = session or f"once-{self._sessions}"
        asked_s = time.monotonic()
        with self.client.ask(MODEL, question, session=name, tokens_max=tokens_max) as answer:
            for number, delta in enumerate(answer, 1):
                piece_s.append(delta.at_s - asked_s)
                pieces.append(delta.text)
                on_piece(number)
        return Exchange("".join(pieces), tuple(piece_s), self.settled(answer.job_id))

    def settled(self, job_id: str) -> dict[str, Any]:
        """Return a job's story when it is settled."""
        job: dict[str, Any] = until("the job is settled", lambda: self._settled(job_id))
        return job

    def wait_for_bids(self) -> None:
        """Wait until every seller bids again, which also clears it of having been silent."""
        until("every seller bids", lambda: len(bidders(self.client)) == len(self.sellers))

    def _holders(self, digest: str) -> int:
        models = self.client.get("/api/models")
        return next((len(model["holders"]) for model in models if model["digest"] == digest), 0)

    def _settled(self, job_id: str) -> dict[str, Any]:
        job = self.client.job(job_id)
        return job if job["state"] == "settled" else {}


def bidders(client: Client) -> list[str]:
    """Return who bids for the model now, asked through one gateway; nothing is awarded."""
    quote = client.get(f"/api/quotes?model={MODEL}&prompt_tokens=32&completion_tokens=32")
    return [bid["peer_id"] for bid in quote["bids"]]


class Bare:
    """llama.cpp in a process of its own, with nothing around it: `node.bench.bare_llama`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, question: str, *, tokens_max: int) -> dict[str, Any]:
        """Return when the first and the last token came (`first_s`, `last_s`), how many, and the text."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"question": question, "tokens": tokens_max}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.line())
        return answer

    def line(self) -> str:
        """Return what it says next.

        Raises:
            LocalMeshFailed: it has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            assert self._process.stderr is not None
            status, words = self._process.wait(), self._process.stderr.read()
            raise LocalMeshFailed(f"the bare llama.cpp process ended with status {status}", words)
        return line


@contextmanager
def bare_llama(model: Path) -> Iterator[Bare]:
    """Run the bare process with the engine's own threads and context."""
    with helper("bare_llama", str(model), str(THREADS), str(Config().context_tokens)) as process:
        bare = Bare(process)
        bare.line()
        yield bare


@contextmanager
def helper(
    name: str, *arguments: str, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[subprocess.Popen[str]]:
    """Run one of this package's own processes; it is ended by its id, whatever happens."""
    command = [sys.executable, "-m", f"node.bench.{name}", *arguments]
    pipe = subprocess.PIPE
    variables = os.environ | environment
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=variables) as process:
        try:
            yield process
        finally:
            process.kill()
