"""Members give each other blobs; what a hostile holder sends is never taken for one, and costs it."""

import hashlib
from collections.abc import Awaitable, Callable
from random import Random

import pytest
import trio

from node import records
from node.blobs import BlobNotFound
from node.chunks import receive_bytes
from node.store import StoreFull
from protocol.errors import StreamBroken, StreamEnded
from protocol.limits import BLOB_BYTES_MAX, BLOB_CHUNK_BYTES_MAX, BLOB_CHUNK_TIMEOUT_S
from protocol.mesh import Stream
from protocol.messages import BlobComing, BlobWanted, Refusal
from protocol.topics import BLOB
from runtime.engine import Digest
from tests.node.puppet import Puppet
from tests.node.world import Daemon, World

CHUNK = BLOB_CHUNK_BYTES_MAX
ADAPTER = Random("an adapter").randbytes(3 * CHUNK + 1_000)
DIGEST = Digest(hashlib.sha256(ADAPTER).digest())
Lie = Callable[[Puppet, Stream, BlobWanted], Awaitable[None]]


async def pair(world: World) -> tuple[Daemon, Daemon]:
    """Two devices that have met."""
    ann, bob = await world.add("ann"), await world.add("bob")
    await world.acquaint(ann, bob)
    return ann, bob


async def liar(world: World, victim: Daemon, lie: Lie, name: str = "eve") -> Puppet:
    """A member that answers for blobs the test's way."""
    eve = await world.puppet(name)

    async def answer(stream: Stream) -> None:
        wanted = (await eve.wire.receive(stream, BlobWanted)).message
        await lie(eve, stream, wanted)

    eve.serve(BLOB, answer)
    await eve.meet(victim)
    return eve


def offences(daemon: Daemon, peer: Puppet | Daemon) -> list[str]:
    return [each["offence"] for each in daemon.events("offence_counted") if each["peer_id"] == peer.peer_id]


async def send(stream: Stream, data: bytes, size: int = CHUNK) -> None:
    for start in range(0, len(data), size):
        await stream.send(data[start : start + size])


# --- among the honest -----------------------------------------------------------------------------------------------
async def test_a_blob_travels_from_a_member_that_has_it(world: World) -> None:
    ann, bob = await pair(world)
    await ann.blobs.put(ADAPTER)

    await bob.node.blob_exchange.fetch(DIGEST, len(ADAPTER), [ann.peer_id])

    assert await bob.blobs.read(DIGEST) == ADAPTER
    assert [each["peer"] for each in bob.events("blob_fetched")] == [ann.peer_id]


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
async def test_every_length_travels(world: World, size: int) -> None:
    ann, bob = await pair(world)
    digest = await ann.blobs.put(bytes(size))

    await bob.node.blob_exchange.gather(digest, size)

    assert await bob.blobs.read(digest) == bytes(size)


async def test_whoever_is_connected_is_asked_when_no_holder_is_known(world: World) -> None:
    ann, bob = await pair(world)
    await ann.blobs.put(ADAPTER)

    await bob.node.blob_exchange.gather(DIGEST, len(ADAPTER))

    assert bob.blobs.has(DIGEST)
    assert offences(bob, world.founder) == []  # it was asked, had none, and said so


async def test_what_is_here_is_not_fetched_again(world: World) -> None:
    ann, bob = await pair(world)
    await bob.blobs.put(ADAPTER)

    await bob.node.blob_exchange.fetch(DIGEST, len(ADAPTER), [ann.peer_id])

    assert bob.events("blob_fetched") == []


async def test_two_who_want_the_same_blob_share_one_fetch(world: World) -> None:
    ann, bob = await pair(world)
    await ann.blobs.put(ADAPTER)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(bob.node.blob_exchange.gather, DIGEST, len(ADAPTER))

    assert len(bob.events("blob_fetched")) == 1


async def test_nobody_has_it_is_said_with_what_each_said(world: World) -> None:
    ann, bob = await pair(world)

    with pytest.raises(BlobNotFound, match=rf"nobody gave blob {DIGEST.hex()[:12]}: .*refused \(unknown\)"):
        await bob.node.blob_exchange.fetch(DIGEST, len(ADAPTER), [ann.peer_id])
    with pytest.raises(BlobNotFound, match="no member that could be asked"):
        await bob.node.blob_exchange.fetch(DIGEST, len(ADAPTER), [bob.peer_id])

    assert offences(bob, ann) == []


async def test_a_fetch_goes_on_at_another_holder_where_the_first_was_killed(world: World) -> None:
    """And a member that falls silent in the middle has done no wrong."""
    ann, bob = await pair(world)
    await ann.blobs.put(ADAPTER)
    asked: list[int] = []

    async def die(eve: Puppet, stream: Stream, _wanted: BlobWanted) -> None:
        await eve.wire.send(stream, BlobComing(size_bytes=len(ADAPTER)))
        await send(stream, ADAPTER[: 2 * CHUNK])
        await world.run(1)
        stream.abort()

    async def note(mike: Puppet, stream: Stream, wanted: BlobWanted) -> None:
        asked.append(wanted.offset)
        await mike.wire.send(stream, BlobComing(size_bytes=len(ADAPTER)))
        await send(stream, ADAPTER[wanted.offset :])

    eve, mike = await liar(world, bob, die), await liar(world, bob, note, "mike")
    await bob.node.blob_exchange.fetch(DIGEST, len(ADAPTER), [eve.peer_id, mike.peer_id])

    assert await bob.blobs.read(DIGEST) == ADAPTER
    assert asked == [2 * CHUNK]
    assert offences(bob, eve) == []


async def test_a_fetch_goes_on_after_the_fetcher_was_killed(world: World) -> None:
    ann, bob = await pair(world)
    await bob.blobs.begin(DIGEST, len(ADAPTER))
    await bob.blobs.append(DIGEST, 0, ADAPTER[:CHUNK])
    await ann.blobs.put(ADAPTER)

    await bob.restart()
    await world.acquaint(ann, bob)
    await bob.node.blob_exchange.gather(DIGEST, len(ADAPTER))

    assert await bob.blobs.read(DIGEST) == ADAPTER


async def test_a_fetch_that_is_cancelled_leaves_the_way_free_for_the_next(world: World) -> None:
    async def never(_eve: Puppet, _stream: Stream, _wanted: BlobWanted) -> None:
        await trio.sleep_forever()

    ann, bob = await pair(world)
    eve = await liar(world, bob, never)
    await ann.blobs.put(ADAPTER)

    with trio.move_on_after(1):
        await bob.node.blob_exchange.fetch(DIGEST, len(ADAPTER), [eve.peer_id])
    await bob.node.blob_exchange.fetch(DIGEST, len(ADAPTER), [ann.peer_id])

    assert bob.blobs.has(DIGEST)


# --- hostile holders ------------------------------------------------------------------------------------------------
async def wrong_bytes(eve: Puppet, stream: Stream, _wanted: BlobWanted) -> None:
    await eve.wire.send(stream, BlobComing(size_bytes=len(ADAPTER)))
    await send(stream, bytes(len(ADAPTER)))


async def too_long(eve: Puppet, stream: Stream, _wanted: BlobWanted) -> None:
    await eve.wire.send(stream, BlobComing(size_bytes=len(ADAPTER) + 1))
    await send(stream, ADAPTER + b"!")


async def too_short(eve: Puppet, stream: Stream, _wanted: BlobWanted) -> None:
    await eve.wire.send(stream, BlobComing(size_bytes=len(ADAPTER) - 1))
    await send(stream, ADAPTER[:-1])


async def the_longest_there_is(eve: Puppet, stream: Stream, _wanted: BlobWanted) -> None:
    await eve.wire.send(stream, BlobComing(size_bytes=BLOB_BYTES_MAX))


async def endless(eve: Puppet, stream: Stream, _wanted: BlobWanted) -> None:
    await eve.wire.send(stream, BlobComing(size_bytes=len(ADAPTER)))
    while True:
        await stream.send(bytes(CHUNK))


async def small_chunks(eve: Puppet, stream: Stream, _wanted: BlobWanted) -> None:
    await eve.wire.send(stream, BlobComing(size_bytes=len(ADAPTER)))
    await send(stream, ADAPTER, 1_000)


async def less_than_promised(eve: Puppet, stream: Stream, _wanted: BlobWanted) -> None:
    await eve.wire.send(stream, BlobComing(size_bytes=len(ADAPTER)))
    await send(stream, ADAPTER[:CHUNK])
    await stream.end()


async def another_message(eve: Puppet, stream: Stream, wanted: BlobWanted) -> None:
    await eve.wire.send(stream, wanted)


async def garbage(_eve: Puppet, stream: Stream, _wanted: BlobWanted) -> None:
    await stream.send(b"\xff" * 900)


@pytest.mark.parametrize(
    "lie",
    [
        wrong_bytes,
        too_short,
        endless,
        small_chunks,
        less_than_promised,
        another_message,
        garbage,
    ],
)
async def test_a_lying_holder_is_charged_and_the_next_one_asked(world: World, lie: Lie) -> None:
    ann, bob = await pair(world)
    await ann.blobs.put(ADAPTER)
    eve = await liar(world, bob, lie)

    await bob.node.blob_exchange.fetch(DIGEST, len(ADAPTER), [eve.peer_id, ann.peer_id])

    assert await bob.blobs.read(DIGEST) == ADAPTER
    assert len(offences(bob, eve)) == 1
    assert offences(bob, ann) == []
    assert [each["peer"] for each in bob.events("blob_refused")] == [eve.peer_id]


@pytest.mark.parametrize(
    "lie", [wrong_bytes, too_long, too_short, the_longest_there_is, endless, small_chunks, less_than_promised]
)
async def test_a_lying_holder_alone_leaves_no_blob(world: World, lie: Lie) -> None:
    ann, bob = await pair(world)
    eve = await liar(world, bob, lie)

    with pytest.raises(BlobNotFound):
        await bob.node.blob_exchange.fetch(DIGEST, len(ADAPTER), [eve.peer_id])

    assert not bob.blobs.has(DIGEST)
    assert ann.peer_id in bob.mesh.connected


@pytest.mark.parametrize("lie", [too_long, the_longest_there_is])
async def test_a_holder_that_names_another_size_is_left_without_a_byte(world: World, lie: Lie) -> None:
    """It is not charged: whoever told us the size may be the liar."""
    ann, bob = await pair(world)
    await ann.blobs.put(ADAPTER)
    eve = await liar(world, bob, lie)

    await bob.node.blob_exchange.fetch(DIGEST, len(ADAPTER), [eve.peer_id, ann.peer_id])

    assert bob.blobs.has(DIGEST)
    assert offences(bob, eve) == []


@pytest.mark.parametrize("size", [len(ADAPTER) - 1, len(ADAPTER) + 1])
async def test_a_blob_of_another_size_than_its_manifest_says_is_not_taken(world: World, size: int) -> None:
    """Who knows the exact size asks for it: an honest holder of a blob that a manifest lies about is not believed."""
    ann, bob = await pair(world)
    await ann.blobs.put(ADAPTER)

    with pytest.raises(BlobNotFound):
        await bob.node.blob_exchange.gather(DIGEST, size)

    assert not bob.blobs.has(DIGEST)
    assert offences(bob, ann) == []


async def test_a_holder_that_drips_is_left_for_the_next_one(world: World) -> None:
    """A byte now and then must not keep a fetch waiting: every chunk but the last is full, and has its time."""

    async def drip(eve: Puppet, stream: Stream, _wanted: BlobWanted) -> None:
        await eve.wire.send(stream, BlobComing(size_bytes=len(ADAPTER)))
        await stream.send(ADAPTER[:CHUNK])
        await trio.sleep_forever()

    ann, bob = await pair(world)
    await ann.blobs.put(ADAPTER)
    eve = await liar(world, bob, drip)
    began = trio.current_time()

    await bob.node.blob_exchange.fetch(DIGEST, len(ADAPTER), [eve.peer_id, ann.peer_id])

    assert await bob.blobs.read(DIGEST) == ADAPTER
    assert BLOB_CHUNK_TIMEOUT_S <= trio.current_time() - began < BLOB_CHUNK_TIMEOUT_S + 1


async def test_a_holder_that_never_answers_is_left_for_the_next_one(world: World) -> None:
    async def never(_eve: Puppet, _stream: Stream, _wanted: BlobWanted) -> None:
        await trio.sleep_forever()

    ann, bob = await pair(world)
    await ann.blobs.put(ADAPTER)
    eve = await liar(world, bob, never)

    await bob.node.blob_exchange.fetch(DIGEST, len(ADAPTER), [eve.peer_id, ann.peer_id])

    assert bob.blobs.has(DIGEST)


@pytest.mark.parametrize("poison", [bytes(CHUNK), bytes(4 * CHUNK)])
async def test_a_poisoned_beginning_is_not_blamed_on_the_honest_one_who_finishes_it(
    world: World, poison: bytes
) -> None:
    """A hostile holder sends wrong bytes and breaks off before anybody can hash them; or more than there are."""

    async def begin_and_break(eve: Puppet, stream: Stream, _wanted: BlobWanted) -> None:
        await eve.wire.send(stream, BlobComing(size_bytes=len(poison) + CHUNK))
        await send(stream, poison)
        await world.run(1)
        stream.abort()

    ann, bob = await pair(world)
    await ann.blobs.put(ADAPTER)
    eve = await liar(world, bob, begin_and_break)

    await bob.node.blob_exchange.fetch(DIGEST, 6 * CHUNK, [eve.peer_id, ann.peer_id])

    assert await bob.blobs.read(DIGEST) == ADAPTER
    assert offences(bob, ann) == []


# --- hostile askers -------------------------------------------------------------------------------------------------
async def test_a_stranger_is_given_no_blob(world: World) -> None:
    ann, _ = await pair(world)
    await ann.blobs.put(ADAPTER)
    stranger = await world.puppet("mallory", is_admitted=False)
    await stranger.mesh.dial(ann.address)
    stream = await stranger.open(ann, BLOB)

    await stranger.wire.send(stream, BlobWanted(blob=DIGEST, offset=0))

    with pytest.raises(StreamBroken):
        await stream.receive()
    assert offences(ann, stranger) == ["authority"]


async def test_a_revoked_member_is_given_no_blob(world: World) -> None:
    ann, _ = await pair(world)
    await ann.blobs.put(ADAPTER)
    eve = await world.puppet("eve")
    await eve.meet(ann)
    world.barred.add(eve.peer_id)
    await world.founder.node.revoke(eve.peer_id, "stolen")
    await world.until(lambda: ann.node.logbook.assembly.is_barred(eve.peer_id))

    async def ask_again() -> bytes:
        await eve.mesh.dial(ann.address)
        stream = await eve.open(ann, BLOB)
        await eve.wire.send(stream, BlobWanted(blob=DIGEST, offset=0))
        return await stream.receive()

    with pytest.raises(StreamBroken):
        await ask_again()
    assert offences(ann, eve) == ["authority"]


async def test_an_asker_beyond_the_end_is_given_nothing(world: World) -> None:
    ann, _ = await pair(world)
    await ann.blobs.put(ADAPTER)
    eve = await world.puppet("eve")
    await eve.meet(ann)

    stream = await eve.open(ann, BLOB)
    await eve.wire.send(stream, BlobWanted(blob=DIGEST, offset=2**53))

    assert (await eve.wire.receive(stream, BlobComing)).message.size_bytes == len(ADAPTER)
    with pytest.raises(StreamEnded):
        await stream.receive()


async def test_an_asker_that_does_not_read_holds_back_only_itself(world: World) -> None:
    """At most two chunks are on their way to it; others are served meanwhile, and chats go on."""
    ann, bob = await pair(world)
    await ann.blobs.put(ADAPTER)
    eve = await world.puppet("eve")
    await eve.meet(ann)
    for _ in range(BLOB.streams_max):
        stream = await eve.open(ann, BLOB)
        await eve.wire.send(stream, BlobWanted(blob=DIGEST, offset=0))
    await world.run(5)

    await bob.node.blob_exchange.fetch(DIGEST, len(ADAPTER), [ann.peer_id])

    assert bob.blobs.has(DIGEST)
    assert stream.pending_bytes <= 3 * CHUNK  # type: ignore[attr-defined]


async def test_a_blob_that_is_not_here_is_refused_by_name(world: World) -> None:
    ann, _ = await pair(world)
    eve = await world.puppet("eve")
    await eve.meet(ann)

    stream = await eve.open(ann, BLOB)
    await eve.wire.send(stream, BlobWanted(blob=DIGEST, offset=0))

    assert (await eve.wire.receive(stream, Refusal)).message.reason == "unknown"


async def test_private_data_cannot_be_asked_for(world: World) -> None:
    """A data set has a digest too, and it is no blob's."""
    ann, bob = await pair(world)
    lines = records.encode((f"prompt {at}", "yes") for at in range(20))
    added = ann.data.insert("logs", records.read(lines, "made up"), budget_milli=4_000)

    with pytest.raises(BlobNotFound):
        await bob.node.blob_exchange.fetch(added.data_set.digest, BLOB_BYTES_MAX, [ann.peer_id])


# --- our own disk ---------------------------------------------------------------------------------------------------
async def test_a_full_disk_stops_the_fetch_and_blames_nobody(world: World) -> None:
    ann, bob = await pair(world)
    await ann.blobs.put(ADAPTER)
    bob.blobs.size_bytes_max = CHUNK

    with pytest.raises(StoreFull):
        await bob.node.blob_exchange.fetch(DIGEST, len(ADAPTER), [ann.peer_id])

    assert not bob.blobs.has(DIGEST)
    assert offences(bob, ann) == []
    bob.blobs.size_bytes_max = None
    await bob.node.blob_exchange.fetch(DIGEST, len(ADAPTER), [ann.peer_id])
    assert bob.blobs.has(DIGEST)


async def test_a_blob_that_goes_while_it_is_sent_breaks_the_stream(world: World) -> None:
    ann, _ = await pair(world)
    big = Random("big").randbytes(10 * CHUNK)
    digest = await ann.blobs.put(big)
    eve = await world.puppet("eve")
    await eve.meet(ann)
    stream = await eve.open(ann, BLOB)
    await eve.wire.send(stream, BlobWanted(blob=digest, offset=0))
    await eve.wire.receive(stream, BlobComing)

    await ann.blobs.drop(digest)

    with pytest.raises(StreamBroken):
        await receive_bytes(stream, len(big))
