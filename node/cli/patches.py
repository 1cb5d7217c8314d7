"""`patches`, `proposals`, `vote`: what the mesh's models have become, what they may become, and who has said what of it."""

from typing import Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from node.cli import assembly
from node.cli.options import HomeOption, JsonOption
from node.cli.show import cell, clock, out, pairs, print_json, short, short_clock, sizes, table

group = typer.Typer()

PatchArgument = Annotated[
    str, typer.Argument(metavar="ID", help="The patch's id, or the first digits of it; see 'agora patches'.")
]
STATE_STYLES = {
    "ratified": "green",
    "voting": "cyan",
    "certified": "cyan",
    "vetoed": "red",
    "withdrawn": "red",
    "rejected": "red",
}
VOTE_STYLES = {"yes": "green", "no": "red", "cannot vote": "yellow"}


@group.callback(invoke_without_command=True)
def patches(context: typer.Context, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List every patch that was proposed, the newest first; `show ID` tells where one comes from and what it does.

    Example: `agora patches`
    """
    if context.invoked_subcommand is not None:
        return
    from node.cli.daemon import ask

    found = ask(home, lambda admin: admin.patches())
    if as_json:
        print_json(found)
        return
    shown = table(
        "patch", "at", "line", "version", "state", "adapter", "by", "here",
        right=("version",), fold=("line", "here"),
    )  # fmt: skip
    for patch in found:
        shown.add_row(
            short(patch["id"]),
            short_clock(patch["proposed_at"]),
            cell(patch["line"]),
            f"v{patch['version']}",
            state_text(patch),
            patch["adapter_digest"][:8] or "bare base",
            short(patch["author"]),
            cell(here(patch)),
        )
    out.print(shown if found else "no patches yet; 'agora train NAME --model M' makes one")


@group.command()
def show(ident: PatchArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Tell one patch: the run and the members that made it, what it does in every domain, and how it stands.

    Example: `agora patches show 3f9a1c2b`
    """
    from node.cli.daemon import ask

    patch = ask(home, lambda admin: admin.patch(ident))
    if as_json:
        print_json(patch)
        return
    out.print(Text.assemble(("patch ", "dim"), (patch["id"], "bold")))
    adapter = (
        f"{patch['adapter_digest']} ({sizes(patch['adapter_bytes'])})" if patch["adapter_digest"] else "none"
    )
    out.print(
        pairs(
            {
                "line": f"{patch['line']}, version {patch['version']}",
                "state": state_text(patch),
                "here": here(patch),
                "proposed": f"{clock(patch['proposed_at'])} by {short(patch['author'])}",
                "adapter": adapter,
                "base": patch["base_digest"],
                "run": patch["run_id"] or "none made it",
                "brings back": f"version {patch['rolls_back_to']}" if patch["rolls_back_to"] else "–",
                "reason": patch["reason"] or "–",
            }
        )
    )
    if patch["cohort"]:
        out.print(cohort_table(patch))
    out.print(score_table(patch["scores"]))


@group.command()
def rollback(ident: PatchArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Propose the way back from a patch in force: the version before, as a new version to be voted on.

    Example: `agora patches rollback 3f9a1c2b`
    """
    from node.cli.daemon import ask

    made = ask(home, lambda admin: admin.roll_back(ident))
    if as_json:
        print_json(made)
        return
    to = f"version {made['rolls_back_to']}" if made["rolls_back_to"] else "the bare base"
    out.print("proposed", cell(short(made["id"]), "bold"), f"as version {made['version']}: back to {to}.")
    out.print("voters judge it now; 'agora proposals' shows what is still needed.")


group.command("withdraw")(assembly.withdraw)


def proposals(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the ballots: who has voted, who cannot, and what is still needed.

    Example: `agora proposals`
    """
    from node.cli.daemon import ask

    found = ask(home, lambda admin: admin.proposals())
    if as_json:
        print_json(found)
        return
    if not found:
        out.print("no proposals yet; 'agora train NAME --model M' makes one")
    for proposal in found:
        for line in proposal_story(proposal):
            out.print(line)


def vote(
    ident: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="The proposal's id, or the first digits of it; see 'agora proposals'."
        ),
    ],
    word: Annotated[Literal["yes", "no"], typer.Argument(metavar="yes|no", help="A vote is never changed.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Vote for this device on a proposal, before it has by itself.

    Example: `agora vote 3f9a1c2b no`
    """
    from node.cli.daemon import ask

    said = ask(home, lambda admin: admin.vote(ident, is_yes=word == "yes"))
    if as_json:
        print_json(said)
        return
    out.print("this device votes", cell(word, VOTE_STYLES[word]), f"on {short(said['id'])}.")


def state_text(patch: dict[str, Any]) -> Text:
    """Return how a patch stands on the mesh."""
    state = "in force" if patch.get("is_in_force") else patch["state"]
    return Text(state, "bold green" if state == "in force" else STATE_STYLES.get(state, "dim"))


def here(patch: dict[str, Any]) -> str:
    """Return how a patch stands on this device."""
    if patch["why_not"]:
        return f"not served: {patch['why_not']}"
    return "loaded" if patch["is_loaded"] else "–"


def cohort_table(patch: dict[str, Any]) -> Table:
    """Return who trained it, and what they spent on it."""
    shown = table("member", "samples", "rounds", "epsilon", right=("samples", "rounds", "epsilon"))
    for member in patch["cohort"]:
        epsilon = "without privacy" if member["epsilon"] is None else f"{member['epsilon']:.2f}"
        shown.add_row(short(member["peer_id"]), str(member["samples"]), str(member["rounds"]), epsilon)
    return shown


def score_table(scores: list[dict[str, Any]]) -> Table:
    """Return exact match by domain, before and after."""
    shown = table(
        "domain", "questions", "before", "after", right=("questions", "before", "after"), fold=("domain",)
    )
    for score in scores:
        before = score["before"]
        change = 0.0 if before is None else score["after"] - before
        style = "green" if change > 0 else "red" if change < 0 else ""
        shown.add_row(
            cell(score["domain"]),
            str(score["total"]),
            "–" if before is None else f"{before:.2f}",
            Text(f"{score['after']:.2f}", style),
        )
    return shown


def proposal_story(proposal: dict[str, Any]) -> list[Text]:
    """Return a ballot, line by line."""
    lines = [
        Text.assemble(
            (short(proposal["id"]), "bold"),
            f"  {proposal['kind']} v{proposal['version']} of ",
            cell(proposal["line"]),
            "  ",
            state_text(proposal),
            f"  yes {proposal['yes_weight']} of {proposal['roll_weight']}, {proposal['weight_to_pass']} needed",
        )
    ]
    if proposal["still_needed"]:
        lines.append(cell(f"    needs: {proposal['still_needed']}, until {clock(proposal['expires_at'])}"))
    for voter in proposal["votes"]:
        word = voter["vote"] or "–"
        reason = f"  {voter['reason']}" if voter["reason"] else ""
        lines.append(
            Text.assemble(
                f"    {short(voter['peer_id'])}  ", (word, VOTE_STYLES.get(word, "dim")), cell(reason)
            )
        )
    lines += [cell(f"    {short(human)}  approved", "green") for human in proposal["approved_by"]]
    lines += [cell(f"    {short(human)}  vetoed", "red") for human in proposal["vetoed_by"]]
    return lines
