import math

import pytest
import torch

from runtime.training.noise import SecretNoise

pytestmark = pytest.mark.slow

COUNT = 200_001  # odd: they come in pairs


def test_the_noise_is_gaussian_with_the_asked_deviation() -> None:
    noise = SecretNoise().gaussian(torch.zeros(COUNT), 3.0).double() / 3.0

    assert abs(float(noise.mean())) < 5 / math.sqrt(COUNT)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.01)
    assert float((noise**3).mean()) == pytest.approx(0.0, abs=0.05)
    assert float((noise**4).mean()) == pytest.approx(3.0, abs=0.1)
    # the shape, not the moments alone: the share within k deviations
    for k in (0.5, 1.0, 2.0, 3.0):
        share = float((noise.abs() < k).double().mean())
        assert share == pytest.approx(math.erf(k / math.sqrt(2)), abs=0.005)


def test_noise_has_the_shape_and_type_of_what_it_is_added_to() -> None:
    like = torch.zeros((3, 5), dtype=torch.float32)

    noise = SecretNoise().gaussian(like, 1.0)

    assert (noise.shape, noise.dtype) == (like.shape, like.dtype)


def test_no_two_rounds_have_the_same_noise_and_torchs_seed_decides_none_of_it() -> None:
    torch.manual_seed(1)
    first = SecretNoise().gaussian(torch.zeros(100), 1.0)
    torch.manual_seed(1)
    second = SecretNoise().gaussian(torch.zeros(100), 1.0)

    assert not torch.equal(first, second)


def test_values_of_one_stream_are_not_correlated() -> None:
    noise = SecretNoise().gaussian(torch.zeros(COUNT), 1.0).double()

    for lag in (1, 2, COUNT // 2, COUNT // 4):
        assert abs(float((noise[lag:] * noise[:-lag]).mean())) < 6 / math.sqrt(COUNT - lag)


def test_records_are_drawn_with_the_asked_probability() -> None:
    drawn = SecretNoise().uniform(COUNT)

    assert (drawn >= 0).all()
    assert (drawn < 1).all()
    assert float((drawn < 0.1).mean()) == pytest.approx(0.1, abs=0.005)
