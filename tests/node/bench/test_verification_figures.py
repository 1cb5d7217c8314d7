"""What the figures of checking are made of: the chance to be caught, and the models that cheats serve."""

from dataclasses import replace
from pathlib import Path
from random import Random

import gguf
import numpy as np
import pytest

from marketplace.verification import Verdict
from node.bench import cheats
from node.bench.verification import _edited, _share_caught
from node.calibration import Answer

TINY = Path(__file__).resolve().parents[3] / "examples" / "tiny_model" / "tiny-f16.gguf"
PASSED = Verdict(64, is_greedy=True, strays=0, worst_milli=0, drift_milli=40, is_drifted=False)
FAILED = replace(PASSED, drift_milli=400, is_drifted=True)


def matrices(path: Path) -> dict[str, np.ndarray]:
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize(
    ("failed", "share"), [(0, 0.0), (1, 20 / 40), (21, 1.0), (40, 1.0), (2, 1 - (20 * 19) / (40 * 39))]
)
def test_a_seller_is_caught_when_one_of_twenty_drawn_answers_fails(failed: int, share: float) -> None:
    """Of 40 answers with one bad, half of the draws of 20 have it."""
    assert _share_caught([FAILED] * failed + [PASSED] * (40 - failed)) == pytest.approx(share)


def test_fewer_answers_than_twenty_are_all_drawn() -> None:
    assert _share_caught([PASSED] * 5) == 0.0
    assert _share_caught([PASSED] * 4 + [FAILED]) == 1.0


def test_a_model_written_again_without_a_change_is_the_same(tmp_path: Path) -> None:
    again = cheats.rewrite(TINY, tmp_path / "again.gguf", gguf.GGMLQuantizationType.F16)

    before, after = matrices(TINY), matrices(again)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    reader = gguf.GGUFReader(again)
    tokens = [str(part) for part in reader.fields["tokenizer.ggml.tokens"].contents()]
    assert tokens == gguf.GGUFReader(TINY).fields["tokenizer.ggml.tokens"].contents()


def test_two_bits_leave_four_weights_to_a_block() -> None:
    weights = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)

    found = cheats.rounded(2)(weights)

    assert all(len(np.unique(block)) <= 4 for block in found.reshape(-1, cheats.BLOCK))
    assert np.abs(found - weights).max() <= (weights.max() - weights.min()) / 6 + 1e-6


def test_noise_is_as_large_as_it_is_said_to_be() -> None:
    weights = np.random.default_rng(0).normal(size=(200, 320)).astype(np.float32)

    noise = cheats.disturbed(0.3)(weights) - weights

    assert noise.std() == pytest.approx(0.3 * weights.std(), rel=0.02)
    assert np.array_equal(cheats.disturbed(0)(weights), weights)


def test_about_one_token_in_twenty_is_edited() -> None:
    answers = [Answer(tuple(range(64)), (5,) * 64)] * 100

    edited = _edited(answers, Random(0))

    changed = sum(
        one != other
        for old, new in zip(answers, edited, strict=True)
        for one, other in zip(old.ids, new.ids, strict=True)
    )
    assert 0.04 < changed / 6_400 < 0.06
    assert {each.stated for each in edited} == {(5,) * 64}, "it states what it has computed"
