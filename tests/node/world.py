"""A small mesh in one process: real nodes on a network in memory, on virtual time, with disks that survive a crash.

Only what a node stands on is simulated (mesh, store, engine, clock); the nodes are the daemon's own. A `Daemon` is one
device: it can be killed, and started again from what its disk holds. A `Puppet` is a key that a test moves by hand: it
says whatever the test wants to every protocol, as a hostile member would.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from marketplace.assembly.charter import founding_charter
from marketplace.receipt import draft_receipt
from node.chat import ChatDelta, ChatEvent, ChatFinished, ChatRequest, ChatStarted
from node.clock import MembersTime
from node.config import Config
from node.event import Event
from node.journal import Journal
from node.logbook import ENTRY, MESH
from node.node import Node, Ports
from node.simulation.memory_mesh import MemoryMesh
from node.simulation.network import Network
from node.store import MemoryStore, Record, StoreClosed, StoreFull
from node.views import JobView
from node.wire import Wire
from protocol.envelope import Sealed, encode, seal
from protocol.identity import Identity, PeerId
from protocol.mesh import Stream, StreamHandler
from protocol.messages import (
    NO_HASH,
    Accept,
    Admitted,
    Advert,
    Award,
    Bid,
    Card,
    Charter,
    Decline,
    Device,
    Entry,
    FinishedFrame,
    Head,
    Hello,
    Message,
    ModelOffer,
    Receipt,
    Request,
    SamplingTerms,
    TokensFrame,
    Turn,
    Work,
)
from protocol.topics import HELLO, JOB, StreamProtocol
from runtime.echo import ECHO_MODEL, EchoEngine, token_bytes
from runtime.engine import ChatMessage, EngineDied, Frame, Generation, Tokens

if TYPE_CHECKING:
    from trio_typing import TaskStatus

M = TypeVar("M", bound=Message)
E = TypeVar("E", bound=Entry)

NOON_MS = 1_700_000_000_000  # Unix milliseconds when a world begins
LATENCY_S = 0.01  # one way, on every link: a round trip is 20 ms, a bid window three of them
CREDIT_MICRO = 10_000_000
PROMPT_MICRO, COMPLETION_MICRO = 10, 40  # the default prices
MAINS = Device(
    cores=4,
    memory_mib=8_192,
    memory_free_mib=4_096,
    load_percent=0,
    battery_percent=-1,
    is_charging=False,
    gpu="",
    sandbox="S1",
)


def person(name: str) -> Identity:
    """The key of a name: the same in every run."""
    return Identity(Random(name).randbytes(32))


@dataclass
class WorldClock:
    """Trio's virtual seconds; the wall clock goes with them, and may be wrong by `skew_ms`.

    Each look at the clock costs a microsecond: a rule that only holds when no time passes must not pass here.
    """

    skew_ms: int = 0
    looks: int = 0

    def now(self) -> float:
        self.looks += 1
        return trio.current_time() + self.looks / 1e6

    def utc_ms(self) -> int:
        return NOON_MS + self.skew_ms + round(trio.current_time() * 1000)


class Disk:
    """A store that counts its appends, and takes none after a crash, whatever the dying process still tries."""

    def __init__(self) -> None:
        self.appends: list[tuple[Record, ...]] = []
        self.is_plugged_in = True
        self._memory = MemoryStore()

    @property
    def is_full(self) -> bool:
        return self._memory.is_full

    async def append(self, records: Sequence[Record]) -> None:
        if not self.is_plugged_in:
            raise StoreClosed("the power is off")
        await self._memory.append(records)
        self.appends.append(tuple(records))

    async def load(self) -> list[Record]:
        return await self._memory.load()

    async def fill(self) -> None:
        """Write until nothing more fits."""
        self._memory.resize(4_096)
        with suppress(StoreFull):
            for number in count():
                await self._memory.append([Record("junk", number.to_bytes(4), bytes(64))])

    async def replace(self, records: Sequence[Record]) -> None:
        """Restore a backup: what the disk held is gone."""
        self._memory.close()
        self._memory = MemoryStore()
        await self._memory.append(records)

    def close(self) -> None:
        self._memory.close()

    def kinds(self) -> list[str]:
        """The kinds of the records appended so far, in order."""
        return [record.kind for batch in self.appends for record in batch]


class Engine(EchoEngine):
    """`EchoEngine`, and what befalls engines: it can stall or die after some tokens of the next generation."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"repetitions": 4, **settings})
        self.stall_after: int | None = None
        self.die_after: int | None = None
        self.is_stopped = False
        self.started: list[Generation] = []

    async def generate(self, request: Generation) -> AsyncGenerator[Frame, None]:
        self.started.append(request)
        sent = 0
        async with aclosing(super().generate(request)) as frames:
            async for frame in frames:
                if isinstance(frame, Tokens):
                    if sent == self.stall_after or self.is_stopped:
                        await trio.sleep_forever()
                    if sent == self.die_after:
                        raise EngineDied("the child process died")
                    sent += len(frame.ids)
                yield frame


class Holder(Engine):
    """An engine that holds no model: its device only buys."""

    def __init__(self) -> None:
        super().__init__()
        self._cards = {}


@dataclass
class Answer:
    """What a client has got of one chat."""

    text: str = ""
    tokens: int = 0
    started: list[ChatStarted] = field(default_factory=list)
    finished: ChatFinished | None = None
    first_s: float | None = None  # virtual seconds from the question to the first token
    ended_s: float = 0.0

    def take(self, event: ChatEvent, since: float) -> None:
        match event:
            case ChatStarted():
                self.started.append(event)
            case ChatDelta(text, tokens):
                if self.first_s is None:
                    self.first_s = trio.current_time() - since
                self.text += text
                self.tokens += tokens
            case ChatFinished():
                self.finished = event
        self.ended_s = trio.current_time() - since


def chat_request(words: str, **changes: Any) -> ChatRequest:
    """A chat of one question, sold to whoever may be asked."""
    fields = {"model": "auto", "privacy": "mesh", "messages": (ChatMessage("user", words),)}
    return ChatRequest(**{**fields, **changes})


class Daemon:
    """One device: a node, its disk and engine, and the life of its process."""

    def __init__(
        self,
        world: "World",
        name: str,
        *,
        engine: Engine | None = None,
        device: Device = MAINS,
        skew_ms: int = 0,
        **config: Any,
    ) -> None:
        self.world = world
        self.name = name
        self.identity = person(name)
        self.engine = engine or Engine()
        self.device = device
        self.clock = WorldClock(skew_ms)
        self.config = Config(**config)
        self.disk = Disk()
        self.journal = Journal(
            wall_clock=lambda: self.clock.utc_ms() / 1000, monotonic=trio.current_time, ring_events=50_000
        )
        self.node: Node
        self.mesh: MemoryMesh
        self._process: trio.CancelScope | None = None
        self._ended = trio.Event()
        self._starts = 0

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def address(self) -> str:
        return f"/ip4/127.0.0.1/tcp/4420/p2p/{self.peer_id}"

    # --- the process ----------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Start the daemon from its disk; it runs when this returns, and has met nobody yet."""
        self._starts += 1
        self.disk.is_plugged_in = True
        self.mesh = self.world.network.join(self.peer_id, self.journal)
        ports = Ports(
            mesh=self.mesh,
            store=self.disk,
            engine=self.engine,
            clock=self.clock,
            journal=self.journal,
            rng=Random(f"{self.name} {self._starts}"),
            device=lambda: self.device,
        )
        self.node = Node(ports, self.identity, self.config, await self.disk.load())
        await self.world.nursery.start(self._live)

    async def _live(self, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        self._ended = trio.Event()
        with trio.CancelScope() as self._process:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.node.run)
                await nursery.start(self.mesh.run)
                task_status.started()
        self._ended.set()

    async def kill(self) -> None:
        """SIGKILL: from here on nothing it does reaches its disk or its peers."""
        assert self._process is not None
        self.disk.is_plugged_in = False
        self.world.network.kill(self.peer_id)
        self._process.cancel()
        await self._ended.wait()

    async def restart(self) -> None:
        """Kill it, and start it again from its disk."""
        await self.kill()
        await self.start()

    # --- what a test asks of it -------------------------------------------------------------------------------------
    async def chat(self, words: str = "what is an agora?", **changes: Any) -> Answer:
        """Ask, and read the answer to its end; raises what the client would see."""
        answer, since = Answer(), trio.current_time()
        async with aclosing(self.node.chat(chat_request(words, **changes))) as events:
            async for event in events:
                answer.take(event, since)
        return answer

    async def ended_job(self) -> JobView:
        """The newest job that has ended, when the last one asked for has; as `agora jobs show` tells it."""
        await self.world.run(0.5)  # the client hears the end before the receipt has come
        return next(job for job in self.node.jobs() if job.finished_at is not None)

    def balance(self) -> int:
        """Its own account, as itself sees it."""
        return self.node.ledger().balance_micro

    def accounts(self) -> dict[str, int]:
        """Every account it knows that is not at zero."""
        lines = self.node.ledger().accounts
        return {line["peer_id"]: line["balance_micro"] for line in lines if line["balance_micro"]}

    def events(self, name: str) -> list[dict[str, Any]]:
        """The fields of every journal event of this name, of all its runs."""
        return [dict(event.fields) for event in self.recent() if event.name == name]

    def recent(self) -> tuple[Event, ...]:
        return self.journal.recent(50_000)

    async def backup(self) -> list[Record]:
        """What its disk holds now."""
        return await self.disk.load()


class World:
    """Daemons and puppets of one mesh. `founder` is on the roll, holds no model, and belongs to the owner 'ann'."""

    def __init__(self, nursery: trio.Nursery, *, seed: int = 1) -> None:
        self.nursery = nursery
        self.rng = Random(seed)
        self.network = Network(self.rng, latency_s=(LATENCY_S, LATENCY_S))
        self.daemons: dict[str, Daemon] = {}
        self.puppets: list[Puppet] = []
        self.charter: Sealed[Charter]
        self.barred: set[PeerId] = set()  # whom a story bars on purpose
        self._clock = WorldClock()

    @property
    def mesh_id(self) -> bytes:
        return self.charter.id

    @property
    def founder(self) -> Daemon:
        return self.daemons["founder"]

    async def found(self, **settings: Any) -> Daemon:
        """Found the mesh and start its first device."""
        if not self.daemons:
            self.nursery.start_soon(self.network.run)
        founder = Daemon(self, "founder", **{"engine": Holder(), "owner": "ann", **settings})
        message = founding_charter(
            "town",
            founder=founder.identity.public_key,
            owner="ann",
            approver=person("ann herself").public_key,
        )
        self.charter = seal(message, founder.identity, mesh=NO_HASH, seq=(0, 1), time_ms=NOON_MS)
        await founder.disk.append(self.belonging())
        self.daemons["founder"] = founder
        await founder.start()
        return founder

    async def found_again(self, **settings: Any) -> Daemon:
        """Found the mesh with other settings of the founder's; before anybody else has come."""
        await self.founder.kill()
        self.founder.disk.close()
        return await self.found(**settings)

    def belonging(self) -> list[Record]:
        """What the disk of a new member holds: its mesh, and the charter that proves it."""
        return [Record(MESH, b"id", self.mesh_id), Record(ENTRY, self.mesh_id, self.charter.raw)]

    async def admit(
        self, peer_id: PeerId, *, owner: str, credit_micro: int = CREDIT_MICRO
    ) -> Sealed[Admitted]:
        """Have the founder sign a device in; `joining` tests take the real stream instead."""
        entry = await self.founder.node.logbook.write(
            Admitted,
            lambda index, prev: Admitted(
                index=index,
                prev=prev,
                peer=peer_id,
                owner=owner,
                credit_line_micro=credit_micro,
                invitation_id=bytes(16),
            ),
        )
        await self.founder.node.sync.announce(entry)
        return entry

    async def add(
        self,
        name: str,
        *,
        owner: str = "",
        credit_micro: int = CREDIT_MICRO,
        is_met: bool = True,
        **settings: Any,
    ) -> Daemon:
        """Admit a device, start it, and let it meet the founder; `owner` is its own name unless said."""
        owner = owner or name
        daemon = Daemon(self, name, **{"owner": owner, "bootstrap": (self.founder.address,), **settings})
        self.daemons[name] = daemon
        await self.admit(daemon.peer_id, owner=owner, credit_micro=credit_micro)
        await daemon.disk.append(self.belonging())
        await daemon.start()
        if is_met:
            await self.until(lambda: daemon.events("peer_met") != [])
        return daemon

    async def puppet(self, name: str, *, owner: str = "", is_admitted: bool = True) -> "Puppet":
        """A key in the test's hand; it runs, and has met nobody."""
        puppet = Puppet(self, name)
        if is_admitted:
            await self.admit(puppet.peer_id, owner=owner or name)
        self.puppets.append(puppet)
        await self.nursery.start(puppet.mesh.run)
        return puppet

    def twin_of(self, daemon: Daemon) -> "Puppet":
        """The daemon's key in the test's hand, as if its home directory had been copied; it is on no network."""
        twin = Puppet.__new__(Puppet)
        twin.world, twin.name, twin.identity = self, daemon.name, daemon.identity
        twin.clock = WorldClock(skew_ms=1)
        twin.wire = Wire(
            daemon.identity,
            self.mesh_id,
            boot=self.rng.getrandbits(62),
            clock=twin.clock,
            members_time=MembersTime(twin.clock),
        )
        return twin

    # --- time and faults ------------------------------------------------------------------------------------------
    async def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        await trio.sleep(seconds)

    async def until(self, holds: Callable[[], bool], within_s: float = 60.0) -> float:
        """Wait until something is so, looking every virtual 10 ms; return how long it took."""
        began = trio.current_time()
        while not holds():
            assert trio.current_time() - began < within_s, f"not so within {within_s} virtual seconds"
            await trio.sleep(0.01)
        return trio.current_time() - began

    async def acquaint(self, *daemons: Daemon) -> None:
        """Wait until these know each other's offers and are connected."""
        for one in daemons:
            for other in daemons:
                if one is not other and other.peer_id not in one.mesh.connected:
                    await one.mesh.dial(other.address)
        await self.until(
            lambda: all(
                other.peer_id in one.node.meeting.greeted
                and one.node.directory.offer(other.peer_id, trio.current_time()) is not None
                for one in daemons
                for other in daemons
                if one is not other
            )
        )

    def set_latency(self, one: Daemon, other: Daemon, one_way_s: float) -> None:
        """Make a link slower or faster, in both directions."""
        self.network.set_latency(one.peer_id, other.peer_id, one_way_s)
        self.network.set_latency(other.peer_id, one.peer_id, one_way_s)

    def freeze_round_trips(self, seconds: float) -> None:
        """Heartbeats have measured this, and not yet what the links have become since."""
        self.network.round_trip_s = lambda *_: seconds  # type: ignore[method-assign]

    def partition(self, *groups: Sequence[Daemon]) -> None:
        """Cut every link between these groups."""
        self.network.partition(*([daemon.peer_id for daemon in group] for group in groups))

    def heal(self) -> None:
        """Mend every link."""
        self.network.heal()

    # --- the laws ---------------------------------------------------------------------------------------------------
    def check(self) -> None:
        """What holds at the end of every story, whoever was hostile in it."""
        for daemon in self.daemons.values():
            ledger = daemon.node.logbook.ledger
            assert ledger.total_micro() == 0, f"the ledger of {daemon.name} does not sum to zero"
            for payment in ledger.payments():
                award = ledger.award(payment.receipt.message.award)
                assert award is not None
                paid = sum(
                    each.amount_micro for each in ledger.payments() if each.receipt.message.award == award.id
                )
                assert paid <= award.message.hold_micro, f"{daemon.name} saw an award paid over its hold"
            failures = [each for each in daemon.events("handler_failed") if each["error"] != "StoreClosed"]
            assert failures == [], f"handlers of {daemon.name} failed: {failures}"
            for other in self.daemons.values():
                assert other.peer_id in self.barred or not daemon.node.logbook.assembly.is_barred(
                    other.peer_id
                ), f"{daemon.name} bars {other.name}, who did nothing"

    async def close(self) -> None:
        """End every process, then let the disks go."""
        with trio.CancelScope(shield=True):
            for daemon in self.daemons.values():
                await daemon.kill()
                daemon.disk.close()


class Puppet:
    """A key, its pen and its mesh, and no node: whatever it says, a test said."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.identity = person(name)
        self.clock = WorldClock()
        self.journal = Journal(monotonic=trio.current_time)
        self.mesh = world.network.join(self.peer_id, self.journal)
        self.heard: list[Sealed[Hello]] = []
        self.boot = Random(name).getrandbits(62)
        self.wire = Wire(
            self.identity,
            world.mesh_id,
            boot=self.boot,
            clock=self.clock,
            members_time=MembersTime(self.clock),
        )
        self.advert = b""
        self.heads: tuple[Head, ...] = ()
        self.tails: dict[str, Sealed[Any]] = {}
        self.mesh.serve(HELLO, self._answer_hello)

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def address(self) -> str:
        return f"/ip4/127.0.0.1/tcp/4420/p2p/{self.peer_id}"

    def serve(self, protocol: StreamProtocol, handler: StreamHandler) -> None:
        """Answer a protocol the test's way; may be called while it runs."""
        self.mesh._handlers[protocol.name] = (protocol, handler)

    def offer(self, *, completion_micro: int = 1, prompt_micro: int = 1) -> None:
        """Advertise the echo model, from the next hello on."""
        model = ModelOffer(
            digest=ECHO_MODEL,
            architecture="echo",
            quantisation="none",
            context_tokens=4_096,
            tokens_per_ks=50_000,
            prompt_tokens_per_ks=1_000_000,
        )
        self.advert = self.wire.seal(
            Advert(
                models=(model,),
                slots=1,
                slots_free=1,
                prompt_micro=prompt_micro,
                completion_micro=completion_micro,
                device=MAINS,
                heads=(),
                assembly=self.world.founder.node.logbook.assembly.fingerprint(),
                addresses=(self.address,),
            ),
            ttl_ms=180_000,
        ).raw

    def hello(self) -> Hello:
        return Hello(
            boot=self.boot.to_bytes(16),
            heads=self.heads,
            yours=(),
            advert=self.advert,
            adverts=(),
            addresses=(self.address,),
        )

    async def meet(self, daemon: Daemon) -> Sealed[Hello]:
        """Dial a daemon and exchange hellos."""
        await self.mesh.dial(daemon.address)
        stream = await self.mesh.open_stream(daemon.peer_id, HELLO)
        await self.wire.send(stream, self.hello())
        heard = await self.wire.receive(stream, Hello)
        await stream.end()
        await self.world.until(lambda: self.peer_id in daemon.node.meeting.greeted)
        return heard

    async def _answer_hello(self, stream: Stream) -> None:
        self.heard.append(await self.wire.receive(stream, Hello))
        await self.wire.send(stream, self.hello())

    async def open(self, daemon: Daemon, protocol: StreamProtocol) -> Stream:
        return await self.mesh.open_stream(daemon.peer_id, protocol)

    def entry(self, form: type[E], *, index: int | None = None, **fields: Any) -> Sealed[E]:
        """Sign the next entry of the puppet's own log; with an `index` of its own choice it may fork."""
        tail = self.tails.get(form.log)
        if index is None:
            index = tail.message.index + 1 if tail else 0
            prev = tail.id if tail else NO_HASH
        else:
            prev = NO_HASH
        sealed = self.wire.seal(form(index=index, prev=prev, **fields))
        self.tails[form.log] = sealed
        return sealed

    def next_card(self, head: Head, name: str, model: bytes) -> Sealed[Card]:
        """Sign the card that would follow a head of the puppet's own assembly log."""
        return self.wire.seal(Card(index=head.index + 1, prev=head.entry, name=name, model=model))

    # --- as a seller ------------------------------------------------------------------------------------------------
    async def bid(self, stream: Stream, *, completion_micro: int = 1) -> Sealed[Request]:
        """Answer the request that comes on a job stream with a bid."""
        request = await self.wire.receive(stream, Request)
        await self.wire.send(
            stream,
            Bid(
                request=request.id,
                prompt_micro=1,
                completion_micro=completion_micro,
                ttft_ms=10,
                tokens_per_ks=50_000,
            ),
        )
        return request

    async def accept(self, stream: Stream) -> tuple[Sealed[Award], Work]:
        """Take the award and the work that follow a bid, and accept."""
        award = await self.wire.receive(stream, Award)
        work = (await self.wire.receive(stream, Work)).message
        terms = award.message
        accept = self.entry(
            Accept, award=award.id, buyer=award.sender, job_id=terms.job_id, attempt=terms.attempt
        )
        await stream.send(accept.raw)
        return award, work

    async def send_tokens(self, stream: Stream, ids: Sequence[int], *, first: int = 0) -> None:
        """Send each token in a frame of its own; the text is as honest as the ids."""
        for place, token in enumerate(ids):
            text = token_bytes(token).decode(errors="replace")
            await stream.send(encode(TokensFrame(first=first + place, ids=(token,), text=text)))

    async def finish(self, stream: Stream, completion_tokens: int) -> None:
        frame = FinishedFrame(reason="stop", text="", prompt_tokens=4, completion_tokens=completion_tokens)
        await stream.send(encode(frame))

    def receipt(
        self, award: Sealed[Award], work: Work, ids: Sequence[int], **changes: Any
    ) -> Sealed[Receipt]:
        """The honest receipt for what was delivered, with some fields changed."""
        honest = draft_receipt(
            award,
            work,
            ids=ids,
            prompt_tokens=4,
            ttft_ms=1,
            duration_ms=1,
            chargeable_micro=award.message.hold_micro,
            index=0,
            prev=NO_HASH,
        )
        fields = {name: getattr(honest, name) for name in honest.__struct_fields__} | changes
        return self.entry(Receipt, **{name: fields[name] for name in fields if name not in {"index", "prev"}})

    # --- as a buyer -------------------------------------------------------------------------------------------------
    async def ask(
        self, daemon: Daemon, *, job: bytes = b"j" * 16, **changes: Any
    ) -> tuple[Stream, Sealed[Request], Sealed[Bid] | Sealed[Decline]]:
        """Open a job stream with a request for 10 prompt and 50 completion tokens."""
        stream = await self.open(daemon, JOB)
        fields = {
            "job_id": job,
            "attempt": 1,
            "model": ECHO_MODEL,
            "prompt_tokens": 10,
            "completion_tokens_max": 50,
            "total_micro_max": 1_000_000,
            "privacy": "mesh",
            "session": NO_HASH,
            "head": None,
        }
        request = await self.wire.send(stream, Request(**{**fields, **changes}))
        return stream, request, await self.wire.receive(stream, Bid, Decline)

    def award(
        self,
        to: PeerId,
        request: Sealed[Request],
        bid: Sealed[Any],
        /,
        *,
        index: int | None = None,
        **changes: Any,
    ) -> Sealed[Award]:
        """The honest award for a bid, with some fields changed."""
        fields = {
            "request": request.id,
            "bid": bid.id,
            "job_id": request.message.job_id,
            "attempt": request.message.attempt,
            "seller": to,
            "model": request.message.model,
            "hold_micro": 10_000,
            "prompt_micro": bid.message.prompt_micro,
            "completion_micro": bid.message.completion_micro,
            "lease_ms": 600_000,
            "session": NO_HASH,
        }
        return self.entry(Award, index=index, **{**fields, **changes})

    def work(self, award: Sealed[Award], words: str = "hi", **changes: Any) -> Work:
        """The honest work under an award, with some fields changed."""
        fields = {
            "award": award.id,
            "job_id": award.message.job_id,
            "attempt": award.message.attempt,
            "turns": (Turn(role="user", content=words),),
            "completion_tokens_max": 50,
            "sampling": SamplingTerms(),
            "stop": (),
            "received": (),
        }
        return Work(**{**fields, **changes})


def invented_heads(count: int) -> tuple[Head, ...]:
    """Heads of assembly logs that nobody has written."""
    return tuple(
        Head(author=person(f"nobody {number}").peer_id, log="assembly", index=3, entry=bytes(32))
        for number in range(count)
    )


def echo_ids(words: str, count: int) -> tuple[int, ...]:
    """The first token ids of `EchoEngine`'s answer."""
    pieces = [f"{words} ".encode()[at : at + 3] for at in range(0, len(f"{words} ".encode()), 3)]
    return tuple(int.from_bytes(b"\1" + pieces[at % len(pieces)], "big") for at in range(count))


def echo_text(words: str, repetitions: int = 4) -> str:
    """What an uninterrupted `EchoEngine` of this world answers."""
    return f"{words} " * repetitions
