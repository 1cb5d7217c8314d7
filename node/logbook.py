"""Every hash-chained log this device holds: its own two, which only it writes, and those of others.

Own entries get their index in the transaction that writes them: one task takes everything that waits, chains it,
commits it as a group, and only then does anybody see it. Entries of others are checked against their author's log,
committed, and folded into the two states that follow from them: the assembly and the ledger. Whatever is wrong with
theirs, it never costs us an entry of our own: what is on our disk and not in our log would soon be contradicted.

A restored backup must not write a second entry at an index it has used before (that would be equivocation). So after a
start nothing of our own is written until a member has told us our newest entry, or we know that there is no other
member.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar, cast

import trio

from marketplace.assembly.assembly import Assembly, open_entry
from marketplace.ledger import Ledger
from marketplace.refusal import Contradiction, Refused
from node.clock import Clock
from node.journal import Journal
from node.store import Record, Store, StoreClosed, StoreFailed
from node.wire import Wire
from protocol.envelope import Sealed, narrow
from protocol.errors import AgoraError, BrokenLog, Equivocation, RemoteProtocolError
from protocol.identity import PeerId
from protocol.limits import ADVERT_TTL_S, BILATERAL_LOG_BYTES_MAX, LIVE_WINDOW_S
from protocol.log import AuthorLog
from protocol.messages import NO_HASH, Advert, Countersignature, Entry, Head, LogName, Message

if TYPE_CHECKING:  # trio-typing's stubs, which libp2p brings, hide trio's own types
    from trio_typing import TaskStatus

E = TypeVar("E", bound=Entry)
ENTRY = "entry"  # the store's record kind: a sealed entry of some log, by its id
MESH = "mesh"  # which mesh this home belongs to (`id`), and whether it has left it (`left`)
LIFE = "life"  # the boot id of a run of this daemon
LIVES_MAX = 1_024  # runs remembered: a restart a day for three years
# An earlier life that the store has forgotten (it was restored) still echoes: its last advert may be on its way for as long
# as an advert holds, and clocks differ by a live window in either direction. Counted in seconds that no clock sets back.
ECHO_S = ADVERT_TTL_S + 2 * LIVE_WINDOW_S
WRITES_WAITING_MAX = 256
ACCUSATIONS_WAITING_MAX = 64


class NotConfirmed(AgoraError):
    """No member has confirmed yet how far our own log goes, so nothing durable may be written."""


@dataclass(frozen=True)
class Accusation:
    """Two sealed entries of one key that cannot both be honest."""

    accused: PeerId
    first: bytes
    second: bytes


@dataclass
class _Write:
    log: LogName
    make: Callable[[int, bytes], Entry]
    witnessed: Sealed[Entry] | None = None
    done: trio.Event = field(default_factory=trio.Event)
    entry: Sealed[Entry] | None = None
    error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """Tell the caller, unless it was answered before."""
        if not self.done.is_set():
            self.error = self.error or error
            self.done.set()


class Logbook:
    """The logs, and the two states folded from them."""

    def __init__(
        self,
        wire: Wire,
        store: Store,
        assembly: Assembly,
        ledger: Ledger,
        *,
        clock: Clock,
        journal: Journal,
        author_bytes_max: int = BILATERAL_LOG_BYTES_MAX,
    ) -> None:
        self._journal = journal
        self._accuse, self.accusations = trio.open_memory_channel[Accusation](ACCUSATIONS_WAITING_MAX)
        self.assembly = assembly
        self.ledger = ledger
        self._wire = wire
        self._store = store
        self._bilateral: dict[PeerId, AuthorLog] = {}
        self.author_bytes_max = author_bytes_max
        self._kept_bytes: Counter[PeerId] = Counter()  # of bilateral entries, by author
        self._loose: dict[tuple[PeerId, int], Sealed[Entry]] = {}
        self._furthest: dict[tuple[PeerId, LogName], Head] = {}
        self._send, self._receive = trio.open_memory_channel[_Write](WRITES_WAITING_MAX)
        self._confirmed = trio.Event()
        self._grown = trio.Event()
        self._clock = clock
        self._started_s = clock.now()
        self._lives: list[bytes] = []  # boot ids of earlier runs, the oldest first
        self._has_written = False
        self._disputed: dict[PeerId, Head] = {}
        self.halted = ""

    @property
    def me(self) -> PeerId:
        """Our own peer id, the author of what `write` writes."""
        return self._wire.identity.peer_id

    @property
    def is_confirmed(self) -> bool:
        """Whether our own logs may be written."""
        return self._confirmed.is_set()

    @property
    def has_written(self) -> bool:
        """Whether our own logs have grown since the start: what an earlier life wrote there too would contradict it."""
        return self._has_written

    def kept_bytes(self, author: PeerId) -> int:
        """How much of an author's bilateral log is kept here."""
        return self._kept_bytes[author]

    def why_full(self, author: PeerId) -> str:
        """Why no more of another's bilateral log is taken in; empty: there is room.

        What binds us in work under way (its award, the countersignature that we are owed) is kept all the same.
        """
        size = self._kept_bytes[author]
        if author == self.me or size < self.author_bytes_max:
            return ""
        return f"{size} bytes are kept here, at most {self.author_bytes_max} allowed"

    def confirm(self) -> None:
        """Our own heads are the newest that any member knows: writing may begin."""
        self._confirmed.set()

    async def wait_confirmed(self) -> None:
        """Wait until our own logs may be written."""
        await self._confirmed.wait()

    @property
    def grown(self) -> trio.Event:
        """Set when the next assembly entry is taken in. Whoever fetches it before it looks at the state misses nothing."""
        return self._grown

    def agrees(self, head: Head) -> bool:
        """Whether a head that a peer reports is an entry of the log as we hold it."""
        entries = self.entries(PeerId(head.author), head.log, head.index)
        return bool(entries) and entries[0].id == head.entry

    def note_disputed(self, peer_id: PeerId, head: Head) -> None:
        """A member says that it has seen an entry of ours that is not here."""
        self._disputed[peer_id] = head

    @property
    def disputed_by(self) -> list[PeerId]:
        """The members who have seen entries of ours that are still not here: this may be a restored backup.

        They may lie, and each message of ours goes on all the same; but what must not be done twice is not done.
        """
        return [
            peer_id
            for peer_id, head in self._disputed.items()
            if self.assembly.is_member(peer_id) and not self.agrees(head)
        ]

    def meet_own_key(self, sealed: Sealed[Message]) -> None:
        """Somebody signs as us. If that is another daemon, running now, durable entries must no more be written.

        What an earlier life of ours has signed proves nothing, whatever its time says: clocks are set back and forth
        between two lives, and a hostile member may keep it until its time has come. Of two that run a copied home each
        hears the other; the one that was copied while it ran is an earlier life to the copy, but not the copy to it.
        """
        is_earlier_life = sealed.boot == self._wire.boot or _life(sealed.boot) in self._lives
        if not is_earlier_life and self._clock.now() > self._started_s + ECHO_S:
            self.halted = (
                "this device's key is running on another machine or home directory at the same time; "
                "stop one of the two"
            )

    def load(self, records: Sequence[Record]) -> None:
        """Fold what an earlier run has stored; every signature is checked again, since a file is no friend.

        What does not follow from the rest (a full disk took the entry before it) is left for `sync` to bring again.

        Raises:
            RemoteProtocolError: the store holds an entry that does not verify: it was tampered with.
        """
        self._lives = [record.key for record in records if record.kind == LIFE]
        entries = [
            open_entry(record.body, self._wire.mesh_id)
            for record in records
            if record.kind == ENTRY and record.body is not None
        ]
        left = [entry for entry in entries if entry.message.log == "assembly"]
        tried = len(left) + 1
        while len(left) < tried:  # what came again stands behind what waits for it
            tried = len(left)
            left = [entry for entry in left if not self._restore(entry)]
        for entry in left:
            self._journal.write("entry_left_out", author=entry.sender, index=entry.message.index)
        for entry in entries:  # behind all of the assembly's: whose payments count as income, it says
            if entry.message.log == "bilateral":
                self._fold_loosely(entry)

    def _restore(self, entry: Sealed[Entry]) -> bool:
        try:
            self._fold(entry)
        except AgoraError:
            return False
        return True

    def head(self, author: PeerId, log: LogName) -> Head | None:
        """The newest entry known of an author's log; None when there is none."""
        if log == "assembly":
            return self.assembly.head(author)
        known = self._bilateral.get(author)
        return known.head if known else None

    def furthest(self, author: PeerId, log: LogName) -> Head | None:
        """The newest entry that an author was ever seen to sign, or said it has, whether or not it is here.

        Its receipts stand in our countersignatures and its heads in its adverts: an author restored from a backup learns
        from us that there was more.
        """
        heads = filter(None, (self.head(author, log), self._furthest.get((author, log))))
        return max(heads, key=lambda head: head.index, default=None)

    def note_said(self, advert: Sealed[Advert]) -> None:
        """A member's advert says how far its own logs go."""
        for head in advert.message.heads:
            if head.author == advert.sender:
                self._note_head(head)

    def heads(self, log: LogName) -> list[Head]:
        """The newest entry known of every author."""
        if log == "assembly":
            return list(self.assembly.heads())
        return [known.head for known in self._bilateral.values() if known.head]

    def entries(self, author: PeerId, log: LogName, start: int) -> Sequence[Sealed[Entry]]:
        """The known entries of an author's log, from an index on."""
        if log == "assembly":
            return self.assembly.entries_after(author, start - 1)
        known = self._bilateral.get(author)
        return known.entries[start:] if known else ()

    async def write(
        self, form: type[E], make: Callable[[int, bytes], E], *, witnessing: Sealed[Entry] | None = None
    ) -> Sealed[E]:
        """Write the next entry of our own log; it is on disk, and folded, when this returns.

        Args:
            form: the entry's type, which says the log it belongs to.
            make: from the entry's index and prev to the entry itself.
            witnessing: another's bilateral entry that ours answers; kept in the same commit.

        Raises:
            NotConfirmed: too early after a start; see above.
            BrokenLog, Equivocation: what is to be witnessed does not fit what its author signed before.
            StoreFull: the disk is; nothing was written.
        """
        if self.halted:
            raise NotConfirmed(self.halted)
        if not self.is_confirmed:
            raise NotConfirmed("our own log is not confirmed by any member yet; connect to the mesh first")
        if witnessing is not None:
            self._check_witnessed(witnessing, {})
        write = _Write(form.log, make, witnessing)
        try:
            await self._send.send(write)
        except trio.BrokenResourceError:
            raise NotConfirmed("this node is stopping and writes nothing more") from None
        # The commit is under way and cannot be called back: a cancelled caller must still learn nothing half-done.
        with trio.CancelScope(shield=True):
            await write.done.wait()
        if write.error is not None:
            raise write.error
        assert write.entry is not None
        return cast("Sealed[E]", write.entry)

    async def take(self, entries: Sequence[Sealed[Entry]]) -> int:
        """Take entries of others in (or our own, from before a restore); return how many were new.

        Raises:
            BrokenLog: a gap, or more than is kept of one author; what came before it is kept.
            Equivocation: an author contradicts itself; what came before is kept.
            NotAuthorised: an assembly entry its author had no right to.
            StoreFull: the disk is; nothing of them was kept.
        """
        fresh = []
        error: AgoraError | None = None
        for entry in entries:
            try:
                self._check_room(entry)
                if self._fold(entry):
                    fresh.append(entry)
            except AgoraError as problem:
                error = problem
                break
        # Folded before they are on disk: nothing of it is acknowledged to anybody until this returns, and what a
        # power cut takes, `sync` brings again.
        if fresh:
            await self._store.append([Record(ENTRY, entry.id, entry.raw) for entry in fresh])
        if error is not None:
            raise error
        return len(fresh)

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Write own entries in groups, in the order they were asked for."""
        group: list[_Write] = []
        await self._remember_life()
        task_status.started()
        try:
            while True:
                group = [await self._receive.receive(), *self._waiting()]
                # Once begun, a commit is waited for even when the node is stopping: its callers hold money.
                with trio.CancelScope(shield=True):
                    for batch in _batches(group):
                        await self._write_batch(batch)
        finally:
            group += self._waiting()
            self._receive.close()
            # Those of a batch that a bug of ours has broken off, too: nobody waits for ever.
            for write in group:
                write.fail(NotConfirmed("this node is stopping and writes nothing more"))

    async def _remember_life(self) -> None:
        """Note this run before anything that it signs goes out, so that the next ones know its echo."""
        forgotten = self._lives[: max(0, len(self._lives) + 1 - LIVES_MAX)]
        with suppress(StoreFailed, StoreClosed):  # a full disk: then it is as after a restore
            await self._store.append(
                [*(Record(LIFE, life, None) for life in forgotten), Record(LIFE, _life(self._wire.boot), b"")]
            )

    def _waiting(self) -> list[_Write]:
        waiting: list[_Write] = []
        while len(waiting) < WRITES_WAITING_MAX:
            try:
                waiting.append(self._receive.receive_nowait())
            except (trio.WouldBlock, trio.ClosedResourceError):
                break
        return waiting

    def _check_room(self, entry: Sealed[Entry]) -> None:
        """Raise `BrokenLog` if another's bilateral log is not to grow any more: its entries cost it only a signature."""
        if entry.message.log == "bilateral" and (full := self.why_full(entry.sender)):
            raise BrokenLog(f"bilateral log of {entry.sender} is full: {full}")

    def _check_witnessed(
        self, entry: Sealed[Entry], beside: Mapping[tuple[PeerId, int], Sealed[Entry]]
    ) -> None:
        """Check a bilateral entry that binds us, although its author's log may have gaps for us: it counts at once.

        A buyer's log has entries with other sellers between those with us. Waiting for them would cost a round trip
        before the first token, so they are pulled afterwards.

        Args:
            entry: the award or countersignature that is about to be kept.
            beside: those that are kept in the same commit.

        Raises:
            BrokenLog: it names another entry before it than the one we know.
            Equivocation: its author signed another entry with this index.
        """
        log = self._bilateral.get(entry.sender) or AuthorLog(entry.sender, "bilateral")
        try:
            _check_place(entry, self._loose)
            _check_place(entry, beside)
            if entry.message.index <= log.next_index:
                log.check(entry)
        except Equivocation as problem:
            self._note_contradiction(entry.sender, problem.first, problem.second)
            raise

    async def _write_batch(self, group: list[_Write]) -> None:
        tails: dict[LogName, tuple[int, bytes]] = {}
        name: LogName
        for name in ("assembly", "bilateral"):
            head = self.head(self.me, name)
            tails[name] = (head.index + 1, head.entry) if head else (0, NO_HASH)
        places: dict[tuple[PeerId, int], Sealed[Entry]] = {}
        for write in group:
            index, prev = tails[write.log]
            try:
                if write.witnessed is not None:  # checked again: another may have come since
                    self._check_witnessed(write.witnessed, places)
                    places[_place(write.witnessed)] = write.witnessed
                entry = self._wire.seal(write.make(index, prev))
                if write.log == "assembly":
                    self.assembly.check(
                        entry
                    )  # what the assembly refuses must not stand on disk, or no start succeeds
            except AgoraError as error:
                write.error = error
                continue
            write.entry = entry
            tails[write.log] = (index + 1, write.entry.id)
            self._has_written = True
        sealed = [write.entry for write in group if write.entry is not None]
        witnessed = [
            write.witnessed for write in group if write.entry is not None and write.witnessed is not None
        ]
        try:
            await self._store.append([Record(ENTRY, entry.id, entry.raw) for entry in (*witnessed, *sealed)])
            for entry in witnessed:
                self._fold_loosely(entry)
            for entry in sealed:
                self._fold(entry)
        except AgoraError as error:
            for write in group:
                write.fail(error)
        for write in group:
            write.done.set()

    def _fold(self, entry: Sealed[Entry]) -> bool:
        """Put an entry into its author's log and into the state; False when it was there already."""
        try:
            if entry.message.log == "assembly":
                is_new = self.assembly.apply(entry)
                if is_new:
                    self._grown.set()
                    self._grown = trio.Event()
                return is_new
            _check_place(entry, self._loose)
            log = self._bilateral.get(entry.sender) or AuthorLog(entry.sender, "bilateral")
            if not log.append(entry):
                return False
        except Equivocation as problem:
            self._note_contradiction(entry.sender, problem.first, problem.second)
            raise
        self._bilateral[entry.sender] = log
        if self._loose.pop(_place(entry), None) is None:
            self._kept_bytes[entry.sender] += len(entry.raw)
        self._post(entry)
        # Those that waited for it follow, else their author could not get them back from us after a restore.
        while waiting := self._loose.get((entry.sender, log.next_index)):
            if waiting.message.prev != log.next_prev:
                break  # it binds us, and its author's log ends before it
            log.append(waiting)
            del self._loose[_place(waiting)]
        return True

    def _post(self, entry: Sealed[Entry]) -> None:
        """Fold a bilateral entry into the ledger; what it does not take is told, and a contradiction accused."""
        self._note_place(entry)
        if (countersignature := narrow(entry, Countersignature)) is not None:
            with suppress(RemoteProtocolError):  # the receipt inside is another's entry, seen nowhere else
                receipt = open_entry(countersignature.message.receipt, self._wire.mesh_id)
                self._note_place(receipt)
        match self.ledger.apply(entry):
            case Contradiction(author, first, second):
                self._note_contradiction(author, first.raw, second.raw)
            case Refused(reason, detail):
                self._journal.write(
                    "entry_refused",
                    kind=entry.message.kind,
                    author=entry.sender,
                    reason=reason,
                    detail=detail,
                )

    def _note_place(self, entry: Sealed[Entry]) -> None:
        self._note_head(Head(author=entry.sender, log="bilateral", index=entry.message.index, entry=entry.id))

    def _note_head(self, head: Head) -> None:
        known = self._furthest.get((PeerId(head.author), head.log))
        if known is None or known.index < head.index:
            self._furthest[PeerId(head.author), head.log] = head

    def _note_contradiction(self, author: PeerId, first: bytes, second: bytes) -> None:
        self._journal.write("contradiction_found", author=author)
        if author == self.me:
            self.halted = (
                "this device's key has signed two entries for one place: a copy of it runs elsewhere, or it was restored "
                "from an old backup; join again with a new home directory"
            )
            return
        with suppress(trio.WouldBlock):  # a flood of them: one is enough to bar a key
            self._accuse.send_nowait(Accusation(author, first, second))

    def _fold_loosely(self, entry: Sealed[Entry]) -> None:
        """Fold a bilateral entry whether or not its author's log leads to it; the ledger does not mind.

        It binds us all the same when there is a gap before it, and when its author has contradicted itself.
        """
        try:
            self._fold(entry)
        except (BrokenLog, Equivocation):
            if _place(entry) not in self._loose:
                self._loose[_place(entry)] = entry
                self._kept_bytes[entry.sender] += len(entry.raw)
                self._post(entry)


def _life(boot: int) -> bytes:
    return boot.to_bytes(8)


def _place(entry: Sealed[Entry]) -> tuple[PeerId, int]:
    return entry.sender, entry.message.index


def _check_place(entry: Sealed[Entry], table: Mapping[tuple[PeerId, int], Sealed[Entry]]) -> None:
    """Raise `Equivocation` if the table has another entry in this one's place in its author's bilateral log."""
    other = table.get(_place(entry), entry)
    if other.id != entry.id:
        raise Equivocation(
            f"{entry.sender} signed two bilateral entries with index {entry.message.index}",
            other.raw,
            entry.raw,
        )


def _batches(group: list[_Write]) -> list[list[_Write]]:
    """Split writes that wait together: bilateral ones share a commit; assembly ones, few, are checked one by one."""
    batches: list[list[_Write]] = []
    for write in group:
        if batches and write.log == "bilateral" and batches[-1][0].log == "bilateral":
            batches[-1].append(write)
        else:
            batches.append([write])
    return batches
