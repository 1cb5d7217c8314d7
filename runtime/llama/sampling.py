"""From sampling parameters to a chain of llama.cpp's samplers. Only for the child.

The random number for the n-th completion token is a function of (seed, n): the generator is seeded anew for each
token. So a successor in the middle of a completion draws what its predecessor would have drawn, without replaying
the draws, whose number depends on how many candidates each step had left.

A constraint is not llama.cpp's: its grammars abort, overflow the stack and take exponential time, and the child serves
many. `constraint.py` judges tokens instead. The token that the chain draws is nearly always one that fits; where it is
not, the chain draws once more, from those that do.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.engine import BadRequest
from runtime.llama import wire
from runtime.llama.constraint import Constraint, compiled
from runtime.llama.lowlevel import llama
from runtime.llama.vocabulary import Guide, Vocabulary

if TYPE_CHECKING:
    from runtime.llama.model import Model

MILLION = 1_000_000
RANDOM_SEED = 0xFFFF_FFFF  # means "from the clock" to llama.cpp
# numpy's linear algebra would start a thread for each core, and none of it is used.
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "1")


@dataclass(frozen=True)
class Drawn:
    """A token, and how likely it was if that was asked for (else nothing)."""

    token: int
    logprobs: tuple[wire.Logprob, ...] = ()


class Sampler:
    """Draws the tokens of one completion. Free with `close`.

    Args:
        parameters: what the request asked for.
        vocabulary_size: of the model.
        completion_tokens_max: penalties look at the whole completion, and only at it, as OpenAI's do.
        vocabulary: makes the model's, for those requests that need it.

    Attributes:
        chain: llama.cpp's.

    Raises:
        BadRequest: a bias names a token that is not in the vocabulary, or the constraint is none.
    """

    def __init__(
        self,
        parameters: wire.SamplingParameters,
        vocabulary_size: int,
        completion_tokens_max: int,
        vocabulary: Callable[[], Vocabulary],
    ) -> None:
        for token, _ in parameters.logit_bias:
            if not 0 <= token < vocabulary_size:
                raise BadRequest(f"logit_bias names token {token}, expected 0 to {vocabulary_size - 1}")
        self._parameters = parameters
        self._guide: Guide | None = None
        if parameters.schema or parameters.grammar:
            constraint = Constraint(compiled(parameters.schema, parameters.grammar))
            self._guide = Guide(vocabulary(), constraint)
        self._drawn = 0
        self.chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        if parameters.logit_bias:
            biases = (llama.llama_logit_bias * len(parameters.logit_bias))(
                *((token, milli / 1_000) for token, milli in parameters.logit_bias)
            )
            self._add(llama.llama_sampler_init_logit_bias(vocabulary_size, len(biases), biases))
        penalties = (
            parameters.repeat_penalty_ppm / MILLION or 1.0,
            parameters.frequency_penalty_ppm / MILLION,
            parameters.presence_penalty_ppm / MILLION,
        )
        self._remembers = penalties != (1.0, 0.0, 0.0)  # what was drawn, whether or not it is kept
        if self._remembers:
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

    @property
    def is_plain(self) -> bool:
        """Whether drawing is nothing but `model.sample(chain, index)` and then `drawn()`."""
        return self._guide is None and not self._parameters.logprobs

    @property
    def is_finished(self) -> bool:
        """Whether the text is all that the constraint allows, so that only the end can follow."""
        return self._guide is not None and self._guide.is_finished

    def draw(self, model: "Model", index: int) -> Drawn:
        """Draw the next token from row `index` of the model's last batch, and remember it.

        Raises:
            NotFinite: the logits are no numbers.
            BadRequest: no token fits the constraint, or it has become too ambiguous to follow.
        """
        if self._guide is None:
            token = model.sample(self.chain, index)
            self.drawn()
        else:
            token = self._draw_fitting(model, index, self._guide)
            if not model.ends_generation(token):
                self.accept(token)
        if not self._parameters.logprobs:
            return Drawn(token)
        candidates = _candidates()
        logits = candidates.view(model.row(index), model.vocabulary_size)
        top = self._parameters.top_logprobs
        return Drawn(token, (candidates.logprob(logits, token, top, model.piece),))

    def accept(self, token: int) -> None:
        """Remember a token that a predecessor drew, as if it had been drawn here.

        Raises:
            BadRequest: it does not fit the constraint.
        """
        if self._guide:
            self._guide.accept(token)
        llama.llama_sampler_accept(self.chain, token)
        self.drawn()

    def drawn(self) -> None:
        """Move on to the next token's random number, after one was drawn from `chain`."""
        self._drawn += 1
        if self._random:
            last = llama.llama_sampler_chain_n(self.chain) - 1
            llama.llama_sampler_free(llama.llama_sampler_chain_remove(self.chain, last))
            self._add(self._generator())

    def _draw_fitting(self, model: "Model", index: int, guide: Guide) -> int:
        """Draw a token that fits: the chain's own choice if it does, which is mostly so."""
        if not self._remembers:
            token = model.sample(self.chain, index)
            if guide.fits(token):
                return token
        candidates = _candidates()
        logits = candidates.view(model.row(index), model.vocabulary_size)
        if self._remembers:
            token = candidates.draw(self.chain, logits)
            if guide.fits(token):
                return int(token)
        return int(candidates.draw_fitting(self.chain, logits, self._parameters.logit_bias, guide))

    def _generator(self) -> Any:
        text = f"{self._parameters.seed}/{self._drawn}".encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")
        return llama.llama_sampler_init_dist(seed if seed != RANDOM_SEED else 0)

    def _add(self, sampler: Any) -> None:
        if not sampler:
            raise MemoryError("llama.cpp made no sampler")  # adding NULL to a chain crashes
        llama.llama_sampler_chain_add(self.chain, sampler)


def _candidates() -> Any:
    os.environ.setdefault(*ONE_THREAD)
    from runtime.llama import candidates  # noqa: PLC0415  (numpy: 24 MB that most engines do without)

    return candidates
