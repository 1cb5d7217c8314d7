"""`demo` and `bench`: what it does, and how fast."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the mesh up, and print how to chat with it.")
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FILE.gguf", help="Sell this model instead of the tiny one."),
    ] = None,
) -> None:
    """Run daemons on this machine and watch them trade, answer, survive a kill, learn together and vote.

    Example: `agora demo --keep`
    """
    from node.demo import run

    run(keep=keep, model=model)


def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="Everything small: a trial of the bench itself.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="NAME",
            help="Only this chapter; may be repeated: speed, first-token, auction, kill, stop, join, idle, "
            "connections, money, gossip, simulation, round, cohorts, patch.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE.md",
            help="Write the report there; else docs/BENCHMARKS.md for a whole run, and nowhere for a part of one.",
        ),
    ] = None,
) -> None:
    """Measure this checkout: overhead, auctions, failover, memory; writes docs/BENCHMARKS.md.

    Example: `agora bench --only auction`
    """
    from node.bench.runner import run

    run(quick=quick, only=only or (), output=output)
