"""A loaded model with its context and adapters: the only file that holds llama.cpp pointers. Only for the child."""

import ctypes
import os
import sys
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from runtime.llama.lowlevel import AbortFlag, FirstError, ModelError, all_finite, gpu_name, llama
from runtime.llama.padding import GROUP, TILE
from runtime.llama.template import CHATML, ChatTemplate, RenderBounds
from runtime.llama.tokenizer import tokenize
from runtime.llama.weights import load_weights

# Prompt tokens per decode. Constant for a backend, never adapted to its speed: the shape of the batches decides the
# last bits of the KV cache, and failover is exact only if the successor reads the prompt in the same pieces. On a CPU,
# 64 reads a prompt as fast as 512 does (45 and 46 tok/s per CPU second on a 1B model; 32: 29), and ends sooner.
CHUNK_TOKENS_CPU = 64
CHUNK_TOKENS_GPU = 512
PIECE_BYTES_MAX = 1024  # of one token; the longest in a well-known vocabulary has 256
# Exams run many short sequences at once and want the logits of each token of an answer: 512 rows of a vocabulary of
# 128k would be 262 MB.
EXAM_BATCH_TOKENS = 512
EXAM_LOGITS_MAX = 16_777_216
# Draws of 16 sequences, vocabulary of 128k, two threads against one: greedy 1.8 and 3.0 ms, with temperature 9.4 and
# 18.2, with penalties 6.4 and 12.2, of a step of some 300 ms. Below the bound, to wake a thread takes longer.
DRAW_THREADS = min(4, os.cpu_count() or 1)
PARALLEL_LOGITS_MIN = 4 * 65_536
NOT_FINITE = "the model computes numbers that are not finite; its weights are damaged"

T = TypeVar("T")
R = TypeVar("R")

_libc = ctypes.CDLL(None)
_libc.fmemopen.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p]
_libc.fmemopen.restype = ctypes.c_void_p
_libc.fclose.argtypes = [ctypes.c_void_p]


class NotFinite(ModelError):
    """The numbers that the model computed are no numbers. What is in the cache may be none either."""


class Aborted(Exception):
    """A decode was stopped by the abort flag; nothing of it may be kept."""


class Row(NamedTuple):
    """One token of a batch: at which position of which sequence, and whether its logits are wanted."""

    token: int
    position: int
    sequence: int
    output: bool


class Model:
    """Weights, vocabulary, template and one context with `slots` sequences. Free with `close`.

    Args:
        path: a GGUF file whose digest has been checked.
        context_tokens: per sequence; at most what the model was trained for, and at least 1.
        slots: sequences that are computed at a time.
        threads: for compute.
        abort: makes a running decode return early.
        log: llama.cpp's errors, for the messages.
        bounds: what the template gets.
        spare: sequences beyond them, which hold what was computed before; a model that cannot rewind gets none.
        cells: tokens that the sequences hold together; 0: a whole context for each slot.
        exam_cells: instead of a context for each slot, the sequences share so many tokens, and as many are computed
            at a time as is fast; None: for an engine.
        weights: what `load_weights` made of the file; owned from now on. None: it is loaded here.

    Attributes:
        batch_tokens: rows of a batch, at most.
        sequences: of the cache.
        cells: tokens that they hold together, at most.
        scratch: one sequence more, for rows that mean nothing…
        scratch_cells: …and how many of them it holds, beside the others' cells.
        fills_tiles: a prompt's last piece is made up to a tile (see `padding.py`).
        adapters: digests of those that are loaded.

    Raises:
        ModelError: llama.cpp does not load it.
        TemplateError: its chat template does not compile.
    """

    def __init__(
        self,
        path: str,
        *,
        context_tokens: int,
        slots: int,
        threads: int,
        abort: AbortFlag,
        log: FirstError,
        bounds: RenderBounds,
        spare: int = 0,
        cells: int = 0,
        exam_cells: int | None = None,
        weights: Any = None,
    ) -> None:
        self._log = log
        self._adapters: dict[bytes, Any] = {}
        self._adapter: tuple[bytes | None, float] = (
            None,
            1.0,
        )  # the one that the context applies, and how strongly
        self._context: Any = None
        self._drawers = ThreadPoolExecutor(DRAW_THREADS)  # it starts none before it has something to draw
        self._abort = abort  # C holds its address: it must live as long as the context
        self._model = weights or load_weights(path, log)
        log.take()
        try:
            self.vocabulary = llama.llama_model_get_vocab(self._model)
            self.vocabulary_size = int(llama.llama_vocab_n_tokens(self.vocabulary))
            trained = max(1, int(llama.llama_model_n_ctx_train(self._model)))
            self.context_tokens = max(1, min(context_tokens, trained))
            self.chunk_tokens = CHUNK_TOKENS_GPU if gpu_name() else CHUNK_TOKENS_CPU
            self.can_rewind = not (
                llama.llama_model_is_recurrent(self._model) or llama.llama_model_is_hybrid(self._model)
            )
            self.batch_tokens = 2 * self.chunk_tokens + slots + GROUP
            if exam_cells is not None:
                self.batch_tokens = max(
                    slots, min(EXAM_BATCH_TOKENS, EXAM_LOGITS_MAX // self.vocabulary_size)
                )
                self.context_tokens = max(1, min(exam_cells, trained))
            self.sequences = slots + (spare if self.can_rewind else 0)
            self.cells = exam_cells or max(
                self.context_tokens, min(cells or sys.maxsize, self.context_tokens * slots)
            )
            self.scratch = self.sequences
            self.scratch_cells = TILE if self.can_rewind and exam_cells is None else 0
            self.fills_tiles = self.chunk_tokens == TILE
            self._make_context(threads)
            self.template = self._read_template(bounds)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the memory back; the object is dead after."""
        self._drawers.shutdown()
        if self._context:
            llama.llama_free(self._context)
        llama.llama_model_free(self._model)  # and with it its adapters
        self._adapters.clear()
        self._context = self._model = None

    # --- text and tokens -----------------------------------------------------------------------------------------

    def tokenize(self, text: str) -> list[int]:
        """Return the prompt's tokens. A begin-of-text token is added unless the template wrote one."""
        add_special = not (self._bos and text.startswith(self._bos))
        return tokenize(self.vocabulary, text, add_special=add_special, parse_special=True)

    def tokenize_answer(self, text: str) -> list[int]:
        """Return the tokens of an answer: what looks like a control token is text."""
        return tokenize(self.vocabulary, text, add_special=False, parse_special=False)

    def piece(self, token: int) -> bytes:
        """Return the bytes that a token writes; control tokens write none."""
        count = llama.llama_token_to_piece(self.vocabulary, token, self._piece, PIECE_BYTES_MAX, 0, False)
        return self._piece.raw[: max(0, count)]

    def ends_generation(self, token: int) -> bool:
        """Whether the token means the end of the turn."""
        return bool(llama.llama_vocab_is_eog(self.vocabulary, token))

    # --- compute -------------------------------------------------------------------------------------------------

    def decode(self, rows: list[Row]) -> None:
        """Run one batch through the model.

        Raises:
            Aborted: the abort flag was set; the caller takes the sequences back to where they were.
            ModelError: llama.cpp could not.
        """
        count = len(rows)
        # Column by column: writing each number through ctypes by itself costs ten times as much.
        columns = zip(self._columns, zip(*rows, strict=True), strict=True)
        for column, values in columns:
            column[:count] = values
        self._batch.n_tokens = count
        code = llama.llama_decode(self._context, self._batch)
        if code == 2:
            raise Aborted
        if code != 0:
            raise ModelError(
                f"llama.cpp could not run a batch of {len(rows)} tokens (code {code}): {self._log.take()}"
            )

    def is_finite(self, index: int) -> bool:
        """Whether the logits of row `index` of the last batch are numbers. Else samplers pick token 0, grammars abort."""
        row = llama.llama_get_logits_ith(self._context, index)
        return bool(row) and all_finite(row, self.vocabulary_size)

    def row(self, index: int) -> Any:
        """Return the address of the logits of row `index` of the last batch: `vocabulary_size` floats.

        Raises:
            NotFinite: one of them is none.
        """
        if not self.is_finite(index):
            raise NotFinite(NOT_FINITE)
        return self.finite_row(index)

    def finite_row(self, index: int) -> Any:
        """Return the address of a row as `row` does, of one that was found finite."""
        return llama.llama_get_logits_ith(self._context, index)

    def sample(self, sampler: Any, index: int) -> int:
        """Draw the next token from the logits of row `index` of the last batch, and let the sampler remember it.

        Raises:
            NotFinite: the logits are no numbers.
        """
        if not self.is_finite(index):
            raise NotFinite(NOT_FINITE)
        return int(llama.llama_sampler_sample(sampler, self._context, index))

    def are_finite(self, indexes: list[int]) -> list[bool]:
        """Say of each of these rows of the last batch whether its logits are numbers."""
        return self._shared_out(self.is_finite, indexes)

    def sample_all(self, draws: list[tuple[Any, int]]) -> list[int]:
        """Draw for each (sampler, row of the last batch), as `sample` does, from rows that were found finite."""
        return self._shared_out(
            lambda draw: int(llama.llama_sampler_sample(draw[0], self._context, draw[1])), draws
        )

    def _shared_out(self, look: Callable[[T], R], rows: list[T]) -> list[R]:
        """Look at rows of logits, many of a large vocabulary in several threads.

        ctypes gives the GIL back, the rows know nothing of each other, and the cores have nothing else to do until the
        next step.
        """
        threads = DRAW_THREADS if len(rows) * self.vocabulary_size >= PARALLEL_LOGITS_MIN else 1
        parts = [rows[start::threads] for start in range(threads)]
        others = [self._drawers.submit(lambda part: [look(row) for row in part], part) for part in parts[1:]]
        found = [[look(row) for row in parts[0]], *(other.result() for other in others)]
        return [found[i % threads][i // threads] for i in range(len(rows))]

    def copy(self, source: int, target: int, length: int) -> None:
        """Let an empty sequence begin with the first tokens of another: they share the cells."""
        llama.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def rewind(self, sequence: int, position: int) -> bool:
        """Forget a sequence from `position` on; False if only all of it could be forgotten, and was."""
        if llama.llama_memory_seq_rm(self._memory, sequence, position, -1):
            return True
        llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return False

    def logits(self, outputs: int) -> Any:
        """Return the address of the last batch's logits: (outputs, vocabulary_size) floats, in the order of the rows.

        Raises:
            NotFinite: one of them is not.
        """
        rows = llama.llama_get_logits(self._context)
        if not rows or not all_finite(rows, outputs * self.vocabulary_size):
            raise NotFinite(NOT_FINITE)
        return rows

    def forget_all(self) -> None:
        """Forget all sequences, and overwrite what they left.

        llama.cpp masks what a sequence must not see by adding minus infinity, and NaN stays NaN: numbers that are not
        finite, once in the cache, would be in every later answer, whoever asks and with whatever adapter.
        """
        llama.llama_memory_clear(self._memory, True)

    # --- adapters ------------------------------------------------------------------------------------------------

    @property
    def adapters(self) -> Collection[bytes]:
        """Digests of the adapters that are loaded."""
        return self._adapters.keys()

    def load_adapter(self, digest: bytes, data: bytes) -> None:
        """Load an adapter from bytes that the strict checker has passed; loading it again changes nothing.

        llama.cpp reads the bytes that were checked, not the file, which somebody may have replaced since.

        Raises:
            ModelError: llama.cpp does not take it.
        """
        if digest in self._adapters:
            return
        self._log.take()
        stream = _libc.fmemopen(data, len(data), b"rb")
        if not stream:
            raise MemoryError
        try:
            adapter = llama.llama_adapter_lora_init_from_file_ptr(self._model, stream)
        finally:
            _libc.fclose(stream)
        if not adapter:
            raise ModelError(self._log.take() or "llama.cpp does not load the adapter")
        self._adapters[digest] = adapter

    def unload_adapter(self, digest: bytes) -> None:
        """Give an adapter's memory back."""
        if digest in self._adapters:
            if digest == self._adapter[0]:
                self.use_adapter(None)
            llama.llama_adapter_lora_free(self._adapters.pop(digest))

    def use_adapter(self, digest: bytes | None, scale: float = 1.0) -> None:
        """Compute the next batches with this adapter, or without one: it holds for the whole context."""
        if (digest, scale) == self._adapter:
            return
        if digest is None:
            code = llama.llama_set_adapters_lora(self._context, None, 0, None)
        else:
            pointers = (llama.llama_adapter_lora_p_ctypes * 1)(self._adapters[digest])
            code = llama.llama_set_adapters_lora(self._context, pointers, 1, (ctypes.c_float * 1)(scale))
        if code != 0:
            raise ModelError(f"llama.cpp could not change the adapter (code {code})")
        self._adapter = digest, scale

    def set_threads(self, threads: int) -> None:
        """Use this many threads from the next decode on."""
        llama.llama_set_n_threads(self._context, threads, threads)

    # --- loading -------------------------------------------------------------------------------------------------

    def _make_context(self, threads: int) -> None:
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = self.cells + self.scratch_cells
        parameters.n_batch = parameters.n_ubatch = self.batch_tokens
        parameters.n_seq_max = self.sequences + self.can_rewind
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.flash_attn_type = (
            llama.LLAMA_FLASH_ATTN_TYPE_AUTO
        )  # on where the model and backend support it
        parameters.kv_unified = True  # without it a partial copy between sequences aborts the process
        parameters.no_perf = True
        parameters.abort_callback = self._abort.callback
        parameters.abort_callback_data = self._abort.argument
        self._context = llama.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise ModelError(self._log.take() or "llama.cpp makes no context for the model")
        self._memory = llama.llama_get_memory(self._context)
        if llama.llama_model_has_encoder(self._model) or not self._memory:
            raise ModelError("the file is no decoder-only language model")
        self._make_batch(self.batch_tokens)
        self._piece = ctypes.create_string_buffer(PIECE_BYTES_MAX)

    def _make_batch(self, rows: int) -> None:
        """Make arrays for the columns of a batch, and let llama.cpp's struct point to them."""
        numbers, flags = ctypes.c_int32 * rows, ctypes.c_int8 * rows
        tokens, positions, sequences, outputs = numbers(), numbers(), numbers(), flags()
        pointer = ctypes.POINTER(ctypes.c_int32)
        first = ctypes.addressof(sequences)
        lists = (pointer * rows)(*(ctypes.cast(first + 4 * i, pointer) for i in range(rows)))
        self._columns: tuple[Any, ...] = tokens, positions, sequences, outputs
        self._batch = llama.llama_batch(
            n_tokens=0,
            token=tokens,
            embd=None,
            pos=positions,
            n_seq_id=numbers(*[1] * rows),
            seq_id=lists,
            logits=outputs,
        )

    def _read_template(self, bounds: RenderBounds) -> ChatTemplate:
        source = llama.llama_model_chat_template(self._model, None)
        self._bos = self._token_text(llama.llama_vocab_bos(self.vocabulary))
        eos = self._token_text(llama.llama_vocab_eos(self.vocabulary))
        return ChatTemplate(source.decode(errors="replace") if source else CHATML, self._bos, eos, bounds)

    def _token_text(self, token: int) -> str:
        if not 0 <= token < self.vocabulary_size:
            return ""
        text = llama.llama_vocab_get_text(self.vocabulary, token)
        return text.decode(errors="replace") if text else ""
