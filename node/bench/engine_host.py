"""The engine in a process of its own, as a daemon runs it, with its child, and nothing of the mesh around it.

`python -m node.bench.engine_host DIRECTORY MODEL.gguf THREADS SLOTS CONTEXT_TOKENS [ADAPTER.gguf…]` says
`{"child_pid":…}` when the model is in memory, then answers each JSON line of questions on stdin (`streams.Question`)
with a line of streams (`streams.Stream`).
"""

import json
import sys
import time
from contextlib import aclosing
from hashlib import sha256
from pathlib import Path
from typing import Any

import trio

from runtime.engine import ChatMessage, Digest, Generation, Tokens
from runtime.llama.backend import LlamaEngine
from runtime.model_store import ModelStore


class Host:
    """An engine, its model and its adapters."""

    def __init__(self, engine: LlamaEngine, model: Digest, adapters: list[Digest]) -> None:
        self._engine = engine
        self._model = model
        self._adapters = adapters

    async def answer(self, questions: list[dict[str, Any]]) -> list[dict[str, float]]:
        """Ask all of them, and return their streams in the same order."""
        streams: list[dict[str, float]] = [{} for _ in questions]
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for question, stream in zip(questions, streams, strict=True):
                nursery.start_soon(self._stream, question, stream, began)
        return streams

    async def _stream(self, question: dict[str, Any], stream: dict[str, float], began: float) -> None:
        if question["after_s"]:
            await trio.sleep(question["after_s"])
        asked = time.perf_counter()
        number = question["adapter"]
        request = Generation(
            model=self._model,
            messages=tuple(ChatMessage(role, text) for role, text in question["turns"]),
            tokens_max=question["tokens"],
            adapter=self._adapters[number] if number >= 0 else None,
        )
        first_s, tokens = 0.0, 0
        async with aclosing(self._engine.generate(request)) as generation:
            async for frame in generation:
                if isinstance(frame, Tokens):
                    tokens += len(frame.ids)
                    first_s = first_s or time.perf_counter() - asked
        stream |= {"tokens": tokens, "first_s": first_s, "ended_s": time.perf_counter() - began}


async def serve(
    directory: Path, model: Path, threads: int, slots: int, context_tokens: int, adapters: list[Path]
) -> None:
    """Answer stdin until it ends."""
    store = ModelStore(directory / "models")
    digest = next(iter(store.models), None) or (await store.add(model)).digest
    loras = directory / "adapters"
    engine = LlamaEngine(
        store, adapters_directory=loras, slots=slots, context_tokens=context_tokens, threads=threads
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        await engine.load(digest)
        digests = []
        for adapter in adapters:
            data = await trio.Path(adapter).read_bytes()
            digests.append(Digest(sha256(data).digest()))
            path = loras / digests[-1].hex()
            await trio.Path(path).write_bytes(data)
            await engine.load_adapter(digest, digests[-1], path)
        host = Host(engine, digest, digests)
        await host.answer([{"turns": [("user", "Hello")], "tokens": 4, "after_s": 0.0, "adapter": -1}])
        print(json.dumps({"child_pid": engine.child_pid}), flush=True)
        async for line in trio.wrap_file(sys.stdin):
            print(json.dumps(await host.answer(json.loads(line))), flush=True)
        nursery.cancel_scope.cancel()


def main() -> None:
    """Run the engine."""
    directory, model, threads, slots, context_tokens, *adapters = sys.argv[1:]
    numbers = int(threads), int(slots), int(context_tokens)
    trio.run(serve, Path(directory), Path(model), *numbers, [Path(each) for each in adapters])


if __name__ == "__main__":
    main()
