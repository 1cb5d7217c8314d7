"""Plots are files that a browser can show, that say what they show, and that are the same for the same run."""

from pathlib import Path
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest

from node.simulation.map_layout import layout, links_of
from node.simulation.observations import MapNode
from node.simulation.plots import STYLE, draw
from node.simulation.summary import summarise
from node.simulation.trace import Header
from tests.node.simulation.made_up import Run, run

HEADER = Header(agora="0.1.0", commit="abc", scenario="churn", seed=7, nodes=40, seconds=3_600.0)
BYTES_MIN = 5_000
WORDS = {
    "latency": {"How long a chat waits", "until the award, ms", "p50", "p99", "virtual time, minutes"},
    "market": {"Price and load", "price, µ-credits a token", "devices online", "busy"},
    "propagation": {"How a message spreads", "nodes that have heard it", "11 others", "100%"},
    "map": {"The mesh at the end", "away (4), in its own shape"},
}


def pictures(seen: Run, directory: Path) -> list[Path]:
    directory.mkdir()
    return draw(seen, summarise(seen, HEADER, wall_s=1.0), directory)


def words(svg: Path) -> set[str]:
    root = ET.parse(svg).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return {"".join(text.itertext()).strip() for text in root.iter("{http://www.w3.org/2000/svg}text")}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("drawn") / "run"
    pictures(run(), directory)
    return directory


@pytest.mark.parametrize(("name", "said"), WORDS.items())
def test_a_plot_is_a_png_and_an_svg_that_says_what_it_shows(name: str, said: set[str], drawn: Path) -> None:
    png, svg = (drawn / f"{name}.{suffix}" for suffix in ("png", "svg"))

    assert png.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert min(png.stat().st_size, svg.stat().st_size) > BYTES_MIN
    assert said <= words(svg)
    assert "churn · 40 nodes · 1 h · seed 7" in words(svg)


def test_the_same_run_is_drawn_as_the_same_bytes_and_leaves_no_setting_behind(
    drawn: Path, tmp_path: Path
) -> None:
    settings = {name: mpl.rcParams[name] for name in STYLE}

    again = pictures(run(), tmp_path / "again")

    assert {path.name for path in again} == {
        f"{name}.{suffix}" for name in WORDS for suffix in ("png", "svg")
    }
    for path in again:
        assert path.read_bytes() == (drawn / path.name).read_bytes(), path.name
    assert {name: mpl.rcParams[name] for name in STYLE} == settings
    assert settings != STYLE


def test_a_world_in_which_nothing_happened_is_drawn_as_such(tmp_path: Path) -> None:
    drawn = pictures(Run(nodes=1, seconds=60.0), tmp_path / "empty")

    assert len(drawn) == 8
    for path in drawn:
        if path.suffix == ".svg":
            assert "nothing to show" in words(path)


def test_a_price_that_nobody_asked_is_a_gap_and_slow_answers_get_a_scale_of_their_own(tmp_path: Path) -> None:
    """One chat in a hundred that waits a minute must not press the others to the floor."""
    seen = run(chats=200)
    for outcome in seen.outcomes[::100]:
        outcome.ttft_s = 60.0

    pictures(seen, tmp_path / "slow")

    assert {"100", "1,000", "10,000"} & words(tmp_path / "slow" / "latency.svg")


def test_connected_nodes_stand_together_and_islands_apart() -> None:
    """That is what a map of a partition is looked at for."""
    left, right = (
        [
            MapNode(
                f"{side}{number}", "laptop", is_online=True, links=tuple(f"{side}{(number + step) % 20}" for step in (1, 3, 7))
            )
            for number in range(20)
        ]
        for side in ("a", "b")
    )  # fmt: skip

    places = layout([*left, *right], seed=3)

    middles = places[:20].mean(axis=0), places[20:].mean(axis=0)
    spread = max(
        np.linalg.norm(places[part] - middle, axis=1).mean()
        for part, middle in zip((slice(20), slice(20, 40)), middles, strict=True)
    )
    assert np.linalg.norm(middles[0] - middles[1]) > 2 * spread


def test_a_map_holds_all_nodes_inside_its_rim_and_those_without_a_link_on_it() -> None:
    nodes = run(nodes=60).map
    linked = {position for link in links_of(nodes) for position in link}

    places = layout(nodes, seed=3)
    radius = np.linalg.norm(places, axis=1)

    assert np.array_equal(places, layout(nodes, seed=3))
    assert len(np.unique(places, axis=0)) == 60
    for position in range(60):
        if position in linked:
            assert radius[position] < 0.9
        else:
            assert radius[position] == pytest.approx(1.0)


def test_a_link_is_drawn_once_and_never_to_nobody() -> None:
    """Both ends name it, and a node that left may still be named."""
    nodes = [
        MapNode("a", "laptop", is_online=True, links=("b", "gone", "a")),
        MapNode("b", "phone", is_online=True, links=("a",)),
    ]

    assert links_of(nodes).tolist() == [[0, 1]]
