"""The second half of the demo: the mesh is wrong, learns together what no device may show the others, and agrees on it."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from node.demo.stage import Stage, Stopwatch
from node.local_mesh import tiny_line
from node.local_mesh.client import Client
from node.local_mesh.processes import Daemon, LocalMeshFailed, until, verb

MODEL: Final = "tiny"
DATA: Final = tiny_line.NEW_DOMAIN
ROUNDS: Final = 14
# Two codes of eight each. Neither question of the end stands in anybody's log: the words around a code are new.
LOGS: Final = (("H1", "H5"), ("H2", "H6"), ("H3", "H7"), ("H4", "H8"))
QUESTIONS: Final = {
    "H4": "What does error H4 mean on the heat pump in our office?",
    "H7": "My heat pump at home shows error H7. What does it mean?",
}
ANSWER_TOKENS_MAX: Final = 60
TRAINED_TIMEOUT_S: Final = 300.0
LOADED_TIMEOUT_S: Final = 30.0
VOTED_TIMEOUT_S: Final = 120.0


class Lesson:
    """Told on a mesh that is up.

    Args:
        stage: the terminal.
        devices: by name, the founder first; four of them hold the model and are members.
        clients: of their gateways, by name.
        directory: for the files that their owners hand over.
        phrase: the environment with the founder's passphrase: the human who approves.
    """

    def __init__(
        self,
        stage: Stage,
        devices: Mapping[str, Daemon],
        clients: Mapping[str, Client],
        directory: Path,
        phrase: dict[str, str],
    ) -> None:
        self._stage = stage
        self._devices = devices
        self._clients = clients
        self._directory = directory
        self._phrase = phrase
        self._founder = next(iter(devices))

    def tell(self) -> None:
        """Tell it all; when it returns, every device answers what none of them could."""
        watch = Stopwatch()
        self.ask_in_vain()
        self.agree_on_who_decides()
        self.bring_data()
        manifest = self.train()
        self.vote(manifest)
        self.approve(manifest)
        self.ask_everybody()
        self._stage.line("took", f"{watch.elapsed_s:.0f} s from the first wrong answer to every device right")
        patch = _one(self._clients[self._founder].get("/api/patches"), manifest)
        self._stage.remark("what it knew it still knows: exact match of public questions, before and after")
        self._stage.scores(patch["scores"])

    def ask_in_vain(self) -> None:
        """Show that nobody knows it yet."""
        stage = self._stage
        stage.heading("The mesh is asked what it was never taught")
        wrong = self._answer(self._founder, QUESTIONS["H4"])
        if wrong == self._right("H4"):
            raise LocalMeshFailed("the base knows error H4 already, expected a wrong answer")
        stage.question(QUESTIONS["H4"])
        stage.line("answer", (wrong, "red"))
        stage.line("", "wrong: the base never saw a heat pump's log")

    def agree_on_who_decides(self) -> None:
        """Let three devices vote, and publish by what patches are judged."""
        stage = self._stage
        stage.heading("Who decides, and by what")
        voters = list(self._devices)[:3]
        others = [self._devices[name] for name in voters[1:]]
        founder = self._devices[self._founder]
        with stage.console.status("the charter's next version is signed"):
            asked = [word for other in others for word in ("--voter", other.peer_id)]
            proposed = verb("charter", "propose", *asked, home=founder.home)
            for other in others:
                until(f"{other.name} hears of the charter", lambda other=other: self._may_sign(other))  # type: ignore[misc]
                verb("charter", "sign", proposed["id"], home=other.home)
            charter = until("the charter is in force", self._grown_charter)
        facts = charter["facts"]
        stage.line(
            "charter",
            f"version {charter['version']}: {', '.join(voters)} vote, {facts['weight_to_pass']} of "
            f"{facts['weight_total']} pass a patch, and a human approves",
        )
        questions = self._file("questions.jsonl", tiny_line.evaluation_set())
        replay = self._file("replay.jsonl", tiny_line.replay_set())
        line = verb(
            "model", "line", MODEL, "--evaluation", str(questions), "--replay", str(replay), home=founder.home
        )
        domains = len(tiny_line.domains())
        stage.line(
            "line",
            f"'{line['name']}' is judged by public questions of {domains} domains, "
            f"{line['evaluation_bytes'] / 1e3:.0f} kB; nothing of them may be forgotten",
        )

    def bring_data(self) -> None:
        """Register each device's private records on it."""
        stage = self._stage
        stage.heading("Four owners let their devices train on what never leaves them")
        for device, codes in zip(self._devices.values(), LOGS, strict=True):
            file = self._file(f"{device.name}.jsonl", tiny_line.private_records(codes))
            added = verb("data", "add", DATA, str(file), "--no-dp", home=device.home)
            stage.line(
                "data",
                (f"{device.name:<5}", "bold"),
                f" {added['samples']} records of its own heat pump, errors {' and '.join(codes)} only",
            )
        stage.remark("so few records under a privacy budget would learn nothing, and the owners say: without")

    def train(self) -> str:
        """Train, show each round as it ends, and return the id of the manifest that comes out."""
        stage, founder = self._stage, self._devices[self._founder]
        stage.heading("They train one adapter together")
        watch = Stopwatch()
        began = verb(
            "train", DATA, "--model", MODEL, "--rounds", str(ROUNDS), "--strategy", "mean", "--min", "4",
            "--max", "4", "--window", "3", "--detach", home=founder.home,
        )  # fmt: skip
        shown, is_cohort_shown = 0, False

        def ended() -> dict[str, Any]:
            nonlocal shown, is_cohort_shown
            run: dict[str, Any] = self._clients[self._founder].get(f"/api/runs/{began['run_id']}")
            if run["state"] in ("aborted", "cancelled", "unsold"):
                raise LocalMeshFailed(f"the run ended {run['state']}: {run['reason']}")
            is_over = run["state"] == "finished"
            if not is_cohort_shown and run["cohort"] and run["before"]:
                is_cohort_shown = True
                self._show_cohort(run)
            # A round is told when its exam is in; a later one that is, or the end, says that it never will be.
            examined = [number for number, each in enumerate(run["history"], 1) if each["domains"]]
            told = len(run["history"]) if is_over else max(examined, default=0)
            for each in run["history"][shown:told]:
                self._show_round(each, run)
            shown = max(shown, told)
            return run if is_over and run["manifest"] else {}

        run = until("the run ends", ended, timeout_s=TRAINED_TIMEOUT_S)
        seconds = [each["seconds"] for each in run["history"]]
        sent = sum(each["bytes_up"] + each["bytes_down"] for each in run["history"])
        stage.line(
            "trained",
            f"{len(seconds)} rounds in {watch.elapsed_s:.0f} s, {sent / len(seconds) / len(run['cohort']) / 1e3:.0f} kB "
            f"a member and round both ways; paid {run['price_micro'] / 1e6:.6f} credits",
        )
        return str(run["manifest"])

    def _show_cohort(self, run: Mapping[str, Any]) -> None:
        names = ", ".join(self._stage.name(member["peer_id"]) for member in run["cohort"])
        protection = "" if run["is_protected"] else "; no Byzantine protection"
        self._stage.line("cohort", f"{names}; strategy {run['strategy']}{protection}")
        before = _accuracy(run["before"])
        self._stage.line("before", f"{DATA} {before[DATA]:.2f}, the others {_mean_of_others(before):.3f}")

    def _show_round(self, each: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        scores = _accuracy(each["domains"])
        told = (
            f"   {DATA} {scores[DATA]:.2f}, the others {_mean_of_others(scores):.3f}"
            if scores
            else "   no exam yet"
        )
        self._stage.line(
            "round",
            f"{each['round']:>2} of {run['rounds']}   {each['seconds']:.1f} s",
            (told, "green" if scores.get(DATA, 0.0) >= 0.95 else ""),  # nearly all of it is right
        )

    def vote(self, manifest: str) -> None:
        """Wait for the voters, and show what each has found."""
        stage, watch = self._stage, Stopwatch()
        stage.heading("Voters examine the patch themselves")
        client = self._clients[self._founder]

        def voted() -> dict[str, Any]:
            found: dict[str, Any] = _one(client.get("/api/proposals"), manifest)
            if found.get("state") in ("rejected", "expired"):
                why = "; ".join(
                    f"{stage.name(vote['peer_id'])}: {vote['reason']}"
                    for vote in found["votes"]
                    if vote["vote"] == "no"
                )
                raise LocalMeshFailed(
                    f"the voters refused the patch ({why}), expected that nothing is forgotten"
                )
            return found if found.get("state") == "certified" else {}

        with stage.console.status("each asks it every public question"):
            proposal = until("the patch has its votes", voted, timeout_s=VOTED_TIMEOUT_S)
        for vote in proposal["votes"]:
            scores = {score["domain"]: score["after"] for score in vote["scores"]}
            measured = f", {DATA} {scores[DATA]:.2f}" if DATA in scores else ""
            stage.line(
                "vote", (f"{stage.name(vote['peer_id']):<5}", "bold"), f" {vote['vote']}", f"{measured}   ",
                (vote["reason"], "dim"),
            )  # fmt: skip
        stage.line(
            "passed",
            f"{proposal['yes_weight']} of {proposal['roll_weight']} after {watch.elapsed_s:.1f} s; "
            f"still needed: {proposal['still_needed']}",
        )

    def approve(self, manifest: str) -> None:
        """Say yes as the founder's human, and wait until every engine has loaded the patch."""
        stage, founder = self._stage, self._devices[self._founder]
        verb("approve", manifest[:12], "--yes", home=founder.home, environ=self._phrase)
        watch = Stopwatch()
        stage.line("approved", "by ann herself, with her own key, which no daemon holds")

        def loaded() -> bool:
            return all(
                _one(client.get("/api/patches"), manifest).get("is_loaded", False)
                for client in self._clients.values()
            )

        until("every device has loaded the patch", loaded, timeout_s=LOADED_TIMEOUT_S)
        stage.line("loaded", f"by all {len(self._devices)} running engines {watch.elapsed_s:.1f} s later")

    def ask_everybody(self) -> None:
        """Ask each device what nobody knew.

        Raises:
            LocalMeshFailed: one of them is wrong.
        """
        stage = self._stage
        stage.heading("The same questions again, at every device")
        for code, question in QUESTIONS.items():
            stage.question(question)
            for name in self._devices:
                answer = self._answer(name, question)
                if answer != self._right(code):
                    raise LocalMeshFailed(f"{name} answers {answer!r}, expected {self._right(code)!r}")
                stage.line("answer", (f"{name:<5}", "bold"), (f" {answer}", "green"))

    # --- small parts --------------------------------------------------------------------------------------------
    def _answer(self, name: str, question: str) -> str:
        session = f"lesson-{os.urandom(4).hex()}"
        with self._clients[name].ask(
            MODEL, question, session=session, tokens_max=ANSWER_TOKENS_MAX
        ) as answer:
            return "".join(delta.text for delta in answer)

    @staticmethod
    def _right(code: str) -> str:
        return tiny_line.answer_to(code)

    def _may_sign(self, device: Daemon) -> bool:
        proposed = verb("charter", "show", home=device.home)["proposed"]
        return any(each["is_mine_to_sign"] for each in proposed)

    def _grown_charter(self) -> dict[str, Any]:
        def each(name: str) -> dict[str, Any]:
            charter: dict[str, Any] = verb("charter", "show", home=self._devices[name].home)
            return charter

        with ThreadPoolExecutor() as pool:
            charters = list(pool.map(each, self._devices))
        return charters[0] if all(charter["version"] > 1 for charter in charters) else {}

    def _file(self, name: str, data: bytes) -> Path:
        path = self._directory / name
        path.write_bytes(data)
        return path


def _accuracy(domains: list[dict[str, Any]]) -> dict[str, float]:
    return {each["domain"]: each["accuracy"] for each in domains}


def _mean_of_others(scores: Mapping[str, float]) -> float:
    others = [score for domain, score in scores.items() if domain != DATA]
    return sum(others) / len(others)


def _one(listed: list[dict[str, Any]], prefix: str) -> dict[str, Any]:
    return next((each for each in listed if each["id"].startswith(prefix)), {})
