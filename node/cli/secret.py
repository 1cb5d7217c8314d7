"""Passphrases: from a file, from the environment, or asked for without an echo."""

import os
import sys
from pathlib import Path

import typer

from node.errors import StartError

VARIABLE = "AGORA_PASSPHRASE"
CHARS_MIN = 8


def passphrase(file: Path | None, *, prompt: str, is_new: bool, variable: str = VARIABLE) -> str:
    """Return a passphrase; a new one that is typed is asked for twice.

    Raises:
        StartError: there is none, nobody to ask, or it is too short to protect anything.
    """
    if file is not None:
        found = file.read_text(encoding="utf-8").rstrip("\n")
    elif variable in os.environ:
        found = os.environ[variable]
    elif sys.stdin.isatty():
        found = str(typer.prompt(prompt, hide_input=True, confirmation_prompt=is_new, err=True))
    else:
        raise StartError(f"no {prompt} and no terminal to ask on; give it in a file or set {variable}")
    if is_new and len(found) < CHARS_MIN:
        raise StartError(
            f"the passphrase has {len(found)} characters, expected {CHARS_MIN} or more; choose a longer one"
        )
    return found
