"""The rule tests catch what they are for: small faults of the rules of promises, each with the test that notices it.

What breaks between devices is planted in worlds (`tests/node/simulation/*_bugs.py`); these show without one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest

from tests.marketplace import test_auction, test_bidding, test_reputation, test_room, test_warmth
from tests.node.simulation.planted_bugs import Fault, fault


@dataclass(frozen=True)
class PlantedFault:
    """What is wrong, the words of it, and the test that must fail."""

    name: str
    faults: tuple[Fault]
    noticed_by: Callable[[], None]


FAULTS = (
    PlantedFault(
        "busy-ignored",
        fault("marketplace.room:Room.why_busy", ("if self.wait_ms > WAIT_MS_MAX:", "if False:")),
        test_room.test_a_burst_is_not_promised_one_slot_many_times_over,
    ),
    PlantedFault(
        "queue-without-end",
        fault("marketplace.room:Room.why_busy", ("if self.queue_free <= 0:", "if False:")),
        test_room.test_a_queue_is_never_promised_beyond_its_end,
    ),
    PlantedFault(
        "wait-left-out-of-the-bid",
        fault("marketplace.bidding:expected_ttft_ms", ("state.load_ms + state.wait_ms", "state.load_ms")),
        test_bidding.test_loading_waiting_and_reading_all_come_before_the_first_token,
    ),
    PlantedFault(
        "load-left-out-of-the-bid",
        fault("marketplace.bidding:expected_ttft_ms", ("state.load_ms + state.wait_ms", "state.wait_ms")),
        test_bidding.test_loading_waiting_and_reading_all_come_before_the_first_token,
    ),
    PlantedFault(
        "warm-tokens-read-again",
        fault(
            "marketplace.bidding:expected_ttft_ms",
            ("request.prompt_tokens - state.warm_tokens", "request.prompt_tokens"),
        ),
        partial(test_bidding.test_what_is_warm_is_not_read_again, 60, 80),
    ),
    PlantedFault(
        "a-full-seller-as-cheap-as-a-free-one",
        fault("marketplace.bidding:SellerState.busy_percent", ("100 * used // self.slots", "0")),
        test_bidding.test_a_full_seller_asks_more_than_a_free_one,
    ),
    PlantedFault(
        "what-is-coming-not-counted",
        fault("marketplace.room:Room.beside", ("self.slots_free - jobs", "self.slots_free")),
        test_room.test_what_is_coming_takes_slots_first_and_places_in_the_queue_then,
    ),
    PlantedFault(
        "ties-by-lot-alone",
        fault("marketplace.auction:winner", ("bid.message.ttft_ms or TTFT_UNSAID_MS", "0")),
        test_auction.test_a_tie_goes_to_the_soonest_first_token,
    ),
    PlantedFault(
        "the-better-promise-counts",
        fault("marketplace.reputation:kept_share", ("min(1.0, *shares)", "min(1.0, max(shares))")),
        test_reputation.test_an_honest_speed_does_not_make_good_a_lie_about_the_first_token,
    ),
    PlantedFault(
        "one-slow-answer-counts-as-all",
        fault("marketplace.reputation:Record.kept", ("median(self.promises)", "min(self.promises)")),
        partial(test_reputation.test_two_slow_answers_under_a_burst_do_not_ruin_a_seller, 5),
    ),
    PlantedFault(
        "owners-prompts-told",
        fault("marketplace.warmth:Warmth.told", ("and not key.owner", "")),
        test_warmth.test_a_prompt_of_one_owner_is_told_to_nobody_and_warm_for_its_devices_alone,
    ),
    PlantedFault(
        "a-dead-engines-cache-promised",
        fault("marketplace.warmth:Warmth.forget", ("if entry.model != model", "")),
        partial(test_warmth.test_what_an_engine_lost_is_forgotten, test_warmth.MODEL, 0),
    ),
)


@pytest.mark.parametrize("planted", FAULTS, ids=[each.name for each in FAULTS])
def test_a_planted_fault_is_noticed(planted: PlantedFault, monkeypatch: pytest.MonkeyPatch) -> None:
    planted.noticed_by()
    planted.faults[0].plant(monkeypatch)

    with pytest.raises(AssertionError):
        planted.noticed_by()
