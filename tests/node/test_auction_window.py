"""How long a buyer waits for bids: three round trips, and never a third time for a seller that stays silent."""

import pytest
import trio

from protocol.mesh import Stream
from protocol.topics import JOB
from tests.node.puppet import Puppet
from tests.node.world import World, echo_text

QUESTION = "what is an agora?"


async def silent_seller(world: World) -> Puppet:
    """It advertises the lowest price and never answers a request."""
    seller = await world.puppet("eve")
    seller.offer()

    async def say_nothing(stream: Stream) -> None:
        await stream.receive()
        await trio.sleep_forever()

    seller.serve(JOB, say_nothing)
    await seller.meet(world.founder)
    return seller


async def auction_ms(world: World) -> float:
    await world.founder.chat(QUESTION)
    return (await world.founder.ended_job()).attempts[0].auction_ms


async def test_a_silent_seller_costs_the_window_twice_and_then_nothing(world: World) -> None:
    """The window is 3 × 20 ms. It is asked a third time, and not waited for: the honest answer takes 40 ms."""
    silent, honest = await silent_seller(world), await world.add("bob")
    await world.acquaint(world.founder, honest)

    took = [await auction_ms(world) for _ in range(4)]

    assert took == [pytest.approx(60, abs=0.2)] * 2 + [pytest.approx(40, abs=0.2)] * 2
    job = await world.founder.ended_job()
    assert silent.peer_id in job.attempts[0].asked
    assert job.attempts[0].declines == [{"peer_id": silent.peer_id, "reason": "silent", "detail": ""}]


async def test_a_seller_that_answers_again_is_waited_for_again(world: World) -> None:
    """One answer inside its window makes good for the missed ones, even though the auction was over by then."""
    slow, honest = await world.add("cat", price_completion_micro=30), await world.add("bob")
    await world.acquaint(world.founder, slow, honest)
    world.set_latency(world.founder, slow, 0.2)
    world.freeze_round_trips(0.02)
    for _ in range(2):
        await auction_ms(world)
    world.set_latency(
        world.founder, slow, 0.012
    )  # 48 ms to its bid: later than the other's, inside the window
    await world.run(1)  # what was under way arrives first

    third = await world.founder.chat(QUESTION)
    await world.run(1)
    fourth = await world.founder.chat(QUESTION)

    assert third.text == fourth.text == echo_text(QUESTION)
    assert fourth.started[0].seller == slow.peer_id


@pytest.mark.parametrize(
    ("one_way_s", "window_ms"), [(0.001, 50), (0.02, 120), (0.1, 600), (0.3, 1_000)], ids=str
)
async def test_the_window_follows_the_round_trips_within_its_bounds(
    world: World, one_way_s: float, window_ms: float
) -> None:
    """Three times the asked peers' p90, between 50 ms and 1 s."""
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)
    world.set_latency(world.founder, seller, one_way_s)

    await world.founder.node.quotes("auto", 10, 10)
    quotes = await world.founder.node.quotes("auto", 10, 10)

    assert quotes.window_ms == pytest.approx(window_ms)


async def test_an_auction_with_no_bid_in_its_window_waits_a_second_for_one(world: World) -> None:
    """A late bid is better than none."""
    await silent_seller(world)
    late = await world.add("bob")
    await world.acquaint(world.founder, late)
    world.set_latency(world.founder, late, 0.15)
    world.freeze_round_trips(0.02)

    answer = await world.founder.chat(QUESTION)

    assert answer.text == echo_text(QUESTION)
    assert (await world.founder.ended_job()).attempts[0].auction_ms == pytest.approx(600, abs=1)


async def test_nobody_answering_ends_after_a_second(world: World) -> None:
    """And the round trip in which peers are asked whether they know anybody else."""
    silent = await silent_seller(world)
    began = trio.current_time()

    with pytest.raises(Exception, match=r"no seller took the job: 1 declined \(silent\)"):
        await world.founder.chat(QUESTION)

    assert trio.current_time() - began == pytest.approx(1.02, abs=0.01)
    assert [each["peer_id"] for each in (await world.founder.ended_job()).declines] == [silent.peer_id]


async def test_at_most_eight_sellers_are_asked(world: World) -> None:
    """What a chat costs the mesh must not grow with the mesh."""
    sellers = [
        await world.add(name) for name in ("bob", "cat", "dan", "fay", "gil", "hal", "ian", "joe", "kim")
    ]
    await world.acquaint(world.founder, *sellers[:1])
    await world.until(lambda: len(world.founder.node.directory.offers(trio.current_time())) == len(sellers))

    await world.founder.chat(QUESTION)

    assert len((await world.founder.ended_job()).attempts[0].asked) == 8
