"""What this device offers, as of now: its advert to everybody, its answer to one request, and what keeps it closed.

An advert and a bid say the same of the same engine, device and terms. What money and logs forbid comes before the
market's own rule (`marketplace/bidding.py`), since a sale that cannot be written down cannot be paid.
"""

from collections.abc import Callable

from marketplace.bidding import SellerState, SellerTerms, quote
from marketplace.exposure import Exposure
from node.logbook import Logbook
from node.store import Store
from protocol import limits
from protocol.envelope import Sealed
from protocol.identity import PeerId
from protocol.mesh import Mesh
from protocol.messages import NO_HASH, Advert, Bid, Decline, DeclineReason, Device, ModelOffer, Request
from runtime.engine import Digest, Engine


class OwnOffer:
    """What this device sells, to whom, and for how much."""

    def __init__(
        self,
        *,
        mesh: Mesh,
        logbook: Logbook,
        engine: Engine,
        store: Store,
        exposure: Exposure,
        terms: SellerTerms,
        device: Callable[[], Device],
    ) -> None:
        self._mesh = mesh
        self._logbook = logbook
        self._engine = engine
        self._store = store
        self._exposure = exposure
        self._terms = terms
        self._device = device

    def describe(self) -> Advert:
        """This device's advert as of now."""
        device = self._device()
        offers = []
        slots = slots_free = 0
        for digest, card in list(self._engine.models.items())[: limits.MODELS_PER_ADVERT_MAX]:
            status = self._engine.status(digest)
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
        )

    def quote(self, request: Sealed[Request]) -> Bid | Decline:
        """Answer a request; nothing is promised but the price."""
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
        return adapter == NO_HASH or self._engine.adapters.get(Digest(adapter)) == model

    def busy(self, model: Digest, adapter: bytes) -> str:
        """Why a lease, whose buyer has asked nobody else, had better go to auction now; it need not queue here."""
        if not self.is_ready(model, adapter):
            return "its adapter is served here no more"
        if model not in self._engine.models or self._engine.status(model).slots_free > 0:
            return ""
        return f"{self._engine.status(model).slots} slots in use: somebody else is quicker, even with a cold cache"

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
        status = self._engine.status(card.digest) if card else None
        return SellerState(
            buyer_owner=member.owner if member else None,
            context_tokens=card.context_tokens if card else None,
            is_adapter_ready=self.is_ready(request.message.model, request.message.adapter),
            is_memory_enough=True,
            slots=status.slots if status else 0,
            slots_free=status.slots_free if status else 0,
            queued=status.queued if status else 0,
            battery_percent=device.battery_percent,
            is_charging=device.is_charging,
            load_percent=device.load_percent,
            tokens_per_ks=int(status.tokens_per_s * 1000) if status else 0,
            prompt_tokens_per_ks=int(status.prompt_tokens_per_s * 1000) if status else 0,
            balance_micro=ledger.balance_micro(buyer),
            held_micro=ledger.held_micro(buyer),
            credit_line_micro=member.credit_line_micro if member else 0,
            unsettled_micro=self._exposure.micro(buyer),
        )
