"""The options that many verbs share, and the home they point at."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from node.home import Home

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        metavar="DIR",
        help="The device's home directory; else AGORA_HOME, else ~/.agora.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the JSON that the mesh API gives.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask back.")]


def home_of(option: Path | None) -> "Home":
    """Return the home that `--home`, else AGORA_HOME, else the default names; it need not exist."""
    from node.home import Home

    return Home.locate(option, os.environ)
