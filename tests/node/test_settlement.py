"""Receipts: what is countersigned, what is not, and what becomes of a buyer or seller that does not play fair."""

from contextlib import aclosing
from typing import Any

import pytest
import trio

from marketplace.receipt import output_digest
from node.chat import ChatDelta, Unsold
from protocol.envelope import Sealed, decode
from protocol.errors import MeshError
from protocol.mesh import Stream
from protocol.messages import (
    Accept,
    Accepted,
    Award,
    Countersignature,
    Decline,
    FinishedFrame,
    JobFrame,
    Receipt,
    SettlementWanted,
    TokensFrame,
    Work,
)
from protocol.topics import JOB, SETTLE
from tests.node.puppet import Puppet
from tests.node.world import Daemon, Engine, World, chat_request, echo_ids

QUESTION = "what is an agora?"
IDS = echo_ids(QUESTION, 6)


async def cheating_seller(world: World, **changes: Any) -> Puppet:
    """A seller that delivers honestly and makes out a receipt with some fields changed."""
    seller = await world.puppet("eve")
    seller.offer()

    async def serve(stream: Stream) -> None:
        await seller.bid(stream)
        award, work = await seller.accept(stream)
        await seller.send_tokens(stream, IDS)
        await seller.finish(stream, len(IDS))
        await stream.send(seller.receipt(award, work, IDS, **changes).raw)
        await seller.wire.receive(stream, Countersignature)

    seller.serve(JOB, serve)
    await seller.meet(world.founder)
    return seller


async def buy(
    buyer: Puppet, seller: Daemon, *, job: bytes = b"j" * 16, **changes: Any
) -> tuple[Stream, Sealed[Award], Work]:
    """Take a seller through to its accept."""
    stream, request, bid = await buyer.ask(seller, job=job)
    award = buyer.award(seller.peer_id, request, bid, **changes)
    work = buyer.work(award, QUESTION)
    await stream.send(award.raw)
    await buyer.wire.send(stream, work)
    await buyer.wire.receive(stream, Accept)
    return stream, award, work


async def take_tokens(stream: Stream, count: int = 1_000) -> list[int]:
    """Read the frames of an answer, to its end or so many tokens."""
    ids: list[int] = []
    while len(ids) < count:
        frame = decode(await stream.receive(), JobFrame)
        if isinstance(frame, TokensFrame):
            ids.extend(frame.ids)
        elif isinstance(frame, FinishedFrame):
            break
    return ids


@pytest.mark.parametrize(
    "lie",
    [
        {"amount_micro": 11},
        {"completion_tokens": 7, "amount_micro": 11},
        {"prompt_tokens": 1_000, "amount_micro": 1_006},
        {"output": b"o" * 32},
        {"prompt": b"p" * 32},
        {"model": b"m" * 32},
        {"sampling": b"s" * 32},
        {"attempt": 2},
    ],
    ids=lambda lie: next(iter(lie)),
)
async def test_a_receipt_that_lies_is_not_countersigned_and_costs_reputation(
    world: World, lie: dict[str, Any]
) -> None:
    """6 tokens and a prompt of 4 came to 10 micro-credits; the client has its answer either way."""
    seller = await cheating_seller(world, **lie)

    answer = await world.founder.chat(QUESTION)
    await world.run(15)

    assert answer.tokens == 6
    assert world.founder.accounts() == {}
    record = world.founder.node.buyer._purchasing._reputation.of(seller.peer_id)
    assert (record.settled, record.failed) == (0, 1)
    assert record.reliability < 0.5
    (refused,) = world.founder.events("receipt_refused")
    assert refused["seller"] == seller.peer_id
    assert len(world.founder.events("offence_counted")) == 1


async def test_the_same_seller_with_an_honest_receipt_is_paid(world: World) -> None:
    """So it is the lie that the tests around this one refuse."""
    seller = await cheating_seller(world)

    await world.founder.chat(QUESTION)
    await world.run(1)

    assert world.founder.accounts() == {world.founder.peer_id: -10, seller.peer_id: 10}


async def test_a_buyer_that_never_countersigns_is_declined_past_the_cap(world: World) -> None:
    """24 tokens at 40 and a prompt of 8 at 10 are 1,040 an answer: a cap of 2,000 lets two of them go unpaid."""
    seller = await world.add("bob", exposure_peer_micro=2_000)
    buyer = await world.puppet("eve")
    await buyer.meet(seller)

    for number in range(2):
        stream, _, _ = await buy(buyer, seller, job=bytes([number]) * 16)
        assert len(await take_tokens(stream)) == 24
        assert isinstance((await buyer.wire.receive(stream, Receipt)).message, Receipt)
        stream.abort()
    _, _, answer = await buyer.ask(seller, job=b"3" * 16)

    assert isinstance(answer.message, Decline)
    assert (answer.message.reason, answer.message.detail) == (
        "unsettled",
        "2080 not countersigned, at most 2000 allowed",
    )


async def test_a_restart_of_the_seller_forgives_no_debt(world: World) -> None:
    seller = await world.add("bob", exposure_peer_micro=1_000)
    buyer = await world.puppet("eve")
    await buyer.meet(seller)
    stream, _, _ = await buy(buyer, seller)
    await take_tokens(stream)
    await buyer.wire.receive(stream, Receipt)

    await seller.restart()
    await world.acquaint(seller, world.founder)
    await buyer.meet(seller)
    _, _, answer = await buyer.ask(seller, job=b"3" * 16)

    assert isinstance(answer.message, Decline)
    assert answer.message.reason == "unsettled"


async def test_a_buyer_that_says_it_accepted_nothing_is_no_better_off(world: World) -> None:
    """It takes the answer, breaks the stream before the receipt and denies: the seller has only its own word for it."""
    seller = await world.add("bob", exposure_peer_micro=1_000)
    buyer = await world.puppet("eve")
    await buyer.meet(seller)

    async def deny(stream: Stream) -> None:
        wanted = (await buyer.wire.receive(stream, SettlementWanted)).message
        await buyer.wire.send(
            stream,
            Accepted(
                job_id=wanted.job_id, attempt=wanted.attempt, completion_tokens=0, output=output_digest(())
            ),
        )

    buyer.serve(SETTLE, deny)
    for number in range(3):
        stream, request, answer = await buyer.ask(seller, job=bytes([number]) * 16)
        if isinstance(answer.message, Decline):
            assert answer.message.reason == "unsettled"
            break
        award = buyer.award(seller.peer_id, request, answer)
        await stream.send(award.raw)
        await buyer.wire.send(stream, buyer.work(award, QUESTION))
        await buyer.wire.receive(stream, Accept)
        await take_tokens(stream, 23)
        stream.abort()
        await world.run(3)
    else:
        pytest.fail("three answers went unpaid")


async def test_a_buyer_that_claims_to_have_accepted_other_tokens_is_not_billed_for_them(world: World) -> None:
    """A prefix of what was sent, or it lies: it is charged with an offence and stays exposed."""
    seller = await world.add("bob")
    buyer = await world.puppet("eve")
    await buyer.meet(seller)

    async def lie(stream: Stream) -> None:
        wanted = (await buyer.wire.receive(stream, SettlementWanted)).message
        await buyer.wire.send(
            stream,
            Accepted(job_id=wanted.job_id, attempt=wanted.attempt, completion_tokens=2, output=b"x" * 32),
        )

    buyer.serve(SETTLE, lie)
    stream, _, _ = await buy(buyer, seller)
    await take_tokens(stream, 5)
    stream.abort()
    await world.run(5)

    assert seller.accounts() == {}
    assert [each["peer_id"] for each in seller.events("offence_counted")] == [buyer.peer_id]
    assert len(seller.events("claim_written_off")) == 1


async def test_a_claim_is_settled_for_exactly_what_was_accepted(world: World) -> None:
    """Five of the tokens arrived; the receipt is for five, whatever was under way."""
    seller = await world.add("bob")
    buyer = await world.puppet("dan")
    await buyer.meet(seller)
    bills: list[Receipt] = []

    async def settle(stream: Stream) -> None:
        wanted = (await buyer.wire.receive(stream, SettlementWanted)).message
        accepted = Accepted(
            job_id=wanted.job_id, attempt=wanted.attempt, completion_tokens=5, output=output_digest(IDS[:5])
        )
        await buyer.wire.send(stream, accepted)
        receipt = await buyer.wire.receive(stream, Receipt)
        bills.append(receipt.message)
        await stream.send(buyer.entry(Countersignature, receipt=receipt.raw).raw)
        await trio.sleep(1)

    buyer.serve(SETTLE, settle)
    stream, award, _ = await buy(buyer, seller)
    await take_tokens(stream, 5)
    stream.abort()
    await world.run(5)

    ((award_id, attempt, tokens, amount),) = [
        (bill.award, bill.attempt, bill.completion_tokens, bill.amount_micro) for bill in bills
    ]
    assert (award_id, attempt, tokens, amount) == (award.id, 1, 5, 8 * 10 + 5 * 40)
    assert seller.balance() == amount
    assert seller.node.settlement._exposure.micro(buyer.peer_id) == 0


async def test_a_stranger_cannot_claim_for_an_award_that_is_not_its_own(world: World) -> None:
    """Nor learn how much of somebody's answer arrived."""
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)
    await world.founder.chat(QUESTION)
    await world.run(1)
    eve = await world.puppet("eve")
    await eve.meet(world.founder)
    receipt = next(world.founder.node.logbook.ledger.payments()).receipt.message

    stream = await eve.open(world.founder, SETTLE)
    await eve.wire.send(
        stream, SettlementWanted(award=receipt.award, job_id=receipt.job_id, attempt=receipt.attempt)
    )
    with pytest.raises(MeshError):
        await stream.receive()

    assert [each["offence"] for each in world.founder.events("offence_counted")] == ["authority"]


async def test_two_receipts_presented_at_once_are_not_both_countersigned(world: World) -> None:
    """A seller opens two settling streams for one attempt and hands a different receipt to each at the same moment."""
    seller = await world.puppet("eve")
    seller.offer()
    signed: list[Countersignature] = []
    deal: list[tuple[Sealed[Award], Work]] = []

    async def break_off(stream: Stream) -> None:
        await seller.bid(stream)
        deal.append(await seller.accept(stream))
        await seller.send_tokens(stream, IDS)
        await trio.sleep(0.05)
        stream.abort()

    seller.serve(JOB, break_off)
    await seller.meet(world.founder)
    with pytest.raises(Exception, match="failed and no other is left"):
        await world.founder.chat(QUESTION)
    award, work = deal[0]

    async def claim(receipt: Sealed[Receipt]) -> None:
        stream = await seller.open(world.founder, SETTLE)
        await seller.wire.send(stream, SettlementWanted(award=award.id, job_id=work.job_id, attempt=1))
        try:
            await seller.wire.receive(stream, Accepted, Countersignature)
            await stream.send(receipt.raw)
            signed.append((await seller.wire.receive(stream, Countersignature)).message)
        except MeshError:
            pass

    async with trio.open_nursery() as both:
        both.start_soon(claim, seller.receipt(award, work, IDS))
        both.start_soon(claim, seller.receipt(award, work, IDS, duration_ms=2))

    assert len(signed) == 1
    assert world.founder.balance() == -10
    assert world.founder.events("contradiction_found") == []
    world.barred.add(seller.peer_id)


async def test_a_receipt_that_was_written_but_not_answered_is_presented_again_after_a_restart(
    world: World,
) -> None:
    """The seller dies between its receipt and the countersignature: nothing is lost, nothing is paid twice."""
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)
    await world.founder.chat(QUESTION)
    await world.until(lambda: len(world.founder.node.ledger().receipts) == 1)
    await seller.kill()
    assert seller.node.ledger().receipts == []  # its countersignature was still on the way

    await seller.start()
    await world.acquaint(world.founder, seller)
    await world.run(3)

    assert seller.node.ledger().receipts == world.founder.node.ledger().receipts
    assert (seller.balance(), world.founder.balance()) == (1040, -1040)
    assert len(seller.node.ledger().receipts) == 1


async def test_a_receipt_that_the_buyer_could_not_answer_is_taken_when_it_comes_again(world: World) -> None:
    """Sweep, seed 301: the same bytes, so the gate took the seller's second visit for a replay, and charged it."""
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)
    async with aclosing(world.founder.node.chat(chat_request(QUESTION))) as events:
        async for event in events:
            if isinstance(event, ChatDelta) and not world.founder.disk.is_full:
                await world.founder.disk.fill()
    assert len(world.founder.events("receipt_missing")) == 1

    world.founder.disk.empty()
    await world.run(15)  # the seller has waited 10 s for an answer

    assert (seller.balance(), world.founder.balance()) == (1040, -1040)
    assert world.founder.events("offence_counted") == []


async def test_a_full_disk_puts_its_sellers_off_and_is_no_fault_of_a_handler(world: World) -> None:
    """Sweep, seed 533: the claim came while the disk was full; its seller comes again."""
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)
    async with aclosing(world.founder.node.chat(chat_request(QUESTION))) as events:
        async for event in events:
            if isinstance(event, ChatDelta) and not world.founder.disk.is_full:
                await world.founder.disk.fill()

    await world.run(15)
    world.founder.disk.empty()
    await world.run(60)

    assert (seller.balance(), world.founder.balance()) == (1040, -1040)
    assert world.founder.events("handler_failed") == []


async def test_a_disk_that_fills_between_bid_and_award_costs_a_seller_the_job(world: World) -> None:
    """It has promised a price, not a slot; the next seller does it."""
    first, second = await world.add("bob"), await world.add("cat", price_completion_micro=60)
    await world.acquaint(world.founder, first, second)
    world.set_latency(world.founder, first, 0.1)
    world.set_latency(world.founder, second, 0.1)

    async def fill() -> None:
        await world.until(lambda: bool(first.events("bid_sent")))
        await first.disk.fill()
        first.disk._store._is_full = False  # nothing was written since, so it does not know yet

    world.nursery.start_soon(fill)
    await world.founder.chat(QUESTION)

    job = await world.founder.ended_job()
    assert [each.seller for each in job.attempts] == [first.peer_id, second.peer_id]
    assert first.events("handler_failed") == []


async def test_a_countersignature_that_the_seller_could_not_keep_is_taken_when_it_comes_again(
    world: World,
) -> None:
    """Its disk was full for a moment: the buyer has paid, and says so again when it is asked."""
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)
    world.set_latency(world.founder, seller, 0.1)
    await world.founder.chat(QUESTION)
    await world.until(lambda: world.founder.balance() == -1040)
    await seller.disk.fill()
    await world.run(0.3)
    assert seller.balance() == 0

    seller.disk.empty()
    await world.run(10)

    assert (seller.balance(), world.founder.balance()) == (1040, -1040)
    assert seller.events("offence_counted") == []


async def test_an_honest_seller_is_not_charged_for_a_receipt_of_more_than_arrived(world: World) -> None:
    """Sweep, seed 301: the link was cut under the last tokens; the seller could not know, and had made out its receipt."""
    seller = await world.add("bob", engine=Engine(seconds_per_token=0.05))
    await world.acquaint(world.founder, seller)

    async def read_until_it_breaks() -> None:
        async with aclosing(world.founder.node.chat(chat_request(QUESTION))) as events:
            async for event in events:
                if isinstance(event, ChatDelta):
                    world.network.cut(seller.peer_id, world.founder.peer_id)

    with pytest.raises(Unsold, match="failed and no other is left"):
        await read_until_it_breaks()
    world.heal()
    await world.run(300)

    assert len(seller.events("delivered")) == len(seller.events("claim_written_off")) == 1
    assert world.founder.events("offence_counted") == []
