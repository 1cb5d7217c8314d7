"""A hundred small worlds in storms, each with its seed, under all laws; `make simulate` runs two thousand."""

import pytest

from node.simulation.sweep import sail
from protocol.envelope import opened

SEEDS = 100
GROUP = 10  # of seeds in one test; the report of a broken law names the one


def groups() -> list[object]:
    """The first group runs in `make check`, the others only in `make test`: together they take two minutes."""
    return [
        pytest.param(
            range(first, first + GROUP),
            id=f"{first}-{first + GROUP - 1}",
            marks=() if first == 1 else pytest.mark.system,
        )
        for first in range(1, SEEDS, GROUP)
    ]


@pytest.mark.parametrize("seeds", groups())
def test_every_law_holds_in_and_after_a_storm(seeds: range) -> None:
    """Random faults for three virtual minutes, two of calm, and five more in which all claims come to their end."""
    assert opened.is_own_remembered is False, "each signature is to be checked, as a daemon does"

    for seed in seeds:
        voyage = sail(seed)

        assert not voyage.violation, voyage.violation
        assert voyage.outcomes["finished"] > 0
