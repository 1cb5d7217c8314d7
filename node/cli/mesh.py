"""`up`, `status`, `peers`: the daemon and whom it sees."""

import sys
from typing import Any

import typer
from rich.text import Text

from node.cli.options import HomeOption, JsonOption
from node.cli.show import ago, cell, device_line, out, pairs, print_json, short, table


def up(context: typer.Context) -> None:
    """Run the daemon in the foreground until Ctrl-C; `agora up --help` lists its options.

    Example: `agora up --gateway 127.0.0.1:8420`
    """
    from node.daemon import main as run_daemon

    sys.exit(run_daemon(context.args))


def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show this device at a glance.

    Example: `agora status --json`
    """
    from node.cli.daemon import ask

    found = ask(home, lambda admin: admin.status())
    if as_json:
        print_json(found)
        return
    engine = found["engine"]
    out.print(
        pairs(
            {
                "mesh": found["mesh_name"],
                "mesh id": found["mesh_id"],
                "peer": found["peer_id"],
                "owner": found["owner"],
                "roles": ", ".join(found["roles"]) or "none",
                "peers": f"{found['peers']} connected",
                "models": ", ".join(found["models"]) or "none; add one with 'agora model add FILE.gguf'",
                "engine": _engine_line(engine),
                "device": device_line(found["device"]),
                "gateway": f"{found['gateway']}/v1" if found["gateway"] else "none",
                "addresses": "\n".join(found["addresses"]) or "none",
                "up since": f"{ago(found['uptime_s'])}, version {found['version']}",
            }
        )
    )
    for warning in found["warnings"]:
        out.print(Text.assemble(("warning  ", "yellow"), cell(warning)))


def peers(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the devices that this one knows, what they hold and what they ask.

    Example: `agora peers`
    """
    from node.cli.daemon import ask

    found = ask(home, lambda admin: admin.peers())
    if as_json:
        print_json(found)
        return
    shown = table(
        "peer", "owner", "state", "models", "slots", "µ/token", "tok/s", "rtt", "checked", "seen",
        right=("slots", "µ/token", "tok/s", "rtt", "checked"), fold=("owner", "models"),
    )  # fmt: skip
    for peer in found:
        round_trip_ms = peer["round_trip_ms"]
        shown.add_row(
            cell(short(peer["peer_id"])),
            cell(peer["owner"]),
            _state(peer),
            cell(" ".join(digest[:8] for digest in peer["models"]) or "–"),
            f"{peer['slots_free']}/{peer['slots']}",
            f"{peer['prompt_micro']}+{peer['completion_micro']}",
            f"{peer['tokens_per_s']:,.0f}" if peer["tokens_per_s"] else "–",
            "–" if round_trip_ms is None else f"{round_trip_ms:.1f} ms",
            _checked(peer),
            ago(peer["seen_s_ago"]),
        )
    out.print(shown if found else "no peers yet; run 'agora invite' to admit one")


def _checked(peer: dict[str, Any]) -> Text:
    """How many of its answers were checked here, and how many were not by the model that was paid for."""
    if peer["answers_caught"]:
        return Text(f"{peer['answers_checked']}, {peer['answers_caught']} caught", "bold red")
    return Text(str(peer["answers_checked"] or "–"))


def _engine_line(engine: dict[str, Any]) -> str:
    if not engine:
        return "none running, as no model is here"
    words = [f"{engine['slots_free']} of {engine['slots']} slots free", f"sandbox {engine['sandbox']}"]
    if engine["tokens_per_s"]:
        words.append(f"{engine['tokens_per_s']:,.0f} tok/s")
    return ", ".join(words)


def _state(peer: dict[str, Any]) -> Text:
    if peer["is_revoked"]:
        return Text("revoked", "red")
    if not peer["is_admitted"]:
        return Text("stranger", "yellow")
    return Text("connected", "green") if peer["is_connected"] else Text("away", "dim")
