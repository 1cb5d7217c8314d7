"""A session stays with its seller: no auction, no durable write before the first token, until the lease is over."""

import pytest
import trio

from protocol.envelope import decode
from protocol.errors import MeshError
from protocol.messages import Accept, Bid, FailedFrame, JobFrame, TokensFrame
from protocol.topics import JOB
from runtime.echo import ECHO_MODEL
from tests.node.world import Daemon, Engine, Holder, World, chat_request, echo_text

SESSION, OTHER_SESSION = b"s" * 32, b"t" * 32


async def rich_sellers(world: World, *names: str) -> list[Daemon]:
    """Sellers at the default price, each of an owner of its own, known to the founder."""
    sellers = [await world.add(name) for name in names]
    await world.acquaint(world.founder, *sellers)
    return sellers


def durable(daemon: Daemon) -> int:
    """How many log entries the daemon has written or witnessed."""
    return daemon.disk.kinds().count("entry")


async def test_the_second_request_of_a_session_goes_straight_to_the_same_seller(world: World) -> None:
    """One way there, prefill, one token, one way back: 40 ms of auction and three durable writes less."""
    sellers = await rich_sellers(world, "bob", "cat")

    first = await world.founder.chat("hello there", session=SESSION)
    await world.run(5)
    second = await world.founder.chat("and again", session=SESSION)

    assert second.text == echo_text("and again")
    assert second.started[0].seller == first.started[0].seller
    assert second.first_s == pytest.approx(0.02 + 0.01 + 0.006 + 0.02 + 0.01, abs=0.003)
    job = await world.founder.ended_job()
    assert (job.attempts[0].is_lease, job.attempts[0].asked, job.attempts[0].bids) == (True, [], [])
    assert sum(len(seller.events("award_accepted")) for seller in sellers) == 1
    assert (
        world.founder.node.ledger().receipts
        == sellers[[seller.peer_id for seller in sellers].index(first.started[0].seller)]
        .node.ledger()
        .receipts
    )
    assert len(world.founder.node.ledger().receipts) == 2


async def test_under_a_lease_nothing_durable_is_written_before_the_first_token(world: World) -> None:
    """On neither side: an fsync on a laptop's disk takes longer than the whole way there and back."""
    (seller,) = await rich_sellers(world, "bob")
    await world.founder.chat("hello there", session=SESSION)
    await world.run(5)
    before = durable(world.founder), durable(seller)
    at_first_token: list[tuple[int, int]] = []

    async for event in world.founder.node.chat(chat_request("and again", session=SESSION)):
        if not at_first_token and getattr(event, "text", ""):
            at_first_token.append((durable(world.founder), durable(seller)))
    await world.run(1)

    assert at_first_token == [before]
    assert (durable(world.founder), durable(seller)) == (
        before[0] + 1,
        before[1] + 3,
    )  # a receipt, its answer, the income


async def test_each_session_has_a_lease_of_its_own(world: World) -> None:
    await rich_sellers(world, "bob")

    for session in (SESSION, OTHER_SESSION, SESSION, OTHER_SESSION):
        await world.founder.chat("hello", session=session)
        await world.run(1)

    assert len(world.founder.events("award_sent")) == 2
    assert len(world.founder.events("lease_used")) == 2


async def test_requests_without_a_session_share_nothing(world: World) -> None:
    await rich_sellers(world, "bob")

    for _ in range(2):
        await world.founder.chat("hello")
        await world.run(1)

    assert len(world.founder.events("award_sent")) == 2
    assert world.founder.node.ledger().held_micro == 0


async def test_a_lease_whose_hold_is_used_up_is_sold_again(world: World) -> None:
    """One award holds for eight requests like its first: dearer ones end it sooner."""
    await rich_sellers(world, "bob")

    for _ in range(12):
        await world.founder.chat("hello", session=SESSION, tokens_max=8)
        await world.run(1)

    assert len(world.founder.events("award_sent")) == 2
    assert len(world.founder.node.ledger().receipts) == 12


async def test_an_idle_lease_ends_and_gives_its_credit_back(world: World) -> None:
    """Ten minutes; the hold of eight requests must not weigh on the account for longer."""
    await rich_sellers(world, "bob")
    await world.founder.chat("hello", session=SESSION)
    await world.run(590)
    assert world.founder.node.ledger().held_micro > 0

    await world.run(40)
    await world.founder.chat("hello", session=SESSION)
    await world.run(1)

    assert len(world.founder.events("award_sent")) == 2
    (second,) = world.founder.node.logbook.ledger.open_awards(world.founder.peer_id)
    ledger = world.founder.node.ledger()
    assert ledger.held_micro == second.message.hold_micro - ledger.receipts[-1].amount_micro


async def test_an_idle_leases_credit_can_be_spent_elsewhere(world: World) -> None:
    """A line of 400,000 covers one session's hold of eight requests (329,000) and no second one beside it."""
    buyer = await world.add("dan", credit_micro=400_000, engine=Holder())
    seller = await world.add("bob")
    await world.acquaint(buyer, seller)
    await buyer.chat("hello", session=SESSION)
    await world.run(700)

    await buyer.chat("hello", session=OTHER_SESSION)

    first, second = buyer.events("award_sent")
    assert second["hold_micro"] == first["hold_micro"] == 8 * (17 * 10 + 1024 * 40)


async def test_a_sellers_books_let_a_buyers_hold_go_when_its_job_is_settled(world: World) -> None:
    """The seller counts what a buyer has promised. Sixty short chats hold 41,000 each and cost 400: all must be served."""
    buyer = await world.add("dan", credit_micro=200_000, engine=Holder())
    seller = await world.add("bob")
    await world.acquaint(buyer, seller)

    for _ in range(12):
        await buyer.chat("hello")
        await world.run(0.2)

    assert seller.node.logbook.ledger.held_micro(buyer.peer_id) == 0
    assert len(seller.node.ledger().receipts) == 12


async def test_a_lost_seller_of_a_session_is_replaced_by_auction(world: World) -> None:
    sellers = await rich_sellers(world, "bob", "cat")
    first = await world.founder.chat("hello", session=SESSION)
    by_id = {seller.peer_id: seller for seller in sellers}
    lost = by_id.pop(first.started[0].seller)
    (other,) = by_id.values()
    await world.run(1)
    await lost.kill()

    second = await world.founder.chat("and again", session=SESSION)
    third = await world.founder.chat("and again", session=SESSION)

    assert second.text == third.text == echo_text("and again")
    assert [each.started[-1].seller for each in (second, third)] == [other.peer_id] * 2
    assert second.first_s is not None
    assert second.first_s < 0.5
    assert len(world.founder.events("lease_used")) == 1


async def test_a_session_whose_seller_is_stopped_waits_two_seconds_at_most(world: World) -> None:
    """A stopped process keeps its connection for seconds: opening a stream to it must not take as long."""
    sellers = await rich_sellers(world, "bob", "cat")
    first = await world.founder.chat("hello", session=SESSION)
    await world.run(1)
    world.network.suspend(first.started[0].seller)

    second = await world.founder.chat("and again", session=SESSION)

    assert second.text == echo_text("and again")
    assert second.first_s is not None
    assert second.first_s < 2 + 1 + 0.2  # no frame for 2 s, then an auction that asks the stopped one too
    assert {second.started[-1].seller} < {seller.peer_id for seller in sellers}


async def test_a_seller_that_fails_under_a_lease_is_not_asked_again_for_this_job(world: World) -> None:
    sellers = await rich_sellers(world, "bob", "cat")
    first = await world.founder.chat("hello", session=SESSION)
    await world.run(1)
    broken = next(seller for seller in sellers if seller.peer_id == first.started[0].seller)
    broken.engine.stall_after = 3

    second = await world.founder.chat("and again", session=SESSION)

    assert second.text == echo_text("and again")
    job = await world.founder.ended_job()
    assert len(job.attempts) == 2
    assert broken.peer_id not in job.attempts[1].asked


async def test_a_sellers_hello_tells_that_it_was_restarted_and_its_leases_are_over(world: World) -> None:
    """Its boot is another one: the session goes to auction at once, not after an attempt that can only fail."""
    (seller,) = await rich_sellers(world, "bob")
    await world.founder.chat("hello", session=SESSION)
    await world.run(1)
    await seller.restart()
    await world.acquaint(world.founder, seller)

    answer = await world.founder.chat("and again", session=SESSION)

    assert [started.seller for started in answer.started] == [seller.peer_id]
    job = await world.founder.ended_job()
    assert [(each.is_lease, each.outcome) for each in job.attempts] == [(False, "settled")]
    assert [event["peer"] for event in world.founder.events("peer_restarted")] == [seller.peer_id]


async def test_a_seller_that_only_reconnects_keeps_its_leases(world: World) -> None:
    (seller,) = await rich_sellers(world, "bob")
    await world.founder.chat("hello", session=SESSION)
    await world.run(1)
    await world.founder.mesh.disconnect(seller.peer_id)
    await world.until(lambda: seller.peer_id not in world.founder.mesh.connected)
    await world.acquaint(world.founder, seller)

    await world.founder.chat("and again", session=SESSION)

    assert world.founder.events("peer_restarted") == []
    assert len(world.founder.events("lease_used")) == 1


async def test_a_restarted_seller_has_forgotten_the_lease_and_may_win_the_next(world: World) -> None:
    """It refuses the work with a reason, and no fault of its own: it is asked again, and its bid counts."""
    (seller,) = await rich_sellers(world, "bob")
    await world.founder.chat("hello", session=SESSION)
    await world.run(1)
    world.founder.node.meeting._boots.clear()  # its restart is not noticed
    await seller.restart()
    await world.acquaint(world.founder, seller)

    answer = await world.founder.chat("and again", session=SESSION)

    assert answer.text == echo_text("and again")
    assert [started.seller for started in answer.started] == [seller.peer_id] * 2
    job = await world.founder.ended_job()
    assert [(each.is_lease, each.outcome) for each in job.attempts] == [(True, "failed"), (False, "settled")]


async def test_a_chat_never_rides_on_a_lease_that_was_sold_more_widely(world: World) -> None:
    """The session went to a stranger with 'mesh'; with 'owner' it goes to an own device, dearer as it is."""
    stranger = await world.add("bob", price_completion_micro=1)
    own = await world.add("cat", owner="ann")
    await world.acquaint(world.founder, stranger, own)
    first = await world.founder.chat("hello", session=SESSION)

    second = await world.founder.chat("my secret", session=SESSION, privacy="owner")

    assert first.started[0].seller == stranger.peer_id
    assert [started.seller for started in second.started] == [own.peer_id]


async def test_a_revoked_sellers_lease_is_not_used(world: World) -> None:
    sellers = await rich_sellers(world, "bob", "cat")
    first = await world.founder.chat("hello", session=SESSION)
    await world.run(1)

    await world.founder.node.revoke(first.started[0].seller, "sold")
    second = await world.founder.chat("and again", session=SESSION)
    world.barred.add(first.started[0].seller)

    assert second.started[0].seller in {seller.peer_id for seller in sellers} - {first.started[0].seller}


async def test_after_a_restart_all_own_holds_are_void(world: World) -> None:
    """Leases, and whoever waited for them, ended with the run that opened them."""
    (seller,) = await rich_sellers(world, "bob")
    await world.founder.chat("hello", session=SESSION)
    await world.run(1)
    assert world.founder.node.ledger().held_micro > 0
    paid = world.founder.balance()

    await world.founder.restart()

    ledger = world.founder.node.ledger()
    assert (ledger.held_micro, ledger.balance_micro, len(ledger.receipts)) == (0, paid, 1)
    await world.acquaint(world.founder, seller)
    assert (await world.founder.chat("and again", session=SESSION)).text == echo_text("and again")
    assert (await world.founder.ended_job()).attempts[0].is_lease is False


# --- attacks ----------------------------------------------------------------------------------------------------------
async def test_replayed_work_is_refused(world: World) -> None:
    """The same bytes at the gate, the same attempt sealed anew at the fence: one slot, one stream, one bill."""
    (seller,) = await rich_sellers(world, "bob")
    buyer = await world.puppet("dan")
    await buyer.meet(seller)
    stream, request, bid = await buyer.ask(seller)
    award = buyer.award(seller.peer_id, request, bid)
    work = buyer.wire.seal(buyer.work(award))
    await stream.send(award.raw)
    await stream.send(work.raw)
    await buyer.wire.receive(stream, Accept)
    await world.run(1)

    again = await buyer.open(seller, JOB)
    await again.send(work.raw)
    with pytest.raises(MeshError):
        await again.receive()
    anew = await buyer.open(seller, JOB)
    await buyer.wire.send(anew, buyer.work(award))
    refused = decode(await anew.receive(), JobFrame)

    assert isinstance(refused, FailedFrame)
    assert (refused.reason, refused.detail) == ("lease", "attempt 1 was begun before")
    assert len(seller.engine.started) == 1


async def test_an_older_attempt_is_fenced_off(world: World) -> None:
    """Delayed work of an attempt that its buyer has moved on from costs nobody a slot."""
    (seller,) = await rich_sellers(world, "bob")
    buyer = await world.puppet("dan")
    await buyer.meet(seller)
    stream, request, bid = await buyer.ask(seller, attempt=2)
    award = buyer.award(seller.peer_id, request, bid)
    await stream.send(award.raw)
    await buyer.wire.send(stream, buyer.work(award))
    await buyer.wire.receive(stream, Accept)

    late = await buyer.open(seller, JOB)
    await buyer.wire.send(late, buyer.work(award, attempt=1))
    refused = decode(await late.receive(), JobFrame)

    assert isinstance(refused, FailedFrame)
    assert "attempt 2 was begun before" in refused.detail


async def test_work_under_another_members_award_is_refused(world: World) -> None:
    """Eve has overheard an award's id; the award's buyer pays for nothing of hers."""
    (seller,) = await rich_sellers(world, "bob")
    eve = await world.puppet("eve")
    await eve.meet(seller)
    await world.founder.chat("hello", session=SESSION)
    await world.run(1)
    (award,) = world.founder.node.logbook.ledger.open_awards(world.founder.peer_id)
    started = len(seller.engine.started)

    stream = await eve.open(seller, JOB)
    await eve.wire.send(stream, eve.work(award, job_id=b"e" * 16))
    with pytest.raises(MeshError):
        await stream.receive()

    assert len(seller.engine.started) == started
    assert [each["offence"] for each in seller.events("offence_counted")] == ["authority"]


async def test_a_second_job_under_an_award_for_one_is_refused(world: World) -> None:
    (seller,) = await rich_sellers(world, "bob")
    buyer = await world.puppet("dan")
    await buyer.meet(seller)
    stream, request, bid = await buyer.ask(seller)
    award = buyer.award(seller.peer_id, request, bid, lease_ms=0)
    await stream.send(award.raw)
    await buyer.wire.send(stream, buyer.work(award))
    await buyer.wire.receive(stream, Accept)

    other = await buyer.open(seller, JOB)
    await buyer.wire.send(other, buyer.work(award, job_id=b"k" * 16))
    refused = decode(await other.receive(), JobFrame)

    assert isinstance(refused, FailedFrame)
    assert refused.detail == "the award is for one job, and this is another"


async def test_a_lease_serves_no_more_than_its_hold_pays(world: World) -> None:
    """50 completion tokens at 40 are 2,000: a hold of 3,000 pays for one such answer at a time, not for two."""
    (seller,) = await rich_sellers(world, "bob")
    buyer = await world.puppet("dan")
    await buyer.meet(seller)
    stream, request, bid = await buyer.ask(seller)
    assert isinstance(bid.message, Bid)
    award = buyer.award(seller.peer_id, request, bid, hold_micro=3_000)
    await stream.send(award.raw)
    await buyer.wire.send(stream, buyer.work(award))
    await buyer.wire.receive(stream, Accept)

    second = await buyer.open(seller, JOB)
    await buyer.wire.send(second, buyer.work(award, job_id=b"k" * 16))
    refused = decode(await second.receive(), JobFrame)

    assert isinstance(refused, FailedFrame)
    assert refused.reason == "lease"
    with trio.fail_after(1):
        while not isinstance(decode(await stream.receive(), JobFrame), TokensFrame):
            pass


@pytest.mark.parametrize("later_s", [0.01, 0.02, 0.03, 0.04, 0.05])
async def test_a_lease_may_end_while_another_request_of_its_session_reaches_for_it(
    world: World, later_s: float
) -> None:
    """Two requests at once: the seller fails the first as the second opens its stream. Both are answered."""
    sellers = [await world.add(name, engine=Engine(slots=2)) for name in ("bob", "cat")]
    await world.acquaint(world.founder, *sellers)
    first = await world.founder.chat("hello", session=SESSION)
    await world.run(1)
    broken = next(seller for seller in sellers if seller.peer_id == first.started[0].seller)
    broken.engine.die_after = 0
    texts: list[str] = []

    async def ask(words: str) -> None:
        texts.append((await world.founder.chat(words, session=SESSION)).text)

    async with trio.open_nursery() as both:
        both.start_soon(ask, "and again")
        await trio.sleep(later_s)
        both.start_soon(ask, "once more")

    assert sorted(texts) == sorted(map(echo_text, ("and again", "once more")))


async def test_a_lease_is_no_bigger_than_the_owners_budget(world: World) -> None:
    """It would hold for eight jobs; a budget of three such jobs is no reason to refuse the first."""
    await world.found_again(budget_day_micro=130_000)
    (seller,) = await rich_sellers(world, "bob")

    await world.founder.chat("hello", session=SESSION)
    await world.run(1)

    assert seller.balance() > 0
    assert 0 < world.founder.node.ledger().held_micro <= 130_000


async def test_a_lease_serves_no_buyer_that_owes_too_much(world: World) -> None:
    """No quote stands before its requests, and a buyer could take answer after answer and countersign none."""
    seller = await world.add("bob", exposure_peer_micro=1_000)
    buyer = await world.puppet("eve")
    await buyer.meet(seller)
    stream, request, bid = await buyer.ask(seller)
    award = buyer.award(seller.peer_id, request, bid, hold_micro=1_000_000)

    await stream.send(award.raw)
    await buyer.wire.send(stream, buyer.work(award, "a question of some length"))
    await buyer.wire.receive(stream, Accept)
    tokens = 0
    while tokens < 30:
        frame = decode(await stream.receive(), JobFrame)
        tokens += len(frame.ids) if isinstance(frame, TokensFrame) else 0
    stream.abort()
    await world.run(0.5)

    second = await buyer.open(seller, JOB)
    await buyer.wire.send(second, buyer.work(award, job_id=b"k" * 16))
    refused = decode(await second.receive(), JobFrame)

    assert isinstance(refused, FailedFrame)
    assert "not countersigned" in refused.detail
    assert len(seller.engine.started) == 1


async def test_a_lease_does_not_queue_while_others_are_free(world: World) -> None:
    """A warm cache saves seconds; a slow answer before ours would cost a minute."""
    warm, other = await world.add("warm", price_completion_micro=1), await world.add("other")
    await world.acquaint(world.founder, warm, other)
    await world.founder.chat("hello", session=SESSION)
    world.nursery.start_soon(world.founder.chat, "a long question " * 20)
    await world.until(lambda: warm.engine.status(ECHO_MODEL).slots_free == 0)

    answer = await world.founder.chat("hello again", session=SESSION)

    assert answer.started[-1].seller == other.peer_id
    assert answer.first_s is not None
    assert answer.first_s < 1
