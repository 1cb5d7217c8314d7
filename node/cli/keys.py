"""`keys create`, `keys list`, `keys revoke`: who may use this device's gateway."""

from typing import Annotated

import typer

from node.cli.options import HomeOption, JsonOption, home_of
from node.cli.show import cell, out, pairs, print_json, table

group = typer.Typer()


@group.callback(invoke_without_command=True)
def keys(context: typer.Context, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Create, list and revoke the API keys of this device's gateway; alone it lists them.

    Example: `agora keys`
    """
    if context.invoked_subcommand is None:
        listing(home, as_json)


@group.command()
def create(
    name: Annotated[str, typer.Option("--name", metavar="N", help="What the key is for.")] = "unnamed",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an API key; it is shown this once.

    Example: `agora keys create --name laptop`
    """
    from node.api_keys import ApiKeys

    found = home_of(home)
    found.check()
    key, secret = ApiKeys(found.api_keys).create(name)
    if as_json:
        print_json({"key": secret, "key_id": key.id})
        return
    out.print(pairs({"key": secret, "id": key.id}))
    out.print("\nIt is shown this once; only its hash is kept.")


@group.command("list")
def listing(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the API keys, without the keys themselves.

    Example: `agora keys list`
    """
    from node.api_keys import ApiKeys

    found = home_of(home)
    found.check()
    known = ApiKeys(found.api_keys).list()
    if as_json:
        print_json(
            [
                {"key_id": key.id, "name": key.name, "created": key.created, "last_four": key.last_four}
                for key in known
            ]
        )
        return
    shown = table("id", "name", "created", "ends in", fold=("name",))
    for key in known:
        shown.add_row(key.id, cell(key.name), key.created, f"…{key.last_four}")
    out.print(shown if known else "no API keys; run 'agora keys create'")


@group.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The id that 'agora keys list' shows.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revoke an API key; it opens nothing from now on.

    Example: `agora keys revoke 1f2e3d4c`
    """
    from node.api_keys import ApiKeys

    found = home_of(home)
    found.check()
    key = ApiKeys(found.api_keys).revoke(key_id)
    if as_json:
        print_json({"key_id": key.id})
        return
    out.print("revoked", key.id, cell(key.name))
