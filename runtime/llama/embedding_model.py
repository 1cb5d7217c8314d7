"""A loaded model that turns texts into vectors, with its context. Only for the child.

It may be an encoder, as BERT and its kin, which reads a text as a whole and has no KV cache, or a language model whose
header says how its tokens' vectors become one. Either way a text must be in one batch: a part of it has no vector, and
llama.cpp aborts the process when an encoder's batch does not fit.
"""

from typing import Any

from runtime.gguf_header import POOLINGS
from runtime.llama.lowlevel import AbortFlag, FirstError, ModelError, all_finite, llama
from runtime.llama.model import NOT_FINITE, Aborted, NotFinite
from runtime.llama.tokenizer import tokenize

# Texts that are read together: no more tokens than a chunk or so of a prompt, since others wait for it.
TOGETHER_TOKENS = 512
TOGETHER_TEXTS = 16


class EmbeddingModel:
    """Weights, vocabulary and a context that pools. Free with `close`.

    Args:
        weights: llama.cpp's model; owned from now on.
        dimensions: of its vectors, as its header says.
        context_tokens: of one text, at most; what it was trained for holds too.
        threads: for compute.
        abort: makes a running step return early.
        log: llama.cpp's errors, for the messages.

    Raises:
        ModelError: it does not embed, or not as its header says.
    """

    def __init__(
        self,
        weights: Any,
        *,
        dimensions: int,
        context_tokens: int,
        threads: int,
        abort: AbortFlag,
        log: FirstError,
    ) -> None:
        self.dimensions = dimensions
        self._model = weights
        self._abort = abort  # C holds its address: it must live as long as the context
        self._log = log
        self._context: Any = None
        self._batch: Any = None
        log.take()
        try:
            self._vocabulary = llama.llama_model_get_vocab(weights)
            self.vocabulary_size = int(llama.llama_vocab_n_tokens(self._vocabulary))
            trained = max(1, int(llama.llama_model_n_ctx_train(weights)))
            self.context_tokens = max(1, min(context_tokens, trained))
            self.batch_tokens = max(TOGETHER_TOKENS, self.context_tokens)
            self._make_context(threads)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the memory back; the object is dead after."""
        if self._batch is not None:
            llama.llama_batch_free(self._batch)
        if self._context:
            llama.llama_free(self._context)
        llama.llama_model_free(self._model)
        self._batch = self._context = self._model = None

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of a text to embed: what looks like a control token in it is text."""
        return tokenize(self._vocabulary, text, add_special=True, parse_special=False)

    def embed(self, texts: list[list[int]]) -> list[list[float]]:
        """Return the vectors of some texts, read in one batch; they are not normalised.

        Args:
            texts: at most `TOGETHER_TEXTS`, of at most `batch_tokens` tokens together, none empty.

        Raises:
            Aborted: the abort flag was set.
            NotFinite: a vector is none.
            ModelError: llama.cpp could not.
        """
        batch, index = self._batch, 0
        for sequence, tokens in enumerate(texts):
            for position, token in enumerate(tokens):
                batch.token[index] = token
                batch.pos[index] = position
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = sequence
                batch.logits[index] = True
                index += 1
        batch.n_tokens = index
        self._forget(overwrite=False)
        code = llama.llama_decode(self._context, batch)
        if code == 2:
            raise Aborted
        if code != 0:
            raise ModelError(f"llama.cpp could not embed {index} tokens (code {code}): {self._log.take()}")
        return [self._vector(sequence) for sequence in range(len(texts))]

    def set_threads(self, threads: int) -> None:
        """Use this many threads from the next step on."""
        llama.llama_set_n_threads(self._context, threads, threads)

    def _vector(self, sequence: int) -> list[float]:
        row = llama.llama_get_embeddings_seq(self._context, sequence)
        if not row or not all_finite(row, self.dimensions):
            self._forget(overwrite=True)  # what is no number stays so under every mask
            raise NotFinite(NOT_FINITE)
        return row[: self.dimensions]  # type: ignore[no-any-return]  # a slice of a C array is a list

    def _forget(self, *, overwrite: bool) -> None:
        memory = llama.llama_get_memory(self._context)
        if memory:
            llama.llama_memory_clear(memory, overwrite)

    def _make_context(self, threads: int) -> None:
        if llama.llama_model_has_encoder(self._model) and llama.llama_model_has_decoder(self._model):
            raise ModelError("the file is a model of an encoder and a decoder, expected one of them")
        found = int(llama.llama_model_n_embd_out(self._model))
        if found != self.dimensions:
            raise ModelError(f"the model has {found} dimensions, its header says {self.dimensions}")
        parameters = llama.llama_context_default_params()
        # llama.cpp aborts on an encoder's batch over `n_ubatch`, and a text in two of them would be half a text.
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = self.batch_tokens
        parameters.n_seq_max = TOGETHER_TEXTS
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.embeddings = True
        parameters.pooling_type = llama.LLAMA_POOLING_TYPE_UNSPECIFIED  # as the header says
        parameters.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_AUTO
        parameters.kv_unified = True
        parameters.no_perf = True
        parameters.abort_callback = self._abort.callback
        parameters.abort_callback_data = self._abort.argument
        self._context = llama.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise ModelError(self._log.take() or "llama.cpp makes no context for the model")
        if llama.llama_pooling_type(self._context) not in POOLINGS:
            raise ModelError("the model does not make one vector of a text")
        self._batch = llama.llama_batch_init(self.batch_tokens, 0, 1)
