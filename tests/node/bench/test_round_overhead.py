"""The rounds that the overhead figure times: real processes, real bytes, nothing left behind."""

import psutil
import pytest

from node.bench.round_overhead import Cohort


@pytest.mark.system
def test_an_empty_round_goes_through_every_member_and_no_process_stays() -> None:
    """With five, so that the default strategy is MultiKrum."""
    seconds = Cohort(5, 3).run()

    assert len(seconds) == 3
    assert all(0 < each < 30 for each in seconds)
    started = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    assert not [line for line in started if "idle_member" in line]
