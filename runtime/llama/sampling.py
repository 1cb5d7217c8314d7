"""From sampling parameters to a chain of llama.cpp's samplers. Only for the child.

The random number for the n-th completion token is a function of (seed, n): the generator is seeded anew for each
token. So a successor in the middle of a completion draws what its predecessor would have drawn, without replaying
the draws, whose number depends on how many candidates each step had left.
"""

import hashlib
from typing import Any

from runtime.llama.lowlevel import llama
from runtime.llama.wire import SamplingParameters

MILLION = 1_000_000
RANDOM_SEED = 0xFFFF_FFFF  # means "from the clock" to llama.cpp


class Sampler:
    """Draws the tokens of one completion. Free with `close`.

    Args:
        parameters: what the request asked for.
        vocabulary_size: of the model.
        completion_tokens_max: penalties look at the whole completion, and only at it, as OpenAI's do.
    """

    def __init__(
        self, parameters: SamplingParameters, vocabulary_size: int, completion_tokens_max: int
    ) -> None:
        self._seed = parameters.seed
        self._drawn = 0
        self.chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        penalties = (
            parameters.repeat_penalty_ppm / MILLION or 1.0,
            parameters.frequency_penalty_ppm / MILLION,
            parameters.presence_penalty_ppm / MILLION,
        )
        if penalties != (1.0, 0.0, 0.0):
            self._add(llama.llama_sampler_init_penalties(vocabulary_size, completion_tokens_max, *penalties))
        self._random = parameters.temperature_ppm > 0
        if not self._random:
            self._add(llama.llama_sampler_init_greedy())
            return
        if parameters.top_k > 0:
            self._add(llama.llama_sampler_init_top_k(parameters.top_k))
        if parameters.top_p_ppm < MILLION:
            self._add(llama.llama_sampler_init_top_p(parameters.top_p_ppm / MILLION, 1))
        if parameters.min_p_ppm > 0:
            self._add(llama.llama_sampler_init_min_p(parameters.min_p_ppm / MILLION, 1))
        self._add(llama.llama_sampler_init_temp(parameters.temperature_ppm / MILLION))
        self._add(self._generator())

    def close(self) -> None:
        """Free the chain and what is in it."""
        llama.llama_sampler_free(self.chain)

    def accept(self, token: int) -> None:
        """Remember a token that a predecessor drew, as if it had been drawn here."""
        llama.llama_sampler_accept(self.chain, token)
        self.drawn()

    def drawn(self) -> None:
        """Move on to the next token's random number, after one was drawn from `chain`."""
        self._drawn += 1
        if self._random:
            last = llama.llama_sampler_chain_n(self.chain) - 1
            llama.llama_sampler_free(llama.llama_sampler_chain_remove(self.chain, last))
            self._add(self._generator())

    def _generator(self) -> Any:
        text = f"{self._seed}/{self._drawn}".encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")
        return llama.llama_sampler_init_dist(seed if seed != RANDOM_SEED else 0)

    def _add(self, sampler: Any) -> None:
        if not sampler:
            raise MemoryError("llama.cpp made no sampler")  # adding NULL to a chain crashes
        llama.llama_sampler_chain_add(self.chain, sampler)
