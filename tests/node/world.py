"""A small mesh in one process, for the stories of whole nodes: a simulated world whose people do as the test says.

Network, disks, engines and clocks are the simulator's, and all links are alike. The world opens with its founder alone,
and whoever comes later is admitted by the running founder, so that everybody hears of it as in life.
"""

from contextlib import aclosing
from dataclasses import dataclass, field
from random import Random
from typing import Any

import trio

from node.chat import ChatDelta, ChatEvent, ChatFinished, ChatRequest, ChatStarted
from node.clock import MembersTime
from node.config import Config
from node.event import Event
from node.simulation import daemon as simulated
from node.simulation import world as simulation
from node.simulation.daemon import Parts
from node.simulation.disk import Disk
from node.simulation.engine import SimulatedEngine
from node.simulation.founding import Founding
from node.simulation.virtual_clock import VirtualClock
from node.simulation.world import CREDIT_MICRO, FOUNDER
from node.store import Record
from node.views import JobView
from node.wire import Wire
from protocol.identity import Identity, PeerId
from protocol.messages import Device, Head
from runtime.engine import ChatMessage
from tests.node.puppet import Puppet

LATENCY_S = 0.01  # one way, on every link: a round trip is 20 ms, a bid window three of them
RING_EVENTS = 50_000
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


class Engine(SimulatedEngine):
    """It stops by itself, after saying the user's words four times."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"repetitions": 4, **settings})


class Holder(Engine):
    """An engine that holds no model: its device only buys."""

    def __init__(self) -> None:
        super().__init__()
        self.forget_models()


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


class Daemon(simulated.Daemon):
    """A device of the simulator, made of what the test says; its user is the test."""

    def __init__(
        self,
        world: "World",
        name: str,
        *,
        engine: SimulatedEngine | None = None,
        device: Device = MAINS,
        skew_ms: int = 0,
        **config: Any,
    ) -> None:
        self.world = world
        parts = Parts(
            identity=world.identity(name),
            engine=engine or Engine(),
            device=device,
            disk=Disk(world.random(f"disk {name}")),
            config=Config(**{"buy_checks": False, **config}),  # a story says so where somebody looks twice
            skew_ms=skew_ms,
            ring_events=RING_EVENTS,
        )
        super().__init__(world, name, parts)

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
        return self.journal.recent(RING_EVENTS)

    async def backup(self) -> list[Record]:
        """What its disk holds now."""
        return await self.disk.load()


class World(simulation.World):
    """Daemons and puppets of one mesh. `founder` is on the roll, holds no model, and belongs to the owner 'ann'."""

    daemons: dict[str, Daemon]  # type: ignore[assignment]  # no others are added here

    def __init__(self, nursery: trio.Nursery, *, seed: int = 1) -> None:
        super().__init__(nursery, seed=seed, latency_s=(LATENCY_S, LATENCY_S))
        self.puppets: list[Puppet] = []
        self.barred: set[PeerId] = set()  # whom a story bars on purpose

    def identity(self, name: str) -> Identity:
        return person(name)

    @property
    def founder(self) -> Daemon:
        return self.daemons[FOUNDER]

    def found(self, **settings: Any) -> None:
        """Sign the charter; its founder is the first device, and alone when the world opens."""
        approver = person("ann herself").public_key
        self.founding = Founding("town", person(FOUNDER), owner="ann", approver=approver)
        self.daemons[FOUNDER] = Daemon(self, FOUNDER, **{"engine": Holder(), "owner": "ann", **settings})

    async def found_again(self, **settings: Any) -> None:
        """Found the mesh with other settings of the founder's; before anybody else has come."""
        await self.founder.kill()
        self.founder.disk.close()
        self.found(**settings)
        await self.founder.start()

    async def add(  # type: ignore[override]  # one device, which the test describes
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
        await self.settle(daemon, owner=owner, credit_micro=credit_micro)
        if is_met:
            await self.until(lambda: daemon.events("peer_met") != [])
        return daemon

    async def puppet(self, name: str, *, owner: str = "", is_admitted: bool = True) -> Puppet:
        """A key in the test's hand; it runs, and has met nobody."""
        puppet = Puppet(self, name)
        if is_admitted:
            await self.admit(puppet.peer_id, owner=owner or name)
        self.puppets.append(puppet)
        await self.nursery.start(puppet.mesh.run)
        return puppet

    def twin_of(self, daemon: Daemon) -> Puppet:
        """The daemon's key in the test's hand, as if its home directory had been copied; it is on no network."""
        twin = Puppet.__new__(Puppet)
        twin.world, twin.name, twin.identity = self, daemon.name, daemon.identity
        twin.clock = VirtualClock(skew_ms=1)
        twin.wire = Wire(
            daemon.identity,
            self.mesh_id,
            boot=self.random(f"twin of {daemon.name}").getrandbits(62),
            clock=twin.clock,
            members_time=MembersTime(twin.clock),
        )
        return twin

    # --- time and links -------------------------------------------------------------------------------------------
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

    def freeze_round_trips(self, seconds: float) -> None:
        """Heartbeats have measured this, and not yet what the links have become since."""
        self.network.round_trip_s = lambda *_: seconds  # type: ignore[method-assign]

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
