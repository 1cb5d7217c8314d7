"""The bare process: the same llama.cpp calls as the engine makes, with nothing around them.

`python -m node.bench.bare_llama MODEL.gguf THREADS CONTEXT_TOKENS` says `ready`, then answers each JSON line
`{"question":…, "tokens":…}` on stdin with one on stdout: `{"first_s":…, "last_s":…, "tokens":…, "text":…}`, in seconds
since the line was read. Low-level API, one sequence, greedy, the engine's own batch size, weights read into memory,
flash attention where the backend has it. The engine's seccomp filter is applied too, since it decides which kernels
llama.cpp takes (no AMX, see `runtime/seccomp.py`): both sides must compute alike.
"""

import ctypes
import json
import sys
import time
from typing import Any

from runtime import seccomp
from runtime.llama.lowlevel import gpu_name, llama
from runtime.llama.model import CHUNK_TOKENS_CPU, CHUNK_TOKENS_GPU, PIECE_BYTES_MAX
from runtime.llama.template import ChatTemplate, RenderBounds

PR_SET_NO_NEW_PRIVS = 38
PROMPT_TOKENS_MAX = 1_024


class BareLlama:
    """A model and a context."""

    def __init__(self, path: str, threads: int, context_tokens: int) -> None:
        self._quiet = llama.llama_log_callback(lambda *_: None)
        llama.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama.llama_backend_init()
        parameters = llama.llama_model_default_params()
        parameters.load_mode = llama.LLAMA_LOAD_MODE_NONE
        model = llama.llama_model_load_from_file(path.encode(), parameters)
        if not model:
            raise SystemExit(f"llama.cpp does not load {path}")
        self._chunk = CHUNK_TOKENS_GPU if gpu_name() else CHUNK_TOKENS_CPU
        context = llama.llama_context_default_params()
        context.n_ctx = min(context_tokens, llama.llama_model_n_ctx_train(model))
        context.n_batch = context.n_ubatch = self._chunk + 1
        context.n_threads = context.n_threads_batch = threads
        context.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_AUTO
        context.kv_unified = True
        context.no_perf = True
        self._context = llama.llama_init_from_model(model, context)
        self._memory = llama.llama_get_memory(self._context)
        self._vocabulary = llama.llama_model_get_vocab(model)
        self._sampler = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        llama.llama_sampler_chain_add(self._sampler, llama.llama_sampler_init_greedy())
        self._piece = ctypes.create_string_buffer(PIECE_BYTES_MAX)
        self._bos = self._token_text(llama.llama_vocab_bos(self._vocabulary))
        eos = self._token_text(llama.llama_vocab_eos(self._vocabulary))
        source = llama.llama_model_chat_template(model, None).decode()
        self._template = ChatTemplate(source, self._bos, eos, RenderBounds())

    def answer(self, question: str, tokens_max: int) -> dict[str, Any]:
        """Read a prompt, write at most so many tokens, and say when the first and the last of them came."""
        began = time.perf_counter()
        llama.llama_memory_clear(self._memory, False)  # C's argument: the data need not be zeroed
        prompt = self._tokenize(self._template.render((("user", question),)))
        for start in range(0, len(prompt), self._chunk):
            self._decode(prompt[start : start + self._chunk])
        text = b""
        count = 0
        first_s = last_s = 0.0
        while count < tokens_max:
            token = llama.llama_sampler_sample(self._sampler, self._context, -1)
            if llama.llama_vocab_is_eog(self._vocabulary, token):
                break
            text += self._token_piece(token)
            count += 1
            last_s = time.perf_counter() - began
            first_s = first_s or last_s
            if count < tokens_max:
                self._decode([token])
        return {"first_s": first_s, "last_s": last_s, "tokens": count, "text": text.decode(errors="replace")}

    def _decode(self, tokens: list[int]) -> None:
        held = (llama.llama_token * len(tokens))(*tokens)  # by us: the batch only points to it
        if llama.llama_decode(self._context, llama.llama_batch_get_one(held, len(tokens))) != 0:
            raise SystemExit("llama.cpp could not run a batch")

    def _tokenize(self, text: str) -> list[int]:
        data = text.encode()
        tokens = (llama.llama_token * PROMPT_TOKENS_MAX)()
        add_special = not (self._bos and text.startswith(self._bos))
        count = llama.llama_tokenize(
            self._vocabulary, data, len(data), tokens, PROMPT_TOKENS_MAX, add_special, True
        )
        return list(tokens[:count])

    def _token_piece(self, token: int) -> bytes:
        count = llama.llama_token_to_piece(self._vocabulary, token, self._piece, PIECE_BYTES_MAX, 0, False)
        return self._piece.raw[: max(0, count)]

    def _token_text(self, token: int) -> str:
        text = llama.llama_vocab_get_text(self._vocabulary, token) if token >= 0 else None
        return text.decode(errors="replace") if text else ""


def main() -> None:
    """Serve stdin until it ends."""
    path, threads, context_tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        seccomp.restrict()
    bare = BareLlama(path, threads, context_tokens)
    bare.answer("Hello", 4)  # the first one also builds graphs and touches all weights
    print("ready", flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        print(json.dumps(bare.answer(wanted["question"], wanted["tokens"])), flush=True)


if __name__ == "__main__":
    main()
