"""`runs`, `runs show`, `pause`, `resume`, `cancel`, `plot`: what trains, what trained, and what came of it."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from node.cli.options import HomeOption, JsonOption
from node.cli.show import cell, clock, credit, out, pairs, print_json, short, short_clock, sizes, table
from node.errors import StartError

group = typer.Typer()

STATE_STYLES = {"finished": "green", "running": "cyan", "enlisting": "cyan", "paused": "yellow"}
RunArgument = Annotated[str, typer.Argument(metavar="ID", help="The run's id, or the beginning of it.")]


@group.callback(invoke_without_command=True)
def runs(context: typer.Context, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the training runs of this device, its own and those it takes part in.

    Example: `agora runs`
    """
    if context.invoked_subcommand is not None:
        return
    from node.cli.daemon import ask

    found = ask(home, lambda admin: admin.runs())
    if as_json:
        print_json(found)
        return
    shown = table(
        "run", "at", "state", "role", "data", "model", "round", "members", "paid",
        right=("round", "members", "paid"), fold=("data", "model"),
    )  # fmt: skip
    for run in found:
        shown.add_row(
            short(run["run_id"]),
            short_clock(run["started_at"]),
            Text(run["state"], STATE_STYLES.get(run["state"], "red")),
            run["role"],
            cell(run["data"]),
            cell(run["line"]),
            f"{run['round']}/{run['rounds']}",
            str(len(run["cohort"])),
            credit(run["price_micro"]),
        )
    out.print(shown if found else "no runs yet; announce one with 'agora train NAME --model M'")


@group.command()
def show(ident: RunArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Tell one run: who took part, what each round brought, what was spent, and what came of it.

    Example: `agora runs show 3f9a1c2b`
    """
    from node.cli.daemon import ask

    run = ask(home, lambda admin: admin.training_run(ident))
    if as_json:
        print_json(run)
        return
    out.print(headline(run))
    out.print(
        pairs(
            {
                "data": run["data"],
                "model": f"{run['line']} ({run['base'][:8]})",
                "coordinator": short(run["coordinator"]),
                "strategy": protection(run),
                "began": clock(run["started_at"]),
                "parent": run["parent"][:8] or "–",
                "checkpoint": run["checkpoint"][:12] or "–",
                "adapter": run["adapter"][:12] or "–",
                "paid": credit(run["price_micro"]),
            }
        )
    )
    out.print(_members(run))
    for each in run["declines"]:
        out.print(cell(f"  {short(each['peer_id'])} declined, {each['reason']}: {each['detail']}", "dim"))
    out.print(rounds_table(run))
    if any(each["domains"] for each in run["history"]):
        out.print(domains_table(run))


@group.command()
def pause(ident: RunArgument, home: HomeOption = None) -> None:
    """Ask members for no further round until it is resumed; what is under way is finished.

    Example: `agora runs pause 3f9a1c2b`
    """
    _steer(home, ident, "pause")


@group.command()
def resume(ident: RunArgument, home: HomeOption = None) -> None:
    """Go on with a run that was paused.

    Example: `agora runs resume 3f9a1c2b`
    """
    _steer(home, ident, "resume")


@group.command()
def cancel(ident: RunArgument, home: HomeOption = None) -> None:
    """End a run. Its newest checkpoint stays: 'agora train --from ID' goes on from it.

    Example: `agora runs cancel 3f9a1c2b`
    """
    _steer(home, ident, "cancel")


@group.command()
def plot(
    ident: RunArgument,
    file: Annotated[Path, typer.Option("--out", metavar="FILE.svg", help="Where the drawing goes.")],
    home: HomeOption = None,
) -> None:
    """Draw a run's curves: accuracy by domain, loss, and privacy spent, round by round.

    Example: `agora runs plot 3f9a1c2b --out run.svg`
    """
    from node.cli.daemon import ask
    from node.run_plot import draw

    run = ask(home, lambda admin: admin.training_run(ident))
    try:
        file.expanduser().write_text(draw(run), encoding="utf-8")
    except OSError as error:
        raise StartError(f"cannot write {file} ({error.strerror}), expected a place for an SVG") from error
    out.print("wrote", cell(file))


def _steer(home: Path | None, ident: str, verb: str) -> None:
    from node.cli.daemon import ask

    run = ask(home, lambda admin: admin.steer_run(ident, verb))
    out.print("run", cell(short(run["run_id"]), "bold"), f"is {run['state']}")


# --- how runs look ----------------------------------------------------------------------------------------------------
def headline(run: dict[str, Any]) -> Text:
    """Return a run in one line."""
    reason = f" ({run['reason']})" if run["reason"] else ""
    return Text.assemble(
        ("run ", "dim"),
        (run["run_id"][:8], "bold"),
        f" {run['state']}{reason}: {len(run['cohort'])} members, ",
        f"{run['rounds']} rounds of {run['steps']} steps, {protection(run)}",
    )


def protection(run: dict[str, Any]) -> str:
    """Return the strategy, and whether it withstands members that lie."""
    if run["is_protected"]:
        return str(run["strategy"])
    return f"{run['strategy']}, no Byzantine protection" if run["round"] else str(run["strategy"])


def rounds_table(run: dict[str, Any]) -> Group:
    """Return one line for each round, and who is how far in the one under way."""
    shown = table(
        "round", "members", "dropped", "loss", "accuracy", "precision", "recall", "F1", "bytes", "seconds", "epsilon",
        right=("members", "loss", "accuracy", "precision", "recall", "F1", "bytes", "seconds", "epsilon"), fold=("dropped",),
    )  # fmt: skip
    if run["before"]:
        shown.add_row("before", "", "", *_means(run["before"]), "", "", "")
    for each in run["history"]:
        shown.add_row(
            f"{each['round']}/{run['rounds']}",
            str(len(each["members"])),
            cell(_dropped(each)),
            *_means(each["domains"]),
            sizes(each["bytes_down"] + each["bytes_up"]),
            f"{each['seconds']:.1f}",
            _epsilon(each["epsilon_milli_max"]),
        )
    under_way = "  ".join(f"{short(peer)} {share:.0%}" for peer, share in run["progress"].items())
    return Group(shown, Text(under_way, "dim"))


def round_line(each: dict[str, Any], rounds: int) -> Text:
    """Return a round as a line of text, for what is no terminal."""
    loss, accuracy, precision, recall, f1 = _means(each["domains"])
    dropped = _dropped(each)
    return Text(
        f"round {each['round']}/{rounds}: {len(each['members'])} members, loss {loss}, accuracy {accuracy}, "
        f"precision {precision}, recall {recall}, F1 {f1}, {sizes(each['bytes_down'] + each['bytes_up'])}, "
        f"{each['seconds']:.1f} s, epsilon {_epsilon(each['epsilon_milli_max'])}"
        + (f"; dropped {dropped}" if dropped != "–" else "")
    )


def domains_table(run: dict[str, Any]) -> Table:
    """Return every domain before the run and after its newest examined round."""
    before = {each["domain"]: each for each in run["before"]}
    newest: list[dict[str, Any]] = next(
        (each["domains"] for each in reversed(run["history"]) if each["domains"]), []
    )
    shown = table(
        "domain", "accuracy before", "after", "loss before", "after", "precision", "recall", "F1",
        right=("accuracy before", "after", "loss before", "precision", "recall", "F1"), fold=("domain",),
    )  # fmt: skip
    for each in newest:
        old = before.get(each["domain"])
        shown.add_row(
            cell(each["domain"]),
            f"{old['accuracy']:.2f}" if old else "–",
            f"{each['accuracy']:.2f}",
            f"{old['loss']:.3f}" if old else "–",
            f"{each['loss']:.3f}",
            f"{each['precision']:.2f}",
            f"{each['recall']:.2f}",
            f"{each['f1']:.2f}",
        )
    return shown


def _members(run: dict[str, Any]) -> Table:
    shown = table(
        "member", "owner", "samples", "a step", "steps/s", "epsilon planned", "paid", "",
        right=("samples", "a step", "steps/s", "epsilon planned", "paid"), fold=("owner", ""),
    )  # fmt: skip
    for each in run["cohort"]:
        shown.add_row(
            short(each["peer_id"]),
            cell(each["owner"]),
            f"{each['samples']:,}",
            credit(each["step_micro"]),
            f"{each['steps_per_s']:.1f}" if each["steps_per_s"] else "–",
            _epsilon(each["epsilon_milli"]),
            credit(each["paid_micro"]),
            cell("this device" if each["is_local"] else each["out"]),
        )
    return shown


def _means(domains: list[dict[str, Any]]) -> tuple[str, str, str, str, str]:
    if not domains:
        return "–", "–", "–", "–", "–"
    means = [
        sum(each[name] for each in domains) / len(domains)
        for name in ("loss", "accuracy", "precision", "recall", "f1")
    ]
    loss, accuracy, precision, recall, f1 = (f"{mean:.3f}" for mean in means)
    return loss, accuracy, precision, recall, f1


def _dropped(each: dict[str, Any]) -> str:
    return ", ".join(f"{short(lost['peer_id'])} ({lost['reason']})" for lost in each["dropped"]) or "–"


def _epsilon(milli: int) -> str:
    return "no DP" if milli < 0 else f"{milli / 1000:.3f}"
