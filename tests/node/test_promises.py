"""What a bid promises, whom a warm cache brings work, and what is shown and remembered of promised against delivered."""

from typing import Any

import pytest

from marketplace.prefix import prefix_digest, warm_prefixes
from marketplace.room import WAIT_MS_MAX
from node.chat import Unsold
from protocol.messages import NO_HASH, Bid, Turn
from runtime.echo import ECHO_MODEL
from runtime.engine import ChatMessage, Sampling
from runtime.shared_speed import stream_share
from tests.node.world import Daemon, Engine, World, chat_request

SYSTEM = "you are the voice of a heat pump; you answer in one sentence, and you never promise warmth. " * 5
DRAWN = Sampling(
    temperature_ppm=700_000
)  # an answer that nobody can check, so no check runs beside the story
SESSION = b"s" * 32


def prefix_of(words: str = SYSTEM) -> bytes:
    return prefix_digest(ECHO_MODEL, NO_HASH, [Turn(role="system", content=words)])


def conversation(words: str = "how warm is it?", system: str = SYSTEM) -> tuple[ChatMessage, ...]:
    return (ChatMessage("system", system), ChatMessage("user", words))


def warm_of(daemon: Daemon) -> frozenset[bytes]:
    """What its advert tells everybody as of now."""
    return warm_prefixes(daemon.node.advertiser._describe())


async def ask(daemon: Daemon, **changes: Any) -> None:
    await daemon.chat(**{"messages": conversation(), "sampling": DRAWN, **changes})


async def bid_to(world: World, seller: Daemon, name: str = "eve", **wanted: Any) -> Bid:
    """What a seller bids to a puppet."""
    puppet = next((each for each in world.puppets if each.name == name), None) or await world.puppet(name)
    if seller.peer_id not in puppet.mesh.connected:
        await puppet.meet(seller)
    stream, _, answer = await puppet.ask(seller, prompt_tokens=400, **wanted)
    stream.abort()
    assert isinstance(answer.message, Bid)
    return answer.message


def occupy(world: World, buyer: Daemon, count: int, **changes: Any) -> None:
    """Let so many chats begin, each in its own time."""

    async def chat() -> None:
        async for _ in buyer.node.chat(chat_request("so long", sampling=DRAWN, **changes)):
            pass

    for _ in range(count):
        world.nursery.start_soon(chat)


# --- capacity ---------------------------------------------------------------------------------------------------------
async def test_a_full_seller_bids_while_a_slot_is_near_and_keeps_its_word(world: World) -> None:
    """2 s of an answer of 4 s are left: whoever asks now is told so, waits so long, and is answered."""
    founder = world.founder
    seller = await world.add("bob", engine=Engine(seconds_per_token=0.1, slots=1, repetitions=None))
    await world.acquaint(founder, seller)
    occupy(world, founder, 1, tokens_max=40)
    await world.run(2)

    answer = await founder.chat("me too", sampling=DRAWN, tokens_max=5)

    job = next(job for job in founder.node.jobs() if job.completion_tokens == 5)
    (attempt,) = job.attempts
    assert attempt.promised_ttft_ms == pytest.approx(2_000, abs=150)
    assert attempt.ttft_ms == pytest.approx(attempt.promised_ttft_ms, abs=250)
    assert answer.tokens == 5
    await world.run(1)
    assert founder.node.buyer._purchasing._reputation.of(seller.peer_id).promises[-1] == 1.0


async def test_a_slot_that_is_far_is_a_decline_that_says_how_far(world: World) -> None:
    founder = world.founder
    seller = await world.add("bob", engine=Engine(seconds_per_token=0.1, slots=1, repetitions=None))
    await world.acquaint(founder, seller)
    occupy(world, founder, 1, tokens_max=100)
    await world.run(2)

    with pytest.raises(Unsold) as unsold:
        await founder.chat("me too", sampling=DRAWN, tokens_max=5)

    (decline,) = unsold.value.declines
    assert decline.reason == "busy"
    assert decline.detail.startswith("1 slots in use, 0 waiting: free in about 8.")
    assert decline.detail.endswith(f"at most {WAIT_MS_MAX / 1000:.0f} s wanted")


async def test_a_free_seller_wins_before_a_full_one_of_equal_terms(world: World) -> None:
    """The full one asks more, and to its owner's devices, which pay the same, it promises later."""
    founder = world.founder
    busy = await world.add("bob", owner="ann", engine=Engine(seconds_per_token=0.1, repetitions=None))
    await world.acquaint(founder, busy)
    occupy(world, founder, 1, tokens_max=40)
    await world.run(2)
    free = await world.add("cat", owner="ann")
    await world.acquaint(founder, free)

    answer = await founder.chat("me too", sampling=DRAWN, tokens_max=5)

    assert answer.started[0].seller == free.peer_id
    job = next(job for job in founder.node.jobs() if job.completion_tokens == 5)
    bids = {bid.peer_id: bid for bid in job.attempts[0].bids}
    assert bids[busy.peer_id].total_micro == bids[free.peer_id].total_micro
    assert bids[busy.peer_id].ttft_ms > 1_500 > bids[free.peer_id].ttft_ms


async def test_a_bid_promises_the_speed_of_one_more_stream(world: World) -> None:
    seller = await world.add("bob", engine=Engine(seconds_per_token=0.1, slots=4, repetitions=None))
    await world.acquaint(world.founder, seller)
    alone = await bid_to(world, seller)
    occupy(world, world.founder, 2, tokens_max=100)
    await world.run(1)

    third = await bid_to(world, seller)

    assert alone.tokens_per_ks == 10_000
    assert third.tokens_per_ks == int(10_000 * stream_share(3))
    assert third.prompt_micro == 15, "half of its slots are taken"


async def test_a_model_that_is_not_in_memory_is_bid_with_its_load(world: World) -> None:
    seller = await world.add("bob", engine=Engine(load_seconds=3.0))
    await world.acquaint(world.founder, seller)

    cold = await bid_to(world, seller)
    await world.founder.chat("hello", sampling=DRAWN)
    loaded = await bid_to(world, seller)

    assert (cold.ttft_ms, loaded.ttft_ms) == (3_400, 400)
    job = await world.founder.ended_job()
    assert job.attempts[0].ttft_ms == pytest.approx(3_000, abs=100)


async def test_a_lease_waits_for_a_near_slot_as_a_bid_would(world: World) -> None:
    """Its cache is there; an auction would send it to a cold one."""
    founder = world.founder
    seller = await world.add("bob", engine=Engine(seconds_per_token=0.1, slots=1, repetitions=None))
    await world.acquaint(founder, seller)
    await founder.chat("hello", session=SESSION, sampling=DRAWN, tokens_max=10)
    await world.run(1)
    occupy(world, founder, 1, tokens_max=40)
    await world.run(2)

    again = await founder.chat("and now?", session=SESSION, sampling=DRAWN, tokens_max=5)

    assert again.first_s == pytest.approx(2.0, abs=0.4)
    assert len(founder.events("lease_used")) == 1


async def test_a_burst_that_takes_the_last_slot_costs_nobody_its_good_name(world: World) -> None:
    """Twelve are awarded at once what one slot and two places were free for: the others go elsewhere, and hold no grudge."""
    founder = world.founder
    crowded = await world.add(
        "bob", engine=Engine(seconds_per_token=0.05, slots=1, queue_max=2, repetitions=None)
    )
    dear = await world.add("cat", engine=Engine(slots=16), price_completion_micro=60)
    await world.acquaint(founder, crowded, dear)

    occupy(world, founder, 12, tokens_max=20)
    await world.run(30)

    declined = [event for event in crowded.events("award_declined") if event["reason"] == "busy"]
    assert declined, "nobody was turned away: the burst was none"
    assert {job.state for job in founder.node.jobs()} == {"settled"}
    record = founder.node.buyer._purchasing._reputation.of(crowded.peer_id)
    assert record.failed == 0
    assert record.promises.count(0.0) > 0


async def test_the_own_queue_is_better_than_no_answer(world: World) -> None:
    """One device alone, four slots, six questions at once: the last two wait for the first to end, as anybody would expect."""
    alone = await world.add("bob", engine=Engine(seconds_per_token=0.05, slots=4, queue_max=2))

    occupy(world, alone, 6)
    await world.run(30)

    assert [job.state for job in alone.node.jobs()] == ["settled"] * 6
    assert {job.seller for job in alone.node.jobs()} == {alone.peer_id}


async def test_a_queue_that_is_full_takes_nobody_in(world: World) -> None:
    alone = await world.add("bob", engine=Engine(seconds_per_token=0.05, slots=1, queue_max=0))
    occupy(world, alone, 1)
    await world.run(0.1)

    with pytest.raises(Unsold, match="nobody who sells"):
        await alone.chat("me too", sampling=DRAWN)


# --- what is warm -----------------------------------------------------------------------------------------------------
async def test_a_system_prompt_that_was_read_is_advertised_and_counted_off_in_bids(world: World) -> None:
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)
    before = await bid_to(world, seller, prefix=prefix_of())

    await ask(world.founder)

    assert warm_of(seller) == {prefix_of()}
    after = await bid_to(world, seller, prefix=prefix_of())
    other = await bid_to(world, seller, prefix=prefix_of("another one"))
    assert before.ttft_ms == other.ttft_ms == 400
    assert after.ttft_ms < 250


async def test_at_equal_prices_the_warm_seller_wins(world: World) -> None:
    """It answered the first one by lot; from then on it is asked first and promises its first token sooner."""
    founder = world.founder
    sellers = [await world.add(name) for name in ("bob", "cat", "dan")]
    await world.acquaint(founder, *sellers)
    await ask(founder)
    first = await founder.ended_job()

    for number in range(5):
        await world.run(15)  # an advert has come since
        await ask(founder, messages=conversation(f"and on day {number}?"))

    winners = {job.seller for job in founder.node.jobs()}
    assert winners == {first.seller}
    assert (await founder.ended_job()).attempts[0].asked[0] == first.seller


async def test_a_prompt_of_one_owner_is_in_no_advert_and_in_no_strangers_bid(world: World) -> None:
    """An advert of it would tell the whole mesh what two devices of one owner say to each other."""
    seller = await world.add("bob", owner="ann")
    await world.acquaint(world.founder, seller)

    await ask(world.founder, privacy="owner")
    await ask(world.founder, privacy="owner", session=SESSION)

    assert len(seller.engine.started) == 2
    assert warm_of(seller) == frozenset()
    stranger = await bid_to(world, seller, prefix=prefix_of(), session=SESSION)
    assert stranger.ttft_ms == 400
    own = await world.puppet("ann's phone", owner="ann")
    assert (await bid_to(world, seller, own.name, prefix=prefix_of())).ttft_ms < 250


async def test_what_the_own_user_asks_is_told_to_nobody(world: World) -> None:
    """Of class local or any other: it never came over the market."""
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)

    for privacy in ("local", "owner", "mesh"):
        await ask(seller, privacy=privacy)

    assert len(seller.engine.started) == 3
    assert warm_of(seller) == frozenset()


async def test_a_session_is_warm_for_its_own_buyer(world: World) -> None:
    """When its lease is over its cache may still be there; nobody else learns that it is."""
    eve, mallory = await world.puppet("eve"), await world.puppet("mallory")
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)
    await ask(world.founder, session=SESSION)
    (noted,) = [key for key in seller.node.seller._offer._warmth._entries if hasattr(key, "session")]

    bids = [await bid_to(world, seller, each.name, session=SESSION) for each in (eve, mallory)]

    assert [bid.ttft_ms for bid in bids] == [400, 400]
    assert (noted.buyer, noted.session) == (world.founder.peer_id, SESSION)


async def test_what_a_dead_engine_knew_is_not_promised_any_more(world: World) -> None:
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)
    await ask(world.founder)
    assert warm_of(seller) == {prefix_of()}
    seller.engine.die_after = 2

    with pytest.raises(Unsold):
        await ask(world.founder, messages=conversation(system="another one"))

    assert warm_of(seller) == frozenset()
    assert (await bid_to(world, seller, prefix=prefix_of())).ttft_ms == 400


async def test_an_engine_that_died_under_its_own_user_is_cold_for_buyers_too(world: World) -> None:
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)
    await ask(world.founder)
    assert warm_of(seller) == {prefix_of()}
    seller.engine.die_after = 2

    with pytest.raises(Unsold):
        await ask(seller, privacy="local")

    assert warm_of(seller) == frozenset()


async def test_a_model_that_has_left_memory_has_left_no_cache(world: World) -> None:
    seller = await world.add("bob", engine=Engine(load_seconds=1.0))
    await world.acquaint(world.founder, seller)
    await ask(world.founder)
    assert warm_of(seller) == {prefix_of()}

    seller.engine.unload(ECHO_MODEL)

    assert warm_of(seller) == frozenset()
    assert (await bid_to(world, seller, prefix=prefix_of())).ttft_ms == 1_400


# --- what is shown ----------------------------------------------------------------------------------------------------
async def test_a_job_shows_what_was_promised_and_what_came(world: World) -> None:
    seller = await world.add("bob", engine=Engine(seconds_per_token=0.05))
    await world.acquaint(world.founder, seller)

    await ask(world.founder, tokens_max=21)

    job = await world.founder.ended_job()
    (attempt,) = job.attempts
    assert (job.promised_ttft_ms, job.promised_tokens_per_s) == (attempt.promised_ttft_ms, 20.0)
    assert attempt.promised_ttft_ms == attempt.bids[0].ttft_ms > 0
    assert attempt.ttft_ms == pytest.approx(attempt.promised_ttft_ms, abs=100)
    assert attempt.tokens_per_s == pytest.approx(20, rel=0.05)
