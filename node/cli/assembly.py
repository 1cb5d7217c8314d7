"""`approve`, `veto`, `patches withdraw`: the human's words; `model line`: what the patches of a model are judged by.

The human's key is opened here, for one signature, and never reaches the daemon.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.options import HomeOption, JsonOption, YesOption, home_of
from node.cli.show import cell, err, out, pairs, print_json, short, sizes, table
from node.errors import StartError

if TYPE_CHECKING:
    from node.human_word import WordKind

ProposalArgument = Annotated[
    str,
    typer.Argument(metavar="ID", help="The proposal's id, or the first digits of it; see 'agora proposals'."),
]
PatchArgument = Annotated[
    str,
    typer.Argument(metavar="ID", help="The id of the patch, or of its adapter, or the first digits of one."),
]
ReasonOption = Annotated[str, typer.Option("--reason", metavar="WHY", help="Told to every member.")]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="Read the human key's passphrase from a file; else AGORA_PASSPHRASE, else asked for.",
        show_default=False,
    ),
]


def approve(
    proposal: ProposalArgument,
    passphrase_file: PassphraseFile = None,
    yes: YesOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say yes to a proposed patch, as a human of the charter. With the voters' yes it is ratified.

    Example: `agora approve 3f9a1c2b`
    """
    _speak("approval", proposal, "", passphrase_file, yes=yes, home=home, as_json=as_json)


def veto(
    proposal: ProposalArgument,
    reason: ReasonOption = "",
    passphrase_file: PassphraseFile = None,
    yes: YesOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say no to a patch, within the charter's veto window; a loaded one is unloaded everywhere.

    Example: `agora veto 3f9a1c2b --reason "answers rudely"`
    """
    _speak("veto", proposal, reason, passphrase_file, yes=yes, home=home, as_json=as_json)


def withdraw(
    patch: PatchArgument,
    reason: ReasonOption = "",
    passphrase_file: PassphraseFile = None,
    yes: YesOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bar an adapter for ever, at any time: every device unloads it and falls back to the version before.

    Example: `agora patches withdraw 3f9a1c2b --reason "trained on the wrong logs"`
    """
    _speak("withdrawal", patch, reason, passphrase_file, yes=yes, home=home, as_json=as_json)


def line(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The published name of a model.")],
    evaluation: Annotated[
        Path,
        typer.Option(
            "--evaluation",
            metavar="FILE.jsonl",
            help='The questions voters ask: lines like {"domain": "…", "prompt": "…", "response": "…"}.',
        ),
    ],
    replay: Annotated[
        Path | None,
        typer.Option(
            "--replay",
            metavar="FILE.jsonl",
            help="Examples that training mixes in, so that a patch does not forget; the same form.",
        ),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a model the public sets that its patches are judged by; a voter of the charter may. Both files become public.

    Example: `agora model line llama-1b --evaluation questions.jsonl --replay examples.jsonl`
    """
    from node.cli.daemon import ask

    asked, mixed_in = _existing(evaluation), _existing(replay) if replay else None
    made = ask(home, lambda admin: admin.publish_line(name, asked, mixed_in))
    if as_json:
        print_json(made)
        return
    out.print("line", cell(made["name"], "bold"), f"of base {made['base_digest'][:8]} is published:")
    out.print(f"  questions  {made['evaluation_digest'][:8]}, {sizes(made['evaluation_bytes'])}")
    if made["replay_digest"]:
        out.print(f"  replay     {made['replay_digest'][:8]}, {sizes(made['replay_bytes'])}")


def lines(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the models that can be trained together, with the public sets their patches are judged by.

    Example: `agora model lines`
    """
    from node.cli.daemon import ask

    found = ask(home, lambda admin: admin.lines())
    if as_json:
        print_json(found)
        return
    shown = table("line", "base", "questions", "size", "replay", "size", fold=("line",))
    for each in found:
        shown.add_row(
            cell(each["name"], "bold"),
            each["base_digest"][:8],
            each["evaluation_digest"][:8],
            sizes(each["evaluation_bytes"]),
            each["replay_digest"][:8] or "–",
            sizes(each["replay_bytes"]) if each["replay_digest"] else "–",
        )
    out.print(shown if found else "no lines yet; run 'agora model line NAME --evaluation FILE.jsonl'")


def _speak(
    kind: "WordKind",
    target: str,
    reason: str,
    passphrase_file: Path | None,
    *,
    yes: bool,
    home: Path | None,
    as_json: bool,
) -> None:
    """Ask where the human's log stands, show what is meant, sign, and hand the word to the daemon."""
    from node.cli.daemon import ask
    from node.cli.secret import passphrase
    from node.human_word import sign
    from node.keys import load_human_key

    found = home_of(home)
    if not found.human_key.exists():
        raise StartError(
            f"no human key {found.human_key}, expected the one that 'agora init' made; use the founder's home"
        )
    human = load_human_key(
        found, passphrase(passphrase_file, prompt="passphrase of the human key", is_new=False)
    )
    place = ask(home, lambda admin: admin.place_word(human.peer_id, kind, target.lower()))
    if not yes:
        _show(place)
        typer.confirm(_question(kind, place), abort=True, err=True)
    raw = sign(human, kind, place, reason=reason, utc_ms=time.time_ns() // 1_000_000)
    said = ask(home, lambda admin: admin.take_word(raw))
    if as_json:
        print_json({**said, "manifest": place["manifest"], "adapter": place["adapter"]})
        return
    name = f"{place['line']} version {place['version']}"
    needed = f", still needed: {said['still_needed']}" if said["still_needed"] else ""
    out.print(f"{kind} signed;", cell(name, "bold"), f"is {said['state']}{needed}")


def _show(place: dict[str, Any]) -> None:
    """Print what is about to be signed, on stderr: stdout is for the outcome."""
    err.print(
        pairs(
            {
                "patch": f"{place['line']} version {place['version']} ({place['manifest'][:8]})",
                "proposed by": short(place["author"]),
                "because": place["reason"] or "–",
                "adapter": place["adapter"][:16],
                "votes": f"{place['yes_weight']} yes, {place['no_weight']} no of {place['roll_weight']}, "
                f"{place['weight_to_pass']} pass",
                "state": place["state"],
            }
        )
    )
    before = {score["domain"]: score for score in place["before"]}
    scores = table("domain", "before", "after", right=("before", "after"), fold=("domain",))
    for score in place["after"]:
        former = before.get(score["domain"])
        scores.add_row(cell(score["domain"]), _share(former) if former else "–", _share(score))
    if place["after"]:
        err.print(scores)


def _share(score: dict[str, Any]) -> str:
    return f"{score['right']}/{score['total']}"


def _question(kind: "WordKind", place: dict[str, Any]) -> str:
    name = f"version {place['version']} of {place['line']}"
    match kind:
        case "approval":
            return f"approve {name} for the whole mesh"
        case "veto":
            return f"veto {name} for the whole mesh"
        case "withdrawal":
            return f"bar the adapter of {name} for ever"


def _existing(file: Path) -> str:
    path = file.expanduser().absolute()
    if not path.is_file():
        raise StartError(f"no file {path}, expected JSON lines; name one that exists")
    return str(path)
