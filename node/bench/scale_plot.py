"""The scaling story in one picture: what a chat and a node send, in meshes of ten to ten thousand devices."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from node.bench.world_run import WorldRun
from node.simulation.plots import BLUE, DOTS_PER_IN, STYLE, VERMILION, WIDTH_IN

SIZES: Final = FuncFormatter(lambda value, _: f"{value:,.0f}")


def draw(runs: Sequence[WorldRun], path: Path) -> None:
    """Draw the runs, which grow, into a PNG."""
    nodes = [run.nodes for run in runs]
    panels = (
        ("messages per chat, of all nodes", BLUE, [run.messages / run.chats for run in runs]),
        ("MB per node and hour", VERMILION, [run.bytes / (run.node_seconds / 3_600) / 1e6 for run in runs]),
    )
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 3.6), layout="constrained")
        figure.suptitle("What does not grow with the mesh", x=0.01, ha="left", fontsize=14, fontweight="bold")
        for axes, (name, colour, values) in zip(figure.subplots(1, 2), panels, strict=True):
            axes.plot(nodes, values, color=colour, linewidth=2.2, marker="o")
            axes.set_xscale("log")
            axes.set_xticks(nodes)
            axes.xaxis.set_major_formatter(SIZES)
            axes.minorticks_off()
            axes.set_ylim(0, 1.25 * max(values))
            axes.set_xlabel("nodes")
            axes.set_ylabel(name)
            axes.grid(visible=True, axis="y")
        figure.savefig(path, dpi=DOTS_PER_IN, metadata={"Software": None})
