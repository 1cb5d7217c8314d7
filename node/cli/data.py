"""`data`, `data add`, `data remove`: this device's private records, and how much of their privacy is left."""

from pathlib import Path
from typing import Annotated, Any

import typer

from node.cli.options import HomeOption, JsonOption
from node.cli.show import cell, err, out, print_json, short_clock, table
from node.errors import StartError
from protocol.limits import EPSILON_MILLI_MAX

group = typer.Typer()


@group.callback(invoke_without_command=True)
def data(context: typer.Context, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List this device's private data sets, and what training has spent of their privacy.

    They never leave the device; runs train on them here. The unit of privacy is one record.

    Example: `agora data`
    """
    if context.invoked_subcommand is not None:
        return
    from node.cli.daemon import ask

    found = ask(home, lambda admin: admin.data())
    if as_json:
        print_json(found)
        return
    if not found:
        out.print("no private data yet; run 'agora data add NAME FILE.jsonl --budget 4'")
        return
    shown = table(
        "name", "digest", "samples", "held out", "epsilon", "spent", "left", "added",
        right=("samples", "held out", "epsilon", "spent", "left"), fold=("name",),
    )  # fmt: skip
    for each in found:
        shown.add_row(
            cell(each["name"], "bold"),
            each["digest"][:8],
            f"{each['samples']:,}",
            f"{each['held_out']:,}",
            *_epsilons(each),
            short_clock(each["added_at"]),
        )
    out.print(shown)
    out.print(
        "the unit is one record: epsilon, the budget, bounds what all runs together can tell of any single one"
    )


@group.command()
def add(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What runs ask for it by, e.g. heat-pump-logs.")
    ],
    file: Annotated[
        Path, typer.Argument(metavar="FILE.jsonl", help='Lines like {"prompt": "…", "response": "…"}.')
    ],
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget", metavar="E", help="The epsilon that may be spent on each record; 8 at most is usual."
        ),
    ] = None,
    no_dp: Annotated[
        bool, typer.Option("--no-dp", help="Train without differential privacy: updates may tell of records.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Freeze a copy of private records on this device and decide how they may be trained on.

    The decision is made once, here, and every run obeys: a budget that all of them share, or no differential privacy.

    Example: `agora data add heat-pump-logs logs.jsonl --budget 4`
    """
    from node.cli.daemon import ask

    budget_milli = _budget_milli(budget, no_dp)
    path = file.expanduser().absolute()
    if not path.is_file():
        raise StartError(f"no file {path}, expected JSON lines; name one that exists")
    added = ask(home, lambda admin: admin.add_data(str(path), name, budget_milli))
    if as_json:
        print_json(added)
        return
    was = "added" if added["is_new"] else "was here already:"
    out.print(
        was, cell(added["name"], "bold"), f"({added['digest'][:8]}):",
        f"{added['samples']:,} to train on, {added['held_out']:,} held out",
    )  # fmt: skip
    if added["duplicates"]:
        err.print(
            f"{added['duplicates']:,} lines repeat an earlier one and were left out: the unit is one record"
        )
    if added["seen_before"] and added["spent_milli"]:
        err.print(
            f"{added['seen_before']:,} of them were trained on in other sets: epsilon "
            f"{added['spent_milli'] / 1000:g} is spent already"
        )
    err.print(cell(added["hint"], "" if added["outlook"] == "learns" else "yellow"))


@group.command()
def remove(
    digest: Annotated[str, typer.Argument(metavar="DIGEST", help="Its digest, or the beginning of it.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete this device's copy of private records; what was spent on them is remembered if they come again.

    Example: `agora data remove 3f9a1c2b`
    """
    from node.cli.daemon import ask

    removed = ask(home, lambda admin: admin.remove_data(digest))
    if as_json:
        print_json(removed)
        return
    out.print("removed", cell(removed["name"], "bold"), f"({removed['digest'][:8]})")


def _budget_milli(budget: float | None, no_dp: bool) -> int:
    if (budget is None) == (not no_dp):
        found = "neither" if budget is None else "both"
        raise StartError(
            f"found {found} of --budget E and --no-dp, expected exactly one: how may it be trained on?"
        )
    if budget is None:
        return 0
    if not 0.001 <= budget <= EPSILON_MILLI_MAX / 1000:  # not a number compares as false
        raise StartError(
            f"--budget is {budget:g}, expected an epsilon from 0.001 to {EPSILON_MILLI_MAX / 1000:g}, e.g. 4"
        )
    return int(budget * 1000 + 1e-6)  # never more than was said


def _epsilons(each: dict[str, Any]) -> tuple[str, str, str]:
    if not each["is_private"]:
        return "no DP", "–", "–"
    return (
        f"{each['budget_milli'] / 1000:g}",
        f"{each['spent_milli'] / 1000:.3f}",
        f"{each['left_milli'] / 1000:.3f}",
    )
