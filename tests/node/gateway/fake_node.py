"""A node that answers chats by a script: the honest fake behind the gateway's ports."""

from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import trio

from node.charters import CharterChange
from node.chat import (
    ChatDelta,
    ChatError,
    ChatEvent,
    ChatFinished,
    ChatRequest,
    ChatStarted,
    UnknownModelName,
)
from node.errors import StartError
from node.journal import Journal
from node.runs import RunView
from node.services.coordinator import TrainOptions
from node.views import (
    AttemptView,
    JobView,
    LedgerView,
    ModelView,
    PatchView,
    PeerView,
    ProposalView,
    StatusView,
    VoterView,
)
from protocol.identity import PeerId
from protocol.messages import Task
from runtime.engine import FinishReason

KEY = "sk-agora-test"
ANN = PeerId("12D3KooW" + "A" * 44)
BOB = PeerId("12D3KooW" + "B" * 44)
JOB_ID = "0123456789abcdef0123456789abcdef"
RUN_ID = "fedcba9876543210fedcba9876543210"
PATCH_ID = "5a" * 32
STARTED = ChatStarted(JOB_ID, 1, BOB, "tiny")
FINISHED = ChatFinished(JOB_ID, FinishReason.STOP, prompt_tokens=7, completion_tokens=3)
HELLO = [STARTED, ChatDelta("Hel", 1), ChatDelta("lo ", 1), ChatDelta("“you”", 1), FINISHED]

Step = ChatEvent | Exception | trio.Event  # what to yield, what to raise, what to wait for


@dataclass(frozen=True)
class FakeKey:
    id: str = "k1"


class OneKey:
    """Knows one API key."""

    def check(self, secret: str) -> FakeKey | None:
        return FakeKey() if secret == KEY else None


class FakeNode:
    """Plays `script` for each job and remembers what it was asked.

    A script of scripts is one for each job, in their order. Embeddings without a script of their own are zeros.
    """

    def __init__(self, script: list[Any] | None = None) -> None:
        self.journal = Journal()
        self.script: list[Any] = list(HELLO) if script is None else script
        self.context_tokens = 65_536
        self.gate = trio.Event()
        self.requests: list[ChatRequest] = []
        self.is_chatting = trio.Event()
        self.chat_closed = trio.Event()
        self.calls: list[tuple[Any, ...]] = []

    def status(self) -> StatusView:
        return StatusView(
            peer_id=ANN, mesh_id="ab" * 32, mesh_name="home", owner="ann", version="0.1.0", roles=["buyer"], peers=1,
            models=["tiny"], addresses=[], gateway="", uptime_s=1.0, engine={}, device={}, is_durable=True, warnings=[],
        )  # fmt: skip

    def peers(self) -> list[PeerView]:
        return [
            PeerView(
                peer_id=BOB, owner="bob", is_connected=True, is_admitted=True, is_revoked=False, addresses=[], models=[],
                slots=1, slots_free=1, prompt_micro=1, completion_micro=2, tokens_per_s=10.0, round_trip_ms=None,
                device={}, seen_s_ago=0.5,
            )
        ]  # fmt: skip

    def models(self) -> list[ModelView]:
        return [
            ModelView(
                id="tiny", digest="cd" * 32, architecture="llama", quantisation="Q8_0", context_tokens=self.context_tokens, holders=[BOB],
                is_local=False, is_published=True,
            ),
            ModelView(
                id="mini", digest="ce" * 32, architecture="bert", quantisation="F16", context_tokens=512, dimensions=3,
                holders=[BOB], is_local=False, is_published=True,
            ),
        ]  # fmt: skip

    def model(self, name: str, task: Task = "chat") -> ModelView:
        writer, embedder = self.models()
        known = {"tiny": writer, "mini": embedder, "auto": embedder if task == "embedding" else writer}
        if name not in known:
            raise UnknownModelName(name, ("tiny",))
        return known[name]

    def jobs(self, limit: int = 100) -> list[JobView]:
        return [self._job()][:limit]

    def job(self, job_id: str) -> JobView | None:
        return self._job() if JOB_ID.startswith(job_id) else None

    def ledger(self) -> LedgerView:
        return LedgerView(
            account=ANN, balance_micro=-5, held_micro=0, credit_line_micro=100, receipts=[],
            accounts=[{"peer_id": ANN, "balance_micro": -5}, {"peer_id": BOB, "balance_micro": 5}],
        )  # fmt: skip

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        self.requests.append(request)
        self.is_chatting.set()
        try:
            for step in self._steps(request):
                match step:
                    case Exception():
                        raise step
                    case trio.Event():
                        await step.wait()
                    case _:
                        await trio.lowlevel.checkpoint()
                        yield step
        finally:
            self.chat_closed.set()

    def _steps(self, request: ChatRequest) -> list[Step]:
        if request.task == "embedding" and self.script == HELLO:
            words = (1_000_000,) * request.tokens_max
            return [STARTED, ChatDelta("", len(words), words=words), FINISHED]
        if self.script and isinstance(self.script[0], list):
            steps: list[Step] = self.script[len(self.requests) - 1]
            return steps
        return self.script

    def runs(self) -> list[RunView]:
        return [self._run()]

    def training_run(self, run_id: str) -> RunView:
        if not RUN_ID.startswith(run_id):
            raise StartError(f"no run {run_id!r}, or several; 'agora runs' lists them")
        return self._run()

    async def train(self, options: TrainOptions) -> RunView:
        self.calls.append(("train", options))
        return self._run()

    async def steer_run(self, run_id: str, verb: str) -> RunView:
        self.calls.append(("steer_run", run_id, verb))
        return self._run()

    async def quotes(self, model: str, prompt_tokens: int, completion_tokens: int) -> AttemptView:
        if model != "tiny":
            raise UnknownModelName(model, ("tiny",))
        self.calls.append(("quotes", model, prompt_tokens, completion_tokens))
        return self._attempt()

    async def invite(
        self, *, expires_s: float, uses: int, owner: str | None, credit_line_micro: int
    ) -> dict[str, Any]:
        self.calls.append(("invite", expires_s, uses, owner, credit_line_micro))
        return {"invitation": "agora1xyz", "expires_at": 1.0, "uses": uses}

    async def add_model(
        self, path: str, name: str | None, publish: bool, progress: Callable[[int, int], None]
    ) -> dict[str, Any]:
        self.calls.append(("add_model", path, name, publish))
        if not path.endswith(".gguf"):
            raise StartError(f"{path} is not a GGUF file, expected the magic 'GGUF'")
        progress(1, 2)
        with suppress(IndexError):
            gate = self.script[0]
            if isinstance(gate, trio.Event):
                await gate.wait()
        if "truncated" in path:
            raise StartError(f"{path} ends at byte 1, expected 2")
        return {"digest": "cd" * 32, "name": name}

    def patches(self) -> list[PatchView]:
        return [self._patch()]

    def patch(self, patch: str) -> PatchView:
        if not PATCH_ID.startswith(patch):
            raise StartError(f"{patch!r} names 0 patches; run 'agora patches'")
        return self._patch()

    def _patch(self) -> PatchView:
        return PatchView(
            id=PATCH_ID, kind="patch", line="tiny", version=1, state="ratified", is_in_force=True, is_loaded=True, why_not="",
            adapter_digest="ad" * 32, adapter_bytes=1_000, base_digest="cd" * 32, parent="", rolls_back_to=0, run_id=RUN_ID,
            rounds=16, cohort=[{"peer_id": BOB, "samples": 400, "rounds": 16, "epsilon": None}], author=BOB, reason="",
            proposed_at=1.0, expires_at=2.0,
            scores=[
                {"domain": "pumps", "total": 8, "before": 0.0, "after": 1.0, "loss_before": 3.8, "loss_after": 0.1}
            ],
        )  # fmt: skip

    def proposals(self) -> list[ProposalView]:
        return [
            ProposalView(
                id=PATCH_ID, kind="patch", line="tiny", version=1, state="voting", author=BOB, reason="", yes_weight=1,
                no_weight=0, roll_weight=2, weight_to_pass=2, approved_by=[], vetoed_by=[], proposed_at=1.0, expires_at=2.0,
                still_needed="yes of weight 1 more, of 2 on the roll",
                votes=[
                    VoterView(peer_id=ANN, vote="yes", reason="better", private="passed", scores=[]),
                    VoterView(
                        peer_id=BOB, vote="cannot vote", reason="does not hold the base", private="none", scores=[]
                    ),
                ],
            )
        ]  # fmt: skip

    async def vote(self, patch: str, *, is_yes: bool) -> dict[str, Any]:
        self.calls.append(("vote", patch, is_yes))
        return {"id": PATCH_ID, "vote": "ee" * 32, "is_yes": is_yes}

    async def roll_back(self, patch: str) -> dict[str, Any]:
        self.calls.append(("roll_back", patch))
        return {"id": "ff" * 32, "line": "tiny", "version": 2, "rolls_back_to": 0, "adapter_digest": ""}

    async def propose_charter(self, change: CharterChange) -> dict[str, Any]:
        self.calls.append(("propose_charter", change))
        return {"id": "ab" * 32, "version": 2, "missing": [BOB], "in_force": False}

    async def sign_charter(self, prefix: str) -> dict[str, Any]:
        self.calls.append(("sign_charter", prefix))
        return {"id": "ab" * 32, "version": 2, "missing": [], "in_force": True}

    async def publish_model(self, digest_prefix: str, name: str) -> dict[str, Any]:
        self.calls.append(("publish_model", digest_prefix, name))
        return {"name": name}

    async def revoke(self, peer_id: str, reason: str) -> dict[str, Any]:
        self.calls.append(("revoke", peer_id, reason))
        return {"peer_id": peer_id}

    async def leave(self) -> dict[str, Any]:
        raise ChatError("cannot reach a roll member now; try again later")

    def charter(self) -> dict[str, Any]:
        return {"version": 1}

    def _run(self) -> RunView:
        return RunView(
            run_id=RUN_ID, role="coordinator", coordinator=ANN, state="running", reason="", data="heat", line="tiny",
            base="cd" * 32, outlook="", strategy="multikrum", is_protected=True, rounds=16, round=1, steps=30, cohort=[],
            declines=[], history=[], before=[], parent="", checkpoint="", adapter="", manifest="", price_micro=0,
            progress={}, started_at=1.0, finished_at=None,
        )  # fmt: skip

    def _job(self) -> JobView:
        return JobView(
            job_id=JOB_ID, kind="chat", state="settled", model="tiny", digest="cd" * 32, privacy="owner", seller=BOB,
            attempt=1, price_micro=13, prompt_tokens=7, completion_tokens=3, ttft_s=0.1, tokens_per_s=9.0, started_at=1.0,
            finished_at=2.0, declines=[], attempts=[self._attempt()], receipts=["ef" * 32], promised_ttft_ms=80,
            promised_tokens_per_s=20.0,
        )  # fmt: skip

    def _attempt(self) -> AttemptView:
        return AttemptView(
            attempt=1, asked=[BOB], window_ms=50.0, bids=[], declines=[], seller=BOB, is_lease=False, outcome="settled",
            reason="", tokens=3, receipt_id="ef" * 32, auction_ms=5.0, promised_ttft_ms=80, promised_tokens_per_s=20.0,
            ttft_ms=95.0, tokens_per_s=9.0,
        )  # fmt: skip
