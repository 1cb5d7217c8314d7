"""When a seller fails in mid-answer: the client sees one unbroken answer, and what it got is paid for, once."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from itertools import pairwise

import pytest
import trio

from node.chat import BadPrompt, ChatDelta, Unsold
from node.views import JobView
from protocol.envelope import encode
from protocol.errors import MeshError
from protocol.mesh import Stream
from protocol.messages import FailedFrame, FinishedFrame, ProgressFrame, Work
from protocol.topics import JOB
from runtime.engine import BadTemplate, Frame, Generation
from tests.node.puppet import Puppet
from tests.node.world import Answer, Daemon, Engine, World, chat_request, echo_ids, echo_text

QUESTION = "what is an agora?"
PROMPT_TOKENS, TOKENS = 8, 24  # in the echo engine's count, with 4 repetitions
Trouble = Callable[[World, Daemon], Awaitable[None]]


async def the_connection_breaks(world: World, seller: Daemon) -> None:
    world.network.disconnect(world.founder.peer_id, seller.peer_id)


async def the_process_is_killed(_world: World, seller: Daemon) -> None:
    await seller.kill()


async def the_process_is_stopped(world: World, seller: Daemon) -> None:
    seller.engine.is_stopped = True
    world.network.suspend(seller.peer_id)


def attempts(job: JobView) -> list[tuple[int, str, str]]:
    return [(each.attempt, each.seller, each.outcome) for each in job.attempts]


def receipts(daemon: Daemon) -> list[tuple[int, str, int]]:
    """The paid attempts that a daemon knows of: number, payee, completion tokens."""
    return sorted(
        (each.attempt, each.payee, each.completion_tokens) for each in daemon.node.ledger().receipts
    )


async def chat_with_trouble(world: World, seller: Daemon, trouble: Trouble, at_token: int = 7) -> Answer:
    """Ask the founder's question, and let the trouble begin once so many tokens have come."""
    answer, since = Answer(), trio.current_time()
    async with aclosing(world.founder.node.chat(chat_request(QUESTION))) as events:
        async for event in events:
            answer.take(event, since)
            if answer.tokens == at_token and isinstance(event, ChatDelta):
                await trouble(world, seller)
    return answer


@pytest.mark.parametrize(
    "trouble",
    [the_connection_breaks, the_process_is_killed, the_process_is_stopped],
    ids=lambda each: each.__name__,
)
async def test_a_lost_sellers_answer_goes_on_at_the_next_without_a_token_lost_or_repeated(
    world: World, trouble: Trouble
) -> None:
    """The successor is given the token ids, and the one that failed is not asked again."""
    first, second = await world.add("bob"), await world.add("cat", price_completion_micro=60)
    await world.acquaint(world.founder, first, second)

    answer = await chat_with_trouble(world, first, trouble)

    assert (answer.text, answer.tokens) == (echo_text(QUESTION), TOKENS)
    assert [started.seller for started in answer.started] == [first.peer_id, second.peer_id]
    (continued,) = second.engine.started
    assert continued.received == echo_ids(QUESTION, len(continued.received))
    assert len(continued.received) >= 7
    job = await world.founder.ended_job()
    assert attempts(job) == [(1, first.peer_id, "failed"), (2, second.peer_id, "settled")]
    assert job.attempts[1].asked == [second.peer_id]
    assert job.attempts[0].tokens + job.attempts[1].tokens == TOKENS


@pytest.mark.parametrize("place", [0, 5, 23])
async def test_an_engine_that_dies_is_replaced_wherever_it_dies(world: World, place: int) -> None:
    """Before the first token, in the middle, and at the last one; at once, since the seller says so itself."""
    first, second = await world.add("bob"), await world.add("cat", price_completion_micro=60)
    await world.acquaint(world.founder, first, second)
    first.engine.die_after = place

    answer = await world.founder.chat(QUESTION)

    assert answer.text == echo_text(QUESTION)
    assert answer.ended_s < 1.0
    job = await world.founder.ended_job()
    assert [each.tokens for each in job.attempts] == [place, TOKENS - place]
    assert job.attempts[0].reason == "the child process died"
    assert world.founder.node.logbook.assembly.is_member(first.peer_id)


async def test_two_seconds_of_silence_end_an_attempt(world: World) -> None:
    """Neither token nor progress for 2 s: the seller has failed. Then one more auction, and the answer goes on."""
    first, second = await world.add("bob"), await world.add("cat", price_completion_micro=60)
    await world.acquaint(world.founder, first, second)
    first.engine.stall_after = 10

    async with aclosing(world.founder.node.chat(chat_request(QUESTION))) as events:
        times = [trio.current_time() async for event in events if isinstance(event, ChatDelta)]

    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert max(gaps) == gaps[9] == pytest.approx(2 + 0.04 + 0.01 + 0.008 + 0.02 + 0.01, abs=0.01)
    assert sorted(gaps)[-2] == pytest.approx(0.02, abs=0.001)
    assert (await world.founder.ended_job()).attempts[0].reason == "silent for 2 s"


async def test_a_slow_engine_that_says_so_is_waited_for(world: World) -> None:
    """Progress every 0.5 s is a sign of life, however long the first token takes."""
    seller = await world.add("bob", engine=Engine(seconds_per_token=5.0, prompt_seconds_per_token=2.0))
    await world.acquaint(world.founder, seller)

    answer = await world.founder.chat("hi")

    assert answer.text == echo_text("hi")
    assert len((await world.founder.ended_job()).attempts) == 1


async def test_tokens_of_a_failed_attempt_are_paid_when_their_seller_comes_for_them(world: World) -> None:
    """`/agora/settle/1`: the buyer says what it accepted, the receipt is made out for just that, once."""
    first, second = await world.add("bob"), await world.add("cat", price_completion_micro=60)
    await world.acquaint(world.founder, first, second)

    await chat_with_trouble(world, first, the_connection_breaks)
    accepted = (await world.founder.ended_job()).attempts[0].tokens
    await world.run(10)

    paid = PROMPT_TOKENS * 10 + accepted * 40
    rest = PROMPT_TOKENS * 10 + (TOKENS - accepted) * 60
    assert receipts(world.founder) == [(1, first.peer_id, accepted), (2, second.peer_id, TOKENS - accepted)]
    assert (first.balance(), second.balance(), world.founder.balance()) == (paid, rest, -paid - rest)
    job = await world.founder.ended_job()
    assert (job.price_micro, len(job.receipts)) == (paid + rest, 2)
    assert [each["peer_id"] for each in first.events("offence_counted")] == []
    assert [each["peer_id"] for each in world.founder.events("offence_counted")] == []


async def test_a_dead_engines_tokens_are_paid_too(world: World) -> None:
    first, second = await world.add("bob"), await world.add("cat", price_completion_micro=60)
    await world.acquaint(world.founder, first, second)
    first.engine.die_after = 5

    await world.founder.chat(QUESTION)
    await world.run(5)

    assert receipts(world.founder) == [(1, first.peer_id, 5), (2, second.peer_id, TOKENS - 5)]
    assert first.balance() == PROMPT_TOKENS * 10 + 5 * 40


async def test_a_claim_that_comes_while_the_attempt_still_runs_is_not_answered_with_nothing(
    world: World,
) -> None:
    """A slow client: its seller's stream broke long ago, and the buyer has not read that far. The claim must wait."""
    seller = await world.add("bob", engine=Engine(repetitions=100))
    await world.acquaint(world.founder, seller)

    async with aclosing(world.founder.node.chat(chat_request(QUESTION))) as events:
        async for event in events:
            if isinstance(event, ChatDelta):
                break
        await world.run(8)  # 256 events wait for the client, and the buyer waits for it with them
        await the_connection_breaks(world, seller)
        await world.run(3)  # the seller's first claim comes after 1 s
        with pytest.raises(Unsold):
            async for _ in events:
                pass
    await world.run(200)

    accepted = (await world.founder.ended_job()).attempts[0].tokens
    assert accepted > 256
    assert receipts(world.founder) == [(1, seller.peer_id, accepted)]
    assert seller.balance() == PROMPT_TOKENS * 10 + accepted * 40


async def test_a_claim_waits_for_a_seller_that_comes_back_within_minutes(world: World) -> None:
    """It tries after 1, 5, 30 and 120 s more: the buyer keeps the hold for that long, and gives it back after."""
    first, second = await world.add("bob"), await world.add("cat", price_completion_micro=60)
    await world.acquaint(world.founder, first, second)

    await chat_with_trouble(world, first, the_process_is_stopped)
    accepted = (await world.founder.ended_job()).attempts[0].tokens
    await world.run(60)
    assert receipts(world.founder) == [(2, second.peer_id, TOKENS - accepted)]
    assert world.founder.node.ledger().held_micro > 0
    world.heal()
    await world.run(150)

    assert receipts(world.founder)[0] == (1, first.peer_id, accepted)
    await world.run(60)
    assert world.founder.node.ledger().held_micro == 0


async def test_the_hold_of_a_failed_attempt_comes_back_when_nobody_claims(world: World) -> None:
    first, second = await world.add("bob"), await world.add("cat", price_completion_micro=60)
    await world.acquaint(world.founder, first, second)

    await chat_with_trouble(world, first, the_process_is_killed)
    await world.run(250)

    assert world.founder.node.ledger().held_micro == 0
    assert len(receipts(world.founder)) == 1


async def test_a_late_frame_of_a_given_up_attempt_changes_nothing(world: World) -> None:
    """The stream is closed before the next award is written, so nothing late can come in on it."""
    liar, honest = await world.puppet("eve"), await world.add("bob")
    liar.offer()
    late: list[str] = []

    async def stall_and_go_on(stream: Stream) -> None:
        await liar.bid(stream)
        await liar.accept(stream)
        await liar.send_tokens(stream, echo_ids(QUESTION, 5))
        await trio.sleep(2.5)
        try:
            await liar.send_tokens(stream, echo_ids("nonsense", 5), first=5)
        except MeshError:
            late.append("refused")

    liar.serve(JOB, stall_and_go_on)
    await liar.meet(world.founder)
    await world.acquaint(world.founder, honest)

    answer = await world.founder.chat(QUESTION)
    await world.run(5)

    assert late == ["refused"]
    assert answer.text == echo_text(QUESTION)
    assert attempts(await world.founder.ended_job()) == [
        (1, liar.peer_id, "failed"),
        (2, honest.peer_id, "settled"),
    ]


async def test_an_own_engine_that_dies_goes_on_at_a_seller(world: World) -> None:
    own, seller = await world.add("bob"), await world.add("cat")
    await world.acquaint(own, seller)
    own.engine.die_after = 4

    answer = await own.chat(QUESTION)

    assert answer.text == echo_text(QUESTION)
    assert [started.seller for started in answer.started] == [own.peer_id, seller.peer_id]
    assert seller.engine.started[0].received == echo_ids(QUESTION, 4)


async def test_when_every_seller_has_failed_the_client_is_told(world: World) -> None:
    """Each is tried once; what was delivered is paid."""
    sellers = [await world.add(name) for name in ("bob", "cat")]
    await world.acquaint(world.founder, *sellers)
    for seller in sellers:
        seller.engine.die_after = 3

    with pytest.raises(Unsold, match=r"2 seller\(s\) of echo@00000000 failed and no other is left"):
        await world.founder.chat(QUESTION)
    await world.run(5)

    assert (await world.founder.ended_job()).completion_tokens == 6
    assert [receipt[2] for receipt in receipts(world.founder)] == [3, 3]


async def test_no_job_is_tried_more_than_five_times(world: World) -> None:
    sellers = [await world.add(name) for name in ("bob", "cat", "dan", "fay", "gil", "hal")]
    await world.acquaint(world.founder, *sellers)
    for seller in sellers:
        seller.engine.die_after = 0

    with pytest.raises(Unsold, match="5 attempts failed"):
        await world.founder.chat(QUESTION)

    assert sum(len(seller.engine.started) for seller in sellers) == 5


# --- hostile and clumsy sellers ---------------------------------------------------------------------------------------
async def sell_with(
    world: World, behaviour: Callable[[Puppet, Stream], Awaitable[None]]
) -> tuple[Puppet, Daemon]:
    """A cheap hostile seller and a dearer honest one, both known to the founder."""
    liar, honest = await world.puppet("eve"), await world.add("bob")
    liar.offer()

    async def serve(stream: Stream) -> None:
        await behaviour(liar, stream)

    liar.serve(JOB, serve)
    await liar.meet(world.founder)
    await world.acquaint(world.founder, honest)
    return liar, honest


async def test_a_silent_winner_costs_two_seconds_once(world: World) -> None:
    """It bids the lowest and never accepts. It must not win this job's next auction too."""

    async def bid_and_vanish(liar: Puppet, stream: Stream) -> None:
        await liar.bid(stream)
        await trio.sleep_forever()

    liar, honest = await sell_with(world, bid_and_vanish)

    answer = await world.founder.chat(QUESTION)

    assert answer.text == echo_text(QUESTION)
    assert answer.first_s == pytest.approx(0.04 + 2 + 0.04 + 0.048, abs=0.01)
    job = await world.founder.ended_job()
    assert attempts(job) == [(1, liar.peer_id, "failed"), (2, honest.peer_id, "settled")]
    assert world.founder.node.ledger().held_micro == 0


async def test_garbage_in_answer_to_an_award_costs_the_seller_not_the_client(world: World) -> None:
    async def bid_and_babble(liar: Puppet, stream: Stream) -> None:
        await liar.bid(stream)
        await stream.send(b"\x93garbage")

    liar, honest = await sell_with(world, bid_and_babble)

    answer = await world.founder.chat(QUESTION)

    assert answer.text == echo_text(QUESTION)
    assert attempts(await world.founder.ended_job())[-1] == (2, honest.peer_id, "settled")
    assert [each["peer_id"] for each in world.founder.events("offence_counted")] == [liar.peer_id]


@pytest.mark.parametrize("first", [0, 2, 9], ids=["repeated", "overlapping", "skipped"])
async def test_tokens_out_of_their_place_end_the_attempt(world: World, first: int) -> None:
    """A gap or a repeat would show as nonsense, and be billed."""

    async def misplace(liar: Puppet, stream: Stream) -> None:
        await liar.bid(stream)
        await liar.accept(stream)
        await liar.send_tokens(stream, echo_ids(QUESTION, 4))
        await liar.send_tokens(stream, echo_ids(QUESTION, 4), first=first)
        await trio.sleep_forever()

    liar, _ = await sell_with(world, misplace)

    answer = await world.founder.chat(QUESTION)

    assert answer.text == echo_text(QUESTION)
    job = await world.founder.ended_job()
    assert [each.tokens for each in job.attempts] == [4, TOKENS - 4]
    assert [each["peer_id"] for each in world.founder.events("offence_counted")] == [liar.peer_id]


async def test_a_seller_that_sends_more_than_was_asked_for_is_given_up(world: World) -> None:
    """Else it could bill a session's whole hold with one answer that nobody wanted that long."""

    async def flood(liar: Puppet, stream: Stream) -> None:
        await liar.bid(stream)
        await liar.accept(stream)
        await liar.send_tokens(stream, echo_ids(QUESTION, 100))
        await trio.sleep_forever()

    liar, _ = await sell_with(world, flood)

    await world.founder.chat(QUESTION, tokens_max=10, session=b"s" * 32)

    job = await world.founder.ended_job()
    assert job.completion_tokens <= 10
    assert [each["peer_id"] for each in world.founder.events("offence_counted")] == [liar.peer_id]


async def test_a_seller_that_miscounts_is_given_up(world: World) -> None:
    async def miscount(liar: Puppet, stream: Stream) -> None:
        await liar.bid(stream)
        await liar.accept(stream)
        await liar.send_tokens(stream, echo_ids(QUESTION, 4))
        await liar.finish(stream, 5)

    await sell_with(world, miscount)

    answer = await world.founder.chat(QUESTION)

    assert answer.text == echo_text(QUESTION)


async def test_a_seller_that_says_cancelled_unasked_is_given_up(world: World) -> None:
    """The client would have half an answer and no end."""

    async def stop_early(lazy: Puppet, stream: Stream) -> None:
        await lazy.bid(stream)
        await lazy.accept(stream)
        await lazy.send_tokens(stream, echo_ids(QUESTION, 4))
        frame = FinishedFrame(reason="cancelled", text="", prompt_tokens=4, completion_tokens=4)
        await stream.send(encode(frame))

    await sell_with(world, stop_early)

    answer = await world.founder.chat(QUESTION)

    assert answer.text == echo_text(QUESTION)
    assert answer.finished is not None


async def test_progress_alone_is_no_answer_for_ever(world: World) -> None:
    """A drip-feeder says every half second that it is about to begin."""

    async def drip(liar: Puppet, stream: Stream) -> None:
        await liar.bid(stream)
        await liar.accept(stream)
        while True:
            await stream.send(encode(ProgressFrame(phase="prefill", done=0, total=4)))
            await trio.sleep(0.5)

    await sell_with(world, drip)

    with trio.fail_after(600):
        answer = await world.founder.chat(QUESTION)

    assert answer.text == echo_text(QUESTION)


# --- whose fault it was -----------------------------------------------------------------------------------------------
async def refuser(world: World, name: str, detail: str, *, owner: str = "") -> Puppet:
    """A cheap seller that takes every job, and says that its prompt is bad."""
    puppet = await world.puppet(name, owner=owner)
    puppet.offer()

    async def refuse(stream: Stream) -> None:
        await puppet.bid(stream)
        await puppet.accept(stream)
        await stream.send(encode(FailedFrame(reason="prompt", detail=detail)))

    puppet.serve(JOB, refuse)
    await puppet.meet(world.founder)
    return puppet


async def test_a_seller_that_blames_the_prompt_is_not_believed_alone(world: World) -> None:
    """The next one answers, so the first has lied, or could not do what it bid for: it is trusted less from now on."""
    liar, honest = await refuser(world, "eve", "a bad prompt"), await world.add("bob")
    await world.acquaint(world.founder, honest)

    answer = await world.founder.chat(QUESTION)

    assert answer.text == echo_text(QUESTION)
    job = await world.founder.ended_job()
    assert attempts(job) == [(1, liar.peer_id, "failed"), (2, honest.peer_id, "settled")]
    assert world.founder.node.ledger().held_micro == 0
    reputation = world.founder.node.buyer._purchasing._reputation
    assert (reputation.of(liar.peer_id).failed, reputation.of(honest.peer_id).failed) == (1, 0)


async def test_two_sellers_that_blame_the_prompt_are_believed(world: World) -> None:
    """It is the client's fault then: no third one is asked, and neither has broken its word."""
    told = "the template refuses two system turns"
    sellers = [await refuser(world, name, told) for name in ("eve", "mallory")]
    dearer = await world.add("bob")
    await world.acquaint(world.founder, dearer)

    with pytest.raises(BadPrompt, match=told):
        await world.founder.chat(QUESTION)

    job = await world.founder.ended_job()
    assert job.state == "failed"
    assert sorted(seller for _, seller, _ in attempts(job)) == sorted(each.peer_id for each in sellers)
    assert not dearer.engine.started
    reputation = world.founder.node.buyer._purchasing._reputation
    assert [reputation.of(each.peer_id).failed for each in sellers] == [0, 0]


async def test_two_keys_of_one_owner_that_blame_the_prompt_are_one_voice(world: World) -> None:
    """Keys are free: the second opinion is asked of somebody else's device."""
    for name in ("eve", "eves phone"):
        await refuser(world, name, "a bad prompt", owner="eve")
    honest = await world.add("bob")
    await world.acquaint(world.founder, honest)

    answer = await world.founder.chat(QUESTION)

    assert answer.text == echo_text(QUESTION)
    assert len((await world.founder.ended_job()).attempts) == 2


async def test_the_only_seller_that_blames_the_prompt_is_believed(world: World) -> None:
    """There is nobody else to ask, and the client can do more with its reason than with none."""
    await refuser(world, "eve", "the template refuses two system turns")

    with pytest.raises(BadPrompt, match="refuses two system turns"):
        await world.founder.chat(QUESTION)

    assert (await world.founder.ended_job()).state == "failed"


async def test_a_seller_that_blames_the_prompt_while_all_others_are_busy_is_not_believed(
    world: World,
) -> None:
    """Another opinion can be had, only not now: the client may come again."""
    await refuser(world, "eve", "a bad prompt")
    honest = await world.add("bob")
    await world.acquaint(world.founder, honest)
    honest.engine._cards = {}

    with pytest.raises(Unsold, match="no seller took the job"):
        await world.founder.chat(QUESTION)


async def test_a_lease_whose_seller_blames_the_prompt_is_not_believed_alone(world: World) -> None:
    """It has answered before; it gets no more than the others for that."""
    honest, liar = await world.add("bob"), await world.puppet("eve")
    liar.offer()
    served = 0

    async def serve_once(stream: Stream) -> None:
        nonlocal served
        served += 1
        if served > 1:
            await liar.wire.receive(stream, Work)
            await stream.send(encode(FailedFrame(reason="prompt", detail="a bad prompt")))
            return
        await liar.bid(stream)
        award, work = await liar.accept(stream)
        await liar.send_tokens(stream, echo_ids(QUESTION, 3))
        await liar.finish(stream, 3)
        await stream.send(liar.receipt(award, work, echo_ids(QUESTION, 3)).raw)
        await stream.receive()

    liar.serve(JOB, serve_once)
    await liar.meet(world.founder)
    await world.acquaint(world.founder, honest)
    first = await world.founder.chat(QUESTION, session=b"s" * 32)
    await world.run(1)

    second = await world.founder.chat(QUESTION, session=b"s" * 32)

    assert first.started[0].seller == liar.peer_id
    assert served == 2
    assert [each.seller for each in second.started] == [liar.peer_id, honest.peer_id]
    assert second.text == echo_text(QUESTION)


async def test_the_own_engine_is_believed_at_once(world: World) -> None:
    """It is ours: nobody has to be paid for saying it again."""
    own = await world.add("dan", engine=Refusing())
    honest = await world.add("bob")
    await world.acquaint(own, honest, world.founder)

    with pytest.raises(BadPrompt, match="the template refuses it"):
        await own.chat(QUESTION)

    assert not honest.engine.started
    assert own.node.ledger().receipts == []


class Refusing(Engine):
    """An engine whose template takes no chat."""

    async def generate(self, generation: Generation) -> AsyncGenerator[Frame, None]:
        raise BadTemplate(f"the template refuses it: {len(generation.messages)} turn")
        yield  # a generator, as the port asks


async def test_a_successor_is_not_blamed_for_the_time_its_predecessor_took(world: World) -> None:
    """What was promised is compared with what this seller delivered, from the moment it had the work."""
    first, second = await world.add("bob"), await world.add("cat", price_completion_micro=60)
    await world.acquaint(world.founder, first, second)
    first.engine.stall_after = 5

    await world.founder.chat(QUESTION)
    await world.run(1)

    record = world.founder.node.buyer._purchasing._reputation.of(second.peer_id)
    assert record.settled == 1
    assert record.promises[-1] > 0.9  # speed as promised, and the first token with what the net adds


# --- the client leaves ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tokens", [1, 9])
async def test_a_client_that_leaves_pays_for_what_it_got_and_frees_the_slot(
    world: World, tokens: int
) -> None:
    """The generator's closing becomes a Cancel, and the Cancel a receipt."""
    seller = await world.add("bob", engine=Engine(repetitions=100))
    await world.acquaint(world.founder, seller)
    got = 0

    async with aclosing(world.founder.node.chat(chat_request(QUESTION))) as events:
        async for event in events:
            got += isinstance(event, ChatDelta)
            if got == tokens:
                break
    left_at = trio.current_time()
    await world.until(lambda: seller.engine.status(next(iter(seller.engine.models))).slots_free == 1)

    assert trio.current_time() - left_at <= 0.05
    job = await world.founder.ended_job()
    assert job.state == "cancelled"
    assert job.attempts[0].outcome == "cancelled"
    assert receipts(world.founder) == [(1, seller.peer_id, job.completion_tokens)]
    assert tokens <= job.completion_tokens <= tokens + 2  # what was on its way
    assert seller.balance() == PROMPT_TOKENS * 10 + job.completion_tokens * 40
    assert world.founder.node.ledger().held_micro == 0


async def test_a_client_that_leaves_before_anything_came_pays_nothing(world: World) -> None:
    seller = await world.add("bob", engine=Engine(prompt_seconds_per_token=1.0))
    await world.acquaint(world.founder, seller)

    async with aclosing(world.founder.node.chat(chat_request(QUESTION))) as events:
        async for _ in events:
            break  # it has started
    await world.run(2)

    assert (await world.founder.ended_job()).state == "cancelled"
    assert world.founder.accounts() == {}
    assert world.founder.node.ledger().held_micro == 0


@pytest.mark.parametrize("after_s", [0.0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03])
async def test_a_client_that_leaves_as_the_seller_finishes_is_nobodys_fault(
    world: World, after_s: float
) -> None:
    """The Cancel and the end of the answer pass each other on the way: the receipt is countersigned all the same."""
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)
    got = 0

    async with aclosing(world.founder.node.chat(chat_request(QUESTION))) as events:
        async for event in events:
            got += isinstance(event, ChatDelta)
            if got == TOKENS - 1:
                await world.run(after_s)
                break
    await world.run(5)

    assert seller.events("offence_counted") == world.founder.events("offence_counted") == []
    assert len(receipts(seller)) == 1
    assert seller.events("claim_written_off") == []


async def test_a_client_that_leaves_an_own_engine_frees_its_slot(world: World) -> None:
    own = await world.add("bob", engine=Engine(repetitions=100))

    async with aclosing(own.node.chat(chat_request(QUESTION))) as events:
        async for event in events:
            if isinstance(event, ChatDelta):
                break
    await world.run(0.1)

    assert own.engine.status(next(iter(own.engine.models))).slots_free == 1
    job = await own.ended_job()
    assert (job.state, job.attempts[0].outcome) == ("cancelled", "cancelled")
