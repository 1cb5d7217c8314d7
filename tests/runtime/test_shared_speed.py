"""A batch: faster together, slower each."""

from itertools import pairwise

import pytest

from runtime.shared_speed import TOGETHER, stream_share


def test_a_stream_that_is_alone_has_its_whole_speed() -> None:
    assert stream_share(1) == 1.0
    assert stream_share(0) == 1.0  # nobody runs yet: as fast as the first one will be


@pytest.mark.parametrize(("streams", "together"), TOGETHER)
def test_what_was_measured_comes_out(streams: int, together: float) -> None:
    assert 14.4 * streams * stream_share(streams) == pytest.approx(together)


def test_each_is_slower_with_every_one_that_joins_and_together_they_never_are() -> None:
    shares = [stream_share(streams) for streams in range(1, 40)]

    assert all(fewer > more for fewer, more in pairwise(shares))
    together = [streams * share for streams, share in enumerate(shares, start=1)]
    assert all(fewer <= more + 1e-12 for fewer, more in pairwise(together))
    assert together[-1] == pytest.approx(50.4 / 14.4)
