"""One round of one member: a LoRA on a frozen base, a few steps on its own records, and the matrices that come out.

The loss of a sample is the mean over the tokens of its answer, that of a batch the mean over its samples, so that a long
answer teaches no more than a short one; and so a sample has one gradient of its own, which is what privacy clips.

Without a noise plan a step's batch is drawn from the private records and the replayed ones together. With one it is
DP-SGD (Abadi et al. 2016, arXiv:1607.00133) by Opacus over the private records alone, and the replay is added after.
Only for the child; nothing here is imported by the daemon.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from protocol.messages import Recipe
from runtime.trainer import NoisePlan
from runtime.training.base_model import LINEARS, BaseModel, Sample
from runtime.training.noise import SecretNoise

State = dict[str, npt.NDArray[np.float32]]  # as `federation.lora` names and shapes it

ADAPTER: Final = "agora"
RATE_AT_THE_END: Final = 0.1  # of the learning rate


@dataclass(frozen=True)
class Round:
    """What is trained, and how.

    Attributes:
        number: 1, 2, … of the recipe's rounds.
        noise: None: without differential privacy.
        seed: of the draws of records.
        proximal_mu: how hard the loss pulls back to the state that the round began from; 0: not at all.
    """

    recipe: Recipe
    number: int
    noise: NoisePlan | None
    seed: int
    proximal_mu: float = 0.0


def finetune(
    base: BaseModel,
    state: State,
    frozen_a: State,
    private: Sequence[Sample],
    replay: Sequence[Sample],
    task: Round,
    on_step: Callable[[int], None],
) -> State:
    """Return the state after one round.

    Args:
        base: not modified: the adapter is taken off again.
        state: B of each adapted layer, and A where the recipe trains it.
        frozen_a: A where it does not.
        private: this member's own records.
        replay: public ones, against forgetting; may be empty.
        task: what to train.
        on_step: told the steps done so far; what it raises ends the round.
    """
    recipe, device = task.recipe, base.model.device
    matrices = attach(base, state, frozen_a, recipe)
    trained = {name: matrices[name] for name in state}
    parameters = list(trained.values())
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    share = recipe.replay_percent / 100 if replay else 0.0
    draw = Draw(private, replay, recipe.batch, share, task.seed)
    privacy = Privacy(base, optimizer, len(private), task.noise) if task.noise else None
    try:
        for step in range(recipe.steps):
            on_step(step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, task.number, step)
            if privacy is None:
                batch = pack(draw.mixed(), device)
                loss = batch_loss(base, batch)  # ()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
            else:
                privacy.gradient([private[index] for index in privacy.chosen()])
                # Public examples are mixed in as a gradient of their own, after the noise. They are no part of the
                # sampled, clipped sum, so one private record still moves it by at most the clipping norm; what is done
                # to a noisy sum afterwards, with nothing private in it, costs no privacy (post-processing).
                if public := draw.replayed():
                    privacy.blend(pack(public, device), share)
            if task.proximal_mu:
                hold_near(trained, state, task.proximal_mu)
            optimizer.step()
        on_step(recipe.steps)
        return {name: matrix.detach().cpu().numpy().copy() for name, matrix in trained.items()}
    finally:
        if privacy is not None:
            privacy.close()
        detach(base)


def learning_rate(recipe: Recipe, number: int, step: int) -> float:
    """Return the rate of a step: over all rounds it falls to a tenth, as half a cosine."""
    done = (number - 1 + step / recipe.steps) / recipe.rounds  # 0 to 1
    falling = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))  # 1 to 0
    return recipe.learning_rate_ppm / 1e6 * (RATE_AT_THE_END + (1 - RATE_AT_THE_END) * falling)


def hold_near(trained: Mapping[str, nn.Parameter], start: State, mu: float) -> None:
    """Add the gradient of mu / 2 times the squared distance from the start; no record has a part in it.

    Source: FedProx, Li et al. 2018, arXiv:1812.06127, equation 2.
    """
    for name, parameter in trained.items():
        assert parameter.grad is not None
        parameter.grad += mu * (parameter.detach() - torch.from_numpy(start[name]).to(parameter.device))


# --- the adapter -----------------------------------------------------------------------------------------------------


def attach(base: BaseModel, state: State, frozen_a: State, recipe: Recipe) -> dict[str, nn.Parameter]:
    """Put a LoRA on the base with these matrices; return its parameters by their names. Only the state's are trained.

    Source: Hu et al. 2021, arXiv:2106.09685; A frozen: Sun et al. 2024, arXiv:2403.12313.
    """
    config = LoraConfig(
        r=recipe.shape.rank,
        lora_alpha=recipe.shape.alpha,
        target_modules=[LINEARS[target].rsplit(".", 1)[-1] for target in recipe.shape.targets],
        lora_dropout=0.0,
        bias="none",
    )
    inject_adapter_in_model(config, base.model, ADAPTER)
    parameters: dict[str, nn.Parameter] = {}
    with torch.no_grad():
        for name, values in {**frozen_a, **state}.items():
            layer, half = lora_layer(base, name.rsplit(".", 1)[0]), name.rsplit(".", 1)[1]
            parameter = (layer.lora_A if half == "lora_a" else layer.lora_B)[ADAPTER].weight
            parameter.copy_(torch.from_numpy(values))  # A: (r, in), B: (out, r)
            parameter.requires_grad_(name in state)
            parameters[name] = parameter
    return parameters


def detach(base: BaseModel) -> None:
    """Take the adapter off, as if it had never been there."""
    for layer in base.layers:
        for where in LINEARS.values():
            parent, _, child = where.rpartition(".")
            holder = layer.get_submodule(parent)
            if isinstance(adapted := getattr(holder, child), LoraLayer):
                setattr(holder, child, adapted.base_layer)
    del base.model.peft_config  # peft's own note of it


def lora_layer(base: BaseModel, name: str) -> Any:
    """Return the adapted layer that GGUF calls `blk.N.TARGET`."""
    _, number, target = name.split(".")
    return base.layers[int(number)].get_submodule(LINEARS[target])


# --- batches ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Samples in rows, several in one row where they fit; each attends to itself alone.

    Attributes:
        tokens: (rows, seq), ids.
        positions: (rows, seq), from 0 in each sample.
        mask: (rows, 1, seq, seq), true where the row's position may attend to the column's.
        targets: (rows, seq), the next token, -1 where none is learned.
        weights: (rows, seq), one over the answer's length.
        samples: how many.
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor
    weights: Tensor
    samples: int


def pack(samples: Sequence[Sample], device: torch.device, *, one_a_row: bool = False) -> Batch:
    """Lay samples out in rows as long as the longest one: padding each to that would mostly compute on nothing."""
    seq = max(len(sample.tokens) for sample in samples)
    rows: list[list[Sample]] = []
    room: list[int] = []  # left in each row
    for sample in samples if one_a_row else sorted(samples, key=lambda sample: -len(sample.tokens)):
        size = len(sample.tokens)
        chosen = None if one_a_row else next((row for row, left in enumerate(room) if left >= size), None)
        if chosen is None:
            rows.append([sample])
            room.append(seq - size)
        else:
            rows[chosen].append(sample)
            room[chosen] -= size
    tokens = torch.zeros((len(rows), seq), dtype=torch.long)
    positions, owner = torch.zeros_like(tokens), torch.zeros_like(tokens)
    targets = torch.full_like(tokens, -1)
    weights = torch.zeros((len(rows), seq))
    for index, row in enumerate(rows):
        start = 0
        for number, sample in enumerate(row, start=1):
            end = start + len(sample.tokens)
            tokens[index, start:end] = torch.tensor(sample.tokens)
            positions[index, start:end] = torch.arange(len(sample.tokens))
            owner[index, start:end] = number
            answer = slice(start + sample.prompt_tokens - 1, end - 1)
            targets[index, answer] = tokens[index, start + sample.prompt_tokens : end]
            weights[index, answer] = 1 / (len(sample.tokens) - sample.prompt_tokens)
            start = end
    causal = torch.ones((seq, seq), dtype=torch.bool).tril()
    mask = causal & (owner[:, :, None] == owner[:, None, :])  # (rows, seq, seq); padding attends to padding
    return Batch(
        tokens.to(device),
        positions.to(device),
        mask[:, None].to(device),
        targets.to(device),
        weights.to(device),
        len(samples),
    )


def batch_loss(base: BaseModel, batch: Batch) -> Tensor:
    """Return the mean over samples of the mean negative log-likelihood of an answer's tokens."""
    hidden = base.model.model(
        input_ids=batch.tokens,
        position_ids=batch.positions,
        attention_mask=batch.mask,
        use_cache=False,
    ).last_hidden_state  # (rows, seq, hidden)
    answers = batch.targets >= 0  # (rows, seq)
    # Logits of a real vocabulary are the largest tensor of all: only where something is learned.
    logits = base.model.lm_head(hidden[answers])  # (answer tokens, vocabulary)
    losses = functional.cross_entropy(logits, batch.targets[answers], reduction="none")  # (answer tokens,)
    return (losses * batch.weights[answers]).sum() / batch.samples


class Draw:
    """Draws records for a step, from a seed: each at most once a step.

    Args:
        share: of the batch, from the replay.
    """

    def __init__(
        self, private: Sequence[Sample], replay: Sequence[Sample], batch: int, share: float, seed: int
    ) -> None:
        self._private = private
        self._replay = replay
        self._replayed = min(len(replay), round(batch * share))
        self._own = min(len(private), batch - self._replayed)
        self._random = Random(seed)  # noqa: S311  (which records come first is no secret where no privacy is promised)

    def mixed(self) -> list[Sample]:
        """Return a batch of both."""
        return self._random.sample(self._private, self._own) + self.replayed()

    def replayed(self) -> list[Sample]:
        """Return the replayed part alone."""
        return self._random.sample(self._replay, self._replayed)


# --- privacy ---------------------------------------------------------------------------------------------------------


class _NoisyOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus has no types
    """Opacus' clipping, with noise from a source that cannot be guessed: its own secure mode needs a package that is no more."""

    secret: SecretNoise

    def add_noise(self) -> None:
        for parameter in self.params:
            deviation = self.noise_multiplier * self.max_grad_norm
            parameter.grad = parameter.summed_grad + self.secret.gaussian(parameter.summed_grad, deviation)


class Privacy:
    """DP-SGD of a round: Poisson sampling, one gradient for each record, clipped, summed, noise, divided.

    Records are drawn by the secret generator, not from the task's seed: that a record is left out most of the time
    protects only against who cannot tell when.
    """

    def __init__(
        self, base: BaseModel, optimizer: torch.optim.Optimizer, records: int, plan: NoisePlan
    ) -> None:
        self._base = base
        self._secret = SecretNoise()
        self._records = records
        self._rate = plan.rate_ppm / 1e6
        self._hooked = GradSampleModule(base.model, batch_first=True, loss_reduction="mean", strict=True)
        self._optimizer = _NoisyOptimizer(
            optimizer,
            noise_multiplier=plan.noise_milli / 1e3,
            max_grad_norm=plan.clip_milli / 1e3,
            # A constant, not the size of the batch that was drawn, which would tell how many were.
            expected_batch_size=max(1.0, self._rate * records),
            loss_reduction="mean",
        )
        self._optimizer.secret = self._secret

    def chosen(self) -> list[int]:
        """Return which records enter this step: each with the same probability, alone. There may be none."""
        return np.flatnonzero(self._secret.uniform(self._records) < self._rate).tolist()

    def gradient(self, samples: Sequence[Sample]) -> None:
        """Leave the noisy mean gradient of these samples in the parameters."""
        self._optimizer.zero_grad()
        if samples:
            # One sample a row: Opacus takes a row for a record.
            loss = batch_loss(self._base, pack(samples, self._base.model.device, one_a_row=True))  # ()
            with _first_layer_unsaid():
                loss.backward()  # type: ignore[no-untyped-call]
        else:
            # Nothing was drawn: the step is noise alone. Without it everybody would see that nothing was.
            for parameter in self._optimizer.params:
                parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        self._optimizer.pre_step()

    def blend(self, public: Batch, share: float) -> None:
        """Mix the gradient of public examples in, as this share of the whole."""
        self._hooked.disable_hooks()  # else Opacus would take them for private ones of the next step
        try:
            with _first_layer_unsaid():
                gradients = torch.autograd.grad(batch_loss(self._base, public), self._optimizer.params)
        finally:
            self._hooked.enable_hooks()
        for parameter, gradient in zip(self._optimizer.params, gradients, strict=True):
            parameter.grad = (1 - share) * parameter.grad + share * gradient

    def close(self) -> None:
        """Take Opacus' hooks off."""
        self._hooked.remove_hooks()


@contextmanager
def _first_layer_unsaid() -> Iterator[None]:
    """Keep torch from warning that the first layer's input needs no gradient: Opacus reads its output's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield
