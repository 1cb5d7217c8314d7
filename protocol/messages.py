"""Every wire message, in the order of the journeys: the protocol on one page.

A message is a frozen typed value. Whatever steers anything travels sealed in a signed envelope (`envelope.py`); only
the token frames of a running job go bare, on the stream that its award opened, since the receipt binds them.

Integers and byte strings only: no floats, so that one value has one encoding. Money is micro-credits, durations are
milliseconds, `_at` is Unix time in milliseconds. Text that a peer chose is shown escaped and never acted on.
"""

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from protocol import limits

# --- values -------------------------------------------------------------------------------------------------------
Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]  # SHA-256
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]  # raw Ed25519 public key
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
Id = Annotated[bytes, Meta(min_length=16, max_length=16)]  # random, chosen by whoever makes the thing
Count = Annotated[int, Meta(ge=0, le=2**53)]
Money = Annotated[int, Meta(ge=0, le=2**53)]  # micro-credits; a zero-sum mesh never sees a trillion credits
Peer = Annotated[str, Meta(min_length=52, max_length=52, pattern=r"^12D3KooW[1-9A-HJ-NP-Za-km-z]{44}\Z")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]  # not $, which lets a newline pass
Owner = Annotated[str, Meta(min_length=1, max_length=limits.OWNER_CHARS_MAX)]
Address = Annotated[str, Meta(max_length=limits.ADDRESS_CHARS_MAX)]
Detail = Annotated[str, Meta(max_length=limits.DETAIL_CHARS_MAX)]

Privacy = Literal["local", "owner", "mesh"]  # this device; devices of the same owner; any member
Task = Literal[
    "chat",
    "completion",  # of a raw text
    "embedding",  # a vector for each text
    "check",  # how far each claimed token is from what the model would have said
]
LogName = Literal["assembly", "bilateral"]
DeclineReason = Literal[
    "price",
    "memory",
    "model_missing",
    "context",
    "battery",
    "policy",
    "busy",
    "budget",
    "credit",
    "unsettled",
    "not_admitted",
    "data",  # a run: no set of the wanted name
    "cohort",  # a run: fewer together than this owner accepts
]

NO_HASH = bytes(32)  # the `prev` of a log's first entry; the mesh id inside the founding charter's envelope


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A value inside messages; it has no kind of its own."""


class Message(Part, frozen=True, kw_only=True):
    """A message of one kind.

    Class attributes:
        kind: the name it is signed under.
        bytes_max: the size of the whole sealed envelope.
        live: True: taken within ±60 s of its time. False: durable, taken until its ttl (0: for ever).
    """

    kind: ClassVar[str]
    bytes_max: ClassVar[int]
    live: ClassVar[bool] = True


class Entry(Message, frozen=True, kw_only=True):
    """A durable message: one entry of its author's hash-chained log.

    Attributes:
        index: 0, 1, 2… without a gap in this author's log.
        prev: the id of the entry before it; `NO_HASH` for the first.
    """

    live: ClassVar[bool] = False
    log: ClassVar[LogName]

    index: Count
    prev: Hash


class Head(Part, frozen=True, kw_only=True):
    """How far an author's log is known: its newest entry."""

    author: Peer
    log: LogName
    index: Count
    entry: Hash


# --- meeting ------------------------------------------------------------------------------------------------------
class Hello(Message, frozen=True, kw_only=True):
    """The first stream on each connection, in both directions. The mesh id stands in the envelope.

    Attributes:
        boot: random per start of the daemon. A foreign boot under one's own peer id: the key runs twice.
        heads: the logs I hold, up to a bound: what the other may lack.
        yours: the heads of the *receiver's* logs as I know them, so that a restored backup finds its own newest entry.
        advert: my own sealed advert, or empty.
        adverts: a sample of sealed adverts that I know; empty in the hello of whoever dialled.
        addresses: where I can be dialled.
    """

    kind = "hello"
    bytes_max = limits.HELLO_BYTES_MAX

    boot: Id
    heads: Annotated[tuple[Head, ...], Meta(max_length=limits.HEADS_PER_HELLO_MAX)]
    yours: Annotated[tuple[Head, ...], Meta(max_length=2)]
    advert: Annotated[bytes, Meta(max_length=limits.ADVERT_BYTES_MAX)]
    adverts: Annotated[
        tuple[Annotated[bytes, Meta(max_length=limits.ADVERT_BYTES_MAX)], ...],
        Meta(max_length=limits.ADVERTS_PER_HELLO_MAX),
    ]
    addresses: Annotated[tuple[Address, ...], Meta(max_length=limits.ADDRESSES_MAX)]


class ModelOffer(Part, frozen=True, kw_only=True):
    """A model that a device holds. Speeds are measured tokens per 1,000 seconds; 0 before the first measurement.

    Attributes:
        dimensions: of an embedding model's vectors; 0: it is one that writes.
    """

    digest: Hash
    architecture: Annotated[str, Meta(max_length=32)]
    quantisation: Annotated[str, Meta(max_length=16)]
    context_tokens: Count
    tokens_per_ks: Count
    prompt_tokens_per_ks: Count
    adapters: Annotated[
        tuple[Hash, ...], Meta(max_length=limits.ADAPTERS_PER_OFFER_MAX)
    ] = ()  # ready to serve
    dimensions: Annotated[int, Meta(ge=0, le=limits.DIMENSIONS_MAX)] = 0


class Device(Part, frozen=True, kw_only=True):
    """What the device really is, now. Memory in MiB, load in percent of all cores, battery in percent or -1 for none."""

    cores: Count
    memory_mib: Count
    memory_free_mib: Count
    load_percent: Count
    battery_percent: Annotated[int, Meta(ge=-1, le=100)]
    is_charging: bool
    gpu: Annotated[str, Meta(max_length=64)]  # empty: none that llama.cpp sees
    sandbox: Literal["", "S1", "S2", "S3"]


class Advert(Message, frozen=True, kw_only=True):
    """A device's offer: what it holds, how free it is, what it asks. At most one per 10 s; the newest counts.

    Not live but with a ttl of `ADVERT_TTL_S`, since members hand each other's adverts on to newcomers.

    Attributes:
        warm: digests of the system prompts that its caches begin with, `PREFIX_BYTES` each, one after another; only of
            jobs that any member might have read.
    """

    kind = "advert"
    bytes_max = limits.ADVERT_BYTES_MAX
    live = False

    models: Annotated[tuple[ModelOffer, ...], Meta(max_length=limits.MODELS_PER_ADVERT_MAX)]
    slots: Count
    slots_free: Count
    prompt_micro: Money  # asked per prompt token
    completion_micro: Money  # asked per completion token
    device: Device
    heads: Annotated[tuple[Head, ...], Meta(max_length=2)]
    assembly: Hash  # of all assembly logs as far as it knows them: who reads another has something to mend
    addresses: Annotated[tuple[Address, ...], Meta(max_length=4)]
    warm: Annotated[bytes, Meta(max_length=limits.WARM_PREFIXES_MAX * limits.PREFIX_BYTES)] = b""


class AdvertsWanted(Message, frozen=True, kw_only=True):
    """A buyer that knows too few sellers of a model asks a peer for adverts it knows."""

    kind = "adverts_wanted"
    bytes_max = limits.BID_BYTES_MAX

    model: Hash


class Adverts(Message, frozen=True, kw_only=True):
    """The answer: sealed adverts, each still to be verified."""

    kind = "adverts"
    bytes_max = limits.GOSSIP_BYTES_MAX

    adverts: Annotated[
        tuple[Annotated[bytes, Meta(max_length=limits.ADVERT_BYTES_MAX)], ...],
        Meta(max_length=limits.ADVERTS_PER_HELLO_MAX),
    ]


# --- assembly: who belongs, who decides, what names mean --------------------------------------------------------------
class RollEntry(Part, frozen=True, kw_only=True):
    """A voter: the device key that votes, whose it is, and what its vote weighs."""

    key: Key
    owner: Owner
    weight: Annotated[int, Meta(ge=1, le=1_000_000)]


class Charter(Entry, frozen=True, kw_only=True):
    """The constitution. The SHA-256 of version 1 is the mesh id, so its own envelope carries `NO_HASH` there.

    Attributes:
        approvers: the humans' keys: theirs are the approvals and vetoes.
        recovery: keys that may sign the next version when the roll's are lost; kept encrypted, offline.
        pass_percent: a ballot passes at this share of the whole roll's weight.
        machine_vote_ms, human_approval_ms, veto_ms: how long each may take, from the manifest's signed time.
        approvals_min: humans who must approve a patch; 0: the end of the veto window is enough.
    """

    kind = "charter"
    bytes_max = limits.ASSEMBLY_BYTES_MAX
    log = "assembly"

    version: Annotated[int, Meta(ge=1)]
    name: Name
    roll: Annotated[tuple[RollEntry, ...], Meta(min_length=1, max_length=limits.ROLL_MAX)]
    approvers: Annotated[tuple[Key, ...], Meta(min_length=1, max_length=limits.ROLL_MAX)]
    recovery: Annotated[tuple[Key, ...], Meta(max_length=8)]
    pass_percent: Annotated[int, Meta(ge=51, le=100)]
    machine_vote_ms: Count
    human_approval_ms: Count
    veto_ms: Count
    approvals_min: Annotated[int, Meta(ge=0, le=limits.ROLL_MAX)]


class CharterConsent(Entry, frozen=True, kw_only=True):
    """A voter of the charter in force, of the proposed one, or a recovery key, agrees to the next charter.

    Attributes:
        charter: the id of the proposed charter's entry.
        version: its version, so that two consents prove a contradiction by themselves.
    """

    kind = "charter_consent"
    bytes_max = limits.BID_BYTES_MAX
    log = "assembly"

    charter: Hash
    version: Annotated[int, Meta(ge=2)]


class Invitation(Message, frozen=True, kw_only=True):
    """A roll member's word that whoever holds the one-use key may join. Travels out of band, inside an invite text.

    The issuer alone counts its uses, so the joiner has to reach the issuer.
    """

    kind = "invitation"
    bytes_max = limits.MARKET_BYTES_MAX
    live = False

    invitation_id: Id
    key: Key  # the one-use key's public half
    uses: Annotated[int, Meta(ge=1, le=1_000)]
    owner: Owner
    credit_line_micro: Money
    expires_at: Count
    addresses: Annotated[tuple[Address, ...], Meta(min_length=1, max_length=limits.ADDRESSES_MAX)]


class JoinRequest(Message, frozen=True, kw_only=True):
    """The joiner's half: the invitation, and its peer id signed with the one-use key."""

    kind = "join_request"
    bytes_max = 2 * limits.MARKET_BYTES_MAX

    invitation: Annotated[bytes, Meta(max_length=limits.MARKET_BYTES_MAX)]
    proof: Signature


class Refusal(Message, frozen=True, kw_only=True):
    """No, and why; for admission and for streams that steer nothing further."""

    kind = "refusal"
    bytes_max = limits.MARKET_BYTES_MAX

    reason: Annotated[str, Meta(max_length=32)]
    detail: Detail


class Admitted(Entry, frozen=True, kw_only=True):
    """A roll member admits a device. From here on it may buy, sell and train."""

    kind = "admitted"
    bytes_max = limits.MARKET_BYTES_MAX
    log = "assembly"

    peer: Peer
    owner: Owner
    credit_line_micro: Money
    invitation_id: Id


class Card(Entry, frozen=True, kw_only=True):
    """A roll member binds a name to a model's digest. The newest card of a name holds."""

    kind = "card"
    bytes_max = limits.BID_BYTES_MAX
    log = "assembly"

    name: Name
    model: Hash


class Revocation(Entry, frozen=True, kw_only=True):
    """A roll member bars a device. It stays barred; its owner rejoins with a new key."""

    kind = "revocation"
    bytes_max = limits.MARKET_BYTES_MAX
    log = "assembly"

    peer: Peer
    reason: Detail


class Evidence(Entry, frozen=True, kw_only=True):
    """Two sealed envelopes of one key that cannot both be honest. Anybody can check them; the key is barred."""

    kind = "evidence"
    bytes_max = limits.GOSSIP_BYTES_MAX
    log = "assembly"

    first: Annotated[bytes, Meta(max_length=limits.MANIFEST_BYTES_MAX)]
    second: Annotated[bytes, Meta(max_length=limits.MANIFEST_BYTES_MAX)]


# --- lines and patches: what a model is judged by, what it shall become, who agrees ------------------------------------
class Line(Entry, frozen=True, kw_only=True):
    """A roll member gives a named model its public sets: what its patches are judged by, and what they must not forget.

    The newest line of a name holds. A set is a blob: JSON lines of `{"domain", "prompt", "response"}`.

    Attributes:
        name: the model's, and the line's.
        base: the GGUF that every patch of the line adapts; it holds the tokenizer too.
        evaluation: the blob of questions that voters ask.
        replay: the blob of examples that trainers mix in, so that a patch does not forget; `NO_HASH`: none.
    """

    kind = "line"
    bytes_max = limits.BID_BYTES_MAX
    log = "assembly"

    name: Name
    base: Hash
    evaluation: Hash
    evaluation_bytes: Annotated[int, Meta(ge=1, le=limits.BLOB_BYTES_MAX)]
    replay: Hash
    replay_bytes: Annotated[int, Meta(ge=0, le=limits.BLOB_BYTES_MAX)]


class Score(Part, frozen=True, kw_only=True):
    """How a model did in one domain of an evaluation set, answering greedily.

    Attributes:
        right: answers that match to the letter, of `total`.
        loss_milli: mean negative log-likelihood of the right answers' tokens, in thousandths of a nat.
    """

    domain: Name
    right: Count
    total: Annotated[int, Meta(ge=1, le=limits.EVALUATION_SAMPLES_MAX)]
    loss_milli: Count


class LoraShape(Part, frozen=True, kw_only=True):
    """The form of an adapter."""

    rank: Annotated[int, Meta(ge=1, le=limits.RANK_MAX)]
    alpha: Annotated[int, Meta(ge=1, le=8 * limits.RANK_MAX)]
    targets: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=16)]  # as in GGUF: attn_q, ffn_up…


class Contribution(Part, frozen=True, kw_only=True):
    """What one member of a cohort gave to a run, and spent on it."""

    peer: Peer
    samples: Count
    rounds: Count
    epsilon_milli: Annotated[int, Meta(ge=-1, le=2**53)]  # of this run; -1: without differential privacy


class Manifest(Entry, frozen=True, kw_only=True):
    """A proposal: this adapter shall be version N of that line. Any member may make one, four a day.

    Attributes:
        version: above the line's ratified version; see `Lines.next_version`.
        parent: the id of the ratified manifest that it follows; `NO_HASH`: the first.
        adapter: digest of the GGUF adapter; `NO_HASH`: back to the bare base.
        rolls_back_to: the version whose adapter it brings back; 0: it is no rollback.
        run: what made it; sixteen zero bytes: nothing did.
        before, after: on every domain of the evaluation set, with the parent's adapter and with this one.
        expires_at: from then on it is not loaded any more unless it was ratified before.
    """

    kind = "manifest"
    bytes_max = limits.MANIFEST_BYTES_MAX
    log = "assembly"

    line: Name
    version: Annotated[int, Meta(ge=1, le=2**31)]
    parent: Hash
    base: Hash
    adapter: Hash
    adapter_bytes: Annotated[int, Meta(ge=0, le=limits.BLOB_BYTES_MAX)]
    shape: LoraShape | None
    rolls_back_to: Count
    run: Id
    rounds: Count
    cohort: Annotated[tuple[Contribution, ...], Meta(max_length=limits.COHORT_MAX)]
    evaluation: Hash
    before: Annotated[tuple[Score, ...], Meta(max_length=limits.DOMAINS_MAX)]
    after: Annotated[tuple[Score, ...], Meta(max_length=limits.DOMAINS_MAX)]
    expires_at: Count
    reason: Detail


class Vote(Entry, frozen=True, kw_only=True):
    """A roll member's word on a manifest, after its own evaluation. Two different yes for one (line, version) bar it.

    Attributes:
        line, version: as in the manifest, so that two votes prove a contradiction by themselves.
        scores: of the line's public set, as this voter measured them with the adapter.
        private: whether its own held-out samples pass; exact scores of private data would leak them.
    """

    kind = "vote"
    bytes_max = limits.VOTE_BYTES_MAX
    log = "assembly"

    manifest: Hash
    line: Name
    version: Annotated[int, Meta(ge=1, le=2**31)]
    is_yes: bool
    scores: Annotated[tuple[Score, ...], Meta(max_length=limits.DOMAINS_MAX)]
    private: Literal["passed", "failed", "none"]
    reason: Detail


class Approval(Entry, frozen=True, kw_only=True):
    """A human says yes. Signed with a human key of the charter, whose log it stands in; no daemon holds that key."""

    kind = "approval"
    bytes_max = limits.BID_BYTES_MAX
    log = "assembly"

    manifest: Hash


class Veto(Entry, frozen=True, kw_only=True):
    """A human says no, within the charter's veto window. It unloads the patch even after it was loaded."""

    kind = "veto"
    bytes_max = limits.BID_BYTES_MAX
    log = "assembly"

    manifest: Hash
    reason: Detail


class Withdrawal(Entry, frozen=True, kw_only=True):
    """A human bars an adapter for ever, at any time: every device unloads it and falls back to the version before."""

    kind = "withdrawal"
    bytes_max = limits.BID_BYTES_MAX
    log = "assembly"

    adapter: Hash
    reason: Detail


# --- sync ---------------------------------------------------------------------------------------------------------
class EntriesWanted(Message, frozen=True, kw_only=True):
    """Send the entries of this author's log from `start` on. Assembly logs to members; bilateral ones to whom they bind."""

    kind = "entries_wanted"
    bytes_max = limits.BID_BYTES_MAX

    author: Peer
    log: LogName
    start: Count


class Entries(Message, frozen=True, kw_only=True):
    """Sealed entries in the order of their indexes; empty: that was all."""

    kind = "entries"
    bytes_max = limits.ENTRIES_BYTES_MAX

    entries: Annotated[
        tuple[Annotated[bytes, Meta(max_length=limits.GOSSIP_BYTES_MAX)], ...],
        Meta(max_length=limits.ENTRIES_PER_ANSWER_MAX),
    ]


# --- a chat -------------------------------------------------------------------------------------------------------
class Request(Message, frozen=True, kw_only=True):
    """What is wanted and on which terms, without the prompt. Opens the job stream to each seller asked.

    Attributes:
        job_id: the client's request, through all its attempts.
        attempt: 1, 2, …; each names one award at most.
        prompt_tokens: the buyer's estimate; it need not hold the tokenizer.
        completion_tokens_max: the cap; the hold is prompt + cap.
        total_micro_max: the reserve: a dearer bid is declined by the seller itself (`price`).
        session: a digest of the client's session, or `NO_HASH`: sellers with its cache warm are the better choice.
        task: what is to be done; one that only reads (`embedding`, `check`) asks for no price per completion token.
        prefix: digest of the system prompt that the chat begins with; empty: none.
    """

    kind = "request"
    bytes_max = limits.MARKET_BYTES_MAX

    job_id: Id
    attempt: Annotated[int, Meta(ge=1, le=limits.ATTEMPTS_MAX)]
    model: Hash
    adapter: Hash  # `NO_HASH`: none
    prompt_tokens: Count
    completion_tokens_max: Count
    total_micro_max: Money
    privacy: Privacy
    session: Hash
    head: Head | None  # my bilateral log's, so that the seller knows what it has not seen of my debts
    task: Task = "chat"
    prefix: Annotated[bytes, Meta(max_length=limits.PREFIX_BYTES)] = b""


class Bid(Message, frozen=True, kw_only=True):
    """A price, not a slot. First price, sealed: the winner is paid what it bid."""

    kind = "bid"
    bytes_max = limits.BID_BYTES_MAX

    request: Hash  # the request's id: the hash of its content
    prompt_micro: Money  # per prompt token
    completion_micro: Money  # per completion token
    ttft_ms: Count  # expected, from measured speeds at the present load
    tokens_per_ks: Count


class Decline(Message, frozen=True, kw_only=True):
    """No, with a signed reason: "why not me" always has an answer."""

    kind = "decline"
    bytes_max = limits.MARKET_BYTES_MAX

    request: Hash
    reason: DeclineReason
    detail: Detail


class Award(Entry, frozen=True, kw_only=True):
    """The buyer's choice, durable before it is sent. It opens a lease that later jobs of the session may use.

    Attributes:
        hold_micro: what all receipts under this award may come to.
        lease_ms: it ends this long after its last job; 0: this job only.
    """

    kind = "award"
    bytes_max = limits.AWARD_BYTES_MAX
    log = "bilateral"

    request: Hash
    bid: Hash
    job_id: Id
    attempt: Annotated[int, Meta(ge=1, le=limits.ATTEMPTS_MAX)]
    seller: Peer
    model: Hash
    adapter: Hash
    hold_micro: Money
    prompt_micro: Money
    completion_micro: Money
    lease_ms: Count
    session: Hash


class Accept(Entry, frozen=True, kw_only=True):
    """The seller has a slot and takes the award, durable before it is sent."""

    kind = "accept"
    bytes_max = limits.BID_BYTES_MAX
    log = "bilateral"

    award: Hash
    buyer: Peer
    job_id: Id
    attempt: Annotated[int, Meta(ge=1, le=limits.ATTEMPTS_MAX)]


class SamplingTerms(Part, frozen=True, kw_only=True):
    """How the next token is drawn; `_ppm` is parts per million.

    Attributes:
        logit_bias: (token id, thousandths added to its logit).
        schema, grammar: what the whole text must be: a JSON schema, or a grammar in llama.cpp's GBNF; one of them at most.
        logprobs: say how likely each token was, and the `top_logprobs` likeliest ones at its place.
    """

    temperature_ppm: Annotated[int, Meta(ge=0, le=2_000_000)] = 0
    top_p_ppm: Annotated[int, Meta(ge=0, le=1_000_000)] = 1_000_000
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    min_p_ppm: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    repeat_penalty_ppm: Annotated[int, Meta(ge=0, le=2_000_000)] = 1_000_000
    frequency_penalty_ppm: Annotated[int, Meta(ge=-2_000_000, le=2_000_000)] = 0
    presence_penalty_ppm: Annotated[int, Meta(ge=-2_000_000, le=2_000_000)] = 0
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 0
    logit_bias: Annotated[
        tuple[
            tuple[
                Annotated[int, Meta(ge=0, lt=2**31)],
                Annotated[int, Meta(ge=-limits.LOGIT_BIAS_MILLI_MAX, le=limits.LOGIT_BIAS_MILLI_MAX)],
            ],
            ...,
        ],
        Meta(max_length=limits.LOGIT_BIASES_MAX),
    ] = ()
    schema: Annotated[str, Meta(max_length=limits.CONSTRAINT_CHARS_MAX)] = ""
    grammar: Annotated[str, Meta(max_length=limits.CONSTRAINT_CHARS_MAX)] = ""
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=limits.TOP_LOGPROBS_MAX)] = 0


class Turn(Part, frozen=True, kw_only=True):
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class Work(Message, frozen=True, kw_only=True):
    """The prompt, to the winner only. Under a lease it comes without a new award.

    Attributes:
        award: the id of the award that pays for it.
        turns: the chat; empty for a task without one.
        completion_tokens_max: for a task that only reads: the words of its result.
        received: completion token ids that the client already has from earlier attempts.
        task: as in the request.
        inputs: the raw text to go on from, or the texts to embed; empty for a chat.
        claimed: the completion tokens to check.
        tokens_wanted: the cap that the client named, where it did: if the prompt leaves no room for it, that is an error.
    """

    kind = "work"
    bytes_max = limits.PROMPT_BYTES_MAX

    award: Hash
    job_id: Id
    attempt: Annotated[int, Meta(ge=1, le=limits.ATTEMPTS_MAX)]
    turns: Annotated[tuple[Turn, ...], Meta(max_length=1_024)]
    completion_tokens_max: Count
    sampling: SamplingTerms
    stop: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(max_length=8)]
    received: Annotated[
        tuple[Annotated[int, Meta(ge=0, lt=2**31)], ...], Meta(max_length=limits.RECEIVED_TOKENS_MAX)
    ]
    task: Task = "chat"
    inputs: Annotated[tuple[str, ...], Meta(max_length=limits.INPUTS_MAX)] = ()
    claimed: Annotated[
        tuple[Annotated[int, Meta(ge=0, lt=2**31)], ...], Meta(max_length=limits.RECEIVED_TOKENS_MAX)
    ] = ()
    tokens_wanted: Count = 0


class Cancel(Message, frozen=True, kw_only=True):
    """The client has left: stop, and send the receipt for what was delivered."""

    kind = "cancel"
    bytes_max = limits.BID_BYTES_MAX

    job_id: Id
    attempt: Annotated[int, Meta(ge=1, le=limits.ATTEMPTS_MAX)]


class Receipt(Entry, frozen=True, kw_only=True):
    """What was delivered and what it costs, by the seller. Money moves once the payer has countersigned.

    Its id (the hash of its content) is its idempotency key; at most one per (job, attempt).
    """

    kind = "receipt"
    bytes_max = limits.RECEIPT_BYTES_MAX
    log = "bilateral"

    award: Hash
    job_id: Id
    attempt: Annotated[int, Meta(ge=1, le=limits.ATTEMPTS_MAX)]
    payer: Peer
    payee: Peer
    model: Hash
    adapter: Hash  # `NO_HASH`: none
    sampling: Hash  # of the sampling terms, as in the work
    seed: Count
    prompt: Hash  # of the turns
    output: Hash  # of the delivered token ids, u32 little-endian
    prompt_tokens: Count
    completion_tokens: Count  # delivered in this attempt
    ttft_ms: Count
    duration_ms: Count
    amount_micro: Money


class Countersignature(Entry, frozen=True, kw_only=True):
    """The payer agrees. It carries the receipt itself, so that one entry proves the whole payment to anybody."""

    kind = "countersignature"
    bytes_max = limits.COUNTERSIGNATURE_BYTES_MAX
    log = "bilateral"

    receipt: Annotated[bytes, Meta(max_length=limits.RECEIPT_BYTES_MAX)]


class Income(Entry, frozen=True, kw_only=True):
    """The payee keeps the proof of what it earned, in its own log: the award and the payer's countersignature.

    Who is about to extend it credit asks for that log alone, and sees what it has earned as well as what it owes.
    """

    kind = "income"
    bytes_max = limits.MARKET_BYTES_MAX
    log = "bilateral"

    award: Annotated[bytes, Meta(max_length=limits.AWARD_BYTES_MAX)]
    countersignature: Annotated[bytes, Meta(max_length=limits.COUNTERSIGNATURE_BYTES_MAX)]


class SettlementWanted(Message, frozen=True, kw_only=True):
    """The seller of an attempt whose stream broke asks what the buyer accepted."""

    kind = "settlement_wanted"
    bytes_max = limits.BID_BYTES_MAX

    award: Hash
    job_id: Id
    attempt: Annotated[int, Meta(ge=1, le=limits.ATTEMPTS_MAX)]


class Accepted(Message, frozen=True, kw_only=True):
    """How many tokens of the attempt arrived in order, and their digest: what a receipt may be made out for."""

    kind = "accepted"
    bytes_max = limits.BID_BYTES_MAX

    job_id: Id
    attempt: Annotated[int, Meta(ge=1, le=limits.ATTEMPTS_MAX)]
    completion_tokens: Count
    output: Hash


# --- blobs --------------------------------------------------------------------------------------------------------
class BlobWanted(Message, frozen=True, kw_only=True):
    """Send the bytes of a blob from an offset on. Answered by bare chunks, or by a `Refusal`; see `topics.BLOB`."""

    kind = "blob_wanted"
    bytes_max = limits.BID_BYTES_MAX

    blob: Hash
    offset: Count


class BlobComing(Message, frozen=True, kw_only=True):
    """It is here: this many bytes in all; the chunks from the offset on follow, bare."""

    kind = "blob_coming"
    bytes_max = limits.BID_BYTES_MAX

    size_bytes: Annotated[int, Meta(ge=0, le=limits.BLOB_BYTES_MAX)]


# --- a training run -----------------------------------------------------------------------------------------------
class Recipe(Part, frozen=True, kw_only=True):
    """How every member of a run trains.

    Attributes:
        seed: of the frozen A matrices and of the first B, common to all.
        is_a_frozen: FFA-LoRA: only B is trained and sent, so that averaging is exact.
        steps: of the optimizer in one round.
        batch: samples in one step (expected, where they are drawn by Poisson sampling).
        learning_rate_ppm: at the first round; it falls to a tenth by the last, as a cosine.
        replay_percent: of each batch, from the line's public replay set.
        strategy: a name of `federation/strategy.py`, and its parameters as millionths.
    """

    shape: LoraShape
    seed: Annotated[int, Meta(ge=0, lt=2**32)]
    is_a_frozen: bool
    rounds: Annotated[int, Meta(ge=1, le=limits.ROUNDS_MAX)]
    steps: Annotated[int, Meta(ge=0, le=limits.STEPS_PER_ROUND_MAX)]
    batch: Annotated[int, Meta(ge=1, le=4_096)]
    learning_rate_ppm: Annotated[int, Meta(ge=1, le=1_000_000)]
    replay_percent: Annotated[int, Meta(ge=0, le=90)]
    strategy: Name
    parameters: Annotated[
        tuple[tuple[Name, Annotated[int, Meta(ge=-(2**53), le=2**53)]], ...], Meta(max_length=8)
    ]


class RunAnnouncement(Message, frozen=True, kw_only=True):
    """Who holds data of this name and would train on it? Gossiped, with a ttl; bids go by stream to its author.

    Attributes:
        data: the name under which owners have registered their data.
        start: the blob of the state to begin from; `NO_HASH`: from the seed.
        parent: the run whose checkpoint that is; sixteen zero bytes: none.
        step_micro_max: a dearer bid is not wanted.
    """

    kind = "run_announcement"
    bytes_max = limits.MARKET_BYTES_MAX
    live = False

    run: Id
    line: Name
    base: Hash
    data: Name
    replay: Hash
    replay_bytes: Annotated[int, Meta(ge=0, le=limits.BLOB_BYTES_MAX)]
    start: Hash
    start_bytes: Annotated[int, Meta(ge=0, le=limits.BLOB_BYTES_MAX)]
    parent: Id
    recipe: Recipe
    cohort_min: Annotated[int, Meta(ge=1, le=limits.COHORT_MAX)]
    cohort_max: Annotated[int, Meta(ge=1, le=limits.COHORT_MAX)]
    round_ms: Count
    step_micro_max: Money
    window_ms: Count


class Enlistment(Message, frozen=True, kw_only=True):
    """A sealed bid to take part in a run.

    Attributes:
        announcement: the id of what it answers.
        samples: training records, a bound on its weight in the average.
        step_micro: asked for each step trained.
        steps_per_ks: measured, or 0.
        epsilon_milli: what the whole run would spend of this owner's budget; -1: without differential privacy.
    """

    kind = "enlistment"
    bytes_max = limits.BID_BYTES_MAX

    announcement: Hash
    samples: Annotated[int, Meta(ge=1, le=2**40)]
    step_micro: Money
    steps_per_ks: Count
    epsilon_milli: Annotated[int, Meta(ge=-1, le=2**53)]


class RunOpening(Message, frozen=True, kw_only=True):
    """To each member of the cohort, with its award: the announcement and everybody's enlistment, for it to verify.

    A member counts the others itself: it refuses a cohort that is smaller than its owner allows.
    """

    kind = "run_opening"
    bytes_max = limits.GOSSIP_BYTES_MAX

    run: Id
    announcement: Annotated[bytes, Meta(max_length=limits.MARKET_BYTES_MAX)]
    enlistments: Annotated[
        tuple[Annotated[bytes, Meta(max_length=limits.BID_BYTES_MAX)], ...],
        Meta(min_length=1, max_length=limits.COHORT_MAX),
    ]


class RoundTask(Message, frozen=True, kw_only=True):
    """Train one round. The payload follows in bare chunks: the change since a state that the member has, or all of it.

    Attributes:
        round: 1, 2, …
        since: digest of the state that the payload changes; `NO_HASH`: of the common seed's.
        state: digest of the state that comes out, from which to train.
        left_ms: the coordinator waits this long.
    """

    kind = "round_task"
    bytes_max = limits.BID_BYTES_MAX

    run: Id
    round: Annotated[int, Meta(ge=1, le=limits.ROUNDS_MAX)]
    award: Hash
    since: Hash
    state: Hash
    payload: Hash
    payload_bytes: Annotated[int, Meta(ge=0, le=limits.BLOB_BYTES_MAX)]
    left_ms: Count


class RoundUpdate(Message, frozen=True, kw_only=True):
    """What came of it, as the change to the task's state; bare chunks follow. No figure of private data is told.

    Attributes:
        task: the id of the round task that it answers.
        steps: trained in this round; what is paid for.
        epsilon_milli: spent so far in this run; -1: without differential privacy.
    """

    kind = "round_update"
    bytes_max = limits.BID_BYTES_MAX

    run: Id
    round: Annotated[int, Meta(ge=1, le=limits.ROUNDS_MAX)]
    task: Hash
    payload: Hash
    payload_bytes: Annotated[int, Meta(ge=0, le=limits.BLOB_BYTES_MAX)]
    samples: Annotated[int, Meta(ge=1, le=2**40)]
    steps: Count
    epsilon_milli: Annotated[int, Meta(ge=-1, le=2**53)]


class Spend(Entry, frozen=True, kw_only=True):
    """Privacy spent: in the own log *before* the first step of a round, and never taken back.

    From the raw parameters anybody who holds the log can compose what was spent; a restored backup is exposed by it.

    Attributes:
        source: an opaque digest of the private data set.
        noise_milli: the noise multiplier sigma, in thousandths.
        rate_ppm: the probability with which each record enters a step's batch, in millionths.
    """

    kind = "spend"
    bytes_max = limits.BID_BYTES_MAX
    log = "bilateral"

    source: Hash
    run: Id
    round: Annotated[int, Meta(ge=1, le=limits.ROUNDS_MAX)]
    noise_milli: Annotated[int, Meta(ge=1, le=1_000_000)]
    rate_ppm: Annotated[int, Meta(ge=1, le=1_000_000)]
    steps: Annotated[int, Meta(ge=1, le=limits.STEPS_PER_ROUND_MAX)]


# --- the bare frames of a running job ---------------------------------------------------------------------------------
TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
Contrast = Annotated[int, Meta(ge=-limits.CONTRAST_MILLI_MAX, le=limits.CONTRAST_MILLI_MAX)]


class TokenLogprob(Part, frozen=True, kw_only=True, array_like=True):
    """How likely a token was: its bytes, and minus the natural logarithm of its probability, in millionths."""

    text: Annotated[bytes, Meta(max_length=limits.TOKEN_BYTES_MAX)]
    micronats: Count
    top: Annotated[
        tuple[tuple[Annotated[bytes, Meta(max_length=limits.TOKEN_BYTES_MAX)], Count], ...],
        Meta(max_length=limits.TOP_LOGPROBS_MAX),
    ] = ()  # the likeliest ones at its place, (bytes, micronats), the likeliest first


class TokensFrame(Part, frozen=True, kw_only=True, tag="tokens"):
    """New tokens. `first` is the index of the first of them in the whole completion, so a gap or a repeat shows.

    The result of a task that only reads comes in the same way, as words instead of token ids: coordinates of unit vectors
    as `round((x + 1) * 10^6)`, and gaps in thousandths of a logit.

    Attributes:
        logprobs: one for each id if they were asked for, else none.
        contrasts: one for each id, of an embedding none: by how many thousandths of a logit its token, or the claimed one that
            it is the gap of, was above another one that follows from its place. Checks compare them.
    """

    first: Count
    ids: Annotated[tuple[TokenId, ...], Meta(max_length=512)]
    text: str
    logprobs: Annotated[tuple[TokenLogprob, ...], Meta(max_length=512)] = ()
    contrasts: Annotated[tuple[Contrast, ...], Meta(max_length=512)] = ()


class ProgressFrame(Part, frozen=True, kw_only=True, tag="progress"):
    """Still alive: what is being done, and how far it is."""

    phase: Literal["queued", "loading", "prefill", "decode", "training"]
    done: Count
    total: Count


class FinishedFrame(Part, frozen=True, kw_only=True, tag="finished"):
    """The last of the tokens has been sent; the receipt follows."""

    reason: Literal["stop", "length", "cancelled"]
    text: str
    prompt_tokens: Count
    completion_tokens: Count  # of the whole completion, those of earlier attempts counted in


class FailedFrame(Part, frozen=True, kw_only=True, tag="failed"):
    """The seller cannot go on. `prompt` is the client's fault (400); the others send the buyer to the next seller."""

    reason: Literal["prompt", "engine", "lease", "busy", "refused"]
    detail: Detail


JobFrame = TokensFrame | ProgressFrame | FinishedFrame | FailedFrame

MESSAGES: tuple[type[Message], ...] = (
    Hello,
    Advert,
    AdvertsWanted,
    Adverts,
    Charter,
    CharterConsent,
    Invitation,
    JoinRequest,
    Refusal,
    Admitted,
    Card,
    Revocation,
    Evidence,
    Line,
    Manifest,
    Vote,
    Approval,
    Veto,
    Withdrawal,
    EntriesWanted,
    Entries,
    Request,
    Bid,
    Decline,
    Award,
    Accept,
    Work,
    Cancel,
    Receipt,
    Countersignature,
    Income,
    SettlementWanted,
    Accepted,
    BlobWanted,
    BlobComing,
    RunAnnouncement,
    Enlistment,
    RunOpening,
    RoundTask,
    RoundUpdate,
    Spend,
)
BY_KIND: dict[str, type[Message]] = {message.kind: message for message in MESSAGES}
