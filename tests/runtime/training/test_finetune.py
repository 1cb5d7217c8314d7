"""The loop on the real tiny model: it learns, keeps to what it may change, and in private moves by one record only a little."""

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from federation import lora
from federation.defaults import DEFAULT_RECIPE
from protocol.messages import Recipe
from runtime.llama.template import RenderBounds
from runtime.trainer import NoisePlan
from runtime.training.base_model import BaseModel, Sample
from runtime.training.finetune import (
    Draw,
    Privacy,
    Round,
    State,
    attach,
    batch_loss,
    detach,
    finetune,
    learning_rate,
    pack,
)

TINY = Path(__file__).parents[3] / "examples" / "tiny_model"
RECIPE = msgspec.structs.replace(DEFAULT_RECIPE, rounds=1, steps=20, batch=8, seed=3)
CPU = torch.device("cpu")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["tiny-f16.gguf", "tiny-q8_0.gguf"])
def base(request: pytest.FixtureRequest) -> BaseModel:
    torch.set_num_threads(1)
    return BaseModel(TINY / request.param, RenderBounds(), CPU)


def samples(base: BaseModel, domain: str, count: int) -> list[Sample]:
    lines = (TINY / "data" / f"{domain}.train.jsonl").read_text().splitlines()[:count]
    found = [base.sample(**json.loads(line), tokens_max=1_024) for line in lines]
    return [sample for sample in found if sample]


def loss(base: BaseModel, of: list[Sample]) -> float:
    with torch.no_grad():
        return float(batch_loss(base, pack(of, CPU)))


def loss_with(base: BaseModel, state: State, frozen_a: State, of: list[Sample]) -> float:
    attach(base, state, frozen_a, RECIPE)
    try:
        return loss(base, of)
    finally:
        detach(base)


def trained(
    base: BaseModel,
    private: list[Sample],
    replay: list[Sample],
    recipe: Recipe = RECIPE,
    noise: NoisePlan | None = None,
    **changes: float,
) -> tuple[State, State]:
    """Return the state after a round, and the frozen A."""
    frozen_a = lora.frozen_a(recipe, base.shapes) if recipe.is_a_frozen else {}
    task = replace(Round(recipe, 1, noise, seed=1), **changes)  # type: ignore[arg-type]
    state = finetune(
        base, lora.seed_state(recipe, base.shapes), frozen_a, private, replay, task, lambda _step: None
    )
    return state, frozen_a


def test_the_prompt_is_tokenised_as_llama_cpp_renders_it(base: BaseModel) -> None:
    sample = base.sample("What is 1 + 2?", "1 + 2 = 3", 100)

    assert sample is not None
    assert sample.tokens[: sample.prompt_tokens] == [2, 333, 286, 224, 20, 272, 224, 21, 34, 0, 3]
    assert sample.tokens[-1] == 0  # the end of the turn is learned too


def test_a_long_answer_is_cut_and_a_long_prompt_left_out(base: BaseModel) -> None:
    whole = base.sample("What is 1 + 2?", "1 + 2 = 3", 100)
    assert whole is not None

    cut = base.sample("What is 1 + 2?", "1 + 2 = 3", 13)

    assert cut is not None
    assert cut.tokens == whole.tokens[:13]
    assert base.sample("What is 1 + 2?", "1 + 2 = 3", whole.prompt_tokens) is None


def test_samples_in_one_row_have_the_loss_they_have_alone(base: BaseModel) -> None:
    some = samples(base, "units", 3) + samples(base, "stories", 1)

    packed = pack(some, CPU)

    assert len(packed.tokens) < len(some)
    alone = [loss(base, [sample]) for sample in some]
    assert loss(base, some) == pytest.approx(np.mean(alone), rel=1e-4)


def test_a_round_learns_what_the_base_does_not_know(base: BaseModel) -> None:
    private, replay = samples(base, "heat_pump", 40), samples(base, "units", 40)
    before = loss(base, private)

    state, frozen_a = trained(base, private, replay)

    assert loss_with(base, state, frozen_a, private) < before / 3
    assert loss(base, private) == before  # the base itself is what it was


def test_only_b_is_trained_unless_the_recipe_says_both(base: BaseModel) -> None:
    private = samples(base, "heat_pump", 20)
    both = msgspec.structs.replace(RECIPE, is_a_frozen=False, steps=2)

    one_half, _ = trained(base, private, [], msgspec.structs.replace(RECIPE, steps=2))
    two_halves, _ = trained(base, private, [], both)

    assert {name.rsplit(".", 1)[1] for name in one_half} == {"lora_b"}
    assert {name.rsplit(".", 1)[1] for name in two_halves} == {"lora_a", "lora_b"}
    seed = lora.seed_state(both, base.shapes)
    assert all((matrix != seed[name]).any() for name, matrix in two_halves.items())


def test_fewer_targets_leave_the_others_alone(base: BaseModel) -> None:
    shape = msgspec.structs.replace(RECIPE.shape, targets=("attn_q", "ffn_down"))

    state, _ = trained(
        base, samples(base, "heat_pump", 10), [], msgspec.structs.replace(RECIPE, shape=shape, steps=1)
    )

    assert {name.split(".")[2] for name in state} == {"attn_q", "ffn_down"}


def test_a_proximal_member_stays_nearer_to_the_start(base: BaseModel) -> None:
    private = samples(base, "heat_pump", 20)
    recipe = msgspec.structs.replace(RECIPE, steps=5)

    def length(state: State) -> float:
        return float(np.sqrt(sum(np.square(matrix).sum() for matrix in state.values())))

    free, _ = trained(base, private, [], recipe)
    held, _ = trained(base, private, [], recipe, proximal_mu=100.0)

    assert length(held) < length(free) / 2


def test_the_learning_rate_falls_to_a_tenth_over_all_rounds() -> None:
    recipe = msgspec.structs.replace(RECIPE, rounds=4, steps=10, learning_rate_ppm=8_000)

    rates = [learning_rate(recipe, number, step) for number in range(1, 5) for step in range(10)]

    assert rates[0] == pytest.approx(8e-3)
    assert rates == sorted(rates, reverse=True)
    assert 8e-4 < rates[-1] < 1e-3
    assert learning_rate(recipe, 5, 0) == pytest.approx(8e-4)


def test_a_batch_is_mixed_as_the_recipe_says(base: BaseModel) -> None:
    private, replay = samples(base, "heat_pump", 20), samples(base, "units", 20)

    batch = Draw(private, replay, batch=8, share=0.25, seed=1).mixed()

    assert sum(sample in replay for sample in batch) == 2
    assert sum(sample in private for sample in batch) == 6


# --- privacy -------------------------------------------------------------------------------------------------------


def clipped_sum(base: BaseModel, of: list[Sample], clip_milli: int) -> list[torch.Tensor]:
    """Return the gradient of a private step without its noise, times the expected batch: what one record can move."""
    frozen_a = lora.frozen_a(RECIPE, base.shapes)
    parameters = attach(base, lora.seed_state(RECIPE, base.shapes), frozen_a, RECIPE)
    learned = [parameter for parameter in parameters.values() if parameter.requires_grad]
    privacy = Privacy(
        base, torch.optim.SGD(learned), 100, NoisePlan(noise_milli=0, rate_ppm=10_000, clip_milli=clip_milli)
    )
    try:
        privacy.gradient(of)
        return [parameter.grad.clone() for parameter in learned if parameter.grad is not None]
    finally:
        privacy.close()
        detach(base)


def test_one_record_moves_the_sum_by_at_most_the_clipping_norm(base: BaseModel) -> None:
    some = samples(base, "heat_pump", 6)
    clip_milli = 50  # far below these gradients' norms

    with_it = clipped_sum(base, some, clip_milli)
    without = clipped_sum(base, some[:-1], clip_milli)

    moved = torch.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(with_it, without, strict=True)))
    assert 0.04 < float(moved) <= 0.05 * (1 + 1e-4)


def test_a_step_that_draws_nobody_is_noise_alone(base: BaseModel) -> None:
    assert all(not gradient.any() for gradient in clipped_sum(base, [], 1_000))

    nobody = NoisePlan(noise_milli=1_000, rate_ppm=1)
    state, _ = trained(
        base, samples(base, "heat_pump", 5), [], msgspec.structs.replace(RECIPE, steps=2), nobody
    )

    assert all(matrix.any() for matrix in state.values())


def test_replay_moves_a_private_step_but_not_by_way_of_its_records(base: BaseModel) -> None:
    """With nobody drawn and hardly any noise, what is learned is the public examples, as without privacy."""
    public = samples(base, "heat_pump", 30)
    before = loss(base, public)
    nobody = NoisePlan(noise_milli=1, rate_ppm=1, clip_milli=1)

    state, frozen_a = trained(base, samples(base, "units", 5), public, noise=nobody)

    assert loss_with(base, state, frozen_a, public) < before / 2


def test_a_private_round_learns_with_little_noise(base: BaseModel) -> None:
    private = samples(base, "heat_pump", 40)
    before = loss(base, private)

    state, frozen_a = trained(base, private, [], noise=NoisePlan(noise_milli=50, rate_ppm=200_000))

    assert loss_with(base, state, frozen_a, private) < before / 2
