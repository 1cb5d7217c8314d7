"""The story that the demo tells, step by step."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from node.cli.show import cell, credit
from node.demo.client import Client
from node.demo.processes import Daemon, DemoFailed, verb
from node.demo.stage import Stage, Stopwatch, balances

MODEL_FILE: Final = Path("examples/tiny_model/tiny-q8_0.gguf")
MODEL: Final = "tiny"
QUESTIONS: Final = (
    "How can I return the grey teapot?",
    "Please convert 7 weeks into days.",
    "Error E1 is blinking on our washing machine. What now?",
)
LONG_QUESTION: Final = "Tell me the story of the lighthouse."
KILL_AFTER_PIECES: Final = 40  # of about 200
WAIT_TIMEOUT_S: Final = 30.0
POLL_INTERVAL_S: Final = 0.05

ANN, BOB, CLEO = "ann", "bob", "cleo"


def run(*, keep: bool, model: Path | None = None) -> int:
    """Play the demo; return 0 when everything it promises was seen.

    Args:
        keep: leave the mesh up afterwards.
        model: the GGUF that the sellers hold; the tiny model of the examples when None.

    Raises:
        AgoraError: it failed; one line. What the daemons last logged has been printed.
    """
    file = model or Path(__file__).resolve().parent.parent.parent / MODEL_FILE
    if not file.is_file():
        raise DemoFailed(f"no model {file}, expected a GGUF; run in a checkout or give --model FILE.gguf")
    directory = Path(tempfile.mkdtemp(prefix="agora-demo-"))
    demo = Demo(directory, file.absolute())
    is_kept = False
    try:
        demo.play()
        if keep:
            demo.leave_running()
            is_kept = True
    except DemoFailed as error:
        demo.show_logs(error.log)
        raise
    finally:
        if not is_kept:
            demo.stop()
            shutil.rmtree(directory, ignore_errors=True)
    return 0


class Demo:
    """Three devices and one terminal."""

    def __init__(self, directory: Path, model: Path) -> None:
        self._directory = directory
        self._model = model
        self._stage = Stage()
        self._devices = {name: Daemon(name, directory / name) for name in (ANN, BOB, CLEO)}
        self._key = ""
        self._client: Client | None = None

    def play(self) -> None:
        """Tell the whole story."""
        watch = Stopwatch()
        self._stage.console.print(
            "[bold]Agora[/bold]: three devices, one market, one private AI. Everything below is real: three\n"
            "processes, libp2p between them, llama.cpp in the sellers, money in three ledgers."
        )
        self._meet()
        self._offer()
        self._stage.heading("Questions, through ann's gateway as any OpenAI client asks them")
        for question in QUESTIONS:
            self._ask(question)
        undisturbed = self._ask(LONG_QUESTION)
        self._stage.heading("The same once more, and the seller is killed in mid-answer")
        killed = self._ask_and_kill(LONG_QUESTION, undisturbed)
        self._refuse()
        self._settle(killed)
        self._stage.console.print(f"\nall of it in {watch.elapsed_s:.0f} s")

    def stop(self) -> None:
        """End every process."""
        if self._client is not None:
            self._client.close()
        for device in self._devices.values():
            device.stop()

    def leave_running(self) -> None:
        """Let go of the daemons, and say how to use and how to stop them."""
        ann = self._devices[ANN]
        pids = " ".join(str(device.pid) for device in self._devices.values())
        if self._client is not None:
            self._client.close()
        for device in self._devices.values():
            device.detach()
        self._stage.heading("The mesh is up")
        self._stage.console.print(
            f"chat     agora chat --home {ann.home} --privacy mesh\n"
            f"look     agora jobs --home {ann.home};  agora ledger --home {ann.home}\n"
            f"OpenAI   base_url {ann.gateway}/v1, api_key {self._key}, model {MODEL},\n"
            f"         header 'X-Agora-Privacy: mesh' (bob and cleo are other owners)\n"
            f"stop     kill {pids}; rm -r {self._directory}",
            markup=False,
            soft_wrap=True,
        )

    def show_logs(self, log: str) -> None:
        """Print what a failing daemon last said; without one, what all of them did."""
        for device in self._devices.values():
            found = device.log()
            if found and (not log or log == found):
                self._stage.heading(f"the last lines of {device.name}'s log")
                self._stage.console.print(found, markup=False)

    def _meet(self) -> None:
        stage, ann = self._stage, self._devices[ANN]
        stage.heading("Three devices become a mesh")
        watch = Stopwatch()
        founded = verb(
            "init",
            "--name",
            "demo",
            "--owner",
            ANN,
            home=ann.home,
            environ={"AGORA_PASSPHRASE": os.urandom(16).hex()},
        )
        self._key = founded["api_key"]
        ann.start()
        stage.names[ann.peer_id] = ANN
        self._client = Client(ann.gateway, self._key)
        stage.line("founded", f"mesh {founded['mesh_id'][:16]}… by ann, {ann.peer_id}")
        for name in (BOB, CLEO):
            device = self._devices[name]
            invited = verb("invite", "--owner", name, home=ann.home)
            verb("join", invited["invitation"], home=device.home)
            device.start()
            stage.names[device.peer_id] = name
            stage.line("joined", f"{name}, {device.peer_id}, with one invitation")
        stage.line("took", f"{watch.elapsed_s:.1f} s")

    def _offer(self) -> None:
        stage, ann = self._stage, self._devices[ANN]
        stage.heading("Bob and cleo hold a model")
        added: dict[str, Any] = {}
        for name in (BOB, CLEO):
            added = verb("model", "add", str(self._model), home=self._devices[name].home)
        size_mb = self._model.stat().st_size / 1e6
        stage.line("added", f"{self._model.name}, {size_mb:.1f} MB, {added['digest'][:16]}… on both")
        with stage.console.status("ann hears of it in their adverts"):
            until("ann sees the model at bob and cleo", lambda: self._holders(added["digest"]) == 2)
        verb("model", "publish", added["digest"], "--name", MODEL, home=ann.home)
        stage.line("published", f"ann signs the card: '{MODEL}' is that file, for the whole mesh")

    def _ask(self, question: str) -> str:
        """Ask one question, show everything about it, and return the answer."""
        stage, client = self._stage, self._require_client()
        stage.console.print()
        stage.line("question", (question, "bold cyan"))
        asked_s = time.monotonic()
        pieces = []
        with client.ask(MODEL, question, privacy="mesh") as answer:
            stage.auction(client.get(f"/api/jobs/{answer.job_id}")["attempts"][-1])
            stage.begin_answer()
            first_s = 0.0
            for delta in answer:
                first_s = first_s or delta.at_s
                pieces.append(delta.text)
                stage.say(delta.text)
            stage.end_answer()
        job = self._settled(answer.job_id)
        stage.measured(asked_s, first_s, job)
        self._show_receipts(job)
        return "".join(pieces)

    def _ask_and_kill(self, question: str, undisturbed: str) -> Daemon:
        """Ask, kill the seller in mid-answer, and return it when another one has finished the answer."""
        stage, client = self._stage, self._require_client()
        stage.console.print()
        stage.line("question", (question, "bold cyan"))
        pieces = []
        with client.ask(MODEL, question, privacy="mesh") as answer:
            first = client.get(f"/api/jobs/{answer.job_id}")["attempts"][-1]
            victim = self._devices[stage.name(first["seller"])]
            pid = victim.pid
            stage.auction(first)
            stage.begin_answer()
            killed_s = last_s = gap_s = 0.0
            for number, delta in enumerate(answer, 1):
                if killed_s:
                    gap_s = max(gap_s, delta.at_s - last_s)
                last_s = delta.at_s
                pieces.append(delta.text)
                stage.say(delta.text)
                if number == KILL_AFTER_PIECES:
                    victim.kill()
                    killed_s = last_s = time.monotonic()
                    stage.mark(f"── kill -9 {pid}: {victim.name} is dead, after {number} pieces ──")
            stage.end_answer()
        text = "".join(pieces)
        job = self._settled(answer.job_id)
        if not killed_s or len(job["attempts"]) < 2:
            raise DemoFailed(
                f"the answer ended before {victim.name} was killed, expected it to be in the middle"
            )
        if text != undisturbed:
            raise DemoFailed(
                "the answer differs from the undisturbed one, expected the same text", victim.log()
            )
        self._show_failover(job, gap_s)
        return victim

    def _show_failover(self, job: Mapping[str, Any], gap_s: float) -> None:
        stage = self._stage
        broken, *_, last = job["attempts"]
        stage.auction(last)
        stage.line(
            "failover",
            f"{stage.name(last['seller'])} was handed the {broken['tokens']} tokens that had arrived, and went on",
            (f"   gap {gap_s * 1000:.0f} ms", "bold"),
        )
        stage.line("compared", ("the same text as undisturbed: no token lost, none repeated", "bold green"))
        self._show_receipts(job)

    def _refuse(self) -> None:
        stage, client = self._stage, self._require_client()
        stage.heading("Two questions that nobody may or can answer")
        for question, model, privacy in (
            ("Where did I put my keys? (for ann's own devices only)", MODEL, "owner"),
            ("Are you there?", "gpt-17", "mesh"),
        ):
            error = client.refusal(model, question, privacy=privacy)
            stage.line("question", (question, "bold cyan"))
            stage.line("answer", f"HTTP {error['status']}: ", cell(error["message"]))
            stage.declines(error.get("declines", ()))

    def _settle(self, killed: Daemon) -> None:
        """Restart the killed seller, let it settle what it is owed, and compare the three ledgers."""
        stage, ann = self._stage, self._devices[ANN]
        stage.heading(f"{killed.name} comes back, and the three ledgers are compared")
        watch = Stopwatch()
        killed.start()
        stage.line("restarted", f"{killed.name}, ready after {watch.elapsed_s:.1f} s")
        with stage.console.status("they settle the broken attempt"):
            books = until("the three ledgers agree", self._agreeing_books)
        stage.ledgers(books)
        own = {name: book["balance_micro"] for name, book in books.items()}
        total = sum(own.values())
        receipts = {receipt["receipt_id"] for book in books.values() for receipt in book["receipts"]}
        stage.line(
            "together",
            (f"{credit(total)} credits", "bold green"),
            f" over {len(receipts)} receipts, each signed by both",
        )
        if own[ann.name] >= 0:
            raise DemoFailed(f"ann's balance is {own[ann.name]}, expected less than zero after buying")

    def _agreeing_books(self) -> dict[str, Any]:
        """Return the ledgers once every book sums to zero and shows what the owners' own books show; else nothing."""
        books = {name: verb("ledger", home=device.home) for name, device in self._devices.items()}
        own = {self._devices[name].peer_id: book["balance_micro"] for name, book in books.items()}
        agreed = sum(own.values()) == 0 and all(sum(balances(book).values()) == 0 for book in books.values())
        return books if agreed and balances(books[ANN]) == own else {}

    def _holders(self, digest: str) -> int:
        models = self._require_client().get("/api/models")
        return next((len(model["holders"]) for model in models if model["digest"] == digest), 0)

    def _settled(self, job_id: str) -> dict[str, Any]:
        """Return the job once its receipt is countersigned."""
        client = self._require_client()

        def settled() -> dict[str, Any]:
            job: dict[str, Any] = client.get(f"/api/jobs/{job_id}")
            return job if job["state"] == "settled" and job["receipts"] else {}

        job: dict[str, Any] = until(f"job {job_id[:8]} is settled", settled)
        return job

    def _show_receipts(self, job: Mapping[str, Any]) -> None:
        stage = self._stage
        for receipt in self._require_client().get("/api/ledger")["receipts"]:
            if receipt["job_id"] == job["job_id"]:
                stage.line(
                    "receipt",
                    f"ann pays {stage.name(receipt['payee'])} ",
                    (f"{credit(receipt['amount_micro'])} credits", "bold"),
                    f" for {receipt['prompt_tokens']}+{receipt['completion_tokens']} tokens, signed by both",
                    (f"   {receipt['receipt_id'][:16]}", "dim"),
                )

    def _require_client(self) -> Client:
        assert self._client is not None
        return self._client


def until(what: str, check: Callable[[], Any]) -> Any:
    """Return what `check` returns as soon as it is true.

    Raises:
        DemoFailed: it was not, for half a minute.
    """
    deadline = time.monotonic() + WAIT_TIMEOUT_S
    while not (found := check()):
        if time.monotonic() > deadline:
            raise DemoFailed(f"waited {WAIT_TIMEOUT_S:.0f} s, expected that {what}")
        time.sleep(POLL_INTERVAL_S)
    return found
