"""`charter show`, `charter propose`, `charter sign`: who decides on this mesh, and who shall."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from node.cli.assembly import PassphraseFile
from node.cli.joining import one_peer
from node.cli.options import HomeOption, JsonOption, YesOption, home_of
from node.cli.show import cell, out, pairs, print_json, short, table
from node.cli.time_text import duration

group = typer.Typer()

MINUTE_MS, HOUR_MS = 60_000, 3_600_000
CODE_VARIABLE = "AGORA_RECOVERY_CODE"


@group.callback(invoke_without_command=True)
def charter(context: typer.Context, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show who decides on this mesh, and how; propose and sign the next charter.

    Example: `agora charter`
    """
    if context.invoked_subcommand is None:
        show(home, as_json)


@group.command("show")
def show(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show the charter in force and what is proposed: voters, weights, approvers, thresholds.

    Example: `agora charter show`
    """
    from node.cli.daemon import ask

    found = ask(home, lambda admin: admin.charter())
    if as_json:
        print_json(found)
        return
    _show_one(found, {"mesh": found["name"], "mesh id": found["mesh_id"], "version": found["version"]})
    for proposed in found["proposed"]:
        out.print()
        _show_one(
            proposed,
            {
                "proposed": f"version {proposed['version']}, {proposed['id'][:12]}, by {short(proposed['proposed_by'])}",
                "agreed": f"{proposed['old_weight']} of the {proposed['old_needed']} needed of today's roll, "
                f"{proposed['new_weight']} of the {proposed['new_needed']} of its own",
                "missing": ", ".join(short(peer) for peer in proposed["missing"]),
            },
        )
        if proposed["is_mine_to_sign"]:
            out.print(f"this device may agree: agora charter sign {proposed['id'][:12]}")


@group.command("propose")
def propose(
    voter: Annotated[
        list[str] | None,
        typer.Option(metavar="PEER[=WEIGHT]", help="a member that shall vote, of weight 1; may be repeated"),
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option(metavar="PEER", help="a voter to take off the roll; may be repeated")
    ] = None,
    approver: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="a human's key, in hex, that may approve and veto")
    ] = None,
    remove_approver: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="a human's key that may not any more")
    ] = None,
    pass_percent: Annotated[
        int | None, typer.Option(min=51, max=100, help="yes of the whole roll's weight that passes a ballot")
    ] = None,
    approvals: Annotated[
        int | None,
        typer.Option(min=0, help="humans who must approve; 0: the end of the veto window is enough"),
    ] = None,
    vote_minutes: Annotated[int | None, typer.Option(min=1, help="how long devices may vote")] = None,
    approval_hours: Annotated[int | None, typer.Option(min=1, help="how long humans may approve")] = None,
    veto_minutes: Annotated[int | None, typer.Option(min=0, help="how long humans may veto")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Propose the next charter. Today's roll and the new one have to agree: `agora charter sign` on each device.

    Example: `agora charter propose --voter AbCd12 --voter EfGh34`
    """
    from node.cli.daemon import ask

    known = [peer["peer_id"] for peer in ask(home, lambda admin: admin.peers()) if peer["is_admitted"]]
    known.append(ask(home, lambda admin: admin.status())["peer_id"])
    change: dict[str, Any] = {
        "voters": [_voter(text, known) for text in voter or ()],
        "leaving": [one_peer(text, known) for text in remove or ()],
        "approvers": list(approver or ()),
        "former_approvers": list(remove_approver or ()),
        "pass_percent": pass_percent,
        "approvals_min": approvals,
        "machine_vote_ms": None if vote_minutes is None else vote_minutes * MINUTE_MS,
        "human_approval_ms": None if approval_hours is None else approval_hours * HOUR_MS,
        "veto_ms": None if veto_minutes is None else veto_minutes * MINUTE_MS,
    }
    _tell(ask(home, lambda admin: admin.propose_charter(change)), as_json)


@group.command("sign")
def sign(
    proposal: Annotated[str, typer.Argument(metavar="ID", help="as 'agora charter show' lists it")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Agree to a proposed charter with this device.

    Example: `agora charter sign 3fa94c01`
    """
    from node.cli.daemon import ask

    _tell(ask(home, lambda admin: admin.sign_charter(proposal)), as_json)


@group.command("recover")
def recover(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="RECOVERY_FILE", help="the one that 'agora init' wrote, from wherever it was kept"
        ),
    ],
    voter: Annotated[
        list[str] | None,
        typer.Option(metavar="PEER[=WEIGHT]", help="a member that shall vote; by default this device alone"),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="PEER", help="a voter of today that is still there; all others leave the roll"),
    ] = None,
    code_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Read the recovery code from a file; else AGORA_RECOVERY_CODE, else asked for.",
        ),
    ] = None,
    passphrase_file: PassphraseFile = None,
    yes: YesOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a mesh over whose voters' devices are lost, with its recovery file, on any device that is a member.

    The file's key signs the next charter for all who voted before, and this device agrees to it. The human's key that the
    file holds is kept here too, under a passphrase: it approves patches as before.

    Example: `agora charter recover /media/stick/recovery.agora`
    """
    from node.charter_recovery import sign as sign_recovery
    from node.cli.daemon import ask
    from node.cli.secret import passphrase
    from node.keys import create_human_key, read_recovery
    from protocol.identity import Identity, PublicKey, peer_id_of

    found = home_of(home)
    code = passphrase(code_file, prompt="recovery code", is_new=False, variable=CODE_VARIABLE)
    recovery = read_recovery(file.expanduser().absolute(), code)
    key, human = Identity(recovery.recovery_seed), Identity(recovery.human_seed)
    me = ask(home, lambda admin: admin.status())["peer_id"]
    known = [me, *(peer["peer_id"] for peer in ask(home, lambda admin: admin.peers()))]
    kept = {one_peer(text, known) for text in keep or ()}
    voters = [_voter(text, known) for text in voter or (() if kept else (me,))]
    today = [
        peer_id_of(PublicKey(bytes.fromhex(each["key"])))
        for each in ask(home, lambda admin: admin.charter())["roll"]
    ]
    coming = {each["peer_id"] for each in voters}
    change = {
        "voters": voters,
        "leaving": [peer for peer in today if peer not in kept and peer not in coming],
    }
    place = ask(home, lambda admin: admin.place_recovery(key.peer_id, change))
    if not yes:
        roll = ", ".join(f"{each['owner']} ({each['key'][:16]})" for each in place["roll"])
        typer.confirm(f"charter version {place['version']}: nobody votes but {roll}", abort=True, err=True)
    if not found.human_key.exists():
        create_human_key(
            found, passphrase(passphrase_file, prompt="new passphrase of the human key", is_new=True), human
        )
    raw = sign_recovery(key, place, utc_ms=time.time_ns() // 1_000_000)
    _tell(ask(home, lambda admin: admin.recover_charter(raw)), as_json)


def _tell(outcome: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(outcome)
    elif outcome["in_force"]:
        out.print(f"charter version {outcome['version']} is in force")
    else:
        out.print(
            f"charter version {outcome['version']} waits for {len(outcome['missing'])} more; on each of them:"
        )
        out.print(f"agora charter sign {outcome['id'][:12]}")


def _show_one(found: dict[str, Any], head: dict[str, Any]) -> None:
    facts = found["facts"]
    humans = found["approvals_min"]
    out.print(
        pairs(
            {
                **head,
                "to pass": f"{facts['weight_to_pass']} of {facts['weight_total']} votes ({found['pass_percent']} %)",
                "blocked by": f"{facts['absent_to_block']} absent of {facts['voters']} voters",
                "people": f"{len(found['approvers'])} who approve and veto, "
                + (f"{humans} must approve" if humans else "none must approve"),
                "recovery": f"{len(found['recovery'])} keys kept offline",
                "deadlines": f"votes {duration(found['machine_vote_ms'])}, approval "
                f"{duration(found['human_approval_ms'])}, veto {duration(found['veto_ms'])}",
            }
        )
    )
    roll = table("voter's key", "owner", "weight", title="Roll", right=("weight",))
    for entry in found["roll"]:
        roll.add_row(cell(entry["key"][:16]), cell(entry["owner"]), str(entry["weight"]))
    out.print(roll)
    if not facts["is_byzantine_safe"]:
        out.print("[yellow]not Byzantine-safe[/]: that takes 4 voters of 3 owners or more")


def _voter(text: str, known: list[str]) -> dict[str, Any]:
    name, _, weight = text.partition("=")
    if weight and not weight.isdigit():
        raise typer.BadParameter(f"{text!r} has weight {weight!r}, expected a whole number, e.g. AbCd12=2")
    return {"peer_id": one_peer(name, known), "weight": int(weight or 1)}
