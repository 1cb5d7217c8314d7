"""`demo` and `bench`: what it does, and how fast."""

from pathlib import Path
from typing import Annotated

import typer

from node.errors import StartError


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the mesh up, and print how to chat with it.")
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FILE.gguf", help="Sell this model instead of the tiny one."),
    ] = None,
) -> None:
    """Run three daemons on this machine and watch them trade, answer, and survive a kill.

    Example: `agora demo --keep`
    """
    from node.demo import run

    run(keep=keep, model=model)


def bench() -> None:
    """Measure this checkout: overhead, auctions, failover, memory; writes docs/BENCHMARKS.md.

    Example: `agora bench`
    """
    import subprocess
    import sys

    root = Path(__file__).resolve().parent.parent.parent
    if not (root / "tests" / "benchmarks" / "__main__.py").is_file():
        raise StartError(
            f"no benchmarks in {root}, expected a checkout; clone the repository and run 'make bench'"
        )
    done = subprocess.run([sys.executable, "-m", "tests.benchmarks"], cwd=root, check=False)
    if done.returncode != 0:
        raise StartError(
            f"the benchmarks ended with status {done.returncode}, expected 0; read the lines above"
        )
