"""Tokens per second through the engine against the same llama.cpp calls in a bare process.

`python tests/benchmarks/engine_speed.py MODEL.gguf [TOKENS] [ROUNDS]` prints one JSON line. The two take turns, since
a shared machine is not equally fast all the time; the medians are compared. On a busy machine only the CPU ratio says
something: what the child itself computes for a token.
"""

# ruff: noqa: PLC0415, T201  (each side loads only what it needs; a benchmark prints)

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

PROMPT = "Tell me a story about a fox and a very small model. " * 4


def bare(path: str, tokens: int, threads: int) -> None:
    """Decode in this process with nothing around it; print prompt and completion tokens per second."""
    import ctypes

    from runtime import seccomp
    from runtime.llama.lowlevel import llama

    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
    seccomp.restrict()  # so that both sides run the same kernels: see AMX there
    llama.llama_backend_init()
    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, None)
    parameters = llama.llama_model_default_params()
    parameters.load_mode = llama.LLAMA_LOAD_MODE_NONE
    model = llama.llama_model_load_from_file(path.encode(), parameters)
    context_parameters = llama.llama_context_default_params()
    context_parameters.n_ctx = 4_096
    context_parameters.n_batch = context_parameters.n_ubatch = 65
    context_parameters.n_threads = context_parameters.n_threads_batch = threads
    context_parameters.kv_unified = True
    context = llama.llama_init_from_model(model, context_parameters)
    vocabulary = llama.llama_model_get_vocab(model)
    sampler = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    llama.llama_sampler_chain_add(sampler, llama.llama_sampler_init_greedy())

    text = PROMPT.encode()
    prompt = (llama.llama_token * 1_024)()
    count = llama.llama_tokenize(vocabulary, text, len(text), prompt, 1_024, True, True)
    one = (llama.llama_token * 1)()
    llama.llama_decode(context, llama.llama_batch_get_one(prompt, min(count, 64)))  # warm up
    llama.llama_memory_clear(llama.llama_get_memory(context), False)

    began = time.perf_counter()
    for start in range(0, count, 64):
        size = min(64, count - start)
        piece = (llama.llama_token * size)(*prompt[start : start + size])
        llama.llama_decode(context, llama.llama_batch_get_one(piece, size))
    one[0] = llama.llama_sampler_sample(sampler, context, -1)
    prefilled = time.perf_counter()
    cpu = time.process_time()
    for _ in range(tokens):
        llama.llama_decode(context, llama.llama_batch_get_one(one, 1))
        one[0] = llama.llama_sampler_sample(sampler, context, -1)
    ended = time.perf_counter()
    cpu = time.process_time() - cpu
    print(json.dumps([count / (prefilled - began), tokens / (ended - prefilled), tokens / cpu]))


def through_engine(path: Path, tokens: int, threads: int) -> tuple[float, float, float]:
    """The same through `LlamaEngine`; decode is measured at the reader, from first to last frame."""
    import psutil
    import trio

    from runtime.engine import ChatMessage, Finished, Generation, Tokens
    from runtime.llama.backend import LlamaEngine
    from runtime.model_store import ModelStore

    async def main() -> tuple[float, float, float]:
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            store = ModelStore(Path(directory) / "models")
            card = await store.add(path)
            engine = LlamaEngine(store, threads=threads)
            async with trio.open_nursery() as nursery:
                await nursery.start(engine.run)
                warm = Generation(card.digest, (ChatMessage("user", "Hello"),), 4)
                async for _ in engine.generate(warm):
                    pass
                request = Generation(card.digest, (ChatMessage("user", PROMPT),), tokens)
                first = last = seen = cpu = 0.0
                child = psutil.Process(engine.child_pid)
                async for frame in engine.generate(request):
                    if isinstance(frame, Tokens):
                        last = time.perf_counter()
                        if not first:
                            first, cpu = last, sum(child.cpu_times()[:2])
                        seen += len(frame.ids)
                    elif isinstance(frame, Finished):
                        cpu = sum(child.cpu_times()[:2]) - cpu
                        nursery.cancel_scope.cancel()
                        seen -= 1
                        return frame.prompt_tokens / frame.prefill_s, seen / (last - first), seen / cpu
        raise RuntimeError("the generation did not end")

    return trio.run(main)


def main() -> None:
    if sys.argv[1] == "bare":
        bare(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return
    path = Path(sys.argv[1]).resolve()
    tokens = int(sys.argv[2]) if len(sys.argv) > 2 else 64
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    threads = max(1, (os.cpu_count() or 2) - 1)
    alone, engine = [], []
    for _ in range(rounds):
        command = [sys.executable, __file__, "bare", str(path), str(tokens), str(threads)]
        alone.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        engine.append(through_engine(path, tokens, threads))
    result = {
        "threads": threads,
        "bare_prompt_tokens_per_s": statistics.median(run[0] for run in alone),
        "engine_prompt_tokens_per_s": statistics.median(run[0] for run in engine),
        "bare_tokens_per_s": statistics.median(run[1] for run in alone),
        "engine_tokens_per_s": statistics.median(run[1] for run in engine),
        "bare_tokens_per_cpu_s": statistics.median(run[2] for run in alone),
        "child_tokens_per_cpu_s": statistics.median(run[2] for run in engine),
    }
    result["ratio"] = result["engine_tokens_per_s"] / result["bare_tokens_per_s"]
    result["cpu_ratio"] = result["child_tokens_per_cpu_s"] / result["bare_tokens_per_cpu_s"]
    print(json.dumps({key: round(value, 3) for key, value in result.items()}))


if __name__ == "__main__":
    main()
