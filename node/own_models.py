"""The models of this device: taken in, and named for everybody."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
import trio

from node.errors import StartError
from node.journal import Journal
from node.logbook import Logbook
from node.models import ModelNames
from node.services.advertiser import Advertiser
from node.services.sync import Sync
from protocol.messages import Card
from runtime.engine import Digest, ModelCard


class Library(Protocol):
    """Takes model files in; `runtime.model_store.ModelStore` is one. It counts bytes from a worker thread."""

    async def add(
        self, source: Path, name: str | None = None, on_progress: Callable[[int, int], None] = ...
    ) -> ModelCard:
        """Check a file, keep it under its digest, and return its card."""


class OwnModels:
    """What `agora model add` and `agora model publish` do."""

    def __init__(
        self,
        *,
        library: Library | None,
        logbook: Logbook,
        sync: Sync,
        names: ModelNames,
        advertiser: Advertiser,
        journal: Journal,
    ) -> None:
        self._library = library
        self._logbook = logbook
        self._sync = sync
        self._names = names
        self._advertiser = advertiser
        self._journal = journal

    async def add(
        self, path: str, name: str | None, *, publish: bool, progress: Callable[[int, int], None]
    ) -> dict[str, Any]:
        """Take a GGUF file in, and bind a name to it for everybody if this device may.

        Args:
            path: of the file, on this device.
            name: None: the file's own.
            publish: sign the card that binds the name to it for the whole mesh.
            progress: told (bytes done, bytes in all), in trio's thread.

        Raises:
            StartError: the file cannot be read or kept, or this device signs no names.
            EngineError: it is no model that runs here.
        """
        if self._library is None:
            raise StartError("this node keeps no models")
        if publish and not self._logbook.assembly.weight(self._logbook.me):
            raise StartError(
                "only devices on the charter's roll sign names; add the model here without --publish, "
                "then run 'agora model publish' on one of them"
            )
        try:
            card = await self._library.add(
                Path(path), name, lambda done, total: trio.from_thread.run_sync(progress, done, total)
            )
        except OSError as error:
            raise StartError(
                f"cannot take in {path} ({error.strerror}), expected a readable file and free disk"
            ) from error
        self._journal.write("model_added", digest=card.digest, name=card.name, size_bytes=card.size_bytes)
        self._advertiser.refresh()
        if publish:
            await self._publish(card.digest, name or card.name)
        return {
            "digest": card.digest.hex(),
            "name": self._names.name(card.digest),
            "architecture": card.architecture,
            "quantisation": card.quantisation,
            "context_tokens": card.context_tokens,
            "size_bytes": card.size_bytes,
        }

    async def publish(self, digest_prefix: str, name: str) -> dict[str, Any]:
        """Sign the card that binds a name to a model that somebody on the mesh holds.

        Raises:
            StartError: this device signs no names, or it is none.
            UnknownModelName: nobody holds such a model.
        """
        if not self._logbook.assembly.weight(self._logbook.me):
            raise StartError(
                "only devices on the charter's roll sign names; run this on the founder's device"
            )
        digest = self._names.resolve(digest_prefix if "@" in digest_prefix else f"@{digest_prefix}")
        await self._publish(Digest(digest), name)
        return {"name": name, "digest": digest.hex()}

    async def _publish(self, digest: Digest, name: str) -> None:
        def place(index: int, prev: bytes) -> Card:
            # converted, not just built: the name is the user's and must hold the protocol's pattern
            return msgspec.convert({"index": index, "prev": prev, "name": name, "model": digest}, Card)

        try:
            place(0, bytes(32))
        except msgspec.ValidationError:
            raise StartError(
                f"model name {name!r}, expected letters, digits, '.', '_' and '-', 64 at most, e.g. 'llama-3-8b'"
            ) from None
        await self._sync.announce(await self._logbook.write(Card, place))
        self._journal.write("model_published", name=name, digest=digest)
