"""What a simulated world costs, and what a node sends in a mesh of ten and in one of ten thousand."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import msgspec

from node.bench import scale_plot
from node.bench.figure import Figure, at_most
from node.bench.mesh import helper
from node.bench.world_run import WorldRun
from node.local_mesh.processes import LocalMeshFailed

if TYPE_CHECKING:
    from node.bench.figures import Bench

SCENARIO: Final = "churn"
SEED: Final = 7
WALL_S_MAX: Final = 120.0
RSS_MB_MAX: Final = 2_000.0
COST_FACTOR_MAX: Final = 2.0
GROWTH_MAX: Final = 1.5  # from the second smallest mesh to the largest; more would be growth with the mesh


def chapter(bench: "Bench") -> Iterator[Figure]:
    """Run the large world, then the same scenario in meshes of growing size."""
    nodes, seconds = bench.sizes.world
    bench.say(f"simulation: {nodes} nodes for {seconds / 60:g} virtual minutes")
    whole = measure(nodes, seconds)
    note = (
        f"scenario {SCENARIO}, seed {SEED}: {whole.chats} chats asked, {whole.finished} finished; on one core; again with "
        "`agora bench --only simulation`"
    )
    what = f"{nodes} nodes, {seconds / 60:g} virtual minutes, with churn"
    yield Figure("a world", what, "s", [whole.wall_s], target=at_most(WALL_S_MAX), note=note)
    yield Figure("memory of a world", "RSS at its highest", "MB", [whole.rss_mb], target=at_most(RSS_MB_MAX))

    runs = []
    for size in bench.sizes.world_sizes:
        bench.say(f"simulation: {size} nodes for {bench.sizes.world_scale_s / 60:g} virtual minutes")
        runs.append(measure(size, bench.sizes.world_scale_s))
    for run in runs:
        chats = f"{run.chats} chats"
        yield Figure(
            f"messages per chat, {run.nodes} nodes",
            f"all that was sent; {chats}",
            "",
            [run.messages / run.chats],
        )
    for run in runs:
        hours = run.node_seconds / 3_600
        yield Figure(
            f"sent per node and hour, {run.nodes} nodes", "on the wire", "MB", [run.bytes / hours / 1e6]
        )
    for run in runs:
        yield Figure(
            f"cost of a node-second, {run.nodes} nodes",
            "of one core",
            "µs",
            [run.cpu_s / run.node_seconds * 1e6],
        )
    if bench.plots is not None:
        scale_plot.draw(runs, bench.plots / "scale.png")
    smaller, largest = runs[-2:]
    yield Figure(
        "cost of a node-second, growth",
        f"from {smaller.nodes} to {largest.nodes} nodes",
        "x",
        [(largest.cpu_s / largest.node_seconds) / (smaller.cpu_s / smaller.node_seconds)],
        target=at_most(COST_FACTOR_MAX),
    )
    second = runs[1]
    yield Figure(
        "messages per chat, growth",
        f"from {second.nodes} to {largest.nodes} nodes",
        "x",
        [(largest.messages / largest.chats) / (second.messages / second.chats)],
        target=at_most(GROWTH_MAX),
    )
    yield Figure(
        "sent per node and hour, growth",
        f"from {second.nodes} to {largest.nodes} nodes",
        "x",
        [(largest.bytes / largest.node_seconds) / (second.bytes / second.node_seconds)],
        target=at_most(GROWTH_MAX),
    )


def measure(nodes: int, seconds: float) -> WorldRun:
    """Run a world in a process of its own.

    Raises:
        LocalMeshFailed: it ended without a result.
    """
    with helper("world_run", SCENARIO, str(nodes), str(seconds), str(SEED)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        if not line:
            raise LocalMeshFailed("a simulated world ended without a result", process.stderr.read())
        return msgspec.json.decode(line, type=WorldRun)
