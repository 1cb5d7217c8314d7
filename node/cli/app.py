"""All verbs, in the order in which a newcomer meets them, and the one line on stderr when something is refused."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import click
import typer

from node.cli import (
    assembly,
    calibrating,
    care,
    charter,
    chat,
    data,
    joining,
    keys,
    market,
    mesh,
    models,
    patches,
    runs,
    showcase,
    simulation,
    train,
)
from protocol.errors import AgoraError

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended

FIRST_STEPS = "First steps"
DAILY = "Every day"
MARKET = "The market"
MEMBERS = "Members"
CARE = "Care"
TRY_OUT = "Try it out"

app = typer.Typer(
    name="agora",
    help="Turn the devices a group already owns into one private AI.",
    epilog="New here: `agora demo` shows it all; `agora init`, `agora up` and `agora invite` start a mesh of your own.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _verb(name: str, function: Callable[..., Any], panel: str, **settings: Any) -> None:
    app.command(name, rich_help_panel=panel, **settings)(function)


def _group(group: typer.Typer, name: str, panel: str) -> None:
    app.add_typer(group, name=name, rich_help_panel=panel)


_verb("init", joining.init, FIRST_STEPS)
_verb("invite", joining.invite, FIRST_STEPS)
_verb("join", joining.join, FIRST_STEPS)
_verb(
    "up",
    mesh.up,
    FIRST_STEPS,
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
_verb("status", mesh.status, DAILY)
_verb("peers", mesh.peers, DAILY)
_verb("models", models.listing, DAILY)
_group(models.group, "model", DAILY)
models.group.command("line")(assembly.line)
models.group.command("lines")(assembly.lines)
_verb("chat", chat.chat, DAILY)
_group(data.group, "data", DAILY)
_verb("train", train.train, DAILY)
_group(runs.group, "runs", DAILY)
_group(market.jobs_group, "jobs", MARKET)
_verb("ledger", market.ledger, MARKET)
_group(keys.group, "keys", MEMBERS)
_group(charter.group, "charter", MEMBERS)
_group(patches.group, "patches", MEMBERS)
_verb("proposals", patches.proposals, MEMBERS)
_verb("vote", patches.vote, MEMBERS)
_verb("approve", assembly.approve, MEMBERS)
_verb("veto", assembly.veto, MEMBERS)
_verb("revoke", joining.revoke, MEMBERS)
_verb("leave", joining.leave, MEMBERS)
_verb("logs", care.logs, CARE)
_verb("doctor", care.doctor, CARE)
_verb("calibrate", calibrating.calibrate, CARE)
_verb("backup", care.backup, CARE)
_verb("restore", care.restore, CARE)
_verb("demo", showcase.demo, TRY_OUT)
_group(simulation.sim_group, "sim", TRY_OUT)
_verb("bench", showcase.bench, TRY_OUT)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; return the exit status. What was refused is said in one line on stderr."""
    try:
        status = app(args=list(arguments), prog_name="agora", standalone_mode=False)
    except click.ClickException as error:
        return _refuse(_usage_line(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        status = INTERRUPTED
    except AgoraError as error:
        return _refuse(str(error), 1)
    except BrokenPipeError:  # `agora logs | head`: the reader has enough
        sys.stderr.close()
        return 0
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        return _refuse(f"{what}{error.strerror or error}", 1)
    if status == INTERRUPTED:  # typer's own way to tell of it
        return _refuse("stopped by Ctrl-C", INTERRUPTED)
    return status if isinstance(status, int) else 0


def _usage_line(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    if not message or context is None:
        return message or "expected a verb; run 'agora --help'"
    return f"{message[0].lower()}{message[1:]}; run '{context.command_path} --help'"


def _refuse(message: str, status: int) -> int:
    sys.stderr.write(" ".join(message.split()) + "\n")
    return status
