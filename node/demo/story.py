"""The story that the demo tells, step by step."""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from node.cli.show import cell, credit, short
from node.demo.learning import Lesson
from node.demo.stage import Stage, Stopwatch, balances
from node.local_mesh.client import Client
from node.local_mesh.processes import Daemon, LocalMeshFailed, until, verb

MODEL_FILE: Final = Path("examples/tiny_model/tiny-q8_0.gguf")
MODEL: Final = "tiny"
UNCAPPED_QUESTION: Final = "How can I return the grey teapot?"
SESSION_QUESTIONS: Final = ("Please convert 7 weeks into days.", "44 + 25")
LONG_QUESTION: Final = "Tell me the story of the lighthouse."
SHORT_TOKENS_MAX: Final = 50
LONG_TOKENS_MAX: Final = 300
KILL_AFTER_PIECES: Final = 40  # of about 250
KILLS_MAX: Final = (
    5  # the whole answer takes a tenth of a second: on a busy machine a kill may come behind it
)
PAUSE_SEEN_S: Final = 0.02  # a token takes a millisecond or two: such a gap is the change of sellers

ANN, BOB, CLEO, DORA = "ann", "bob", "cleo", "dora"
# cleo is the cheaper one, and small: what may take more than 512 tokens it has to decline
CLEO_SETTINGS: Final = "context_tokens = 512\nprice_completion_micro = 30\n"


def run(*, keep: bool, model: Path | None = None) -> None:
    """Play the demo; when it returns, everything it promises was seen.

    Args:
        keep: leave the mesh up afterwards.
        model: the GGUF that the sellers hold; the tiny model of the examples when None.

    Raises:
        AgoraError: it failed; one line. What the daemons last logged has been printed.
    """
    file = model or Path(__file__).resolve().parent.parent.parent / MODEL_FILE
    if not file.is_file():
        raise LocalMeshFailed(
            f"no model {file}, expected a GGUF; run in a checkout or give --model FILE.gguf"
        )
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _interrupt)
    directory = Path(tempfile.mkdtemp(prefix="agora-demo-"))
    demo = Demo(directory, file.absolute())
    is_kept = False
    try:
        demo.play()
        if keep:
            demo.leave_running()
            is_kept = True
    except LocalMeshFailed as error:
        demo.show_logs(error.log)
        raise
    finally:
        if not is_kept:
            demo.stop()
            shutil.rmtree(directory, ignore_errors=True)


class Demo:
    """Three devices and one terminal."""

    def __init__(self, directory: Path, model: Path) -> None:
        self._directory = directory
        self._model = model
        self._stage = Stage()
        self._devices = {name: Daemon(name, directory / name) for name in (ANN, BOB, CLEO)}
        self._phrase = {"AGORA_PASSPHRASE": os.urandom(16).hex()}
        self._keys: dict[str, str] = {}
        self._clients: dict[str, Client] = {}

    def play(self) -> None:
        """Tell the whole story."""
        stage, watch = self._stage, Stopwatch()
        stage.text(
            "[bold]Agora[/]: three devices, one market, one private AI. All of it is real: three processes,",
            "libp2p between them, llama.cpp in the two sellers, and money in three ledgers.",
        )
        self._meet()
        self._offer()
        stage.heading("Questions to ann's gateway, as any OpenAI client asks them")
        stage.remark("without max_tokens an answer may have 1,024: too much for cleo")
        self._ask(UNCAPPED_QUESTION, session="one")
        stage.remark("two questions of one session: the second goes straight to the same seller")
        for question in SESSION_QUESTIONS:
            self._ask(question, session="two", tokens_max=SHORT_TOKENS_MAX)
        stage.remark("a long answer")
        undisturbed = self._ask(LONG_QUESTION, session="three", tokens_max=LONG_TOKENS_MAX)
        stage.heading("The same once more, and its seller is killed in mid-answer")
        killed = self._kill_in_mid_answer(LONG_QUESTION, undisturbed)
        stage.heading("What is refused says why")
        self._refuse()
        self._settle(killed)
        self._learn()
        stage.text("", f"[dim]all of it took {watch.elapsed_s:.0f} s[/]")

    def stop(self) -> None:
        """End every process."""
        for client in self._clients.values():
            client.close()
        for device in self._devices.values():
            device.stop()

    def leave_running(self) -> None:
        """Let go of the daemons, and say how to use and how to stop them."""
        ann = self._devices[ANN]
        pids = " ".join(str(device.pid) for device in self._devices.values())
        for client in self._clients.values():
            client.close()
        for device in self._devices.values():
            device.detach()
        self._stage.heading("The mesh is up")
        agora = "agora" if shutil.which("agora") else os.path.relpath(Path(sys.executable).parent / "agora")
        self._stage.line("chat", f"{agora} chat --home {ann.home} --privacy mesh --max-tokens 300")
        self._stage.line("look", f"{agora} jobs --home {ann.home}; {agora} ledger --home {ann.home}")
        self._stage.line("OpenAI", f"base_url {ann.gateway}/v1  api_key {self._keys[ANN]}  model {MODEL}")
        self._stage.line("", "header 'X-Agora-Privacy: mesh', as bob and cleo are other owners")
        self._stage.line("stop", f"kill {pids}; sleep 1; rm -r {self._directory}")

    def show_logs(self, log: str) -> None:
        """Print what the failing daemon last said; where it is not known which one failed, what all of them did."""
        for device in self._devices.values():
            found = device.log()
            if found and (not log or log == found):
                self._stage.heading(f"the last lines of {device.name}'s log")
                self._stage.text(*(cell(line) for line in found.splitlines()))

    def _meet(self) -> None:
        stage, ann = self._stage, self._devices[ANN]
        stage.heading("Three devices become a mesh")
        watch = Stopwatch()
        founded = verb("init", "--name", "demo", "--owner", ANN, home=ann.home, environ=self._phrase)
        self._begin(ANN, founded)
        stage.line("founded", f"mesh {founded['mesh_id'][:16]}… by ann, peer {short(ann.peer_id)}")
        with stage.console.status("bob and cleo join"), ThreadPoolExecutor() as pool:
            list(pool.map(self._join, (BOB, CLEO)))
        stage.names = {device.peer_id: name for name, device in self._devices.items()}
        for name in (BOB, CLEO):
            peer = short(self._devices[name].peer_id)
            stage.line("joined", f"{name}, peer {peer}, with an invitation of ann's")
        stage.line("took", f"{watch.elapsed_s:.1f} s")

    def _join(self, name: str) -> None:
        device = self._devices[name]
        invited = verb("invite", "--owner", name, home=self._devices[ANN].home)
        joined = verb("join", invited["invitation"], home=device.home)
        if name == CLEO:
            with (device.home / "config.toml").open("a") as config:
                config.write(CLEO_SETTINGS)
        self._begin(name, joined)

    def _begin(self, name: str, welcomed: Mapping[str, Any]) -> None:
        """Start a daemon, and keep what its owner was shown once."""
        device = self._devices[name]
        self._keys[name] = welcomed["api_key"]
        device.start()
        self._clients[name] = Client(device.gateway, self._keys[name])

    def _offer(self) -> None:
        stage, ann = self._stage, self._devices[ANN]
        stage.heading("Bob and cleo hold a model")
        with stage.console.status("they check the file"), ThreadPoolExecutor() as pool:
            added, _ = pool.map(self._add_model, (BOB, CLEO))
        size_mb = self._model.stat().st_size / 1e6
        stage.line("added", f"{self._model.name}, {size_mb:.1f} MB, digest {added['digest'][:16]}… on both")
        with stage.console.status("ann hears of it in their adverts"):
            until("ann sees the model at bob and cleo", lambda: self._holders(added["digest"]) == 2)
        verb("model", "publish", added["digest"], "--name", MODEL, home=ann.home)
        stage.line("published", f"ann signs a card: '{MODEL}' is that file, for the whole mesh")

    def _add_model(self, name: str) -> dict[str, Any]:
        added: dict[str, Any] = verb("model", "add", str(self._model), home=self._devices[name].home)
        return added

    def _ask(self, question: str, *, session: str, tokens_max: int | None = None) -> str:
        """Ask one question, show everything about it, and return the answer."""
        stage, client = self._stage, self._clients[ANN]
        stage.question(question)
        asked_s, first_s, pieces = time.monotonic(), 0.0, []
        with client.ask(MODEL, question, session=session, tokens_max=tokens_max) as answer:
            stage.attempt(client.job(answer.job_id)["attempts"][-1])
            stage.begin_answer()
            for delta in answer:
                first_s = first_s or delta.at_s
                pieces.append(delta.text)
                stage.say(delta.text)
            stage.end_answer()
        job = self._settled(answer.job_id)
        stage.measured(first_s - asked_s, job)
        self._show_receipts(job)
        return "".join(pieces)

    def _kill_in_mid_answer(self, question: str, undisturbed: str) -> Daemon:
        """Ask, kill the seller in mid-answer, and return it when another one has finished the answer."""
        for number in range(KILLS_MAX):
            victim, was_in_time = self._ask_and_kill(question, undisturbed, session=f"kill-{number}")
            if was_in_time:
                return victim
            self._stage.line("too late", f"{victim.name} had said it all before it died; once more")
            self._restart(victim)
            until(f"{victim.name} is back", lambda victim=victim: self._is_connected(victim))  # type: ignore[misc]
        raise LocalMeshFailed(
            f"{KILLS_MAX} answers were over before their seller was killed, expected a kill in the middle of one"
        )

    def _ask_and_kill(self, question: str, undisturbed: str, *, session: str) -> tuple[Daemon, bool]:
        """Ask and kill the seller; return it, and whether its answer was not over yet."""
        stage, client = self._stage, self._clients[ANN]
        stage.question(question)
        pieces, killed_s, last_s, gap_s = [], 0.0, 0.0, 0.0
        with client.ask(MODEL, question, session=session, tokens_max=LONG_TOKENS_MAX) as answer:
            first = client.job(answer.job_id)["attempts"][-1]
            victim = self._devices[stage.name(first["seller"])]
            stage.attempt(first)
            stage.begin_answer()
            for number, delta in enumerate(answer, 1):
                pause_s = delta.at_s - last_s
                if killed_s and not gap_s and pause_s > PAUSE_SEEN_S:
                    now = client.job(answer.job_id)["attempts"][-1]
                    if now["attempt"] > first["attempt"]:
                        gap_s = pause_s
                        stage.mark(
                            f"── {gap_s * 1000:.0f} ms later {stage.name(now['seller'])} goes on ──", "green"
                        )
                pieces.append(delta.text)
                stage.say(delta.text)
                last_s = delta.at_s
                if number == KILL_AFTER_PIECES:
                    pid = victim.pid
                    victim.kill()
                    killed_s = last_s = time.monotonic()
                    stage.mark(f"── kill -9 {pid}: {victim.name} is dead ──", "red")
            stage.end_answer()
        if not killed_s:
            raise LocalMeshFailed(
                f"the answer had {len(pieces)} tokens, expected over {KILL_AFTER_PIECES}: {victim.name} dies behind them"
            )
        if "".join(pieces) != undisturbed:
            raise LocalMeshFailed("the answer differs from the undisturbed one, expected the same text")
        if len(client.job(answer.job_id)["attempts"]) < 2:
            return victim, False  # dead all the same, and perhaps before it was paid
        self._show_failover(self._settled(answer.job_id), gap_s)
        return victim, True

    def _show_failover(self, job: Mapping[str, Any], gap_s: float) -> None:
        stage = self._stage
        broken, *_, last = job["attempts"]
        stage.attempt(last)
        stage.line(
            "failover",
            f"{stage.name(last['seller'])} got the {broken['tokens']} tokens that had arrived, and went on",
            (f": gap {gap_s * 1000:.0f} ms" if gap_s else ", too fast to notice", "bold"),
        )
        stage.line("compared", ("the same text as undisturbed: no token lost, none repeated", "bold green"))
        self._show_receipts(job)
        stage.line(
            "unpaid",
            f"{stage.name(broken['seller'])} died before it made out a receipt for its {broken['tokens']} tokens",
        )

    def _refuse(self) -> None:
        stage = self._stage
        for remark, model, privacy in (
            ("ann's prompt is for ann's own devices only (X-Agora-Privacy: owner)", MODEL, "owner"),
            ("a model that nobody has", "gpt-17", "mesh"),
        ):
            error = self._clients[ANN].refusal(model, "Are you there?", privacy=privacy)
            stage.remark(remark)
            stage.line("answer", f"HTTP {error['status']}: ", cell(error["message"]))
            stage.declines(error.get("declines", ()))

    def _settle(self, killed: Daemon) -> None:
        """Restart the killed seller and compare the three ledgers."""
        stage = self._stage
        stage.heading(f"{killed.name} comes back, and the three ledgers are compared")
        watch = Stopwatch()
        self._restart(killed)
        stage.line(
            "restarted", f"{killed.name}, ready after {watch.elapsed_s:.1f} s with every receipt it had"
        )
        with stage.console.status("the books are compared"):
            books = until("the ledgers agree", self._agreeing_books)
        stage.remark("each book holds what its owner signed or heard of, and sums to zero")
        stage.ledgers(books)
        own = {name: book["balance_micro"] for name, book in books.items()}
        receipts = {receipt["receipt_id"] for book in books.values() for receipt in book["receipts"]}
        signed = f" over {len(receipts)} receipts, each signed by both"
        stage.line("together", (f"{credit(sum(own.values()))} credits", "bold green"), signed)
        if own[ANN] >= 0:
            raise LocalMeshFailed(f"ann's balance is {own[ANN]}, expected less than zero after buying")

    def _restart(self, killed: Daemon) -> None:
        killed.start()
        self._clients[killed.name].close()
        self._clients[killed.name] = Client(killed.gateway, self._keys[killed.name])

    def _learn(self) -> None:
        """Let a fourth device in, give all of them the model, and have them train it together."""
        stage = self._stage
        stage.heading("A fourth device joins, and all of them hold the model now")
        if find_spec("torch") is None:
            stage.remark("this device cannot train: pip install 'agora-node[train]' lets the demo go on")
            return
        self._devices[DORA] = dora = Daemon(DORA, self._directory / DORA)
        self._join(DORA)
        stage.names[dora.peer_id] = DORA
        with stage.console.status("ann and dora check the file"), ThreadPoolExecutor() as pool:
            added, _ = pool.map(self._add_model, (ANN, DORA))
            until("all four see who holds it", lambda: self._holders(added["digest"]) == len(self._devices))
        stage.line("joined", f"dora, peer {short(dora.peer_id)}, with an invitation of ann's")
        Lesson(stage, self._devices, self._clients, self._directory, self._phrase).tell()

    def _agreeing_books(self) -> dict[str, Any]:
        """Return the ledgers once each sums to zero, and ann's, who was in all trades, is what the others say of themselves."""
        books = {name: self._clients[name].get("/api/ledger") for name in self._devices}
        own = {book["account"]: book["balance_micro"] for book in books.values()}
        agreed = sum(own.values()) == 0 and all(sum(balances(book).values()) == 0 for book in books.values())
        return books if agreed and balances(books[ANN]) == own else {}

    def _holders(self, digest: str) -> int:
        models = self._clients[ANN].get("/api/models")
        return next((len(model["holders"]) for model in models if model["digest"] == digest), 0)

    def _is_connected(self, device: Daemon) -> bool:
        peers = self._clients[ANN].get("/api/peers")
        return any(peer["peer_id"] == device.peer_id and peer["is_connected"] for peer in peers)

    def _settled(self, job_id: str) -> dict[str, Any]:
        """Return the job once its receipt is countersigned."""

        def settled() -> dict[str, Any]:
            job = self._clients[ANN].job(job_id)
            return job if job["state"] == "settled" and job["receipts"] else {}

        job: dict[str, Any] = until(f"job {job_id[:8]} is settled", settled)
        return job

    def _show_receipts(self, job: Mapping[str, Any]) -> None:
        for receipt in self._clients[ANN].get("/api/ledger")["receipts"]:
            if receipt["job_id"] == job["job_id"]:
                self._stage.receipt(receipt)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """Take a request to end as Ctrl-C, so that no daemon is left behind."""
    raise KeyboardInterrupt
