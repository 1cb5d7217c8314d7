"""Sync: bring every member's logs to the newest entry that anybody near has.

Assembly entries go out by gossip the moment they are written; a gap, a newcomer or a lost message is mended by asking a
peer for the entries after the ones we have. Bilateral logs are asked for one author at a time, by whoever is about to
extend that author credit, and only from the author itself or about oneself.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import trio

from marketplace.assembly.assembly import open_entry
from node.clock import MembersTime
from node.journal import Journal
from node.logbook import Logbook
from node.pull_queue import Pull, PullQueue
from node.store import StoreFailed
from node.wire import Wire
from protocol import limits
from protocol.envelope import Sealed
from protocol.errors import (
    AgoraError,
    BrokenLog,
    Equivocation,
    Expired,
    MalformedMessage,
    MeshError,
    NotAuthorised,
    RemoteProtocolError,
)
from protocol.identity import PeerId
from protocol.mesh import Mesh, Stream, Verdict
from protocol.messages import Entries, EntriesWanted, Entry, Evidence, Head, LogName
from protocol.topics import ASSEMBLY, SYNC

if TYPE_CHECKING:  # trio-typing's stubs, which libp2p brings, hide trio's own types
    from trio_typing import TaskStatus

PULL_TIMEOUT_S = 20.0
PULLS_WAITING_MAX = 64
# A silent peer takes one of them for the timeout, so it takes as many as we dial to take them all.
PULLS_AT_ONCE = 8
# What an honest peer may hand on: not its fault, though the entry is not taken (yet).
AUTHORS_FAULT = (BrokenLog, Equivocation, NotAuthorised, Expired)


class Sync:
    """Answers for entries, asks for missing ones, and takes part in the assembly's topic."""

    def __init__(
        self, mesh: Mesh, wire: Wire, members_time: MembersTime, logbook: Logbook, journal: Journal
    ) -> None:
        self._members_time = members_time
        self._mesh = mesh
        self._wire = wire
        self._logbook = logbook
        self._journal = journal
        self.wanted = PullQueue(waiting_max=PULLS_WAITING_MAX, running_max=PULLS_AT_ONCE)
        mesh.serve(SYNC, self._answer)
        mesh.subscribe(ASSEMBLY, self._validate, self._hear)

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Pull what `want` asked for, a few logs at once; accuse who contradicts itself."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._bring_evidence)
            task_status.started()
            while True:
                nursery.start_soon(self._pull_wanted, await self.wanted.next())

    async def _pull_wanted(self, wanted: Pull) -> None:
        try:
            await self.pull(wanted.peer, wanted.author, wanted.log)
        finally:
            self.wanted.done(wanted)

    async def announce(self, entry: Sealed[Entry]) -> None:
        """Gossip an assembly entry that we have just written; whoever does not hear it now asks after the next hello."""
        try:
            await self._mesh.publish(ASSEMBLY, entry.raw)
        except MeshError as error:
            self._journal.write("entry_not_gossiped", kind=type(entry.message).kind, reason=str(error))

    async def bring(self, entry: Sealed[Entry]) -> None:
        """Take in an entry that a human has signed beside this daemon, and tell everybody.

        Raises:
            RemoteProtocolError: it does not hold.
            StoreFull: the disk is; nothing was kept.
        """
        await self._take([entry])
        await self.announce(entry)

    def want(self, peer_id: PeerId, author: PeerId, log: LogName) -> None:
        """Ask a peer for an author's log soon; dropped when too much is asked for already (sync comes again)."""
        if not self.wanted.add(Pull(peer_id, author, log)):
            self._journal.write("sync_postponed", peer=peer_id, author=author, log=log)

    def lacks(self, head: Head) -> bool:
        """Whether a head that a peer reports is beyond what we hold."""
        known = self._logbook.head(PeerId(head.author), head.log)
        return known is None or known.index < head.index

    async def pull(self, peer_id: PeerId, author: PeerId, log: LogName) -> int:
        """Ask a peer for the entries of an author's log that we lack; return how many came. Never raises for a peer."""
        taken = 0
        try:
            with trio.fail_after(PULL_TIMEOUT_S):
                stream = await self._mesh.open_stream(peer_id, SYNC)
                try:
                    known = self._logbook.head(author, log)
                    start = known.index + 1 if known else 0
                    await self._wire.send(stream, EntriesWanted(author=author, log=log, start=start))
                    while raws := (await self._wire.receive(stream, Entries)).message.entries:
                        entries = [open_entry(raw, self._wire.mesh_id) for raw in raws]
                        if any((each.sender, each.message.log) != (author, log) for each in entries):
                            # Keys are free: nobody may fill our disk with the books of keys it has just made.
                            raise MalformedMessage(f"peer {peer_id} sent entries that were not asked for")
                        taken += await self._take(entries)
                    await stream.end()
                finally:
                    stream.abort()
        except RemoteProtocolError as error:
            if not isinstance(error, AUTHORS_FAULT):
                self._mesh.charge(peer_id, error.offence)
            self._journal.write("sync_failed", peer=peer_id, author=author, log=log, reason=str(error))
        except (AgoraError, trio.TooSlowError) as error:
            self._journal.write(
                "sync_failed", peer=peer_id, author=author, log=log, reason=str(error) or "timeout"
            )
        if taken:
            self._journal.write("entries_synced", peer=peer_id, author=author, log=log, count=taken)
        return taken

    async def _take(self, entries: Sequence[Sealed[Entry]]) -> int:
        """Take in entries that a peer handed over; return how many were new.

        Raises:
            RemoteProtocolError: one of them does not hold; what came before it is kept, unless one is of the future.
        """
        latest_ms = self._members_time.utc_ms() + int(limits.LIVE_WINDOW_S * 1000)
        for entry in entries:
            if entry.time_ms > latest_ms:
                # The newest card of a name holds: one dated next year would hold for a year.
                raise Expired(f"{entry.message.kind} of {entry.sender} is dated in the future")
        taken = await self._logbook.take(entries)
        await self.drop_barred()
        return taken

    async def drop_barred(self) -> None:
        """Close the connections of peers that a revocation or evidence has barred."""
        for peer_id in self._mesh.connected:
            if self._logbook.assembly.is_barred(peer_id):
                self._journal.write("barred_peer_dropped", peer=peer_id)
                await self._mesh.disconnect(peer_id)

    async def _bring_evidence(self) -> None:
        """Tell every member of two envelopes of one key that cannot both be honest."""
        await self._logbook.wait_confirmed()
        async for accusation in self._logbook.accusations:
            if self._logbook.assembly.is_barred(accusation.accused) or accusation.accused == self._logbook.me:
                continue
            first, second = accusation.first, accusation.second
            try:
                entry = await self._logbook.write(Evidence, partial(_place_evidence, first, second))
            except AgoraError as error:
                self._journal.write("evidence_not_written", accused=accusation.accused, reason=str(error))
                continue
            self._journal.write("evidence_brought", accused=accusation.accused)
            await self.announce(entry)
            await self.drop_barred()

    def _validate(self, data: bytes, _delivered_by: PeerId) -> Verdict:
        """Gossip is forwarded only after its signature, mesh and author hold; a gap is nobody's fault."""
        try:
            entry = open_entry(data, self._wire.mesh_id)
        except RemoteProtocolError:
            return Verdict.REJECT
        if entry.message.log != "assembly" or not self._logbook.assembly.may_speak(entry.sender):
            # Perhaps we have not heard of its admission yet: the pull that a gap causes will tell.
            return Verdict.IGNORE
        return Verdict.ACCEPT

    async def _hear(self, data: bytes, delivered_by: PeerId) -> None:
        entry = open_entry(data, self._wire.mesh_id)
        try:
            if await self._take([entry]):
                self._journal.write("entry_heard", kind=type(entry.message).kind, author=entry.sender)
        except BrokenLog:
            self.want(delivered_by, entry.sender, "assembly")
        except (*AUTHORS_FAULT, StoreFailed) as error:  # known until we stop, if the disk was full
            self._journal.write("entry_not_taken", author=entry.sender, reason=str(error))

    async def _answer(self, stream: Stream) -> None:
        wanted = (await self._wire.receive(stream, EntriesWanted)).message
        asker = stream.peer_id
        author = PeerId(wanted.author)
        if not self._logbook.assembly.is_member(asker):
            raise NotAuthorised(f"peer {asker} is not a member and may not sync")
        if wanted.log == "bilateral" and author not in (asker, self._logbook.me):
            raise NotAuthorised(
                f"peer {asker} asks for the bilateral log of {author}, which does not bind it"
            )
        for page in pages(self._logbook.entries(author, wanted.log, wanted.start)):
            await self._wire.send(stream, page)


def pages(entries: Iterable[Sealed[Entry]]) -> Iterator[Entries]:
    """Yield sealed entries in messages that a stream carries; the last one is empty."""
    batch: list[bytes] = []
    size = 0
    for entry in entries:
        if (
            len(batch) == limits.ENTRIES_PER_ANSWER_MAX
            or size + len(entry.raw) > limits.ENTRIES_BYTES_MAX // 2
        ):
            yield Entries(entries=tuple(batch))
            batch, size = [], 0
        batch.append(entry.raw)
        size += len(entry.raw)
    if batch:
        yield Entries(entries=tuple(batch))
    yield Entries(entries=())


def _place_evidence(first: bytes, second: bytes, index: int, prev: bytes) -> Evidence:
    return Evidence(index=index, prev=prev, first=first, second=second)
