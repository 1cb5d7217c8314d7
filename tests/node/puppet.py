"""A key that a test moves by hand: it says whatever the test wants to every protocol, as a hostile member would."""

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from marketplace.receipt import draft_receipt
from node.clock import MembersTime
from node.journal import Journal
from node.simulation.devices import PROFILES, device_message
from node.simulation.virtual_clock import VirtualClock
from node.wire import Wire
from protocol.envelope import Sealed, encode
from protocol.identity import PeerId
from protocol.mesh import Stream, StreamHandler, Verdict
from protocol.messages import (
    NO_HASH,
    Accept,
    Advert,
    Award,
    Bid,
    Card,
    Decline,
    Entry,
    FinishedFrame,
    Head,
    Hello,
    ModelOffer,
    Receipt,
    Request,
    SamplingTerms,
    TokensFrame,
    Turn,
    Work,
)
from protocol.topics import HELLO, JOB, RUNS, StreamProtocol
from runtime.echo import ECHO_MODEL, token_bytes

if TYPE_CHECKING:
    from tests.node.world import Daemon, World

E = TypeVar("E", bound=Entry)

DEVICE = device_message(PROFILES["server"])  # what it claims to be


class Puppet:
    """A key, its pen and its mesh, and no node: whatever it says, a test said."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.identity = world.identity(name)
        self.clock = VirtualClock()
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
        self.yours: tuple[Head, ...] = ()  # what it says of the logs of whoever it greets
        self.tails: dict[str, Sealed[Any]] = {}
        self.mesh.serve(HELLO, self._answer_hello)
        self.mesh.subscribe(RUNS, lambda _data, _peer: Verdict.ACCEPT, self._overhear)

    async def _overhear(self, _data: bytes, _peer: PeerId) -> None:
        """Whoever announces takes part in the topic; it answers nothing there."""

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def address(self) -> str:
        return f"/ip4/127.0.0.1/tcp/4420/p2p/{self.peer_id}"

    def serve(self, protocol: StreamProtocol, handler: StreamHandler) -> None:
        """Answer a protocol the test's way; may be called while it runs."""
        self.mesh._handlers[protocol.name] = (protocol, handler)

    def offer(
        self,
        *,
        completion_micro: int = 1,
        prompt_micro: int = 1,
        digest: bytes = ECHO_MODEL,
        dimensions: int = 0,
    ) -> None:
        """Advertise the echo model, or another one, from the next hello on."""
        model = ModelOffer(
            digest=digest,
            dimensions=dimensions,
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
                device=DEVICE,
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
            yours=self.yours,
            advert=self.advert,
            adverts=(),
            addresses=(self.address,),
        )

    async def meet(self, daemon: "Daemon") -> Sealed[Hello]:
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

    async def open(self, daemon: "Daemon", protocol: StreamProtocol) -> Stream:
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
            frame = TokensFrame(first=first + place, ids=(token,), text=text, contrasts=(0,))
            await stream.send(encode(frame))

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
        self, daemon: "Daemon", *, job: bytes = b"j" * 16, **changes: Any
    ) -> tuple[Stream, Sealed[Request], Sealed[Bid] | Sealed[Decline]]:
        """Open a job stream with a request for 10 prompt and 50 completion tokens."""
        stream = await self.open(daemon, JOB)
        fields = {
            "job_id": job,
            "attempt": 1,
            "model": ECHO_MODEL,
            "adapter": NO_HASH,
            "prompt_tokens": 10,
            "completion_tokens_max": 50,
            "total_micro_max": 1_000_000,
            "privacy": "mesh",
            "session": NO_HASH,
            "head": None,
        }
        request = await self.wire.send(stream, Request(**{**fields, **changes}))
        answer: Sealed[Any] = await self.wire.receive(stream, Bid, Decline)
        return stream, request, answer

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
            "adapter": request.message.adapter,
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
