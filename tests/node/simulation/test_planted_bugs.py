"""The laws catch what they are for: each planted bug breaks one of them, and where none is planted all hold.

`market_bugs.py`, `check_bugs.py`, `mesh_bugs.py`, `ballot_bugs.py` and `run_bugs.py` list the bugs; `bug_stories.py`,
`hostile_stories.py`, `check_stories.py` and `learning_stories.py` tell the worlds in which they show. A bug may need chance on its side, so its story is told with one seed after the other until it is caught.
"""

import re
from pathlib import Path

import pytest

from node.simulation.checkers.checks import LAWS
from tests.node.simulation.ballot_bugs import BALLOT_BUGS
from tests.node.simulation.check_bugs import CHECK_BUGS
from tests.node.simulation.market_bugs import MARKET_BUGS
from tests.node.simulation.mesh_bugs import MESH_BUGS
from tests.node.simulation.planted_bugs import Fault, PlantedBug
from tests.node.simulation.run_bugs import RUN_BUGS
from tests.node.simulation.story import Story, tell

pytestmark = pytest.mark.slow

BUGS = (*MARKET_BUGS, *CHECK_BUGS, *MESH_BUGS, *BALLOT_BUGS, *RUN_BUGS)
PAGE = Path(__file__).parents[3] / "docs" / "SIMULATION.md"
SEEDS = range(1, 4)
BUGS_MIN = 20  # as many as the sweep has to catch


def law_of(violation: str) -> str:
    found = re.match(r"law (\w+) does not hold", violation)
    assert found, violation
    return found[1]


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_a_planted_bug_is_caught(bug: PlantedBug, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(monkeypatch)

    violation = next(filter(None, (tell(bug.story, seed) for seed in SEEDS)), "")

    assert violation, f"no law has noticed it with seeds {SEEDS.start} to {SEEDS.stop - 1}: {bug.about}"
    assert law_of(violation) in bug.laws, violation


@pytest.mark.parametrize("story", dict.fromkeys(bug.story for bug in BUGS), ids=lambda story: story.__name__)
def test_without_a_bug_every_law_holds(story: Story) -> None:
    """Else the bugs would prove nothing."""
    for seed in SEEDS:
        assert tell(story, seed) == ""


def test_there_are_enough_bugs_and_the_laws_that_catch_them_exist() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= BUGS_MIN
    assert {law for bug in BUGS for law in bug.laws} <= {law.__name__ for law, _ in LAWS}


def test_the_page_on_worlds_lists_every_bug() -> None:
    table = PAGE.read_text().partition("## Planted bugs")[2].partition("\n## ")[0]

    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]

    assert rows == [f"| {bug.about} | {bug.promise} | `{bug.laws[0]}` |" for bug in BUGS]


@pytest.mark.parametrize("where", ["marketplace.fence:Fence.refusals", "marketplace.fence:fence"])
def test_a_fault_of_code_that_is_gone_is_not_planted(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="is not there any more"):
        Fault(where, ()).plant(monkeypatch)


def test_a_fault_of_words_that_are_gone_is_not_planted(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = Fault("marketplace.fence:Fence.refusal", (("attempt == oldest", "True"),))

    with pytest.raises(AssertionError, match="'attempt == oldest' 0 times, expected once"):
        fault.plant(monkeypatch)
