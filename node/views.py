"""What the listings show, as values: the shapes of `/api/…` and of `--json`. Keys are stable; more may follow.

Money is micro-credits, times are Unix seconds (float), durations seconds, digests hex.
"""

from typing import Any, Literal

import msgspec


class View(msgspec.Struct, frozen=True, kw_only=True):
    """A value that becomes a JSON object."""


class ModelView(View, frozen=True, kw_only=True):
    """A model that can be asked for by one of its names."""

    id: str  # the name to ask for
    digest: str
    adapter: str = ""  # digest of the adapter that the name stands for now; empty: the bare base
    version: int = 0  # of the line; 0: the bare base
    architecture: str
    quantisation: str
    context_tokens: int  # the longest that anybody runs it with
    dimensions: int = 0  # of an embedding model's vectors; 0: it is one that writes
    holders: list[str]  # peer ids
    is_local: bool
    is_published: bool


class PeerView(View, frozen=True, kw_only=True):
    """A known peer."""

    peer_id: str
    owner: str
    is_connected: bool
    is_admitted: bool
    is_revoked: bool
    addresses: list[str]
    models: list[str]  # digests
    slots: int
    slots_free: int
    prompt_micro: int
    completion_micro: int
    tokens_per_s: float
    round_trip_ms: float | None
    device: dict[str, Any]
    seen_s_ago: float | None  # since the last advert
    answers_checked: int = 0  # of those that this device bought from it
    answers_caught: int = 0  # that were not by the model that was paid for


class DataView(View, frozen=True, kw_only=True):
    """A private data set of this device. Epsilon in thousandths; all of it is 0 for a set without privacy."""

    digest: str
    name: str
    samples: int  # trained on
    held_out: int  # never trained on
    is_private: bool  # False: without differential privacy
    budget_milli: int
    spent_milli: int
    left_milli: int
    unit: str  # what epsilon bounds
    added_at: float


class StatusView(View, frozen=True, kw_only=True):
    """This daemon at a glance."""

    peer_id: str
    mesh_id: str
    mesh_name: str
    owner: str
    version: str
    roles: list[str]  # buyer, seller, roll
    peers: int  # connected
    models: list[str]
    addresses: list[str]
    gateway: str
    uptime_s: float
    engine: dict[str, Any]  # state, sandbox, slots, slots_free, message
    device: dict[str, Any]
    is_durable: bool  # False: its own log's head is not yet confirmed, it buys and sells nothing
    warnings: list[str]


class VoterView(View, frozen=True, kw_only=True):
    """What one voter has said on a ballot."""

    peer_id: str
    vote: str  # yes, no, cannot vote; empty: nothing yet
    reason: str
    private: str  # its own samples: passed, failed, none
    scores: list[dict[str, Any]]  # as it measured them: {domain, total, after, loss_after}


class ProposalView(View, frozen=True, kw_only=True):
    """A ballot: who has voted, who cannot, and what is still needed."""

    id: str
    kind: str  # patch, rollback
    line: str
    version: int
    state: str  # voting, certified, ratified, rejected, expired, vetoed, withdrawn, superseded
    author: str
    reason: str
    yes_weight: int
    no_weight: int
    roll_weight: int
    weight_to_pass: int
    approved_by: list[str]
    vetoed_by: list[str]
    proposed_at: float
    expires_at: float  # until when what is lacking must be signed
    still_needed: str
    votes: list[VoterView]


class PatchView(View, frozen=True, kw_only=True):
    """A patch of a line: where it comes from, what it does, and how it stands on this mesh and on this device."""

    id: str
    kind: str  # patch, rollback
    line: str
    version: int
    state: str  # as of its proposal
    is_in_force: bool  # what the line's plain name follows
    is_loaded: bool  # by this device
    why_not: (
        str  # why this device does not serve it though it is in force; empty: it does, or nothing is known
    )
    adapter_digest: str  # empty: the bare base
    adapter_bytes: int
    base_digest: str
    parent: str  # the patch that it follows; empty: the bare base
    rolls_back_to: int
    run_id: str  # empty: no run made it
    rounds: int
    cohort: list[dict[str, Any]]  # {peer_id, samples, rounds, epsilon or null}
    author: str
    reason: str
    proposed_at: float
    expires_at: float
    scores: list[
        dict[str, Any]
    ]  # {domain, total, before, after, loss_before, loss_after}; exact match as shares


class BidView(View, frozen=True, kw_only=True):
    """One seller's answer to a request."""

    peer_id: str
    prompt_micro: int
    completion_micro: int
    total_micro: int
    ttft_ms: int
    tokens_per_s: float
    after_ms: float  # since the request went out
    is_winner: bool


# Of an answer that was bought: not drawn for a check; drawn; what came of it. "unverified": nobody can or may check it.
VerificationState = Literal["", "waiting", "passed", "caught", "unverified"]


class AttemptView(View, frozen=True, kw_only=True):
    """One attempt at a job: who was asked, what they said, how it ended."""

    attempt: int
    asked: list[str]
    window_ms: float
    bids: list[BidView]
    declines: list[dict[str, str]]  # {peer_id, reason, detail}
    seller: str
    is_lease: bool
    outcome: str  # running, settled, failed, cancelled, unsold
    reason: str
    tokens: int
    receipt_id: str
    auction_ms: float
    verification: VerificationState = ""
    verification_detail: str = ""
    promised_ttft_ms: int = 0  # by the seller's bid; 0: nothing was
    promised_tokens_per_s: float = 0.0  # by its bid, under a lease by its advert; 0: nothing was
    ttft_ms: float | None = None  # delivered, from the award on
    tokens_per_s: float | None = None  # delivered, after the first token


class JobView(View, frozen=True, kw_only=True):
    """A request from beginning to end."""

    job_id: str
    kind: str  # chat, completion, embedding, check
    state: str  # auction, running, settled, failed, unsold, cancelled
    model: str
    digest: str
    adapter: str = ""  # digest of what the answer was given with; empty: the bare base
    privacy: str
    seller: str
    attempt: int
    price_micro: int
    prompt_tokens: int
    completion_tokens: int
    ttft_s: float | None
    tokens_per_s: float | None
    started_at: float
    finished_at: float | None
    declines: list[dict[str, str]]
    attempts: list[AttemptView]
    receipts: list[str]
    verification: VerificationState = ""  # the worst of its attempts
    promised_ttft_ms: int = 0  # as its last attempt's seller did
    promised_tokens_per_s: float = 0.0


class ReceiptView(View, frozen=True, kw_only=True):
    """A receipt that both have signed."""

    receipt_id: str
    job_id: str
    attempt: int
    payer: str
    payee: str
    amount_micro: int
    prompt_tokens: int
    completion_tokens: int
    at: float


class LedgerView(View, frozen=True, kw_only=True):
    """The accounts as this node knows them; they sum to zero."""

    account: str
    balance_micro: int
    held_micro: int
    credit_line_micro: int
    accounts: list[dict[str, Any]]  # {peer_id, balance_micro}
    receipts: list[ReceiptView]
