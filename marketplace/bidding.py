"""A seller's answer to a request: a bid, or a decline with the first reason that holds.

The reasons are one table. Whether the buyer belongs comes first, since a stranger should learn nothing else; the rest
stand in the order of `DeclineReason`. (`budget` is missing: it is the buyer's own reason, see `budget.py`.)
"""

from dataclasses import dataclass

from marketplace.pricing import Prices, asked
from protocol.envelope import Sealed
from protocol.messages import Bid, Decline, DeclineReason, Request

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
        tokens_per_ks, prompt_tokens_per_ks: measured, tokens per 1,000 s of one stream; 0: not measured yet.
        balance_micro, held_micro, credit_line_micro: the buyer's account, as far as it is known here.
        unsettled_micro: what the buyer received from this seller and did not countersign.
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

    @property
    def is_on_battery(self) -> bool:
        """Whether it runs on its battery."""
        return self.battery_percent >= 0 and not self.is_charging

    @property
    def spendable_micro(self) -> int:
        """What the buyer can still pay."""
        return self.balance_micro - self.held_micro + self.credit_line_micro


def quote(request: Sealed[Request], terms: SellerTerms, state: SellerState) -> Bid | Decline:
    """Return the seller's answer to a request; it promises a price, not a slot."""
    wanted = request.message
    prices = ask(terms, state)
    total = prices.total_micro(wanted.prompt_tokens, wanted.completion_tokens_max)
    context = wanted.prompt_tokens + wanted.completion_tokens_max
    is_flat = state.is_on_battery and state.battery_percent < terms.battery_percent_min
    checks: tuple[tuple[DeclineReason, bool, str], ...] = (
        # reason          holds when                                    what was found, what was expected
        ("not_admitted", state.buyer_owner is None, "the buyer is not a member here"),
        ("price", total > wanted.total_micro_max, f"{total} asked, at most {wanted.total_micro_max} allowed"),
        ("memory", not state.is_memory_enough, "the model does not fit into free memory"),
        ("model_missing", state.context_tokens is None, "the model is not held"),
        ("model_missing", not state.is_adapter_ready, "the adapter is not ready here"),
        (
            "context",
            context > (state.context_tokens or 0),
            f"{context} tokens, at most {state.context_tokens}",
        ),
        ("battery", is_flat, f"{state.battery_percent} %, at least {terms.battery_percent_min} % wanted"),
        ("policy", not _serves(request, terms, state), f"not for this owner at privacy {wanted.privacy}"),
        ("busy", state.slots_free <= 0, f"{state.slots} slots in use, {state.queued} waiting"),
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
        tokens_per_ks=state.tokens_per_ks,
    )


def ask(terms: SellerTerms, state: SellerState) -> Prices:
    """Return the prices asked of this buyer now."""
    return asked(
        terms.base,
        load_percent=state.load_percent,
        is_on_battery=state.is_on_battery,
        is_same_owner=state.buyer_owner == terms.owner,
        owner_percent=terms.owner_percent,
    )


def expected_ttft_ms(request: Request, state: SellerState) -> int:
    """Return the time to the first token that the measured speeds promise; 0 when not both were measured yet.

    It is the prefill alone: a seller bids only with a slot free.
    """
    if not state.prompt_tokens_per_ks or not state.tokens_per_ks:
        return 0
    # tokens / (tokens per 1,000 s) = thousands of seconds: times 10^6 gives milliseconds
    return -(-request.prompt_tokens * 1_000_000 // state.prompt_tokens_per_ks)


def _serves(request: Sealed[Request], terms: SellerTerms, state: SellerState) -> bool:
    """Whether this buyer and its privacy class may be served here."""
    privacy = request.message.privacy
    if state.buyer_owner == terms.owner:
        return privacy != "local"  # which never leaves the buyer: whoever sent it made a mistake
    return privacy == "mesh"
