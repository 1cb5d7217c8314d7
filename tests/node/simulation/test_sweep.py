"""A hundred small worlds in storms, each with its seed, under all laws; `make simulate` runs two thousand."""

import pytest

from marketplace.accounts import Accounts
from node.simulation.sweep import main, sail
from protocol.envelope import opened
from protocol.identity import PeerId

SEEDS = 100
FEW = 2
GROUP = 8  # of seeds in one test; the report of a broken law names the one


def groups() -> list[object]:
    """The first few seeds run in `make check`, the others only in `make test`: together they take two minutes."""
    few = pytest.param(range(1, FEW + 1), id=f"1-{FEW}")
    rest = [
        pytest.param(range(first, last + 1), id=f"{first}-{last}", marks=pytest.mark.slow)
        for first in range(FEW + 1, SEEDS + 1, GROUP)
        for last in (min(first + GROUP - 1, SEEDS),)
    ]
    return [few, *rest]


@pytest.mark.parametrize("seeds", groups())
def test_every_law_holds_in_and_after_a_storm(seeds: range) -> None:
    """Random faults for three virtual minutes, two of calm, and five more in which all claims come to their end."""
    assert opened.is_own_remembered is False, "each signature is to be checked, as a daemon does"

    for seed in seeds:
        voyage = sail(seed)

        assert not voyage.violation, voyage.violation
        assert voyage.outcomes["finished"] > 0


def test_a_sweep_ends_at_the_first_broken_law_and_says_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A planted bug: each payment makes a credit out of nothing."""
    post = Accounts.post

    def generous(
        accounts: Accounts, hold_id: bytes, payer: PeerId, payee: PeerId, amount_micro: int, at_ms: int
    ) -> None:
        post(accounts, hold_id, payer, payee, amount_micro, at_ms)
        accounts._balances[payee] += 1

    monkeypatch.setattr(Accounts, "post", generous)

    status = main(["--first", "3", "--seeds", "2", "--processes", "1"])

    said = capsys.readouterr().out.splitlines()
    assert status == 1
    assert said[0].startswith("law credits_sum_to_zero does not hold: ")
    assert said[-1] == "  again: python -m node.simulation.sweep --first 3 --seeds 1"


def test_a_sweep_without_seeds_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--seeds", "0"])

    assert "0 seeds in" in capsys.readouterr().err
