"""A scenario is a Python file with a story: a shipped one by its name, a user's by its path."""

from pathlib import Path

import pytest
import trio

from node.simulation.scenario import ScenarioError, load, names, shipped

MINE = '''"""My own incident.

More about it.
"""


async def story(world):
    world.append("told")
'''
SHAPE = "expected a Python file with a docstring and 'async def story(world)'"


@pytest.mark.parametrize("name", names())
def test_each_shipped_scenario_loads_by_its_name_and_says_what_it_shows(name: str) -> None:
    found = load(name)

    assert found.name == name
    assert 10 < len(found.about) < 120
    assert found in shipped()


def test_calm_and_churn_are_shipped() -> None:
    assert {"calm", "churn"} <= {scenario.name for scenario in shipped()}


def test_a_users_file_is_found_again_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace carries the name, and may be replayed from another directory."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    world: list[str] = []

    found = load("mine.py")
    monkeypatch.chdir("/")
    again = load(found.name, found.digest)
    trio.run(again.story, world)

    assert (found.name, found.about) == (str(tmp_path / "mine.py"), "My own incident.")
    assert (again.about, again.digest) == (found.about, found.digest)
    assert world == ["told"]


def test_a_file_that_is_not_the_recorded_one_is_not_even_run(tmp_path: Path) -> None:
    """A stranger's trace may name any file of ours."""
    path = tmp_path / "clean_up.py"
    path.write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")

    with pytest.raises(ScenarioError, match=f"{path} has changed: found digest [0-9a-f]+, expected 00ff"):
        load(str(path), "00ff")

    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("x = (", f"FILE does not import (SyntaxError: '(' was never closed (mine.py, line 1)), {SHAPE}"),
        ("1 / 0", f"FILE does not import (ZeroDivisionError: division by zero), {SHAPE}"),
        ("raise SystemExit(3)", f"FILE does not import (SystemExit: 3), {SHAPE}"),
        ('"""Nothing told."""', f"FILE has no story, {SHAPE}"),
        ("def story(world): ...", f"FILE has a story that is no 'async def', {SHAPE}"),
        (None, f"cannot read FILE (No such file or directory), {SHAPE}"),
    ],
)
def test_a_file_that_is_no_scenario_is_refused_in_one_line(
    source: str | None, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    if source is not None:
        path.write_text(source)

    with pytest.raises(ScenarioError) as refused:
        load(str(path))

    assert str(refused.value) == reason.replace("FILE", str(path))


def test_an_unknown_name_comes_back_with_the_known_ones() -> None:
    with pytest.raises(ScenarioError) as refused:
        load("hurricane")

    assert str(refused.value) == (
        f"no scenario 'hurricane', expected {', '.join(names())}, "
        "or a Python file with a docstring and 'async def story(world)'"
    )
