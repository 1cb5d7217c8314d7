"""Where the nodes of a mesh stand on its map: connected ones near each other, all others apart.

Springs along the links pull, every node pushes every other one away, and the heat goes down: Fruchterman and Reingold
1991, "Graph Drawing by Force-directed Placement". Pushing is estimated from a few nodes drawn anew in each round, as in
LargeVis (Tang et al. 2016, arXiv:1602.00370), so that ten thousand nodes take seconds. The same nodes and seed give the
same map.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from node.simulation.observations import MapNode

ROUNDS: Final = 160
PUSHERS: Final = 48  # drawn a round; fewer leave visible noise
HEAT: Final = 0.08  # of the map's width, in the first round
INSIDE_RIM: Final = 0.88  # of the rim's radius
GRAVITY: Final = 0.9  # holds parts together that no link joins: a partition shows as islands, not as dust

Places = npt.NDArray[np.float64]
Links = npt.NDArray[np.int64]


def links_of(nodes: Sequence[MapNode]) -> Links:
    """Return each link once, as two positions in `nodes`: (links, 2). Names that are no node's are left out."""
    position = {node.name: number for number, node in enumerate(nodes)}
    found = {
        (min(here, there), max(here, there))
        for here, node in enumerate(nodes)
        for name in node.links
        if (there := position.get(name, here)) != here
    }
    return np.array(sorted(found), dtype=np.int64).reshape(-1, 2)


def layout(nodes: Sequence[MapNode], seed: int = 0) -> Places:
    """Return a place for each node: (nodes, 2), at most 1 from the middle; those without a link stand on the rim."""
    links = links_of(nodes)
    is_linked = np.zeros(len(nodes), dtype=bool)
    is_linked[links.ravel()] = True
    places = np.zeros((len(nodes), 2))
    if len(links):
        position = np.cumsum(is_linked) - 1  # of each linked node among the linked
        inner = _settle(int(is_linked.sum()), position[links], np.random.default_rng(seed))
        reach = 1.0 if is_linked.all() else INSIDE_RIM
        places[is_linked] = inner * reach / max(np.linalg.norm(inner, axis=1).max(), 1e-9)
    angles = np.linspace(0, 2 * np.pi, int((~is_linked).sum()), endpoint=False)
    places[~is_linked] = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return places


def _settle(count: int, links: Links, rng: np.random.Generator) -> Places:
    places = rng.uniform(-0.5, 0.5, (count, 2))
    apart = 1 / np.sqrt(count)  # how far neighbours stand when all share the square
    for turn in range(ROUNDS):
        heat = HEAT * (1 - turn / ROUNDS)
        force = _push(places, apart, rng) + _pull(places, links, apart) - GRAVITY * places
        length = np.maximum(np.linalg.norm(force, axis=1, keepdims=True), 1e-9)  # (nodes, 1)
        places += force / length * np.minimum(length, heat)
    centred: Places = places - places.mean(axis=0)
    return centred


def _push(places: Places, apart: float, rng: np.random.Generator) -> Places:
    count = len(places)
    pushers = rng.choice(count, size=min(PUSHERS, count), replace=False)
    x, y = (axis[:, None] - axis[None, pushers] for axis in places.T)  # (nodes, pushers) each
    strength = apart**2 / np.maximum(x * x + y * y, (apart / 10) ** 2)
    pushed: Places = np.stack([(x * strength).sum(axis=1), (y * strength).sum(axis=1)], axis=1)
    return pushed * (count / len(pushers))


def _pull(places: Places, links: Links, apart: float) -> Places:
    here, there = links[:, 0], links[:, 1]
    toward = places[there] - places[here]  # (links, 2)
    strength = toward * np.linalg.norm(toward, axis=1, keepdims=True) / apart
    count = len(places)
    pulled = np.zeros_like(places)
    for axis in (0, 1):
        pulled[:, axis] += np.bincount(here, strength[:, axis], count)
        pulled[:, axis] -= np.bincount(there, strength[:, axis], count)
    return pulled
