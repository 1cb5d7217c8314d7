"""Logs that do not hold together: their authors lose by it, and nobody else's log does."""

from typing import Any

import pytest
import trio

from node.chat import Unsold
from protocol.envelope import Sealed
from protocol.errors import MeshError
from protocol.limits import KIB
from protocol.mesh import Stream
from protocol.messages import NO_HASH, Accept, Award, Bid, Decline, Entries, EntriesWanted, Head
from protocol.topics import HELLO, SYNC
from tests.node.puppet import Puppet
from tests.node.world import Daemon, Holder, World


async def sell(buyer: Puppet, seller: Daemon, number: int, **changes: Any) -> bool:
    """Offer an award with some fields changed; whether the seller took it."""
    stream, request, bid = await buyer.ask(seller, job=number.to_bytes(16))
    assert isinstance(bid.message, Bid)
    award = buyer.award(seller.peer_id, request, bid, lease_ms=0, **changes)
    try:
        await stream.send(award.raw)
        await buyer.wire.send(stream, buyer.work(award))
        await buyer.wire.receive(stream, Accept)
    except MeshError:
        return False
    finally:
        stream.abort()
    return True


async def check_unharmed(world: World, seller: Daemon) -> None:
    """It sells to an honest buyer, every entry that it wrote stands in its log, and it starts again."""
    await world.run(5)
    await world.founder.chat()
    await world.run(1)
    assert seller.balance() > 0
    stored = [record for record in await seller.backup() if record.kind == "entry"]
    own = seller.node.logbook.entries(seller.peer_id, "bilateral", 0)
    assert {entry.id for entry in own} <= {record.key for record in stored}
    assert len({entry.message.index for entry in own}) == len(own)
    balance = seller.balance()
    await seller.restart()
    assert seller.balance() == balance


async def test_an_award_that_does_not_follow_the_one_before_it_is_refused(world: World) -> None:
    """Its seller must not be left with an accept on disk that its own log does not know."""
    seller = await world.add("bob")
    await world.acquaint(seller, world.founder)
    buyer = await world.puppet("eve")
    await buyer.meet(seller)
    await sell(buyer, seller, 1)

    assert not await sell(buyer, seller, 2, index=1)

    await check_unharmed(world, seller)


async def test_of_two_awards_in_one_place_one_at_most_is_accepted(world: World) -> None:
    """Sent at once, before the first of them is on disk; both together are evidence, and bar their author."""
    seller = await world.add("bob")
    await world.acquaint(seller, world.founder)
    buyer = await world.puppet("eve")
    await buyer.meet(seller)
    taken: list[bool] = []

    async def try_it(number: int) -> None:
        taken.append(await sell(buyer, seller, number, index=0))

    async with trio.open_nursery() as both:
        both.start_soon(try_it, 1)
        both.start_soon(try_it, 2)

    assert sum(taken) <= 1
    world.barred.add(buyer.peer_id)
    await check_unharmed(world, seller)


async def test_a_gap_that_is_filled_with_what_does_not_fit_harms_nobody_else(world: World) -> None:
    """Entry 1 comes first and names no entry that there is; entry 0 comes after it."""
    seller = await world.add("bob")
    await world.acquaint(seller, world.founder)
    buyer = await world.puppet("eve")
    await buyer.meet(seller)

    assert await sell(buyer, seller, 1, index=1)
    assert await sell(buyer, seller, 2, index=0)

    await check_unharmed(world, seller)


async def test_a_long_gap_is_filled_without_a_stack(world: World) -> None:
    """1,200 awards wait for the first one."""
    seller = await world.add("bob")
    await world.acquaint(seller, world.founder)
    buyer = await world.puppet("eve")
    fields: dict[str, Any] = {
        "request": bytes(32),
        "bid": bytes(32),
        "attempt": 1,
        "seller": seller.peer_id,
        "model": bytes(32),
        "hold_micro": 0,
        "prompt_micro": 0,
        "completion_micro": 0,
        "lease_ms": 0,
        "adapter": NO_HASH,
        "session": NO_HASH,
    }
    awards = [buyer.entry(Award, job_id=number.to_bytes(16), **fields) for number in range(1_200)]

    async def accept(award: Sealed[Award]) -> None:
        await seller.node.logbook.write(
            Accept,
            lambda index, prev: Accept(
                index=index,
                prev=prev,
                award=award.id,
                buyer=buyer.peer_id,
                job_id=award.message.job_id,
                attempt=1,
            ),
            witnessing=award,
        )

    for award in (*awards[1:], awards[0]):
        await accept(award)

    head = seller.node.logbook.head(buyer.peer_id, "bilateral")
    assert head is not None
    assert head.index == 1_199
    await check_unharmed(world, seller)


async def test_only_the_entries_asked_for_are_taken(world: World) -> None:
    """A stranger says hello and, asked for an assembly log, hands over the books of keys that it has just made."""
    daemon = await world.add("bob")
    eve = await world.puppet("eve", is_admitted=False)
    invented = [await world.puppet(f"nobody {number}", is_admitted=False) for number in range(3)]

    async def answer(stream: Stream) -> None:
        await eve.wire.receive(stream, EntriesWanted)
        entries = [
            each.entry(Accept, award=bytes(32), buyer=eve.peer_id, job_id=bytes(16), attempt=1).raw
            for each in invented
        ]
        await eve.wire.send(stream, Entries(entries=tuple(entries)))
        await eve.wire.send(stream, Entries(entries=()))

    eve.serve(SYNC, answer)
    eve.heads = (Head(author=eve.peer_id, log="assembly", index=9, entry=bytes(32)),)
    before = daemon.disk.kinds()
    await eve.mesh.dial(daemon.address)
    stream = await eve.mesh.open_stream(daemon.peer_id, HELLO)
    await eve.wire.send(stream, eve.hello())
    await world.run(5)

    assert daemon.node.logbook.heads("bilateral") == []
    assert daemon.disk.kinds() == before


async def test_an_endless_log_of_a_hostile_buyer_is_kept_only_up_to_its_bound(world: World) -> None:
    """It signs awards that concern nobody, as fast as it can, and shows them whenever a seller asks for its log."""
    seller = await world.add("bob")
    seller.node.logbook.author_bytes_max = 64 * KIB
    await world.acquaint(seller, world.founder)
    buyer = await world.puppet("eve")
    await buyer.meet(seller)
    endless = [
        buyer.entry(Accept, award=bytes(32), buyer=buyer.peer_id, job_id=number.to_bytes(16), attempt=1)
        for number in range(1_000)
    ]
    asked: list[int] = []

    async def show(stream: Stream) -> None:
        start = (await buyer.wire.receive(stream, EntriesWanted)).message.start
        asked.append(start)
        for place in range(start, len(endless), 100):
            batch = tuple(entry.raw for entry in endless[place : place + 100])
            await buyer.wire.send(stream, Entries(entries=batch))
        await buyer.wire.send(stream, Entries(entries=()))

    buyer.serve(SYNC, show)
    head = Head(author=buyer.peer_id, log="bilateral", index=999, entry=endless[-1].id)
    for number in range(5):
        stream, _, _ = await buyer.ask(seller, job=number.to_bytes(16), head=head)
        stream.abort()
        await world.run(1)

    stored = [record for record in await seller.backup() if record.key in {entry.id for entry in endless}]
    size = sum(len(record.body or b"") for record in stored)
    assert 64 * KIB <= size < 65 * KIB
    assert asked == [0]
    (failed,) = seller.events("sync_failed")
    assert failed["reason"] == (
        f"bilateral log of {buyer.peer_id} is full: {size} bytes are kept here, at most {64 * KIB} allowed"
    )
    _, _, answer = await buyer.ask(seller, job=b"l" * 16, head=head)
    assert isinstance(answer.message, Decline)
    assert (answer.message.reason, answer.message.detail) == (
        "policy",
        f"your log is full: {size} bytes are kept here, at most {64 * KIB} allowed; join with a new key",
    )
    await check_unharmed(world, seller)


async def test_what_was_delivered_is_paid_though_the_buyers_log_is_full(world: World) -> None:
    """The bound closes the door to new work; it never costs a seller the signature that it is owed."""
    seller, buyer = await world.add("bob"), await world.add("dan", engine=Holder())
    await world.acquaint(buyer, seller, world.founder)
    await buyer.chat("hello")
    await world.run(1)
    seller.node.logbook.author_bytes_max = seller.node.logbook.kept_bytes(buyer.peer_id) + 1

    await buyer.chat("hello")
    await world.run(1)
    assert seller.node.logbook.kept_bytes(buyer.peer_id) > seller.node.logbook.author_bytes_max
    with pytest.raises(Unsold, match="policy"):
        await buyer.chat("hello")

    assert len(seller.node.ledger().receipts) == 2
    await seller.restart()
    assert len(seller.node.ledger().receipts) == 2
