"""Stories found by the sweep: what stands still on one's own device must not stand still for ever."""

from dataclasses import replace

import pytest

from node.chat import Unsold
from protocol.limits import LIVE_WINDOW_S, PACE_JUDGED_S, STANDSTILL_S
from runtime.engine import Digest, EngineStatus
from tests.node.world import Engine, World, echo_text


async def test_an_own_engine_that_hangs_is_given_up_and_a_seller_goes_on(world: World) -> None:
    """Sweep, seed 111: the chat ran for ever, and the slot was never free again."""
    ann, bob = await world.add("ann"), await world.add("bob")
    await world.acquaint(world.founder, ann, bob)
    ann.engine.stall_after = 3

    answer = await ann.chat("hi")
    ann.engine.stall_after = None  # before it checks the answer that it has bought

    job = await ann.ended_job()
    assert answer.text == echo_text("hi")
    assert [each.seller for each in job.attempts] == [ann.peer_id, bob.peer_id]
    assert job.attempts[0].reason == f"the engine said nothing for {STANDSTILL_S:.0f} s"
    model = next(iter(ann.engine.models))
    assert ann.engine.status(model).slots_free == 1


async def test_a_local_chat_on_an_engine_that_hangs_is_told_so(world: World) -> None:
    """Sweep, seed 97: nobody else may answer, so the user has to be told."""
    ann = await world.add("ann")
    ann.engine.stall_after = 3

    with pytest.raises(Unsold, match="failed on this device, and privacy 'local' lets nobody else answer"):
        await ann.chat("hi", privacy="local")


async def test_a_clock_that_was_set_back_since_is_no_double(world: World) -> None:
    """Sweep, seed 3: its clock was ahead, it restarted with the right time, and met its own advert of before."""
    bob = await world.add("bob")
    await world.acquaint(world.founder, bob)
    bob.clock.jump(round(0.9 * LIVE_WINDOW_S * 1000))
    ahead = bob.node.wire.seal(bob.node.advertiser.own().message, ttl_ms=180_000)
    bob.clock.jump(round(-0.9 * LIVE_WINDOW_S * 1000))

    await bob.restart()
    await world.acquaint(world.founder, bob)
    bob.node.advertiser.hear(ahead.raw, world.founder.peer_id)

    assert ahead.time_ms > bob.clock.utc_ms()
    assert bob.node.status().warnings == []


class Dripper(Engine):
    """Bids fifty tokens a second and says one in 1.9 s, so that it is never silent for long."""

    def __init__(self) -> None:
        super().__init__(seconds_per_token=1.9)

    def status(self, model: Digest) -> EngineStatus:
        return replace(super().status(model), tokens_per_s=50.0)


async def test_a_seller_that_drips_is_given_up_and_another_goes_on(world: World) -> None:
    """A thousand tokens at that pace would take half an hour, and it would be paid for each."""
    dripper = await world.add("dripper", engine=Dripper(), price_completion_micro=1)
    honest = await world.add("honest")
    await world.acquaint(world.founder, dripper, honest)

    answer = await world.founder.chat("a question of some length, so that there is much to say")

    job = await world.founder.ended_job()
    assert answer.text == echo_text("a question of some length, so that there is much to say")
    assert [each.seller for each in job.attempts] == [dripper.peer_id, honest.peer_id]
    assert job.attempts[0].reason == "far slower than it had bid"
    assert answer.ended_s < 2 * PACE_JUDGED_S
