"""What names mean: of the cards that bind a name to a model's digest, the newest holds."""

from protocol.envelope import Sealed
from protocol.identity import PeerId
from protocol.messages import Card, Entry


class Names:
    """Names of models, as voters have signed them."""

    def __init__(self) -> None:
        self._cards: dict[str, tuple[tuple[int, PeerId, int], bytes]] = {}

    def fork(self) -> "Names":
        """Return the same names, to go their own way."""
        fork = Names()
        fork._cards = dict(self._cards)
        return fork

    def fold(self, entry: Sealed[Entry], card: Card) -> None:
        """Take in a card of a voter."""
        age = (entry.time_ms, entry.sender, card.index)
        known = self._cards.get(card.name)
        if known is None or known[0] < age:
            self._cards[card.name] = (age, card.model)

    def all(self) -> dict[str, bytes]:
        """Return every name and the model's digest it stands for."""
        return {name: digest for name, (_, digest) in self._cards.items()}

    def digest_of(self, name: str) -> bytes | None:
        """Return the digest a name stands for."""
        card = self._cards.get(name)
        return card[1] if card else None

    def name_of(self, digest: bytes) -> str | None:
        """Return the name whose card for a digest is the newest; None when none holds."""
        return max(
            (name for name in self._cards if self._cards[name][1] == digest),
            key=lambda name: (self._cards[name][0], name),
            default=None,
        )
