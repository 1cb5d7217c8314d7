"""A running llama.cpp engine for system tests, and files that its store would never have let in."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from shutil import copyfile

import trio

from runtime.engine import ChatMessage, Digest, Engine, Finished, Generation, ModelCard, Tokens
from runtime.llama.backend import LlamaEngine
from runtime.model_store import ModelStore, _Entry

TINY = Path(__file__).parents[2] / "examples" / "tiny_model" / "tiny-q8_0.gguf"
TINY_F16 = TINY.with_name("tiny-f16.gguf")
MEMORY_BYTES_MAX = 3 << 30


@asynccontextmanager
async def running(
    store: ModelStore, *, slots: int = 1, memory_bytes_max: int = MEMORY_BYTES_MAX
) -> AsyncIterator[LlamaEngine]:
    """Start an engine; stop it as a daemon does, by cancelling."""
    engine = LlamaEngine(store, slots=slots, memory_bytes_max=memory_bytes_max)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        yield engine
        nursery.cancel_scope.cancel()


def smuggle(store: ModelStore, source: Path) -> Digest:
    """Put a file into a store past its gates, as a model that went bad after its trial."""
    digest = Digest(sha256(source.read_bytes()).digest())
    path = store.path(digest)
    copyfile(source, path)
    state = path.stat()
    card = ModelCard(
        digest=digest,
        name=source.stem,
        architecture="llama",
        quantisation="Q4_0",
        parameters=1,
        size_bytes=state.st_size,
        context_tokens=2_048,
        trained_context_tokens=2_048,
    )
    store._entries[digest] = _Entry(card, 1_024, state.st_mtime_ns, state.st_ino)
    return digest


def ask(model: Digest, words: str = "Tell me a story.", tokens_max: int = 16) -> Generation:
    return Generation(model, (ChatMessage("user", words),), tokens_max)


async def answer(engine: Engine, request: Generation) -> tuple[tuple[int, ...], str]:
    """Return the ids and the text of a whole generation."""
    ids: tuple[int, ...] = ()
    text = ""
    async with aclosing(engine.generate(request)) as generation:
        async for frame in generation:
            if isinstance(frame, Tokens):
                ids += frame.ids
                text += frame.text
            elif isinstance(frame, Finished):
                text += frame.text
    return ids, text


async def first_tokens(engine: Engine, request: Generation, seen: trio.Event) -> None:
    """Run a generation to its end, and tell when its first tokens are there."""
    async with aclosing(engine.generate(request)) as generation:
        async for frame in generation:
            if isinstance(frame, Tokens):
                seen.set()


@asynccontextmanager
async def occupied(engine: LlamaEngine, model: Digest) -> AsyncIterator[None]:
    """Have somebody's long answer take the slot for the length of the block."""
    async with trio.open_nursery() as nursery:
        under_way = trio.Event()
        nursery.start_soon(first_tokens, engine, replace(ask(model, tokens_max=4_000), payer="z"), under_way)
        await under_way.wait()
        yield
        nursery.cancel_scope.cancel()
