"""A chat from the question to the last receipt, as the client, the buyer and the seller see it."""

import msgspec
import pytest
import trio

from node.chat import BadPrompt, UnknownModelName, Unsold
from node.views import BidView
from protocol.messages import Card, Decline
from protocol.topics import JOB
from runtime.echo import ECHO_MODEL, echo_card
from runtime.engine import Digest, FinishReason
from tests.node.world import MAINS, Answer, Daemon, Engine, World, echo_text

QUESTION = "what is an agora?"  # 8 prompt tokens; 6 completion tokens for each of 4 repetitions
ON_BATTERY = msgspec.structs.replace(MAINS, battery_percent=20)


async def reason_of(buyer: Daemon, **request: object) -> list[tuple[str, str]]:
    """Ask in vain; return who declined and why, which must stand in the error and in the job's view alike."""
    with pytest.raises(Unsold) as unsold:
        await buyer.chat(QUESTION, **request)
    told = [(decline.peer_id, decline.reason) for decline in unsold.value.declines]
    job = await buyer.ended_job()
    assert [(each["peer_id"], each["reason"]) for each in job.declines] == told
    assert (job.state, job.attempts[-1].outcome) == ("unsold", "unsold")
    return told


async def test_a_chat_is_bought_from_the_cheapest_seller_and_paid_as_bid(world: World) -> None:
    """First price: 8 prompt tokens at 10 and 24 completion tokens at 30 micro-credits."""
    founder = world.founder
    dear, cheap = await world.add("bob"), await world.add("cat", price_completion_micro=30)
    await world.acquaint(founder, dear, cheap)

    answer = await founder.chat(QUESTION)
    await world.run(1)

    assert answer.text == echo_text(QUESTION)
    assert [started.seller for started in answer.started] == [cheap.peer_id]
    assert answer.finished is not None
    assert (answer.finished.reason, answer.finished.prompt_tokens, answer.finished.completion_tokens) == (
        FinishReason.STOP,
        8,
        24,
    )
    assert list(dear.engine.started) == []
    paid = {founder.peer_id: -800, cheap.peer_id: 800}
    assert founder.accounts() == cheap.accounts() == paid


async def test_the_first_token_costs_one_auction_and_one_way_there_and_back(world: World) -> None:
    """Opening the stream and bidding take two round trips of 20 ms; the award carries the work, so winning costs none."""
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)

    answer = await world.founder.chat(QUESTION)

    auction, to_seller, prefill, token, to_buyer = 0.04, 0.01, 0.008, 0.02, 0.01
    assert answer.first_s == pytest.approx(auction + to_seller + prefill + token + to_buyer, abs=1e-3)


async def test_receipt_and_countersignature_stand_in_both_ledgers(world: World) -> None:
    """Each side can prove the whole payment to anybody, with the other's signature."""
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)

    await world.founder.chat(QUESTION)
    await world.run(1)

    bought, sold = world.founder.node.ledger(), seller.node.ledger()
    assert bought.receipts == sold.receipts
    (receipt,) = bought.receipts
    job = await world.founder.ended_job()
    assert (receipt.job_id, receipt.attempt, receipt.payer, receipt.payee, receipt.amount_micro) == (
        job.job_id,
        1,
        world.founder.peer_id,
        seller.peer_id,
        8 * 10 + 24 * 40,
    )
    (payment,) = seller.node.logbook.ledger.payments()
    assert (payment.receipt.sender, payment.countersignature.sender) == (
        seller.peer_id,
        world.founder.peer_id,
    )
    assert (bought.held_micro, bought.balance_micro, sold.balance_micro) == (0, -1040, 1040)


async def test_the_job_tells_its_whole_story(world: World) -> None:
    """`agora jobs show`: who was asked, each bid and decline, who won, what it cost, how fast it was."""
    founder = world.founder
    cheap, dear = await world.add("bob"), await world.add("cat", price_completion_micro=60)
    flat = await world.add("dan", device=ON_BATTERY)
    await world.acquaint(founder, cheap, dear, flat)

    await founder.chat(QUESTION)

    job = await founder.ended_job()
    (attempt,) = job.attempts
    assert (job.state, job.model, job.seller, job.attempt) == ("settled", "echo@00000000", cheap.peer_id, 1)
    assert (job.prompt_tokens, job.completion_tokens, job.price_micro) == (8, 24, 1040)
    assert job.ttft_s == pytest.approx(0.088, abs=1e-3)
    assert job.tokens_per_s == pytest.approx(50, rel=0.2)
    assert set(attempt.asked) == {cheap.peer_id, dear.peer_id, flat.peer_id}
    total = 21 * 10 + 1024 * 40  # 5 tokens of text and 8 around each of two places, and the default cap
    assert sorted(attempt.bids, key=lambda bid: bid.total_micro) == [
        BidView(
            peer_id=seller.peer_id,
            prompt_micro=10,
            completion_micro=price,
            total_micro=21 * 10 + 1024 * price,
            ttft_ms=21,
            tokens_per_s=50.0,
            after_ms=pytest.approx(40, abs=1),
            is_winner=seller is cheap,
        )
        for seller, price in ((cheap, 40), (dear, 60))
    ]
    assert min(bid.total_micro for bid in attempt.bids) == total
    assert attempt.declines == [
        {"peer_id": flat.peer_id, "reason": "battery", "detail": "20 %, at least 30 % wanted"}
    ]
    assert (attempt.outcome, attempt.reason, attempt.is_lease, attempt.tokens) == (
        "settled",
        "stop",
        False,
        24,
    )
    assert job.receipts == [attempt.receipt_id] == [founder.node.ledger().receipts[0].receipt_id]
    assert founder.node.job(job.job_id[:8]) == job


async def test_the_own_engine_is_used_first_and_costs_nothing(world: World) -> None:
    """No auction, no receipt, nothing on any log: the device is its owner's."""
    other = await world.add("bob", price_prompt_micro=0, price_completion_micro=0)
    own = await world.add("cat")
    await world.acquaint(own, other)

    answer = await own.chat(QUESTION)

    assert (answer.text, answer.started[0].seller) == (echo_text(QUESTION), own.peer_id)
    job = await own.ended_job()
    assert (job.state, job.attempts[0].asked) == ("settled", [])
    assert own.accounts() == {}
    assert list(other.engine.started) == []


async def test_an_own_engine_without_a_free_slot_goes_to_market(world: World) -> None:
    other, own = await world.add("bob"), await world.add("cat")
    await world.acquaint(own, other)
    answers: list[Answer] = []

    async def ask() -> None:
        answers.append(await own.chat(QUESTION))

    async with trio.open_nursery() as both:
        both.start_soon(ask)
        await world.run(0.1)
        both.start_soon(ask)

    assert [answer.started[0].seller for answer in answers] == [own.peer_id, other.peer_id]
    assert [answer.text for answer in answers] == [echo_text(QUESTION)] * 2


# --- why not me -------------------------------------------------------------------------------------------------------
async def test_a_flat_battery_declines(world: World) -> None:
    seller = await world.add("bob", device=ON_BATTERY)
    await world.acquaint(world.founder, seller)

    assert await reason_of(world.founder) == [(seller.peer_id, "battery")]


async def test_a_busy_seller_declines(world: World) -> None:
    """A bid promises a price, not a slot, yet one without a free slot does not even bid."""
    seller, other = await world.add("bob"), await world.add("cat", engine=Engine(seconds_per_token=1))
    await world.acquaint(world.founder, other, seller)
    await seller.kill()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.founder.chat, "a long answer")
        await world.run(2)

        told = await reason_of(world.founder)

        assert (other.peer_id, "busy") in told
        nursery.cancel_scope.cancel()


async def test_a_seller_whose_reserve_is_passed_declines(world: World) -> None:
    """The buyer's own limit travels as the request's reserve, so a dearer seller declines by itself."""
    await world.found_again(pay_prompt_micro_max=10, pay_completion_micro_max=39)
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)

    assert await reason_of(world.founder) == [(seller.peer_id, "price")]


async def test_a_seller_that_no_longer_holds_the_model_declines(world: World) -> None:
    """An advert is minutes old; the answer is what counts."""
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)
    seller.engine._cards = {}

    assert await reason_of(world.founder) == [(seller.peer_id, "model_missing")]


async def test_a_prompt_over_every_context_is_the_clients_fault(world: World) -> None:
    seller = await world.add("bob", engine=Engine(cards=(echo_card(context_tokens=64),)))
    await world.acquaint(world.founder, seller)

    with pytest.raises(BadPrompt, match="does not fit any seller's context"):
        await world.founder.chat("x" * 1_000)

    job = await world.founder.ended_job()
    assert (job.state, [each["reason"] for each in job.declines]) == ("failed", ["context"])


async def test_a_short_context_shortens_the_cap_not_the_chance(world: World) -> None:
    """1,024 tokens are the default cap; a model with room for fewer is asked for fewer."""
    seller = await world.add("bob", engine=Engine(cards=(echo_card(context_tokens=64),), repetitions=None))
    await world.acquaint(world.founder, seller)

    answer = await world.founder.chat("hi")

    assert answer.finished is not None
    assert answer.finished.reason is FinishReason.LENGTH
    assert answer.tokens == 64 - 16  # what the estimate for the prompt leaves


async def test_a_seller_that_has_heard_of_more_debt_declines_for_credit(world: World) -> None:
    """The buyer's restart voids its holds at home; a seller keeps one for as long as its lease may last."""
    buyer = await world.add("cat", engine=Engine(cards=(echo_card(Digest(b"o" * 32)),)), credit_micro=60_000)
    seller = await world.add("bob")
    await world.acquaint(buyer, seller)
    await buyer.chat(QUESTION, model="@" + ECHO_MODEL.hex(), session=b"s" * 32)
    await buyer.restart()
    await world.acquaint(buyer, seller)

    told = await reason_of(buyer, model="@" + ECHO_MODEL.hex())

    assert told == [(seller.peer_id, "credit")]


async def test_a_stranger_is_declined_before_it_learns_anything(world: World) -> None:
    seller = await world.add("bob")
    stranger = await world.puppet("eve", is_admitted=False)
    await stranger.mesh.dial(seller.address)

    _, _, answer = await stranger.ask(seller)

    assert isinstance(answer.message, Decline)
    assert (answer.message.reason, answer.message.detail) == (
        "not_admitted",
        "the buyer is not a member here",
    )


async def test_a_seller_on_a_full_disk_takes_no_work(world: World) -> None:
    """What it signs it could not keep."""
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)
    await seller.disk.fill()

    assert await reason_of(world.founder) == [(seller.peer_id, "memory")]
    assert "the disk is full: no new work is taken" in seller.node.status().warnings


async def test_an_unknown_model_names_the_known_ones(world: World) -> None:
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)
    await world.founder.node.publish_model(ECHO_MODEL.hex()[:8], "parrot")

    with pytest.raises(UnknownModelName) as unknown:
        await world.founder.chat(QUESTION, model="llama")

    assert unknown.value.known == ("parrot",)
    assert str(unknown.value) == "no model 'llama' on this mesh; it has: parrot"
    assert world.founder.node.jobs() == []


async def test_a_published_name_means_the_same_for_everybody(world: World) -> None:
    """A card of the roll is gossiped; the buyer asks for the digest behind it."""
    seller, buyer = await world.add("bob"), await world.add("cat")
    await world.acquaint(world.founder, seller, buyer)

    await world.founder.node.publish_model(ECHO_MODEL.hex()[:8], "parrot")
    await world.run(1)

    assert [daemon.node.names.name(ECHO_MODEL) for daemon in world.daemons.values()] == ["parrot"] * 3
    answer = await buyer.chat(QUESTION, model="parrot")
    assert answer.started[0].model == "parrot"
    assert seller.node.logbook.assembly.names() == {"parrot": ECHO_MODEL}
    cards = seller.node.logbook.assembly.entries_after(world.founder.peer_id, -1)
    assert sum(isinstance(entry.message, Card) for entry in cards) == 1


# --- privacy ----------------------------------------------------------------------------------------------------------
async def test_a_local_chat_never_leaves_the_device(world: World) -> None:
    seller = await world.add("bob", owner="ann")
    await world.acquaint(world.founder, seller)

    with pytest.raises(Unsold, match="privacy 'local' lets nobody else answer"):
        await world.founder.chat(QUESTION, privacy="local")

    assert seller.events("bid_sent") == []
    assert seller.events("declined") == []


async def test_an_owners_chat_goes_to_the_owners_devices_alone(world: World) -> None:
    """A stranger's lower price is no reason: the winner reads the prompt."""
    own = await world.add("bob", owner="ann")
    foreign = await world.add("cat", price_prompt_micro=1, price_completion_micro=1)
    await world.acquaint(world.founder, own, foreign)

    answer = await world.founder.chat(QUESTION, privacy="owner")

    assert answer.started[0].seller == own.peer_id
    assert foreign.events("bid_sent") == foreign.events("declined") == []


async def test_an_owners_chat_fails_rather_than_fail_over_to_a_stranger(world: World) -> None:
    own, foreign = await world.add("bob", owner="ann"), await world.add("cat")
    await world.acquaint(world.founder, own, foreign)
    own.engine.die_after = 3

    with pytest.raises(Unsold):
        await world.founder.chat(QUESTION, privacy="owner")

    assert foreign.events("bid_sent") == foreign.events("declined") == []


async def test_nobody_of_the_owners_devices_is_named_as_the_reason(world: World) -> None:
    """The line says what would help: the other owners' devices, if they may read it."""
    foreign = await world.add("bob")
    await world.acquaint(world.founder, foreign)

    with pytest.raises(
        Unsold, match="1 of other owners do: ask with privacy 'mesh' if they may read the prompt"
    ):
        await world.founder.chat(QUESTION, privacy="owner")

    assert (await world.founder.ended_job()).attempts[-1].outcome == "unsold"


async def test_a_seller_refuses_a_strangers_owner_private_request(world: World) -> None:
    """Whoever sent it made a mistake; the seller says so instead of reading the prompt."""
    seller = await world.add("bob")
    buyer = await world.puppet("cat")
    await buyer.meet(seller)

    _, _, answer = await buyer.ask(seller, privacy="owner")

    assert isinstance(answer.message, Decline)
    assert answer.message.reason == "policy"


# --- money ------------------------------------------------------------------------------------------------------------
async def test_the_owners_budget_of_a_job_is_kept(world: World) -> None:
    """The hold counts, not the hope that the answer will be short: 21 * 10 + 1,024 * 40."""
    await world.found_again(budget_job_micro=41_169)
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)

    told = await reason_of(world.founder)

    assert told == [(world.founder.peer_id, "budget")]
    assert world.founder.disk.kinds().count("entry") == 1  # an admission: no award was written
    assert world.founder.node.ledger().held_micro == 0
    await world.founder.chat(QUESTION, tokens_max=1_023)
    assert (await world.founder.ended_job()).state == "settled"


async def test_the_owners_budget_of_a_day_is_kept_across_jobs(world: World) -> None:
    await world.found_again(budget_day_micro=42_000)
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)

    await world.founder.chat(QUESTION)

    assert await reason_of(world.founder) == [(world.founder.peer_id, "budget")]


async def test_two_jobs_at_once_cannot_spend_the_same_credit(world: World) -> None:
    """Each alone fits into the line of 60,000; both holds together (41,170 each) do not."""
    buyer = await world.add("dan", engine=Engine(cards=(echo_card(Digest(b"o" * 32)),)), credit_micro=60_000)
    sellers = [await world.add(name) for name in ("bob", "cat")]
    await world.acquaint(buyer, *sellers)
    ends: list[str] = []
    lowest = 0

    async def ask() -> None:
        try:
            await buyer.chat(QUESTION, model="@" + ECHO_MODEL.hex())
            ends.append("settled")
        except Unsold as unsold:
            ends.append(unsold.declines[0].reason)

    async with trio.open_nursery() as both:
        both.start_soon(ask)
        both.start_soon(ask)
        for _ in range(50):
            ledger = buyer.node.ledger()
            lowest = min(lowest, ledger.balance_micro - ledger.held_micro)
            await world.run(0.01)

    assert sorted(ends) == ["credit", "settled"]
    assert -60_000 <= lowest < -41_000


async def test_an_unsold_job_leaves_no_hold_and_no_stream_behind(world: World) -> None:
    """Over the budget after the auction: the winner must not wait for an award that will not come."""
    await world.found_again(budget_job_micro=1)
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)

    await reason_of(world.founder)
    await world.run(1)

    connection = world.network.connection(world.founder.peer_id, seller.peer_id)
    assert connection is not None
    assert [
        stream for stream in connection.open_streams if not stream.is_over and stream._protocol is JOB
    ] == []


async def test_quotes_ask_everybody_and_award_nothing(world: World) -> None:
    cheap, dear = await world.add("bob"), await world.add("cat", price_completion_micro=60)
    await world.acquaint(world.founder, cheap, dear)
    before = world.founder.disk.kinds()

    quotes = await world.founder.node.quotes("auto", 100, 50)
    await world.run(6)

    assert {bid.peer_id: bid.total_micro for bid in quotes.bids} == {
        cheap.peer_id: 3_000,
        dear.peer_id: 4_000,
    }
    assert quotes.outcome == "quoted"
    assert world.founder.disk.kinds() == before
    assert cheap.events("award_accepted") == []


async def test_when_everybody_asked_is_gone_the_others_are_asked(world: World) -> None:
    """Adverts are minutes old: eight laptops may have been closed since, and the ninth would still answer."""
    cheap = [await world.add(f"cheap{number}", price_completion_micro=1) for number in range(8)]
    dear = await world.add("dear", price_completion_micro=80)
    await world.acquaint(world.founder, *cheap, dear)
    for seller in cheap:
        await seller.kill()

    answer = await world.founder.chat("hello")

    assert answer.text == "hello " * 4
    job = await world.founder.ended_job()
    assert job.seller == dear.peer_id
    assert len(job.attempts) == 1
