"""Meeting: find the members, say hello on every connection, and keep enough connections alive.

The side that dialled opens the hello stream. A hello says which logs one holds (what the other lacks is pulled) and what
one knows of the *other's* own logs (so that a restored backup finds its newest entry before it writes). Whoever was
dialled hands over a sample of adverts, so that a newcomer has sellers to ask at once. Whoever says no valid hello within
3 s, or is no member, is disconnected.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

import trio

from node.clock import Clock, MembersTime
from node.directory import Directory
from node.journal import Journal
from node.logbook import Logbook
from node.services.advertiser import Advertiser
from node.services.sync import PULL_TIMEOUT_S, Sync
from node.store import Record, Store, StoreFailed
from node.wire import Wire
from protocol import limits
from protocol.envelope import Sealed
from protocol.errors import AgoraError, MeshError, NotAuthorised, Unreachable
from protocol.identity import PeerId
from protocol.mesh import Mesh, PeerConnected, PeerEvent, Stream
from protocol.messages import Advert, Head, Hello
from protocol.topics import HELLO

if TYPE_CHECKING:  # trio-typing's stubs, which libp2p brings, hide trio's own types
    from trio_typing import TaskStatus

ADDRESS = "address"  # the store's record kind: where a member was last reached
CONNECTED_WANTED = 8  # members we are connected with before we stop dialling; more may dial us
# And so many of them chosen by ourselves: eight that dialled us, all of one mind, would else be all we ever hear of once
# the others are lost (an eclipse: Heilman et al. 2015, "Eclipse Attacks on Bitcoin's Peer-to-Peer Network").
CHOSEN_WANTED = 3
DIAL_BACKOFF_FIRST_S = 0.1  # at our own start the mesh comes up a moment after us
DIAL_BACKOFF_MIN_S = 1.0  # after a connection that did not last
DIAL_BACKOFF_MAX_S = 30.0  # while nobody is connected; whoever comes back dials by itself
DIAL_BACKOFF_IDLE_S = 300.0  # while somebody is: a phone must not dial the dead twice a minute
# A peer's advert says that its logs are not ours: gossip may still be on its way, so look again after this. A changed
# assembly is news, told within 10 s: what gossip lost is mended well within the 60 s of a revocation.
MENDING_S = 5.0
CLOCK_SKEW_WORTH_SAYING_MS = 5_000


class Meeting:
    """Dials, greets, and answers greetings."""

    def __init__(
        self,
        *,
        mesh: Mesh,
        wire: Wire,
        clock: Clock,
        members_time: MembersTime,
        logbook: Logbook,
        directory: Directory,
        advertiser: Advertiser,
        sync: Sync,
        store: Store,
        journal: Journal,
        rng: Random,
        boot: bytes,
        bootstrap: tuple[str, ...],
        on_restarted: Callable[[PeerId], None] = lambda _peer: None,
    ) -> None:
        self._mesh = mesh
        self._wire = wire
        self._clock = clock
        self._members_time = members_time
        self._logbook = logbook
        self._directory = directory
        self._advertiser = advertiser
        self._sync = sync
        self._store = store
        self._journal = journal
        self._rng = rng
        self._boot = boot
        self._bootstrap = bootstrap
        self._greeted: dict[PeerId, trio.Event] = {}
        self._chosen: set[PeerId] = set()  # connected peers that we dialled
        self._answers: dict[
            PeerId, bool
        ] = {}  # who has told us how far our own logs go, and whether we agree
        self._boots: dict[PeerId, bytes] = {}  # of members, as each last said
        self._on_restarted = on_restarted
        self._changed = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._pauses: dict[str, float] = {}  # by address: how long we waited before the last dial
        self._is_mending = False
        advertiser.on_difference = self._suspect
        mesh.serve(HELLO, self._answer)
        mesh.watch(self._on_peer)

    @property
    def greeted(self) -> frozenset[PeerId]:
        """The connected peers that have said a valid hello: members, all of them."""
        return (
            frozenset(peer for peer, event in self._greeted.items() if event.is_set()) & self._mesh.connected
        )

    def expect(self, peer_id: PeerId) -> None:
        """A stranger has begun to join: it need not say hello before it is a member."""
        self._greeted.setdefault(peer_id, trio.Event()).set()

    def load(self, records: Sequence[Record]) -> None:
        """Remember the addresses of earlier runs."""
        for record in records:
            if record.kind == ADDRESS and record.body is not None:
                self._directory.learn(PeerId(record.key.decode()), record.body.decode().split("\n"))

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Keep connected to members."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await self._keep_dialling()
            finally:
                self._nursery = None

    async def _on_peer(self, event: PeerEvent) -> None:
        if self._nursery is None:
            return  # this node is stopping
        self._changed.set()
        if not isinstance(event, PeerConnected):
            self._greeted.pop(event.peer_id, None)
            self._chosen.discard(event.peer_id)
            self._confirm_when_all_answered()
            return
        if event.we_dialled:
            self._chosen.add(event.peer_id)
            self._nursery.start_soon(self._greet, event.peer_id)
        else:
            self._nursery.start_soon(self._await_greeting, event.peer_id)

    async def _await_greeting(self, peer_id: PeerId) -> None:
        greeted = self._greeted.setdefault(peer_id, trio.Event())
        with trio.move_on_after(limits.HELLO_TIMEOUT_S):
            await greeted.wait()
            return
        self._journal.write("peer_dismissed", peer=peer_id, reason="no valid hello within 3 s")
        await self._mesh.disconnect(peer_id)

    async def _greet(self, peer_id: PeerId) -> None:
        reason = "no valid hello within 3 s"
        try:
            if hello := await self._exchange_hellos(peer_id):
                await self._meet(hello)
                return
        except AgoraError as error:
            reason = str(error)
        self._journal.write("peer_dismissed", peer=peer_id, reason=reason)
        await self._mesh.disconnect(peer_id)

    async def _exchange_hellos(self, peer_id: PeerId) -> Sealed[Hello] | None:
        with trio.move_on_after(limits.HELLO_TIMEOUT_S):
            stream = await self._mesh.open_stream(peer_id, HELLO)
            await self._wire.send(stream, self._hello(peer_id, adverts=()))
            hello = await self._wire.receive(stream, Hello)
            await stream.end()
            return hello
        return None

    async def _answer(self, stream: Stream) -> None:
        hello = await self._wire.receive(stream, Hello)
        # Ours goes out before theirs is acted on: each may need the other's entries to know it as a member.
        # With a sample of adverts: whoever dials has just come, or has lost its peers; who is dialled has neither.
        sample = self._directory.sample(limits.ADVERTS_PER_HELLO_MAX, self._rng, self._clock.now())
        await self._wire.send(stream, self._hello(stream.peer_id, adverts=tuple(sample)))
        try:
            await self._meet(hello)
        except NotAuthorised:
            await self._mesh.disconnect(stream.peer_id)
            raise

    def _hello(self, to: PeerId, *, adverts: tuple[bytes, ...]) -> Hello:
        own = self._advertiser.own()
        heads = self._logbook.heads("assembly")[: limits.HEADS_PER_HELLO_MAX - 1]
        mine = self._logbook.head(self._logbook.me, "bilateral")
        return Hello(
            boot=self._boot,
            heads=(*heads, *([mine] if mine else [])),
            yours=self._yours(to),
            advert=own.raw if own else b"",
            adverts=adverts,
            addresses=self._mesh.addresses[: limits.ADDRESSES_MAX],
        )

    def _yours(self, to: PeerId) -> tuple[Head, ...]:
        """How far the receiver's own logs were ever seen to go."""
        newest = (self._logbook.furthest(to, "assembly"), self._logbook.furthest(to, "bilateral"))
        return tuple(head for head in newest if head is not None)

    async def _meet(self, hello: Sealed[Hello]) -> None:
        """Take a verified hello in.

        Raises:
            NotAuthorised: its sender is no member, or barred, as far as its own entries and ours tell.
        """
        peer_id = hello.sender
        assembly = self._logbook.assembly
        if assembly.is_member(peer_id):
            self._greeted.setdefault(peer_id, trio.Event()).set()  # in time, however long the pull takes
        # First who belongs: the sender was perhaps admitted while we were away, and the adverts of members that we have
        # not heard of yet would be dropped. The entries prove themselves, whoever hands them over.
        await self._pull_assembly(peer_id, hello.message.heads)
        if not assembly.is_member(peer_id):
            raise NotAuthorised(f"peer {peer_id} is not a member of this mesh")
        offset_ms = self._members_time.note(peer_id, hello.time_ms)
        if abs(offset_ms) > CLOCK_SKEW_WORTH_SAYING_MS:
            self._journal.write("clock_skew_seen", peer=peer_id, offset_ms=offset_ms)
        self._greeted.setdefault(peer_id, trio.Event()).set()
        if self._boots.setdefault(peer_id, hello.message.boot) != hello.message.boot:
            self._boots[peer_id] = hello.message.boot
            self._journal.write("peer_restarted", peer=peer_id)
            self._on_restarted(peer_id)
        await self._learn_addresses(peer_id, hello.message.addresses)
        for raw in (hello.message.advert, *hello.message.adverts):
            if raw:
                self._advertiser.hear(raw, peer_id)
        self._changed.set()  # a newcomer has just heard of everybody it can buy from: dial them now
        await self._confirm_own(peer_id, hello.message.yours)
        # Whoever only lets us in to hang up is dialled ever more rarely; a bootstrap address may not be one it names itself.
        for address in [each for each in self._pauses if each.endswith(f"/p2p/{peer_id}")]:
            del self._pauses[address]
        self._journal.write("peer_met", peer=peer_id, owner=assembly.member(peer_id).owner)

    async def _pull_assembly(self, peer_id: PeerId, heads: tuple[Head, ...]) -> None:
        with trio.move_on_after(
            PULL_TIMEOUT_S
        ):  # for all of them: a peer may name many heads and answer slowly
            for head in heads:
                if head.log == "assembly" and self._sync.lacks(head):
                    await self._sync.pull(peer_id, PeerId(head.author), "assembly")

    async def _confirm_own(self, peer_id: PeerId, yours: tuple[Head, ...]) -> None:
        """Find our own newest entries: after a restore, a peer may know more of us than we do.

        Each peer holds only those that concern it. So one that answers later is listened to as well, while nothing new
        has been written that could contradict what it has.
        """
        is_agreed = True
        for head in yours:
            if head.author != self._logbook.me:
                continue
            if self._sync.lacks(head) and not self._logbook.has_written:
                await self._sync.pull(peer_id, self._logbook.me, head.log)
            if self._sync.lacks(head) or not self._logbook.agrees(head):
                self._journal.write("own_log_disputed", peer=peer_id, log=head.log, index=head.index)
                self._logbook.note_disputed(peer_id, head)
                is_agreed = False
        self._answers[peer_id] = is_agreed
        self._confirm_when_all_answered()

    def _confirm_when_all_answered(self) -> None:
        """One agreement is enough, but not before every member that is connected has had its say, which takes 3 s at most."""
        if self._logbook.is_confirmed:
            return
        members = {peer for peer in self._mesh.connected if self._logbook.assembly.is_member(peer)}
        if any(self._answers.values()) and members <= self._answers.keys():
            self._logbook.confirm()
            self._journal.write("own_log_confirmed", peers=len(self._answers))

    async def _learn_addresses(self, peer_id: PeerId, addresses: tuple[str, ...]) -> None:
        before = self._directory.addresses(peer_id)
        self._directory.learn(peer_id, addresses)
        now = self._directory.addresses(peer_id)
        if now != before:
            with suppress(
                StoreFailed
            ):  # a full disk is no reason to part: it is a shortcut for the next start
                await self._store.append([Record(ADDRESS, peer_id.encode(), "\n".join(now).encode())])

    def _suspect(self, advert: Sealed[Advert]) -> None:
        """A connected member knows other assembly logs than we do: it or we have missed something."""
        if not self._is_mending and self._nursery is not None and advert.sender in self.greeted:
            self._is_mending = True
            self._nursery.start_soon(self._mend, advert)

    async def _mend(self, advert: Sealed[Advert]) -> None:
        """Greet a member again if what it knows is still not what we know: hellos carry the heads, and each pulls."""
        try:
            await trio.sleep(MENDING_S)
            still_differs = advert.message.assembly != self._logbook.assembly.fingerprint()
            if still_differs and advert.sender in self.greeted:
                await self._greet(advert.sender)
        finally:
            self._is_mending = False

    async def _keep_dialling(self) -> None:
        """Dial bootstrap peers and known members, each with its own growing pause, until enough are connected.

        Several at a time, since a dead one may take 10 s to fail; but never two addresses of one peer.
        """
        due: dict[str, float] = {}
        pauses = self._pauses
        dialled: set[str] = set()  # peers

        async def dial(address: str, peer: str) -> None:
            reached = await self._dial(address)
            pause = min(
                DIAL_BACKOFF_IDLE_S if self._mesh.connected else DIAL_BACKOFF_MAX_S,
                2 * pauses.get(address, (DIAL_BACKOFF_MIN_S if reached else DIAL_BACKOFF_FIRST_S) / 2),
            )
            pauses[address] = pause
            due[address] = self._clock.now() + pause * self._rng.uniform(0.8, 1.2)
            dialled.discard(peer)
            self._changed.set()

        async with trio.open_nursery() as nursery:
            while True:
                self._changed = trio.Event()
                if self._lacking() <= 0:
                    await self._changed.wait()
                    continue
                now = self._clock.now()
                next_due = float("inf")
                wanted = self._to_dial()
                for address in sorted(due.keys() - wanted):
                    if due[address] + DIAL_BACKOFF_IDLE_S < now:  # a member may name new addresses for ever
                        del due[address]
                        pauses.pop(address, None)
                for address in wanted:
                    peer = address.rpartition("/p2p/")[2]
                    if peer in dialled or len(dialled) >= self._lacking():
                        continue
                    if due.setdefault(address, now) > now:
                        next_due = min(next_due, due[address])
                        continue
                    dialled.add(peer)
                    nursery.start_soon(dial, address, peer)
                with trio.move_on_at(next_due):
                    await self._changed.wait()

    def _lacking(self) -> int:
        """How many more connections we want to make."""
        return max(CONNECTED_WANTED - len(self._mesh.connected), CHOSEN_WANTED - len(self._chosen))

    def _to_dial(self) -> list[str]:
        """Addresses of bootstrap peers and members that are not connected; a bootstrap's may name no peer id."""
        connected = self._mesh.connected
        assembly = self._logbook.assembly
        if assembly.is_barred(self._logbook.me):
            return []  # everybody would hang up at once, and we would ring again
        known = [
            address
            for peer_id, addresses in self._directory.known().items()
            if peer_id not in connected and assembly.is_member(peer_id)
            for address in addresses
        ]
        bootstrap = [
            address
            for address in self._bootstrap
            if not any(address.endswith(f"/p2p/{peer_id}") for peer_id in (*connected, self._logbook.me))
        ]
        return [*bootstrap, *(address for address in known if address not in bootstrap)]

    async def _dial(self, address: str) -> bool:
        try:
            await self._mesh.dial(address)
        except Unreachable as error:
            self._journal.write("dial_failed", address=address, reason=str(error))
            return False
        except MeshError:
            return False
        return True
