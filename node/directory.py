"""Who is out there: the newest advert of every device heard of, and where it can be dialled. Bounded, never on disk
but for the addresses.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

from protocol import limits
from protocol.envelope import Sealed
from protocol.identity import PeerId
from protocol.messages import Advert, ModelOffer

PEERS_MAX = 4_096  # adverts of 2 KiB: 8 MiB at most


@dataclass(frozen=True)
class Offer:
    """A device's newest advert, when it was heard and until when it counts, in our monotonic seconds."""

    advert: Sealed[Advert]
    heard_at: float
    ends_at: float


class Directory:
    """Newest adverts by peer; one that has expired no longer counts."""

    def __init__(
        self, me: PeerId, on_learned: Callable[[PeerId, tuple[str, ...]], None] = lambda *_: None
    ) -> None:
        """`on_learned` is told of every address: the mesh, which dials whoever is asked for."""
        self._me = me
        self._on_learned = on_learned
        self._offers: OrderedDict[PeerId, Offer] = OrderedDict()
        self._addresses: OrderedDict[PeerId, tuple[str, ...]] = OrderedDict()

    def hear(self, advert: Sealed[Advert], now: float, utc_ms: int) -> bool:
        """Keep an advert unless a newer one of its sender is known; True when it was kept."""
        left_s = (advert.expires_ms - utc_ms) / 1000 if advert.expires_ms else 0.0
        known = self._offers.get(advert.sender)
        if advert.sender == self._me or (known and known.advert.time_ms >= advert.time_ms):
            return False
        self._offers.pop(advert.sender, None)
        self._offers[advert.sender] = Offer(advert, now, now + min(left_s, limits.ADVERT_TTL_S))
        if advert.message.addresses:
            self.learn(advert.sender, advert.message.addresses)
        while len(self._offers) > PEERS_MAX:
            self._offers.popitem(last=False)
        return True

    def forget(self, peer_id: PeerId) -> None:
        """Drop a peer's advert: it could not be reached, so nobody need ask it before it speaks again."""
        self._offers.pop(peer_id, None)

    def learn(self, peer_id: PeerId, addresses: Iterable[str]) -> None:
        """Remember where a peer can be dialled; only addresses that name that very peer."""
        ending = f"/p2p/{peer_id}"
        good = tuple(address for address in addresses if address.endswith(ending))[: limits.ADDRESSES_MAX]
        if not good or peer_id == self._me:
            return
        if self._addresses.get(peer_id) == good:
            self._addresses.move_to_end(peer_id)  # each advert says it again
            return
        self._addresses.pop(peer_id, None)
        self._addresses[peer_id] = good
        self._on_learned(peer_id, self._addresses[peer_id])
        while len(self._addresses) > PEERS_MAX:
            self._addresses.popitem(last=False)

    def addresses(self, peer_id: PeerId) -> tuple[str, ...]:
        """Where a peer was last said to be dialled."""
        return self._addresses.get(peer_id, ())

    def known(self) -> dict[PeerId, tuple[str, ...]]:
        """Every peer with an address."""
        return dict(self._addresses)

    def offer(self, peer_id: PeerId, now: float) -> Offer | None:
        """A peer's advert, unless it is too old to count."""
        offer = self._offers.get(peer_id)
        return offer if offer and now <= offer.ends_at else None

    def offers(self, now: float) -> list[Offer]:
        """Every advert that counts."""
        return [offer for offer in self._offers.values() if now <= offer.ends_at]

    def holders(self, digest: bytes, now: float) -> list[Offer]:
        """The adverts that offer a model."""
        return [
            offer
            for offer in self.offers(now)
            if any(model.digest == digest for model in offer.advert.message.models)
        ]

    def models(self, now: float) -> dict[bytes, list[tuple[PeerId, ModelOffer]]]:
        """Every model on offer and who holds it."""
        table: dict[bytes, list[tuple[PeerId, ModelOffer]]] = {}
        for offer in self.offers(now):
            for model in offer.advert.message.models:
                table.setdefault(model.digest, []).append((offer.advert.sender, model))
        return table

    def sample(self, count: int, rng: Random, now: float) -> list[bytes]:
        """Up to `count` sealed adverts for somebody who has just come; none that would expire on the way."""
        return _drawn(self.offers(now + limits.ADVERT_HANDED_ON_S), count, rng)

    def sample_of_holders(self, digest: bytes, count: int, rng: Random, now: float) -> list[bytes]:
        """The same, of those that offer a model."""
        return _drawn(self.holders(digest, now + limits.ADVERT_HANDED_ON_S), count, rng)


def _drawn(offers: list[Offer], count: int, rng: Random) -> list[bytes]:
    return [offer.advert.raw for offer in rng.sample(offers, min(count, len(offers)))]
