"""What the gateway needs from the rest of the node."""

from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol

from node.charters import CharterChange
from node.chat import ChatEvent, ChatRequest
from node.human_word import WordKind
from node.journal import Journal
from node.runs import RunView
from node.services.coordinator import TrainOptions
from node.views import (
    AttemptView,
    DataView,
    JobView,
    LedgerView,
    ModelView,
    PatchView,
    PeerView,
    ProposalView,
    StatusView,
)
from protocol.messages import Task


class NodePort(Protocol):
    """The node as its clients see it. Listings are of now and return at once."""

    @property
    def journal(self) -> Journal:
        """The one stream of events."""

    def status(self) -> StatusView:
        """Return this daemon at a glance."""

    def peers(self) -> list[PeerView]:
        """Return the peers that are known."""

    def models(self) -> list[ModelView]:
        """Return what can be asked for."""

    def model(self, name: str, task: Task = "chat") -> ModelView:
        """Return the model that a client's name stands for, whatever patch it names; `auto`: the best for the task.

        Raises:
            UnknownModelName: there is none.
        """

    def jobs(self, limit: int = 100) -> list[JobView]:
        """Return the newest jobs first, running ones too."""

    def job(self, job_id: str) -> JobView | None:
        """Return the job of a full id or of a prefix that only one job has."""

    def ledger(self) -> LedgerView:
        """Return the accounts as this node knows them."""

    def patches(self) -> list[PatchView]:
        """Return every patch that was proposed, the newest first."""

    def patch(self, patch: str) -> PatchView:
        """Return the patch of a full id or of a prefix that only one patch has.

        Raises:
            StartError: there is none, or there are several.
        """

    def proposals(self) -> list[ProposalView]:
        """Return every ballot, the newest first."""

    def runs(self) -> list[RunView]:
        """Return the training runs that this device coordinates or takes part in, the newest first."""

    def training_run(self, run_id: str) -> RunView:
        """Return the run of a full id or of a prefix that only one run has.

        Raises:
            StartError: there is none, or there are several.
        """

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Yield `ChatStarted`, `ChatDelta`s and `ChatFinished`. Closing the generator cancels the job.

        The client is told of the end once the generator has ended: what a finished job shows is to be there by then.

        Raises:
            ChatError: one of its kinds, at the first iteration or later.
        """

    async def quotes(self, model: str, prompt_tokens: int, completion_tokens: int) -> AttemptView:
        """Ask the sellers what such a request would cost, and award nothing.

        Raises:
            ChatError: as for `chat`.
        """


class AdminPort(NodePort, Protocol):
    """What only the owner of the device may do, over the Unix socket."""

    async def invite(
        self, *, expires_s: float, uses: int, owner: str | None, credit_line_micro: int
    ) -> dict[str, Any]:
        """Make an invitation: `{invitation, expires_at, uses}`. All verbs raise `AgoraError`s of one line."""

    async def add_model(
        self, path: str, name: str | None, publish: bool, progress: Callable[[int, int], None]
    ) -> dict[str, Any]:
        """Take a GGUF file in; `progress(done, total)` counts bytes and is called from trio's thread."""

    async def publish_model(self, digest_prefix: str, name: str) -> dict[str, Any]:
        """Sign the card that binds a name to a model of this device."""

    def data(self) -> list[DataView]:
        """Return the private data sets of this device."""

    async def add_data(self, path: str, name: str, budget_milli: int) -> dict[str, Any]:
        """Freeze a copy of a file of private records; a budget of 0: without differential privacy."""

    async def remove_data(self, digest_prefix: str) -> dict[str, Any]:
        """Delete the records of a private data set."""

    async def train(self, options: TrainOptions) -> RunView:
        """Announce a training run; it goes on by itself."""

    async def steer_run(self, run_id: str, verb: str) -> RunView:
        """Pause, resume or cancel a run that this device coordinates."""

    async def vote(self, patch: str, *, is_yes: bool) -> dict[str, Any]:
        """Vote with this device on a patch, before it has by itself."""

    async def roll_back(self, patch: str) -> dict[str, Any]:
        """Propose the way back from a patch that is in force."""

    def lines(self) -> list[dict[str, Any]]:
        """Return every line of the mesh, with its public sets."""

    async def publish_line(self, name: str, evaluation: str, replay: str | None) -> dict[str, Any]:
        """Give a named model the public sets that its patches are judged by, from two files."""

    def place_word(self, author: str, kind: WordKind, target: str) -> dict[str, Any]:
        """Return what a human needs in order to sign a word on a patch, and what there is to be read before."""

    async def take_word(self, raw: bytes) -> dict[str, Any]:
        """Take in a word that a human has signed, and tell everybody."""

    async def revoke(self, peer_id: str, reason: str) -> dict[str, Any]:
        """Bar a device from the mesh."""

    async def leave(self) -> dict[str, Any]:
        """Leave the mesh."""

    def charter(self) -> dict[str, Any]:
        """Return the charter in force, and what is proposed to follow it."""

    async def propose_charter(self, change: CharterChange) -> dict[str, Any]:
        """Propose the next charter."""

    async def sign_charter(self, prefix: str) -> dict[str, Any]:
        """Agree to a proposed charter with this device."""

    def place_recovery(self, author: str, change: CharterChange) -> dict[str, Any]:
        """Return the next charter for a recovery key to sign, and what there is to be read before."""

    async def recover_charter(self, raw: bytes) -> dict[str, Any]:
        """Take in a charter that a recovery key has signed, and agree to it with this device."""


class Key(Protocol):
    """An API key that is known."""

    @property
    def id(self) -> str:
        """What it is called; not the key itself."""


class KeyChecker(Protocol):
    """Knows the API keys; `node.api_keys.ApiKeys` is one."""

    def check(self, secret: str) -> Key | None:
        """Return the key that this is, or None."""
