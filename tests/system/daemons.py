"""Meshes of real daemons: a process and a temporary home for each, on free ports, asked as a user would ask them."""

import contextlib
import io
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import openai
import psutil
import pytest

from node.cli.app import run
from node.local_mesh.processes import AGORA, VERB_TIMEOUT_S, Daemon, until

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples/tiny_model/tiny-q8_0.gguf"
STORY = [{"role": "user", "content": "Tell me the story of the lighthouse."}]  # about 250 tokens
SUM = [{"role": "user", "content": "44 + 25"}]
ANYBODY = {"X-Agora-Privacy": "mesh"}
HERE = {"X-Agora-Privacy": "local"}


def agora(
    *arguments: str,
    home: Path,
    environ: Mapping[str, str] | None = None,
    launcher: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run one command line to its end, whatever that is.

    In this process, as starting Python takes longer than most verbs; but `up`, and what is to run elsewhere, in its own.
    """
    words = [*arguments, "--home", str(home)]
    environ = {"COLUMNS": "100", **(environ or {})}
    if launcher or arguments[0] == "up":
        return subprocess.run(
            [*launcher, *AGORA, *words],
            cwd=ROOT,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=VERB_TIMEOUT_S,
            check=False,
        )
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        for name, value in environ.items():
            patch.setenv(name, value)
        status = run(words)
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def told(done: subprocess.CompletedProcess[str]) -> Any:
    """Return the JSON that a verb printed."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line on stderr that a refusal is; nothing else was said, and the status is not 0."""
    assert done.returncode not in (0, None), done.stdout
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def contents(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Return the mode and the bytes of every file in a directory, to compare before and after.

    The lock file stays out: every start makes it, and nothing is in it but a process id.
    """
    return {
        str(path.relative_to(directory)): (
            stat.S_IMODE(path.lstat().st_mode),
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(directory.rglob("*"))
        if path.name != "daemon.lock"
    }


class Device(Daemon):
    """A daemon, what its owner was told when its home was made, and its gateway's clients."""

    def __init__(self, name: str, home: Path, *, launcher: Sequence[str] = ()) -> None:
        super().__init__(name, home, launcher=launcher)
        self.told: dict[str, Any] = {}

    @classmethod
    def founder(cls, name: str, directory: Path, *, launcher: Sequence[str] = ()) -> Self:
        """Make a home that founds a mesh."""
        device = cls(name, directory / name, launcher=launcher)
        passphrase = directory / "passphrase"
        directory.mkdir(exist_ok=True)
        passphrase.write_text("a passphrase of the tests")
        device.told = device.ask("init", "--owner", "ann", "--passphrase-file", str(passphrase))
        return device

    @classmethod
    def member(cls, name: str, inviter: "Device", *, launcher: Sequence[str] = ()) -> Self:
        """Make a home that joins the mesh of a running daemon."""
        device = cls(name, inviter.home.parent / name, launcher=launcher)
        invited = inviter.ask("invite")
        device.told = told(
            agora("join", invited["invitation"], "--json", home=device.home, launcher=launcher)
        )
        return device

    def ask(self, *arguments: str) -> Any:
        """Run a verb on this home and return the JSON that it printed."""
        return told(agora(*arguments, "--json", home=self.home))

    @property
    def has_ended(self) -> bool:
        """Whether its process is gone, by itself."""
        return self._process is None or self._process.poll() is not None

    def get(self, path: str) -> Any:
        """Return a listing of its gateway's mesh API."""
        response = httpx.get(
            self.gateway + path,
            headers={"Authorization": f"Bearer {self.told['api_key']}"},
            timeout=VERB_TIMEOUT_S,
            trust_env=False,
        )
        assert response.status_code == httpx.codes.OK, response.text
        return response.json()

    @contextlib.contextmanager
    def client(self) -> Iterator[openai.OpenAI]:
        """The stock client, pointed at its gateway."""
        with (
            httpx.Client(trust_env=False, timeout=VERB_TIMEOUT_S) as http,
            openai.OpenAI(
                base_url=f"{self.gateway}/v1",
                api_key=self.told["api_key"],
                max_retries=0,
                http_client=http,
            ) as client,
        ):
            yield client

    def chat(self, messages: list[dict[str, str]], headers: Mapping[str, str], **settings: Any) -> str:
        """Ask for a whole answer and return its text."""
        with self.client() as client:
            answer = client.chat.completions.create(
                model=settings.pop("model", "auto"),
                messages=messages,  # type: ignore[arg-type]
                extra_headers=dict(headers),
                **settings,
            )
        return answer.choices[0].message.content or ""

    def hold(self, model: Path = MODEL, name: str = "tiny") -> str:
        """Add a model and return its digest."""
        added: dict[str, str] = self.ask("model", "add", str(model), "--name", name)
        return added["digest"]

    def sees(self, digest: str, holders: int) -> bool:
        """Tell whether it knows so many holders of a model."""
        models = {model["digest"]: model for model in self.get("/api/models")}
        return digest in models and len(models[digest]["holders"]) == holders

    def settled(self, job_id: str) -> dict[str, Any]:
        """Return a job once every receipt of it is signed by both."""

        def check() -> dict[str, Any]:
            job: dict[str, Any] = self.get(f"/api/jobs/{job_id}")
            return job if job["state"] == "settled" and job["receipts"] else {}

        settled: dict[str, Any] = until(f"job {job_id[:8]} is settled", check)
        return settled

    def balances(self) -> dict[str, int]:
        """Return every account as this device's book has it."""
        return {each["peer_id"]: each["balance_micro"] for each in self.get("/api/ledger")["accounts"]}

    def engine_child(self) -> psutil.Process:
        """The process in which its model runs."""
        found = [
            child
            for child in psutil.Process(self.pid).children(recursive=True)
            if "llama" in " ".join(child.cmdline())
        ]
        assert len(found) == 1, found
        return found[0]


def books_agree(*devices: Device) -> bool:
    """Tell whether each ledger sums to zero, and the first one, which was in all trades, is what the others say of themselves."""
    books = {device.peer_id: device.balances() for device in devices}
    own = {peer_id: book.get(peer_id, 0) for peer_id, book in books.items()}
    first = books[devices[0].peer_id]
    return (
        all(sum(book.values()) == 0 for book in books.values())
        and sum(own.values()) == 0
        and {peer_id: first.get(peer_id, 0) for peer_id in own} == own
    )


@contextlib.contextmanager
def running(*devices: Device) -> Iterator[None]:
    """End the daemons when the block is left, however it is."""
    try:
        yield
    finally:
        for device in devices:
            device.stop()


@contextlib.contextmanager
def three_daemons(directory: Path) -> Iterator[tuple[Device, Device, Device]]:
    """A founder that only buys and two sellers of the tiny model, all of one owner; 'tiny' is published."""
    founder = Device.founder("founder", directory)
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(founder))
        founder.start()
        sellers = []
        for name in ("bob", "cleo"):
            seller = Device.member(name, founder)
            stack.enter_context(running(seller))
            seller.start()
            sellers.append(seller)
        digests = {seller.hold() for seller in sellers}
        assert len(digests) == 1
        digest = digests.pop()
        until("the founder hears of both sellers", lambda: founder.sees(digest, 2))
        founder.ask("model", "publish", digest, "--name", "tiny")
        yield founder, sellers[0], sellers[1]


def copy_of(home: Path, target: Path) -> Path:
    """Copy a home that no daemon runs on."""
    shutil.copytree(home, target, ignore=shutil.ignore_patterns("daemon.lock", "*.sock"))
    target.chmod(0o700)
    return target
