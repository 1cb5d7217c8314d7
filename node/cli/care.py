"""Looking after a device: `logs`, `doctor`, `backup`, `restore`."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from node.cli.options import HomeOption, JsonOption, home_of
from node.cli.show import cell, err, out, print_json, table, waiting
from node.cli.time_text import seconds
from node.errors import StartError

PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="Read the backup's passphrase from a file; else AGORA_PASSPHRASE, else asked for.",
        show_default=False,
    ),
]


def logs(
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Only the last 10m, 2h, 7d.")
    ] = None,
    event: Annotated[str, typer.Option("--event", metavar="GLOB", help="Only events so named.")] = "*",
    job: Annotated[
        str | None, typer.Option("--job", metavar="ID", help="Only events that carry this id.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as things happen.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what happened on this device, one event a line.

    Example: `agora logs --since 1h --event 'award_*' --follow`
    """
    import sys

    import trio

    from node import journal_file
    from node.event import Event

    found = home_of(home)
    found.check()
    since_s = time.time() - seconds("--since", since) if since else 0.0
    wanted = journal_file.Filter(since_s=since_s, name=event, id=job)

    def tell(happened: Event) -> None:
        sys.stdout.write((happened.to_json() if as_json else happened.to_text()) + "\n")

    async def go_on() -> None:
        async for happened in journal_file.follow(found.journal, wanted):
            tell(happened)
            sys.stdout.flush()

    for happened in journal_file.read(found.journal, wanted):
        tell(happened)
    if follow:
        sys.stdout.flush()
        trio.run(go_on)


def doctor(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Check this device: its home, its keys, disk, ports, clock, engine; say what to do about what is wrong.

    Example: `agora doctor`
    """
    import trio

    from node.doctor import Verdict, examine

    found = home_of(home)
    with waiting("examining"):
        findings = trio.run(examine, found)
    if as_json:
        print_json(
            [
                {"name": each.name, "verdict": each.verdict.value, "found": each.found, "advice": each.advice}
                for each in findings
            ]
        )
    else:
        shown = table("", "what", "found", "what to do", fold=("found", "what to do"))
        marks = {
            Verdict.OK: Text("ok", "green"),
            Verdict.WARN: Text("look", "yellow"),
            Verdict.FAIL: Text("bad", "bold red"),
        }
        for each in findings:
            shown.add_row(marks[each.verdict], cell(each.name), cell(each.found), cell(each.advice))
        out.print(shown)
    bad = [each.name for each in findings if each.verdict is Verdict.FAIL]
    if bad:
        raise StartError(f"found {', '.join(bad)} bad, expected all to be sound; the table says what to do")


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write; it must not exist.")],
    passphrase_file: PassphraseFile = None,
    home: HomeOption = None,
) -> None:
    """Write one encrypted file with the keys, the settings, the private data and the database; the daemon may run.

    Example: `agora backup /media/stick/agora.backup`
    """
    from node.backup import backup as write_backup
    from node.cli.secret import passphrase

    found = home_of(home)
    found.check()
    phrase = passphrase(passphrase_file, prompt="a passphrase for the backup", is_new=True)
    with waiting("writing the backup"):
        write_backup(found, file.expanduser().absolute(), phrase)
    err.print("wrote", cell(file), "- models and blobs are not in it: any holder has them; private data is")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What 'agora backup' wrote.")],
    passphrase_file: PassphraseFile = None,
    home: HomeOption = None,
) -> None:
    """Make a home out of a backup; a home that is there already is never overwritten.

    Run only one of the two devices afterwards: one key in two places closes its log.

    Example: `agora restore /media/stick/agora.backup --home ~/.agora`
    """
    from node.backup import restore as read_backup
    from node.cli.secret import passphrase

    phrase = passphrase(passphrase_file, prompt="the backup's passphrase", is_new=False)
    with waiting("reading the backup"):
        restored = read_backup(file.expanduser().absolute(), home_of(home).path, phrase)
    err.print("restored", cell(restored.path), "- next: agora up")
