"""`train`: have devices with private data train an adapter together, and watch it round by round."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import trio
import typer

from node.cli.options import HomeOption, JsonOption
from node.cli.runs import domains_table, headline, round_line, rounds_table
from node.cli.show import cell, credit, out, print_json, short
from node.errors import StartError

POLL_S = 0.5
ENDED = ("finished", "aborted", "cancelled", "unsold")
MICRO = 1_000_000


def train(
    data: Annotated[
        str, typer.Argument(metavar="NAME", help="The name of the private data, as its owners registered it.")
    ],
    model: Annotated[
        str, typer.Option("--model", metavar="M", help="The model to adapt; 'agora model lines' lists them.")
    ],
    rounds: Annotated[int | None, typer.Option("--rounds", metavar="N", help="Rounds of training.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="Steps of each round.")] = None,
    strategy: Annotated[
        str,
        typer.Option(
            "--strategy",
            metavar="S[,K=V…]",
            help="How updates are put together, e.g. 'multikrum' or 'fedtrimmedavg,beta=0.2'.",
        ),
    ] = "default",
    least: Annotated[int, typer.Option("--min", metavar="N", help="Members it needs.")] = 3,
    most: Annotated[int, typer.Option("--max", metavar="N", help="Members it takes.")] = 8,
    price_max: Annotated[
        float | None,
        typer.Option("--price-max", metavar="CREDITS", help="The most that one step of one member may cost."),
    ] = None,
    from_run: Annotated[
        str, typer.Option("--from", metavar="RUN", help="Go on from this run's newest checkpoint.")
    ] = "",
    rank: Annotated[int | None, typer.Option("--rank", metavar="R", help="Of the adapter.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", metavar="N", help="Examples in a step.")] = None,
    round_timeout: Annotated[
        float | None,
        typer.Option("--round-timeout", metavar="S", help="Seconds a round waits for its members."),
    ] = None,
    window: Annotated[
        float | None, typer.Option("--window", metavar="S", help="Seconds that devices have to enlist.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Announce it, and do not watch.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train an adapter on private data that stays where it is: devices that hold it bid, train, and send updates.

    What comes of it is a proposal on which the mesh votes. Ctrl-C stops watching; the run goes on.

    Example: `agora train heat-pump-logs --model llama-1b --rounds 16`
    """
    from node.cli.daemon import ask

    name, parameters = _strategy(strategy)
    seconds = {"round_s": round_timeout, "window_s": window}
    wanted: dict[str, Any] = {name: value for name, value in seconds.items() if value is not None} | {
        "data": data, "line": model, "rounds": rounds, "steps": steps, "rank": rank, "batch": batch, "strategy": name,
        "parameters": parameters, "cohort_min": least, "cohort_max": max(least, most), "start_from": from_run,
        "step_micro_max": None if price_max is None else round(price_max * MICRO),
    }  # fmt: skip
    run = ask(home, lambda admin: admin.train(wanted))
    if as_json:
        print_json(run)
        return
    if run["outlook"]:
        out.print(cell(run["outlook"], "yellow"))
    out.print("run", cell(run["run_id"], "bold"), f"announced: who holds {data!r} and would train {model!r}?")
    if detach:
        return
    try:
        run = ask(home, lambda admin: _follow(admin.training_run, run["run_id"], run["outlook"]))
    except KeyboardInterrupt:
        out.print(f"the run goes on; see it with 'agora runs show {short(run['run_id'])}'")
        return
    _conclude(run)


async def _follow(look: Callable[[str], Any], run_id: str, outlook: str) -> dict[str, Any]:
    """Show one line for each round as it ends, until the run has."""
    shown = 0
    is_opened = False
    with _live() as live:
        while True:
            run: dict[str, Any] = await look(run_id)
            if run["outlook"] != outlook:  # of the devices that have enlisted, before the first step
                outlook = run["outlook"]
                out.print(cell(outlook, "yellow"))
            if run["cohort"] and run["state"] != "enlisting" and not is_opened:
                is_opened = True
                out.print(headline(run))
            if live is not None:
                live.update(rounds_table(run), refresh=True)
            else:
                # a round is told once its exam is over; the last ones with the run's end
                ready = [each for each in run["history"][shown:] if each["domains"] or run["state"] in ENDED]
                for each in ready:
                    out.print(round_line(each, run["rounds"]))
                shown += len(ready)
            if run["state"] in ENDED:
                return run
            await trio.sleep(POLL_S)


def _live() -> AbstractContextManager[Any]:
    if not out.is_terminal:
        return nullcontext()
    from rich.live import Live

    return Live(console=out, auto_refresh=False)


def _conclude(run: dict[str, Any]) -> None:
    """Say what came of it.

    Raises:
        StartError: nothing did.
    """
    if run["state"] != "finished":
        why = "; ".join(
            f"{short(each['peer_id'])} {each['reason']}: {each['detail']}" for each in run["declines"]
        )
        raise StartError(
            f"run {short(run['run_id'])} ended {run['state']}: {run['reason']}{f' ({why})' if why else ''}"
        )
    out.print(domains_table(run))
    out.print(
        f"adapter {run['adapter'][:12]} is proposed to the mesh for {run['line']}, "
        f"paid {credit(run['price_micro'])}; see 'agora patches' and 'agora proposals'"
    )


def _strategy(text: str) -> tuple[str, dict[str, float]]:
    """Split `NAME,KEY=VALUE,…`.

    Raises:
        StartError: a parameter is no number.
    """
    name, *pairs = text.split(",")
    parameters: dict[str, float] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        try:
            parameters[key.strip()] = float(value)
        except ValueError:
            raise StartError(f"--strategy has {pair!r}, expected KEY=NUMBER such as 'beta=0.2'") from None
    return name, parameters
