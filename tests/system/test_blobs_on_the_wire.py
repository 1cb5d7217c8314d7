"""Blobs between real hosts and real directories: resumed at another holder, and in nobody's way."""

import hashlib
import time
from pathlib import Path
from random import Random

import msgspec
import pytest
import trio

from marketplace.assembly.assembly import Assembly
from marketplace.assembly.charter import founding_charter
from marketplace.ledger import Ledger
from node.blob_directory import DirectoryBlobs
from node.clock import MembersTime, SystemClock
from node.host import Host, HostSettings
from node.journal import Journal
from node.logbook import Logbook
from node.services.blob_exchange import BlobExchange
from node.store import MemoryStore
from node.wire import Wire
from protocol.envelope import seal
from protocol.errors import StreamEnded
from protocol.identity import Identity
from protocol.limits import BLOB_CHUNK_BYTES_MAX, MIB
from protocol.mesh import Stream
from protocol.messages import NO_HASH, RollEntry
from protocol.topics import StreamProtocol
from runtime.engine import Digest

pytestmark = pytest.mark.system

ADAPTER = Random("an adapter").randbytes(16 * MIB + 7)
DIGEST = Digest(hashlib.sha256(ADAPTER).digest())
ECHO = StreamProtocol("/test/echo/1", frame_bytes_max=1_024)
KEYS = [Identity(Random(name).randbytes(32)) for name in ("ann", "bob", "cat")]


class WatchedBlobs(DirectoryBlobs):
    """It says when some chunks of a fetch are on disk."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, free_bytes_min=0)
        self.is_under_way = trio.Event()

    async def append(self, digest: Digest, offset: int, data: bytes) -> None:
        await super().append(digest, offset, data)
        if offset >= 4 * BLOB_CHUNK_BYTES_MAX:
            self.is_under_way.set()


class Member:
    """A host, a directory of blobs, and the exchange between them; all members are on the roll."""

    def __init__(self, identity: Identity, directory: Path) -> None:
        clock, self.journal = SystemClock(), Journal()
        self.host = Host(identity, HostSettings(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False), self.journal)
        self.blobs = WatchedBlobs(directory)
        founder = KEYS[0]
        alone = founding_charter("home", founder=founder.public_key, owner="ann", approver=founder.public_key)
        roll = tuple(RollEntry(key=each.public_key, owner="ann", weight=1) for each in KEYS)
        charter = seal(
            msgspec.structs.replace(alone, roll=roll), founder, mesh=NO_HASH, seq=(1, 1), time_ms=1, ttl_ms=0
        )
        assembly = Assembly.found(charter)
        wire = Wire(
            identity,
            charter.id,
            boot=time.monotonic_ns() % 2**62,
            clock=clock,
            members_time=MembersTime(clock),
        )
        ledger = Ledger(charter.id, assembly.was_admitted)
        log = Logbook(wire, MemoryStore(), assembly, ledger, clock=clock, journal=self.journal)
        self.exchange = BlobExchange(
            mesh=self.host, wire=wire, logbook=log, blobs=self.blobs, clock=clock, journal=self.journal
        )
        self.host.serve(ECHO, echo)
        self.process = trio.CancelScope()

    async def run(self, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        with self.process:
            await self.host.run(task_status=task_status)  # type: ignore[arg-type]  # trio-typing's stubs


async def echo(stream: Stream) -> None:
    while True:
        try:
            await stream.send(await stream.receive())
        except StreamEnded:
            return


@pytest.fixture
async def members(nursery: trio.Nursery, tmp_path: Path) -> list[Member]:
    """Three members; the last knows the other two."""
    made = [Member(key, tmp_path / str(number)) for number, key in enumerate(KEYS)]
    for member in made:
        await nursery.start(member.run)
    for holder in made[:2]:
        await made[2].host.dial(holder.host.addresses[0])
    return made


async def test_a_blob_travels_over_sockets_into_a_file(members: list[Member]) -> None:
    ann, _, cat = members
    await ann.blobs.put(ADAPTER)

    await cat.exchange.gather(DIGEST, len(ADAPTER))

    assert cat.blobs.path(DIGEST).read_bytes() == ADAPTER
    assert [path.name for path in cat.blobs.directory.iterdir()] == [DIGEST.hex()]


async def test_a_fetch_goes_on_at_another_holder_when_the_first_is_killed(members: list[Member]) -> None:
    ann, bob, cat = members
    for holder in (ann, bob):
        await holder.blobs.put(ADAPTER)

    async def kill_in_the_middle() -> None:
        await cat.blobs.is_under_way.wait()
        ann.process.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill_in_the_middle)
        await cat.exchange.fetch(DIGEST, len(ADAPTER), [ann.host.peer_id, bob.host.peer_id])

    assert await cat.blobs.read(DIGEST) == ADAPTER
    [refused] = [event.fields for event in cat.journal.recent() if event.name == "blob_refused"]
    [fetched] = [event.fields for event in cat.journal.recent() if event.name == "blob_fetched"]
    assert (refused["peer"], fetched["peer"]) == (ann.host.peer_id, bob.host.peer_id)
    assert [event.name for event in cat.journal.recent() if event.name == "offence_counted"] == []


async def test_tokens_pass_while_a_blob_is_on_its_way(members: list[Member]) -> None:
    """On the same connection: its streams take turns of 16 KiB, so a frame waits for one, not for a blob."""
    ann, _, cat = members
    await ann.blobs.put(ADAPTER)
    stream = await cat.host.open_stream(ann.host.peer_id, ECHO)
    waits: list[float] = []
    is_fetched = trio.Event()

    async def fetch() -> None:
        await cat.exchange.fetch(DIGEST, len(ADAPTER), [ann.host.peer_id])
        is_fetched.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch)
        while not is_fetched.is_set():
            began = time.perf_counter()
            await stream.send(b"token")
            assert await stream.receive() == b"token"
            waits.append(time.perf_counter() - began)
    await stream.end()

    assert len(waits) > 20
    assert sorted(waits)[len(waits) // 2] < 0.1
