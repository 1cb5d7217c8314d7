"""The models of this node: files named by their SHA-256, each with a small JSON card.

A file comes in through four gates, cheap ones first: a bounded reading of its header, its digest, a trial (loaded,
asked one question, numbers finite, template rendered), and an atomic rename. Header and trial run in a sandboxed
child of their own, since the file is a stranger's until then, and after.

A file is hashed again before it is loaded if its size, time or inode are not those it was last hashed with: a copy
that rotted, or was replaced, does not serve under the old name. (420 of 790 single-bit flips load silently.)
"""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import trio

from protocol.limits import MIB
from runtime.engine import Digest, EngineError, ModelCard, UnknownModel
from runtime.llama import wire
from runtime.llama.process import LlamaChild, error_from, memory_needed

PIECE_BYTES = 4 * MIB
CARD_BYTES_MAX = 64 * 1024
TRIAL_CONTEXT_TOKENS = 512
TRIAL_TOKENS = 8
TRIAL_S_MAX = 600.0
MEMORY_SHARE = 0.8


class ModelRefused(EngineError):
    """The file is no model that can be run; the message says what was found."""


@dataclass(frozen=True)
class _Entry:
    """A model and the state of its file when it was last hashed."""

    card: ModelCard
    kv_bytes_per_token: int
    mtime_ns: int
    inode: int


class ModelStore:
    """The directory of models.

    Args:
        directory: is made, mode 0700, if it is not there. Unreadable cards in it are left alone and not listed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()  # absolute: the child has another working directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in directory.glob(".incoming-*"):
            leftover.unlink()
        self._entries: dict[Digest, _Entry] = {}
        for path in sorted(directory.glob("*.json"), key=_written):
            with suppress(OSError, ValueError, KeyError, TypeError):
                entry = _read_card(path)
                if self.path(entry.card.digest).is_file() and path == self._card_path(entry.card.digest):
                    self._entries[entry.card.digest] = entry

    @property
    def models(self) -> Mapping[Digest, ModelCard]:
        """All models, by digest. `context_tokens` is what they were trained with: the engine may run fewer."""
        return {digest: entry.card for digest, entry in self._entries.items()}

    def path(self, digest: Digest) -> Path:
        """Return where a model's file is, or would be."""
        return self.directory / f"{digest.hex()}.gguf"

    def kv_bytes_per_token(self, digest: Digest) -> int:
        """Return what a token takes in the model's cache; 0 if its header does not tell."""
        return self._entries[digest].kv_bytes_per_token

    async def add(
        self,
        source: Path,
        name: str | None = None,
        on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> ModelCard:
        """Take a file in, and return its card. Its digest names it: adding it twice changes only the name.

        Args:
            source: stays where it is; on the same file system no second copy is made.
            name: instead of the name inside the file.
            on_progress: bytes hashed, bytes in all; called from a worker thread.

        Raises:
            ModelRefused: it is no model, or no model that runs here.
            OSError: it cannot be read, or the disk is full.
        """
        if not await trio.Path(source).is_file():
            raise ModelRefused(f"{source} is no file")
        incoming = self.directory / f".incoming-{os.getpid()}-{next(_numbers)}"
        try:
            await trio.to_thread.run_sync(_link_or_copy, source, incoming)
            header = await self._inspect(incoming)
            digest = Digest(await trio.to_thread.run_sync(_digest, incoming, on_progress))
            state = incoming.stat()
            await self._try(incoming, state.st_size, header)
            card = ModelCard(
                digest=digest,
                name=_plain(name or header.name),
                architecture=_plain(header.architecture),
                quantisation=_plain(header.quantisation),
                parameters=header.parameters,
                size_bytes=state.st_size,
                context_tokens=header.trained_context_tokens,
                trained_context_tokens=header.trained_context_tokens,
                dimensions=header.dimensions,
            )
            incoming.replace(self.path(digest))
            entry = _Entry(card, header.kv_bytes_per_token, state.st_mtime_ns, state.st_ino)
            _write_card(self._card_path(digest), entry)
            self._entries[digest] = entry
            return card
        finally:
            incoming.unlink(missing_ok=True)

    def remove(self, digest: Digest) -> None:
        """Forget a model and delete its file (not the one it was added from).

        Raises:
            UnknownModel: it is not here.
        """
        self._entry(digest)
        self._card_path(digest).unlink(missing_ok=True)
        self.path(digest).unlink(missing_ok=True)
        del self._entries[digest]

    async def verify(self, digest: Digest) -> Path:
        """Return the path of a model's file after making sure that it is still the one that was added.

        Raises:
            UnknownModel: it is not here (any more).
            ModelRefused: its content has changed.
        """
        entry = self._entry(digest)
        path = self.path(digest)
        try:
            state = path.stat()
            if (state.st_size, state.st_mtime_ns, state.st_ino) == (
                entry.card.size_bytes,
                entry.mtime_ns,
                entry.inode,
            ):
                return path
            found = await trio.to_thread.run_sync(_digest, path, lambda _done, _total: None)
        except FileNotFoundError:
            raise UnknownModel(
                f"the file of model {entry.card.name!r} is gone from {self.directory}"
            ) from None
        if found != digest:
            raise ModelRefused(
                f"the file of model {entry.card.name!r} has digest {found.hex()[:16]}, expected {digest.hex()[:16]}; "
                "remove it and add it again",
            )
        entry = _Entry(entry.card, entry.kv_bytes_per_token, state.st_mtime_ns, state.st_ino)
        _write_card(self._card_path(digest), entry)
        self._entries[digest] = entry
        return path

    # --- gates ---------------------------------------------------------------------------------------------------

    async def _inspect(self, path: Path) -> wire.Header:
        found: wire.Header | EngineError
        async with _child(path) as child:
            try:
                answer = await child.ask(wire.Inspect(1, str(path)))
                assert isinstance(answer, wire.Header)
                found = answer
            except EngineError as error:
                found = error
        if isinstance(found, EngineError):  # raised here, as the nursery would wrap it
            raise ModelRefused(f"refused: {found}")
        return found

    async def _try(self, path: Path, size_bytes: int, header: wire.Header) -> None:
        """Load it and let it answer once, in a child that may die of it."""
        ended = trio.Event()
        said: list[wire.Done | wire.Failed] = []
        refusal = "it ended the process that tried it"

        def handle(message: object) -> None:
            if isinstance(message, wire.Done | wire.Failed):
                said.append(message)
                ended.set()

        model = bytes(32)
        memory = memory_needed(size_bytes, header.kv_bytes_per_token * TRIAL_CONTEXT_TOKENS)
        size = header.dimensions
        load = wire.Load(
            2, model, str(path), TRIAL_CONTEXT_TOKENS, 1, 1, memory, tokens_per_s=1.0, dimensions=size
        )
        question = wire.Generate(3, model, (("user", "Hello"),), TRIAL_TOKENS, _GREEDY, (), ())
        if size:
            question = wire.Generate(3, model, (), size, _GREEDY, (), (), task="embedding", inputs=("Hello",))
        async with _child(path, handle, ended) as child:
            try:
                with trio.fail_after(TRIAL_S_MAX):
                    await child.ask(load)
                    child.begin(question)
                    await ended.wait()
            except EngineError as error:
                refusal = str(error)
            except trio.TooSlowError:
                refusal = f"the trial took over {TRIAL_S_MAX:.0f} s"
        match said:
            case [wire.Done()]:
                return
            case [wire.Failed() as failed]:
                refusal = str(error_from(failed))
        raise ModelRefused(f"refused: {refusal}")

    def _entry(self, digest: Digest) -> _Entry:
        if digest not in self._entries:
            raise UnknownModel(
                f"no model {digest.hex()[:8]} in {self.directory}; run 'agora model add FILE.gguf'"
            )
        return self._entries[digest]

    def _card_path(self, digest: Digest) -> Path:
        return self.directory / f"{digest.hex()}.json"


_numbers = itertools.count()
_GREEDY = wire.SamplingParameters(0, 1_000_000, 0, 0, 1_000_000, 0, 0, 0)


@asynccontextmanager
async def _child(
    path: Path,
    handle: Callable[[object], None] = lambda _message: None,
    died: trio.Event | None = None,
) -> AsyncIterator[LlamaChild]:
    """A child that may read one file, for the length of the block; `died` is set when it is gone."""
    memory_bytes_max = int(psutil.virtual_memory().total * MEMORY_SHARE)
    child = LlamaChild((path,), memory_bytes_max, handle)

    async def run() -> None:
        await child.run()
        if died:
            died.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield child
        nursery.cancel_scope.cancel()


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)  # not the link itself, if it is one
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
        with target.open("rb") as copy:
            os.fsync(copy.fileno())  # the card must not outlive the content through a power loss


def _digest(path: Path, on_progress: Callable[[int, int], None]) -> bytes:
    total = path.stat().st_size
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            done += len(piece)
            on_progress(done, total)
    return digest.digest()


def _written(path: Path) -> tuple[int, str]:
    """When a card was written: models are listed in the order in which they came."""
    try:
        return path.stat().st_mtime_ns, path.name
    except OSError:
        return 0, path.name


def _read_card(path: Path) -> _Entry:
    if path.stat().st_size > CARD_BYTES_MAX:
        raise ValueError(f"{path} is too large for a card")
    fields = json.loads(path.read_text())
    card = ModelCard(
        digest=Digest(bytes.fromhex(fields["digest"])),
        name=_plain(str(fields["name"])),
        architecture=_plain(str(fields["architecture"])),
        quantisation=_plain(str(fields["quantisation"])),
        parameters=int(fields["parameters"]),
        size_bytes=int(fields["size_bytes"]),
        context_tokens=int(fields["trained_context_tokens"]),
        trained_context_tokens=int(fields["trained_context_tokens"]),
        dimensions=int(fields.get("dimensions", 0)),  # a card from before there were models that embed
    )
    return _Entry(card, int(fields["kv_bytes_per_token"]), int(fields["mtime_ns"]), int(fields["inode"]))


def _write_card(path: Path, entry: _Entry) -> None:
    card = entry.card
    fields = {
        "digest": card.digest.hex(),
        "name": card.name,
        "architecture": card.architecture,
        "quantisation": card.quantisation,
        "parameters": card.parameters,
        "size_bytes": card.size_bytes,
        "trained_context_tokens": card.trained_context_tokens,
        "dimensions": card.dimensions,
        "kv_bytes_per_token": entry.kv_bytes_per_token,
        "mtime_ns": entry.mtime_ns,
        "inode": entry.inode,
    }
    part = path.with_suffix(".part")
    part.write_text(json.dumps(fields, indent=1) + "\n")
    part.replace(path)


def _plain(text: str) -> str:
    """A name out of a stranger's file: printable, short."""
    return "".join(c if c.isprintable() else " " for c in text).strip()[:64] or "unnamed"
