"""What a model is called here: published names, unpublished ones as `NAME@digest8`, and `auto`."""

import re
from collections.abc import Callable

from marketplace.assembly.assembly import Assembly
from node.chat import UnknownModelName
from node.clock import Clock
from node.directory import Directory
from node.views import ModelView
from protocol.identity import PeerId
from protocol.messages import ModelOffer
from runtime.engine import Digest, Engine

DIGEST_PREFIX_HEX = 8


class ModelNames:
    """Names over digests: the members' cards, the adverts heard, and this device's own files."""

    def __init__(
        self, me: PeerId, assembly: Callable[[], Assembly], directory: Directory, engine: Engine, clock: Clock
    ) -> None:
        self._me = me
        self._assembly = assembly
        self._directory = directory
        self._engine = engine
        self._clock = clock

    def views(self) -> list[ModelView]:
        """Every model that somebody reachable, or this device, holds."""
        local = self._engine.models
        offered = self._offered()
        views = []
        for digest in sorted({*map(bytes, local), *offered}):
            offers = offered.get(digest, [])
            card = local.get(Digest(digest))
            architecture = card.architecture if card else offers[0][1].architecture
            views.append(
                ModelView(
                    id=self.name(digest),
                    digest=digest.hex(),
                    architecture=architecture,
                    quantisation=card.quantisation if card else offers[0][1].quantisation,
                    context_tokens=card.context_tokens if card else offers[0][1].context_tokens,
                    holders=[*([self._me] if card else []), *sorted(peer for peer, _ in offers)],
                    is_local=card is not None,
                    is_published=self._assembly().name_of(digest) is not None,
                )
            )
        return sorted(views, key=lambda view: (not view.is_published, view.id))

    def _offered(self) -> dict[bytes, list[tuple[PeerId, ModelOffer]]]:
        """What members offer; who was revoked a moment ago has still an advert here."""
        is_member = self._assembly().is_member
        table = {}
        for digest, offers in self._directory.models(self._clock.now()).items():
            if of_members := [offer for offer in offers if is_member(offer[0])]:
                table[digest] = of_members
        return table

    def name(self, digest: bytes) -> str:
        """The name to show for a digest: its card's, else `NAME@digest8`."""
        published = self._assembly().name_of(digest)
        if published:
            return published
        card = self._engine.models.get(Digest(digest))
        offers = self._offered().get(digest)
        base = card.name if card else offers[0][1].architecture if offers else "model"
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', base).strip('-') or 'model'}@{digest.hex()[:DIGEST_PREFIX_HEX]}"

    def resolve(self, name: str) -> bytes:
        """Return the digest a client's name stands for.

        Raises:
            UnknownModelName: nobody here holds such a model; the error names those that are held.
        """
        views = self.views()
        if name == "auto" and views:
            best = max(views, key=lambda view: (view.is_published, view.is_local, len(view.holders)))
            return bytes.fromhex(best.digest)
        published = self._assembly().digest_of(name)
        for view in views:
            _, at, prefix = name.rpartition("@")
            by_digest = (
                bool(at) and len(prefix) >= DIGEST_PREFIX_HEX and view.digest.startswith(prefix.lower())
            )
            if by_digest or (published is not None and view.digest == published.hex()):
                return bytes.fromhex(view.digest)
        raise UnknownModelName(name, tuple(view.id for view in views))
