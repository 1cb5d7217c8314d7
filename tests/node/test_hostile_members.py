"""Members that do not play by the rules: what they send changes nothing, or bars them."""

from contextlib import suppress
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.envelope import Sealed, encode
from protocol.errors import MeshError
from protocol.mesh import Stream
from protocol.messages import (
    NO_HASH,
    Accept,
    Award,
    Countersignature,
    Decline,
    Entries,
    EntriesWanted,
    Evidence,
    Hello,
    JoinRequest,
    Message,
    ProgressFrame,
    SettlementWanted,
    TokensFrame,
)
from protocol.topics import (
    ADMISSION,
    ADVERT,
    ADVERTS_WANTED,
    ASSEMBLY,
    HELLO,
    JOB,
    SETTLE,
    STREAM_PROTOCOLS,
    SYNC,
)
from tests.node.puppet import Puppet
from tests.node.world import Daemon, Engine, World, echo_text, person


async def met(world: World) -> tuple[Daemon, Puppet]:
    """A seller, and a hostile member that has greeted it."""
    seller, eve = await world.add("bob", engine=Engine(slots=4)), await world.puppet("eve")
    await eve.meet(seller)
    await world.acquaint(world.founder, seller)
    return seller, eve


def picture(daemon: Daemon) -> object:
    """All that a daemon knows and keeps, as far as strangers must not change it."""
    return (
        daemon.disk.kinds(),
        daemon.node.logbook.assembly.members(),
        daemon.node.logbook.assembly.names(),
        daemon.node.ledger(),
        daemon.node.logbook.heads("assembly"),
        daemon.node.logbook.heads("bilateral"),
    )


# --- awards -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "lie",
    [
        {"bid": b"b" * 32},
        {"request": b"r" * 32},
        {"completion_micro": 1},
        {"prompt_micro": 0},
        {"job_id": b"k" * 16},
        {"attempt": 2},
        {"model": b"m" * 32},
        {"seller": person("cat").peer_id},
        {"hold_micro": 10 * 10 + 50 * 40 - 1},
        {"lease_ms": 600_001},
        {"session": b"s" * 32},
    ],
    ids=lambda lie: next(iter(lie)),
)
async def test_an_award_that_is_not_what_was_bid_is_refused(world: World, lie: dict[str, Any]) -> None:
    """For another bid, at another price, for another job, for less than its cost or for ever: no accept, no entry, no slot, one offence."""
    seller, eve = await met(world)
    stream, request, bid = await eve.ask(seller)
    before = picture(seller)
    award = eve.award(seller.peer_id, request, bid, **lie)

    with suppress(MeshError):
        await stream.send(award.raw)
        await eve.wire.send(stream, eve.work(award))
    with pytest.raises(MeshError):
        await stream.receive()

    assert picture(seller) == before
    assert list(seller.engine.started) == []
    assert [each["peer_id"] for each in seller.events("offence_counted")] == [eve.peer_id]


async def test_an_award_that_holds_more_than_the_buyer_has_is_declined(world: World) -> None:
    """The request was within the credit line, the award's hold is not: a lease is worth what stands behind it."""
    seller, eve = await met(world)
    stream, request, bid = await eve.ask(seller)
    award = eve.award(seller.peer_id, request, bid, hold_micro=10_000_001)

    await stream.send(award.raw)
    await eve.wire.send(stream, eve.work(award))
    answer = (await eve.wire.receive(stream, Accept, Decline)).message

    assert isinstance(answer, Decline)
    assert (answer.reason, answer.detail) == ("credit", "10000001 wanted, 10000000 spendable")
    assert seller.node.logbook.ledger.held_micro(eve.peer_id) == 0
    assert list(seller.engine.started) == []


async def test_awards_that_hold_the_same_credit_twice_are_not_both_taken(world: World) -> None:
    """Each fits into the line of ten million, both at once do not; they are sent in the same moment."""
    seller, eve = await met(world)
    answers: list[object] = []
    asked = [await eve.ask(seller, job=bytes([number]) * 16) for number in (1, 2)]

    async def hand_over(stream: Stream, award: Sealed[Award]) -> None:
        await stream.send(award.raw)
        await eve.wire.send(stream, eve.work(award))
        answers.append((await eve.wire.receive(stream, Accept, Decline)).message)

    async with trio.open_nursery() as both:
        for stream, request, bid in asked:
            both.start_soon(hand_over, stream, eve.award(seller.peer_id, request, bid, hold_micro=6_000_000))

    assert sorted(type(answer).kind for answer in answers) == ["accept", "decline"]  # type: ignore[attr-defined]
    assert seller.node.logbook.ledger.held_micro(eve.peer_id) == 6_000_000


async def test_a_buyer_that_awards_one_attempt_twice_is_barred_everywhere(world: World) -> None:
    """Two durable awards for one (job, attempt): anybody can check it, so everybody bars the key within a gossip."""
    seller, eve = await met(world)
    cat = await world.add("cat")
    await world.acquaint(world.founder, seller, cat)
    world.barred.add(eve.peer_id)
    for _ in range(2):
        stream, request, bid = await eve.ask(seller)
        award = eve.award(seller.peer_id, request, bid)
        await stream.send(award.raw)
        await eve.wire.send(stream, eve.work(award))
        with suppress(MeshError):
            await eve.wire.receive(stream, Accept)

    await world.until(
        lambda: all(each.node.logbook.assembly.is_barred(eve.peer_id) for each in world.daemons.values()),
        within_s=5,
    )

    for daemon in world.daemons.values():
        assert eve.peer_id not in daemon.mesh.connected
    assert len(seller.engine.started) == 1
    (evidence,) = seller.node.logbook.assembly.entries_after(seller.peer_id, -1)
    assert isinstance(evidence.message, Evidence)


async def test_a_log_that_forks_bars_its_author(world: World) -> None:
    """Two different entries with one index: no device that commits before it sends ever signs them."""
    seller, eve = await met(world)
    world.barred.add(eve.peer_id)
    for job in (b"1" * 16, b"2" * 16):
        stream, request, bid = await eve.ask(seller, job=job)
        award = eve.award(seller.peer_id, request, bid, index=0)
        await stream.send(award.raw)
        await eve.wire.send(stream, eve.work(award))
        with suppress(MeshError):
            await eve.wire.receive(stream, Accept)

    await world.until(lambda: world.founder.node.logbook.assembly.is_barred(eve.peer_id), within_s=5)

    assert len(seller.engine.started) == 1


async def test_a_fork_that_comes_by_sync_is_seen_as_well(world: World) -> None:
    """One award was handed over, another with the same index stands in the log that eve shows when asked for it."""
    seller, eve = await met(world)
    world.barred.add(eve.peer_id)
    stream, request, bid = await eve.ask(seller)
    first = eve.award(seller.peer_id, request, bid)  # index 0, kept from the seller
    shown = eve.award(seller.peer_id, request, bid, job_id=b"o" * 16)  # index 1, as the log shows it
    handed = eve.award(seller.peer_id, request, bid, index=1)
    await stream.send(handed.raw)
    await eve.wire.send(stream, eve.work(handed))
    await eve.wire.receive(stream, Accept)

    async def show(asked: Stream) -> None:
        await eve.wire.receive(asked, EntriesWanted)
        await eve.wire.send(asked, Entries(entries=(first.raw, shown.raw)))
        await eve.wire.send(asked, Entries(entries=()))

    eve.serve(SYNC, show)
    await seller.node.sync.pull(eve.peer_id, eve.peer_id, "bilateral")
    await world.until(lambda: world.founder.node.logbook.assembly.is_barred(eve.peer_id), within_s=5)

    assert not seller.node.logbook.assembly.is_member(eve.peer_id)


async def test_false_evidence_bars_nobody(world: World) -> None:
    """Two awards that do not contradict each other, brought by a member as if they did."""
    seller, eve = await met(world)
    stream, request, bid = await eve.ask(seller)
    one = eve.award(seller.peer_id, request, bid)
    other = eve.award(seller.peer_id, request, bid, job_id=b"o" * 16)
    stream.abort()
    lie = eve.entry(Evidence, first=one.raw, second=other.raw)

    seller.mesh.hear(ASSEMBLY.name, lie.raw, eve.peer_id)
    await world.run(2)

    assert seller.node.logbook.assembly.is_member(eve.peer_id)
    assert seller.node.logbook.head(eve.peer_id, "assembly") is None


async def test_a_seller_that_answers_another_sellers_request_does_not_hide_behind_its_name(
    world: World,
) -> None:
    """What is not signed by the peer at the other end of the stream is no answer."""
    honest, eve = await met(world)
    eve.offer()
    await eve.meet(world.founder)
    kept: list[bytes] = []

    async def pass_on(stream: Stream) -> None:
        raw = await stream.receive()
        relayed = await eve.open(honest, JOB)
        await relayed.send(raw)
        with suppress(MeshError):
            kept.append(await relayed.receive())
            await stream.send(kept[0])

    eve.serve(JOB, pass_on)

    answer = await world.founder.chat("hello")

    assert answer.text == echo_text("hello")
    assert answer.started[0].seller == honest.peer_id
    assert kept == []  # the honest seller does not answer what another peer signed, either


# --- logs -------------------------------------------------------------------------------------------------------------
async def test_the_private_trades_of_two_members_are_shown_to_no_third(world: World) -> None:
    """Bilateral logs are for whom they bind, and for whoever asks their author itself."""
    seller, eve = await met(world)
    await world.founder.chat("hello")
    await world.run(1)
    stream = await eve.open(seller, SYNC)

    await eve.wire.send(stream, EntriesWanted(author=world.founder.peer_id, log="bilateral", start=0))
    with pytest.raises(MeshError):
        await stream.receive()

    assert [each["offence"] for each in seller.events("offence_counted")] == ["authority"]


async def test_a_stranger_syncs_nothing(world: World) -> None:
    seller = await world.add("bob")
    eve = await world.puppet("eve", is_admitted=False)
    await eve.mesh.dial(seller.address)
    stream = await eve.open(seller, SYNC)

    await eve.wire.send(stream, EntriesWanted(author=world.founder.peer_id, log="assembly", start=0))

    with pytest.raises(MeshError):
        await stream.receive()


async def test_entries_of_the_future_are_not_taken(world: World) -> None:
    """The newest card of a name holds: one dated next year would hold for a year."""
    bob = await world.add("bob")
    founder = world.twin_of(world.founder)
    founder.clock.skew_ms = 365 * 86_400_000
    known = world.founder.node.logbook.head(world.founder.peer_id, "assembly")
    assert known is not None
    card = founder.next_card(known, "llama", b"9" * 32)

    bob.mesh.hear(ASSEMBLY.name, card.raw, world.founder.peer_id)
    await world.run(1)

    assert bob.node.logbook.assembly.names() == {}


# --- garbage ----------------------------------------------------------------------------------------------------------
GARBAGE = (
    b"",
    b"\x00",
    b"\xc1" * 100,
    b"\x81" * 64,
    b"\xdf\xff\xff\xff\xff",
    bytes(64) + b"\x80",
    b"GET / HTTP/1.1\r\n\r\n",
    "ağacın üstünde".encode(),
    encode(TokensFrame(first=0, ids=(1,), text="x")),
    encode(ProgressFrame(phase="queued", done=0, total=0)),
    bytes(range(256)) * 4,
)


async def send_everywhere(world: World, eve: Puppet, victim: Daemon, frames: tuple[bytes, ...]) -> None:
    """Open a stream of every protocol and send the frames on each, whatever comes of it."""
    for protocol in STREAM_PROTOCOLS:
        with suppress(MeshError):
            stream = await eve.open(victim, protocol)
            for frame in frames:
                if len(frame) <= protocol.frame_bytes_max:
                    await stream.send(frame)
            await stream.end()
        await world.run(0.1)


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda each: each[:6].hex() or "empty")
async def test_garbage_on_every_protocol_changes_nothing(world: World, garbage: bytes) -> None:
    """Nor does it raise: an honest chat goes on beside it."""
    seller, eve = await met(world)
    before = picture(seller)

    await send_everywhere(world, eve, seller, (garbage, garbage))
    await world.run(1)

    assert picture(seller) == before
    assert seller.events("handler_failed") == []
    assert (await world.founder.chat("hello")).text == echo_text("hello")


async def test_true_messages_in_the_wrong_place_change_nothing(world: World) -> None:
    """Every kind, signed and fresh, on every protocol it does not belong to, from a member and about nothing real."""
    seller, eve = await met(world)
    before = picture(seller)
    strays: list[Message] = [
        eve.hello(),
        EntriesWanted(author=person("nobody").peer_id, log="assembly", start=2**53),
        Entries(entries=(b"x",)),
        SettlementWanted(award=NO_HASH, job_id=bytes(16), attempt=1),
        JoinRequest(invitation=b"x", proof=bytes(64)),
        Countersignature(index=0, prev=NO_HASH, receipt=b"x"),
        Accept(index=0, prev=NO_HASH, award=NO_HASH, buyer=seller.peer_id, job_id=bytes(16), attempt=1),
    ]
    at_home = {Hello: HELLO, EntriesWanted: SYNC, SettlementWanted: SETTLE, JoinRequest: ADMISSION}

    for protocol in (HELLO, ADMISSION, ADVERT, ADVERTS_WANTED, SYNC, JOB, SETTLE):
        for stray in strays:
            if at_home.get(type(stray)) is not protocol:
                with suppress(MeshError):
                    stream = await eve.open(seller, protocol)
                    await eve.wire.send(stream, stray)
                await world.run(6)  # offences fade: it is not barred before the end

    assert picture(seller) == before
    assert seller.events("handler_failed") == []
    assert (await world.founder.chat("hello")).text == echo_text("hello")


async def test_garbage_in_gossip_is_not_handed_on(world: World) -> None:
    seller, eve = await met(world)
    before = picture(world.founder)

    for garbage in GARBAGE:
        seller.mesh.hear(ASSEMBLY.name, garbage, eve.peer_id)
    await world.run(1)

    assert picture(world.founder) == before
    assert world.founder.events("offence_counted") == []
    assert len(seller.events("offence_counted")) == len(GARBAGE)


async def test_too_much_garbage_bars_a_peer_for_a_minute(world: World) -> None:
    """Sixteen offences within a minute; then its connections are refused, and honest ones are not."""
    seller, eve = await met(world)

    for _ in range(20):
        with suppress(MeshError):
            stream = await eve.open(seller, SYNC)
            await stream.send(b"garbage")
            await world.run(0.1)

    assert eve.peer_id not in seller.mesh.connected
    assert seller.mesh.is_barred(eve.peer_id)
    await world.run(61)
    assert not seller.mesh.is_barred(eve.peer_id)
    assert (await world.founder.chat("hello")).text == echo_text("hello")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.lists(st.binary(max_size=200), min_size=1, max_size=4))
def test_whatever_bytes_come_nothing_is_raised(frames: list[bytes]) -> None:
    """Found by search rather than by imagination; each example is a world of its own."""
    from tests.node.conftest import run_on_virtual_time  # noqa: PLC0415  the runner of the async tests

    async def story() -> None:
        async with trio.open_nursery() as nursery:
            world = World(nursery)
            async with world.running():
                await world.open()
                eve = await world.puppet("eve")
                await eve.meet(world.founder)
                before = picture(world.founder)

                await send_everywhere(world, eve, world.founder, tuple(frames))
                for frame in frames:
                    world.founder.mesh.hear(ASSEMBLY.name, frame, eve.peer_id)
                await world.run(1)

                assert picture(world.founder) == before
                world.check()

    run_on_virtual_time(story)
