"""What a model is called here: published names, unpublished ones as `NAME@digest8`, and `auto`.

Behind any of these a patch of the model's line may be named:

    NAME            what the mesh has ratified: the newest patch in force; while nobody serves it yet, the one before
    NAME+v3         version 3 of the line, as long as it is in force
    NAME+3fa9c1b7   the adapter whose digest begins so
    NAME+base       the bare base
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from marketplace.assembly.assembly import Assembly
from marketplace.prompt import unfit
from node.chat import UnknownModelName, Wanted
from node.clock import Clock
from node.directory import Directory
from node.patches import Patches
from node.views import ModelView
from protocol.identity import PeerId
from protocol.messages import NO_HASH, ModelOffer, Task
from runtime.engine import Digest, Engine

DIGEST_PREFIX_HEX = 8
BARE = "base"


def has_adapter(engine: Engine, model: bytes, adapter: bytes) -> bool:
    """Whether an engine has an adapter of a model at hand; the bare base (`NO_HASH`) always."""
    return adapter == NO_HASH or engine.adapters.get(Digest(adapter)) == model


class ModelNames:
    """Names over digests: the members' cards, the patches they ratified, the adverts heard, this device's own files."""

    def __init__(
        self,
        me: PeerId,
        assembly: Callable[[], Assembly],
        patches: Patches,
        directory: Directory,
        engine: Engine,
        clock: Clock,
    ) -> None:
        self._me = me
        self._assembly = assembly
        self._patches = patches
        self._directory = directory
        self._engine = engine
        self._clock = clock

    def views(self) -> list[ModelView]:
        """Every model that somebody reachable, or this device, holds; behind each its patches that somebody serves."""
        offered = self._offered()
        return [each for base in self._bases() for each in (base, *self._patched(base, offered))]

    def _patched(
        self, base: ModelView, offered: dict[bytes, list[tuple[PeerId, ModelOffer]]]
    ) -> list[ModelView]:
        digest = bytes.fromhex(base.digest)
        views = []
        for version, adapter in self._patches.in_force(digest):
            holders = [peer for peer, model in offered.get(digest, []) if adapter in model.adapters]
            is_local = self._engine.adapters.get(Digest(adapter)) == digest
            if adapter != NO_HASH and (is_local or holders):
                views.append(
                    msgspec.structs.replace(
                        base,
                        id=f"{base.id}+v{version}",
                        adapter=adapter.hex(),
                        version=version,
                        holders=[*([self._me] if is_local else []), *sorted(holders)],
                        is_local=is_local,
                    )
                )
        bare = [msgspec.structs.replace(base, id=f"{base.id}+{BARE}", adapter="", version=0)]
        return [*views, *bare] if views else []

    def _bases(self) -> list[ModelView]:
        """Every model; what is said of its patch is what its plain name follows."""
        local = self._engine.models
        offered = self._offered()
        views = []
        for digest in sorted({*map(bytes, local), *offered}):
            offers = offered.get(digest, [])
            card = local.get(Digest(digest))
            shown = card or offers[0][1]
            contexts = [shown.context_tokens, *(model.context_tokens for _, model in offers)]
            version, adapter = self._patches.head(digest)
            views.append(
                ModelView(
                    id=self.name(digest),
                    digest=digest.hex(),
                    adapter="" if adapter == NO_HASH else adapter.hex(),
                    version=version,
                    architecture=shown.architecture,
                    quantisation=shown.quantisation,
                    context_tokens=max(contexts),
                    dimensions=card.dimensions if card else _told_dimensions(offers),
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

    def name(self, digest: bytes, adapter: bytes = NO_HASH) -> str:
        """The name to show for a digest: its card's, else `NAME@digest8`; with an adapter, its version's."""
        if adapter != NO_HASH:
            version = self._patches.version_of(digest, adapter)
            return f"{self.name(digest)}+{f'v{version}' if version else adapter.hex()[:DIGEST_PREFIX_HEX]}"
        published = self._assembly().name_of(digest)
        if published:
            return published
        card = self._engine.models.get(Digest(digest))
        offers = self._offered().get(digest)
        base = card.name if card else offers[0][1].architecture if offers else "model"
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', base).strip('-') or 'model'}@{digest.hex()[:DIGEST_PREFIX_HEX]}"

    def dimensions(self, digest: bytes, task: Task) -> int:
        """Return the dimensions of a model's vectors, of 0 for one that writes, as a task would have them.

        This device's own file is sure. Of adverts, one that says what the task needs will do: else a few liars could
        keep everybody from asking. What most of those say is what is asked for.
        """
        if card := self._engine.models.get(Digest(digest)):
            return card.dimensions
        return _told_dimensions(self._offered().get(digest, []), task)

    def wanted(self, name: str, task: Task = "chat") -> Wanted:
        """Return what a client's name stands for: the base, and which of its adapters may answer.

        Args:
            name: as the client gave it.
            task: `auto` is the best model for it.

        Raises:
            UnknownModelName: nobody here holds such a model, or no such patch of it is in force.
        """
        plain, plus, patch = name.partition("+")
        base = bytes.fromhex(self.view(plain, task).digest)
        if not plus:
            return Wanted(base, self._patches.followed(base))
        if patch == BARE:
            return Wanted(base, (NO_HASH,))
        adapter = self._patches.find(base, patch)
        if adapter is None:
            raise UnknownModelName(name, tuple(view.id for view in self.views()))
        return Wanted(base, (adapter,))

    def resolve(self, name: str) -> bytes:
        """Return the digest of the base that a name without a patch stands for.

        Raises:
            UnknownModelName: nobody here holds such a model; the error names those that are held.
        """
        return bytes.fromhex(self.view(name).digest)

    def view(self, name: str, task: Task = "chat") -> ModelView:
        """Show the base that a name stands for, whatever patch it names, as a task would have it.

        Raises:
            UnknownModelName: nobody here holds such a model; the error names those that are held.
        """
        found = self._find(name.partition("+")[0], task)
        dimensions = self.dimensions(bytes.fromhex(found.digest), task)
        return msgspec.structs.replace(found, dimensions=dimensions)

    def _find(self, name: str, task: Task) -> ModelView:
        views = self._bases()
        if name == "auto" and views:
            embeds = task == "embedding"
            return max(
                views,
                key=lambda view: (
                    bool(view.dimensions) == embeds,
                    view.is_published,
                    view.is_local,
                    len(view.holders),
                ),
            )
        published = self._assembly().digest_of(name)
        for view in views:
            _, at, prefix = name.rpartition("@")
            by_digest = (
                bool(at) and len(prefix) >= DIGEST_PREFIX_HEX and view.digest.startswith(prefix.lower())
            )
            if by_digest or (published is not None and view.digest == published.hex()):
                return view
        raise UnknownModelName(name, tuple(view.id for view in views))


def _told_dimensions(offers: Sequence[tuple[PeerId, ModelOffer]], task: Task | None = None) -> int:
    """Return what most adverts say of a model's vectors; of those that suit a task, where one does."""
    told = Counter(model.dimensions for _, model in offers)
    fitting = {each: count for each, count in told.items() if task is None or not unfit(task, each)} or told
    return max(fitting, key=lambda each: (fitting[each], -each), default=0)
