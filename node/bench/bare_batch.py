"""The bare library with many sequences: what is compared with where llama.cpp's own server is not installed.

`python -m node.bench.bare_batch MODEL.gguf THREADS SLOTS CONTEXT_TOKENS` says `{"rss_before":…}` when the model is in
memory, then answers each JSON line of questions on stdin (`streams.Question`) with a line of streams
(`streams.Stream`). Prompts are read one after another, in the order in which they were asked; then all answers grow in
one batch: no scheduler could be quicker on the whole, and none makes a short prompt wait longer. Greedy, the engine's
own batch size, and its seccomp filter, so that both sides compute alike.
"""

import ctypes
import json
import sys
import time
from typing import Any

import psutil

from node.bench.random_gguf import rendered
from runtime import seccomp
from runtime.llama.lowlevel import AbortFlag, FirstError, llama
from runtime.llama.model import Model, Row
from runtime.llama.template import RenderBounds

PR_SET_NO_NEW_PRIVS = 38


class BareBatch:
    """A model with a sequence for each question, and one greedy sampler."""

    def __init__(self, path: str, threads: int, slots: int, context_tokens: int) -> None:
        self._model = Model(
            path,
            context_tokens=context_tokens,
            slots=slots,
            threads=threads,
            abort=AbortFlag(),
            log=FirstError(),
            bounds=RenderBounds(),
        )
        self._sampler = llama.llama_sampler_init_greedy()

    def answer(self, questions: list[dict[str, Any]]) -> list[dict[str, float]]:
        """Read all prompts, then write all answers, which are equally long or of one token."""
        model = self._model
        for sequence in range(len(questions)):
            model.rewind(sequence, 0)
        began = time.perf_counter()
        tails, streams = [], []
        for sequence, question in enumerate(questions):
            prompt = model.tokenize(rendered(question["turns"]))
            for start in range(0, len(prompt), model.chunk_tokens):
                piece = prompt[start : start + model.chunk_tokens]
                end = start + len(piece)
                model.decode(
                    [Row(token, i, sequence, i == len(prompt) - 1) for i, token in enumerate(piece, start)]
                )
            token = model.sample(self._sampler, len(piece) - 1)
            ended = time.perf_counter() - began
            tails.append((token, end))
            streams.append({"tokens": 1, "first_s": ended - question["after_s"], "ended_s": ended})
        while going := [i for i, stream in enumerate(streams) if stream["tokens"] < questions[i]["tokens"]]:
            model.decode([Row(*tails[i], i, output=True) for i in going])
            ended = time.perf_counter() - began
            for row, i in enumerate(going):
                tails[i] = model.sample(self._sampler, row), tails[i][1] + 1
                streams[i]["tokens"] += 1
                streams[i]["ended_s"] = ended
        return streams


def main() -> None:
    """Serve stdin until it ends."""
    path, *numbers = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        seccomp.restrict()
    llama.llama_backend_init()
    rss_before = psutil.Process().memory_info().rss
    bare = BareBatch(path, *map(int, numbers))
    bare.answer([{"turns": [("user", "Hello")], "tokens": 4, "after_s": 0.0}])
    print(json.dumps({"rss_before": rss_before}), flush=True)
    for line in sys.stdin:
        print(json.dumps(bare.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
