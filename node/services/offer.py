"""What this device offers, as of now: its advert to everybody, its answer to one request, and what keeps it closed.

An advert and a bid say the same of the same engine, device and terms. What money and logs forbid comes before the
market's own rule (`marketplace/bidding.py`), since a sale that cannot be written down cannot be paid. What the engine's
caches hold is remembered here too (`marketplace/warmth.py`), from the jobs that were served.
"""

from collections.abc import Callable

from marketplace.bidding import SellerState, SellerTerms, quote
from marketplace.exposure import Exposure
from marketplace.prefix import leading_turns, prefix_digest
from marketplace.prompt import Prompt, only_reads
from marketplace.room import Coming, Room
from marketplace.warmth import Prefix, Session, Warmth
from node.clock import Clock
from node.logbook import Logbook
from node.models import has_adapter
from node.store import Store
from protocol import limits
from protocol.envelope import Sealed
from protocol.identity import PeerId
from protocol.mesh import Mesh, Stream
from protocol.messages import (
    NO_HASH,
    Advert,
    Award,
    Bid,
    Decline,
    DeclineReason,
    Device,
    ModelOffer,
    Privacy,
    Request,
    Work,
)
from runtime.engine import Digest, Engine, EngineStatus


class OwnOffer:
    """What this device sells, to whom, and for how much."""

    def __init__(
        self,
        *,
        mesh: Mesh,
        clock: Clock,
        logbook: Logbook,
        engine: Engine,
        store: Store,
        exposure: Exposure,
        terms: SellerTerms,
        device: Callable[[], Device],
    ) -> None:
        self._mesh = mesh
        self._clock = clock
        self._logbook = logbook
        self._engine = engine
        self._store = store
        self._exposure = exposure
        self._terms = terms
        self._device = device
        self._warmth = Warmth()
        self._coming = Coming()

    def describe(self) -> Advert:
        """This device's advert as of now."""
        device = self._device()
        offers = []
        slots = slots_free = 0
        for digest, card in list(self._engine.models.items())[: limits.MODELS_PER_ADVERT_MAX]:
            status = self._status(digest)
            slots, slots_free = max(slots, status.slots), max(slots_free, status.slots_free)
            offers.append(
                ModelOffer(
                    digest=digest,
                    architecture=card.architecture[:32],
                    quantisation=card.quantisation[:16],
                    context_tokens=card.context_tokens,
                    tokens_per_ks=int(status.tokens_per_s * 1000),
                    prompt_tokens_per_ks=int(status.prompt_tokens_per_s * 1000),
                    adapters=self._adapters(digest),
                    dimensions=card.dimensions,
                )
            )
        me = self._logbook.me
        heads = (self._logbook.head(me, "assembly"), self._logbook.head(me, "bilateral"))
        return Advert(
            models=tuple(offers),
            slots=slots,
            slots_free=slots_free,
            prompt_micro=self._terms.base.prompt_micro,
            completion_micro=self._terms.base.completion_micro,
            device=device,
            heads=tuple(head for head in heads if head),
            assembly=self._logbook.assembly.fingerprint(),
            addresses=self._mesh.addresses[:4],
            warm=b"".join(self._warmth.told(self._clock.now())),
        )

    def quote(self, request: Sealed[Request]) -> Bid | Decline:
        """Answer a request: with what it would cost and how soon it would begin, or with why not."""
        if closed := self._closed():
            reason, detail = closed
            return Decline(request=request.id, reason=reason, detail=detail)
        if full := self._logbook.why_full(request.sender):  # what it owes to others could no more be known
            return Decline(
                request=request.id, reason="policy", detail=f"your log is full: {full}; join with a new key"
            )
        return quote(request, self._terms, self._state(request))

    def closed_to_lease(self, buyer: PeerId) -> str:
        """Why a lease, which no quote stands before, serves nothing now; the next auction will tell its buyer the same."""
        if closed := self._closed():
            return closed[1]
        owed, most = self._exposure.micro(buyer), self._terms.exposure_micro_max
        return f"{owed} not countersigned, at most {most} allowed" if owed > most else ""

    def is_ready(self, model: bytes, adapter: bytes) -> bool:
        """Whether an adapter of a model can be served now; the bare base always can."""
        return has_adapter(self._engine, model, adapter)

    def busy(self, model: Digest, adapter: bytes) -> str:
        """Why a lease, whose buyer has asked nobody else, had better go to auction now: by the rule of all bids."""
        if not self.is_ready(model, adapter):
            return "its adapter is served here no more"
        if model not in self._engine.models:
            return ""
        return self._room(self._status(model)).why_busy

    # --- what was taken on --------------------------------------------------------------------------------------
    def expect(self, stream: Stream, award: Award, work: Work) -> None:
        """A job was taken on, on this stream: until the engine hears of it, it is counted here."""
        model = Digest(award.model)
        status = self._engine.status(model) if model in self._engine.models else None
        seconds = 0.0
        if status is not None and status.prompt_tokens_per_s and status.tokens_per_s:
            written = 0 if only_reads(work.task) else work.completion_tokens_max - len(work.received)
            seconds = Prompt.of(work).estimated_tokens / status.prompt_tokens_per_s
            seconds += max(0, written) / status.tokens_per_s
        self._coming.expect(stream, seconds)

    def arrived(self, stream: Stream) -> None:
        """The engine has the stream's job, or it will not come. May be called twice."""
        self._coming.arrived(stream)

    def _room(self, status: EngineStatus) -> Room:
        """What is left for one more, beside what runs and what is coming."""
        room = Room(
            status.slots, status.slots_free, status.queued, status.queue_free, round(status.wait_s * 1000)
        )
        return room.beside(len(self._coming), self._coming.seconds)

    # --- what is warm -------------------------------------------------------------------------------------------
    def note_served(self, award: Award, buyer: PeerId, work: Work, *, privacy: Privacy, written: int) -> None:
        """A job has left its prompt in the engine's cache, and behind it the tokens that were written."""
        card = self._engine.models.get(Digest(award.model))
        if card is None or work.task != "chat" or not self._logbook.assembly.is_member(buyer):
            return
        cells = card.context_tokens * self._engine.status(card.digest).slots
        left: list[tuple[Session | Prefix, int]] = []
        if award.session != NO_HASH:
            read = Prompt.of(work).estimated_tokens + len(work.received) + written
            left.append((Session(buyer, award.session, award.model, award.adapter), read))
        if digest := prefix_digest(award.model, award.adapter, work.turns):
            owner = "" if privacy == "mesh" else self._logbook.assembly.member(buyer).owner
            left.append((Prefix(digest, owner), Prompt(leading_turns(work.turns)).estimated_tokens))
        for key, tokens in left:
            self._warmth.note(key, model=award.model, tokens=tokens, tokens_max=cells, now=self._clock.now())

    def forget_warm(self) -> None:
        """The engine's process died, for whomever it worked: its caches went with it."""
        self._warmth.forget_all()

    def _warm_tokens(self, request: Sealed[Request], owner: str) -> int:
        """How much of a request's prompt need not be read again, as far as its buyer may know."""
        wanted = request.message
        keys: list[Session | Prefix] = []
        if wanted.session != NO_HASH:
            keys.append(Session(request.sender, wanted.session, wanted.model, wanted.adapter))
        if wanted.prefix:
            keys += [Prefix(wanted.prefix, ""), Prefix(wanted.prefix, owner)]
        return self._warmth.tokens(*keys, prompt_tokens=wanted.prompt_tokens, now=self._clock.now())

    def _status(self, model: Digest) -> EngineStatus:
        """The engine's status; a model that has left its memory has left no cache behind."""
        status = self._engine.status(model)
        if status.load_s > 0:
            self._warmth.forget(model)
        return status

    def _adapters(self, model: Digest) -> tuple[bytes, ...]:
        """Those ready to serve, the ones loaded last first; an engine keeps them in the order of loading."""
        ready = [adapter for adapter, base in self._engine.adapters.items() if base == model]
        return tuple(reversed(ready))[: limits.ADAPTERS_PER_OFFER_MAX]

    def _closed(self) -> tuple[DeclineReason, str] | None:
        """Why nothing is sold now, to whomever: a receipt could not be written."""
        if self._store.is_full:
            return "memory", "the disk is full: no new work"
        if not self._logbook.is_confirmed:
            return "policy", "the own log is not confirmed yet"
        if self._logbook.halted:
            return "policy", "this device's key runs twice"
        return None

    def _state(self, request: Sealed[Request]) -> SellerState:
        assembly, ledger = self._logbook.assembly, self._logbook.ledger
        buyer = request.sender
        member = assembly.member(buyer) if assembly.is_member(buyer) else None
        device = self._device()
        card = self._engine.models.get(Digest(request.message.model))
        status = self._status(card.digest) if card else None
        room = self._room(status) if status else Room(0, 0, 0, 0, 0)
        return SellerState(
            buyer_owner=member.owner if member else None,
            context_tokens=card.context_tokens if card else None,
            is_adapter_ready=self.is_ready(request.message.model, request.message.adapter),
            is_memory_enough=True,
            slots=room.slots,
            slots_free=room.slots_free,
            queued=room.queued,
            battery_percent=device.battery_percent,
            is_charging=device.is_charging,
            load_percent=device.load_percent,
            tokens_per_ks=int(status.tokens_per_s * 1000) if status else 0,
            prompt_tokens_per_ks=int(status.prompt_tokens_per_s * 1000) if status else 0,
            balance_micro=ledger.balance_micro(buyer),
            held_micro=ledger.held_micro(buyer),
            credit_line_micro=member.credit_line_micro if member else 0,
            unsettled_micro=self._exposure.micro(buyer),
            queue_free=room.queue_free,
            wait_ms=room.wait_ms,
            load_ms=round(status.load_s * 1000) if status else 0,
            warm_tokens=self._warm_tokens(request, member.owner) if member else 0,
            dimensions=card.dimensions if card else 0,
        )
