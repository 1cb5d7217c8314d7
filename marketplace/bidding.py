"""A seller's answer to a request: a bid, or a decline with the first reason that holds.

The reasons are one table. Whether the buyer belongs comes first, since a stranger should learn nothing else; the rest
stand in the order of `DeclineReason`. (`budget` is missing: it is the buyer's own reason, see `budget.py`.)

A bid promises a price, a time to the first token and a speed, all as things stand now: loading the model, waiting for a
slot, reading what of the prompt is not warm. It promises no slot. A full seller bids too while a slot is near, dearer as
every busy one is, so it wins where nobody is free.
"""

from dataclasses import dataclass, replace

from marketplace.pricing import Prices, asked
from marketplace.prompt import context_wanted, only_reads, unfit
from marketplace.room import Room
from protocol.envelope import Sealed
from protocol.messages import Bid, Decline, DeclineReason, Request, Task

EXPOSURE_MICRO_MAX = 1_000_000  # one credit: a few answers lost to a buyer that does not countersign
BATTERY_PERCENT_MIN = 30  # what a laptop's owner should find left


@dataclass(frozen=True)
class SellerTerms:
    """What the device's owner configured.

    Attributes:
        owner: whose device this is, as its admission says.
        base: prices for an idle device on mains power.
        owner_percent: what the owner's other devices pay of them; 0: nothing.
        battery_percent_min: below it, and not charging, it sells nothing.
        exposure_micro_max: what one buyer may have received without countersigning.
    """

    owner: str
    base: Prices
    owner_percent: int = 100
    battery_percent_min: int = BATTERY_PERCENT_MIN
    exposure_micro_max: int = EXPOSURE_MICRO_MAX


@dataclass(frozen=True)
class SellerState:
    """The device and the buyer, as of now.

    Attributes:
        buyer_owner: whose device the buyer is; None: not admitted, or revoked.
        context_tokens: what the engine runs the model with; None: the model is not held.
        is_adapter_ready: the adapter that is asked for can be served now, or none is asked for.
        is_memory_enough: the model is loaded, or fits.
        battery_percent: -1: no battery.
        load_percent: of all cores.
        tokens_per_ks, prompt_tokens_per_ks: measured, tokens per 1,000 s of one more stream beside those that run; 0: not
            measured yet.
        balance_micro, held_micro, credit_line_micro: the buyer's account, as far as it is known here.
        unsettled_micro: what the buyer received from this seller and did not countersign.
        queue_free: how many more may wait.
        wait_ms: until a slot is free for one more.
        load_ms: until the model is in memory; 0: it is.
        warm_tokens: of this prompt, those that a cache holds; as many as `Request.prompt_tokens` counts them.
        dimensions: of the model's vectors; 0: it writes.
    """

    buyer_owner: str | None
    context_tokens: int | None
    is_adapter_ready: bool
    is_memory_enough: bool
    slots: int
    slots_free: int
    queued: int
    battery_percent: int
    is_charging: bool
    load_percent: int
    tokens_per_ks: int
    prompt_tokens_per_ks: int
    balance_micro: int
    held_micro: int
    credit_line_micro: int
    unsettled_micro: int
    queue_free: int = 0
    wait_ms: int = 0
    load_ms: int = 0
    warm_tokens: int = 0
    dimensions: int = 0

    @property
    def is_on_battery(self) -> bool:
        """Whether it runs on its battery."""
        return self.battery_percent >= 0 and not self.is_charging

    @property
    def spendable_micro(self) -> int:
        """What the buyer can still pay."""
        return self.balance_micro - self.held_micro + self.credit_line_micro

    @property
    def busy_percent(self) -> int:
        """How busy the device is: by its cores, or by its slots where those say more."""
        used = self.slots - max(0, self.slots_free)
        return max(self.load_percent, 100 * used // self.slots if self.slots else 0)


def quote(request: Sealed[Request], terms: SellerTerms, state: SellerState) -> Bid | Decline:
    """Return the seller's answer to a request."""
    wanted = request.message
    prices = ask(terms, state, wanted.task)
    total = prices.total_micro(wanted.prompt_tokens, wanted.completion_tokens_max)
    context = context_wanted(wanted.task, wanted.prompt_tokens, wanted.completion_tokens_max)
    unable = "" if state.context_tokens is None else unfit(wanted.task, state.dimensions)
    busy = Room(state.slots, state.slots_free, state.queued, state.queue_free, state.wait_ms).why_busy
    is_flat = state.is_on_battery and state.battery_percent < terms.battery_percent_min
    checks: tuple[tuple[DeclineReason, bool, str], ...] = (
        # reason          holds when                                    what was found, what was expected
        ("not_admitted", state.buyer_owner is None, "the buyer is not a member here"),
        ("price", total > wanted.total_micro_max, f"{total} asked, at most {wanted.total_micro_max} allowed"),
        ("memory", not state.is_memory_enough, "the model does not fit into free memory"),
        ("model_missing", state.context_tokens is None, "the model is not held"),
        ("model_missing", bool(unable), unable),
        ("model_missing", not state.is_adapter_ready, "the adapter is not ready here"),
        (
            "context",
            context > (state.context_tokens or 0),
            f"{context} tokens, at most {state.context_tokens}",
        ),
        ("battery", is_flat, f"{state.battery_percent} %, at least {terms.battery_percent_min} % wanted"),
        ("policy", not _serves(request, terms, state), f"not for this owner at privacy {wanted.privacy}"),
        ("busy", bool(busy), busy),
        ("credit", total > state.spendable_micro, f"{total} asked, {state.spendable_micro} spendable"),
        (
            "unsettled",
            state.unsettled_micro > terms.exposure_micro_max,
            f"{state.unsettled_micro} not countersigned, at most {terms.exposure_micro_max} allowed",
        ),
    )
    for reason, holds, detail in checks:
        if holds:
            return Decline(request=request.id, reason=reason, detail=detail)
    return Bid(
        request=request.id,
        prompt_micro=prices.prompt_micro,
        completion_micro=prices.completion_micro,
        ttft_ms=expected_ttft_ms(wanted, state),
        # words of a result come all at once, when all is read: there is no speed to keep
        tokens_per_ks=0 if only_reads(wanted.task) else state.tokens_per_ks,
    )


def ask(terms: SellerTerms, state: SellerState, task: Task = "chat") -> Prices:
    """Return the prices asked of this buyer now; a task that only reads costs nothing per completion token."""
    prices = asked(
        terms.base,
        load_percent=state.busy_percent,
        is_on_battery=state.is_on_battery,
        is_same_owner=state.buyer_owner == terms.owner,
        owner_percent=terms.owner_percent,
    )
    return replace(prices, completion_micro=0) if only_reads(task) else prices


def expected_ttft_ms(request: Request, state: SellerState) -> int:
    """Return the time to the first token that the measured speeds promise; 0 when not both were measured yet.

    At least one token is read: the last one's logits are what the answer begins with.
    """
    if not state.prompt_tokens_per_ks or not state.tokens_per_ks:
        return 0
    cold = max(1, request.prompt_tokens - state.warm_tokens)
    # tokens / (tokens per 1,000 s) = thousands of seconds: times 10^6 gives milliseconds
    return state.load_ms + state.wait_ms + -(-cold * 1_000_000 // state.prompt_tokens_per_ks)


def _serves(request: Sealed[Request], terms: SellerTerms, state: SellerState) -> bool:
    """Whether this buyer and its privacy class may be served here."""
    privacy = request.message.privacy
    if state.buyer_owner == terms.owner:
        return privacy != "local"  # which never leaves the buyer: whoever sent it made a mistake
    return privacy == "mesh"
