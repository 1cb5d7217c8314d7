"""`models`, `model add`, `model publish`: what can be asked, and giving the mesh something to ask."""

from pathlib import Path
from typing import Annotated

import typer

from node.cli.options import HomeOption, JsonOption
from node.cli.show import bytes_bar, cell, out, print_json, short, table
from node.errors import StartError

group = typer.Typer(
    help="Add a model to this device, or give a model a name on the mesh.", no_args_is_help=True
)


def listing(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the models that can be asked for by name, and who holds them.

    Example: `agora models`
    """
    from node.cli.daemon import ask

    found = ask(home, lambda admin: admin.models())
    if as_json:
        print_json(found)
        return
    shown = table(
        "model",
        "digest",
        "patch",
        "kind",
        "context",
        "holders",
        "here",
        "published",
        right=("context",),
        fold=("model", "holders"),
    )
    for model in found:
        shown.add_row(
            cell(model["id"], "bold"),
            model["digest"][:8],
            f"v{model['version']} {model['adapter'][:8]}" if model["adapter"] else "–",
            cell(
                f"{model['architecture']} {model['quantisation']}{', embeds' if model['dimensions'] else ''}"
            ),
            f"{model['context_tokens']:,}",
            " ".join(short(peer) for peer in model["holders"]) or "–",
            "yes" if model["is_local"] else "no",
            "yes" if model["is_published"] else "no",
        )
    out.print(shown if found else "no models yet; run 'agora model add FILE.gguf'")


@group.command()
def add(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="A GGUF file of any model.")],
    name: Annotated[str | None, typer.Option("--name", help="What it is called here.", metavar="N")] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Bind the name for the whole mesh (a voter's right).")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a GGUF file, keep a copy, and offer it for sale.

    Example: `agora model add llama-3.2-1b-q4.gguf --name llama-1b --publish`
    """
    from node.cli.daemon import ask

    path = file.expanduser().absolute()
    if not path.is_file():
        raise StartError(f"no file {path}, expected a GGUF model; name one that exists")
    with bytes_bar(f"checking {path.name}") as bar:
        added = ask(
            home, lambda admin: admin.add_model(str(path), name=name, publish=publish, progress=bar.update)
        )
    if as_json:
        print_json(added)
        return
    out.print("added", cell(added["name"], "bold"), f"({added['digest'][:8]})")


@group.command("publish")
def publish_name(
    digest: Annotated[str, typer.Argument(help="The model's digest, 8 hex digits of it or more.")],
    name: Annotated[str, typer.Option("--name", help="The name to bind to it.", metavar="N")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bind a name to a model for the whole mesh; a voter of the charter may.

    Example: `agora model publish 3f9a1c2b --name llama-1b`
    """
    from node.cli.daemon import ask

    published = ask(home, lambda admin: admin.publish_model(digest, name))
    if as_json:
        print_json(published)
        return
    out.print("published", cell(name, "bold"), "for the whole mesh")
