"""What work costs: from the prices a seller configured to the price it asks now, and from a price to a total.

Everything is integer micro-credits and rounds up, so that a price above zero never becomes free by division. The asked
price never falls when the load rises: a free device is the cheap one, and the auction spreads the work by itself.
Load counts in steps, so that devices with equal terms ask equal prices, and the auction's tie goes to the quicker one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from protocol.messages import Turn

LOAD_MARKUP_PERCENT = (
    100  # a fully loaded device asks twice its base price: about what a second job costs the first
)
LOAD_STEP_PERCENT = 25  # counted in quarters: a percent of noise must not decide an auction between equals
BATTERY_MARKUP_PERCENT = 50  # a charge is worth more than mains power, yet a lone laptop should still sell
BYTES_PER_TOKEN = 3  # of English text; 4 is common
TURN_TOKENS = 8  # what a template puts around each turn
LEASE_JOBS = 8  # requests of a session that one hold pays for: a durable award once in so many turns


@dataclass(frozen=True)
class Prices:
    """Micro-credits per prompt token and per completion token."""

    prompt_micro: int
    completion_micro: int

    def total_micro(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Return what so many tokens come to at these prices."""
        return prompt_tokens * self.prompt_micro + completion_tokens * self.completion_micro


def asked(
    base: Prices,
    *,
    load_percent: int,
    is_on_battery: bool,
    is_same_owner: bool = False,
    owner_percent: int = 100,
) -> Prices:
    """Return the prices a seller asks now.

    Args:
        base: as its owner configured them, for an idle device on mains power.
        load_percent: of all cores, or of all slots; above 100 it counts as 100, and between two steps as the lower one.
        is_on_battery: it runs on its battery and is not being charged.
        is_same_owner: the buyer is a device of the seller's own owner.
        owner_percent: what such a buyer pays of the base price, whatever the load; 0 is free, and only if configured.
    """
    if is_same_owner:
        factor = owner_percent * 100
    else:
        load = min(max(load_percent, 0), 100) // LOAD_STEP_PERCENT * LOAD_STEP_PERCENT
        factor = 100 * 100 + load * LOAD_MARKUP_PERCENT
        if is_on_battery:
            factor += 100 * BATTERY_MARKUP_PERCENT
    return Prices(_scaled(base.prompt_micro, factor), _scaled(base.completion_micro, factor))


def estimated_tokens(turns: Iterable[Turn]) -> int:
    """Return about how many prompt tokens a chat has, for who does not hold the tokenizer; it errs to the dear side."""
    sizes = [len(turn.content.encode()) for turn in turns]
    return sum(sizes) // BYTES_PER_TOKEN + TURN_TOKENS * (len(sizes) + 1)


def reserve_micro(
    most: Prices, *, prompt_tokens: int, completion_tokens_max: int, spendable_micro: int
) -> int:
    """Return a request's reserve: what the buyer pays at most, by its own limit and by what it has.

    Args:
        most: the dearest prices that the buyer accepts.
        prompt_tokens: its estimate.
        completion_tokens_max: the cap.
        spendable_micro: what its account, its credit line and its budget leave.
    """
    return max(0, min(most.total_micro(prompt_tokens, completion_tokens_max), spendable_micro))


def lease_hold_micro(total_micro: int, *, spendable_micro: int, jobs: int = LEASE_JOBS) -> int:
    """Return what to hold for a session: `jobs` requests like its first, or as many as the account allows, at least one.

    Args:
        total_micro: what the winning bid comes to for the first request.
        spendable_micro: what account, credit line and budget leave, this request's own hold not yet taken off.
        jobs: how many requests the lease is meant for; 1 for a request without a session.
    """
    return max(total_micro, min(total_micro * jobs, spendable_micro))


def _scaled(price_micro: int, factor: int) -> int:
    """Return price * factor / 10,000, rounded up."""
    return -(-price_micro * factor // 10_000)
