"""The commit that runs: a trace is promised to be the same only for the same one."""

import subprocess
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent
GIT_S_MAX: Final = 10.0


def commit(root: Path = ROOT) -> str:
    """Return the checkout's commit, with a `+` when files were changed since; "" outside one or without git."""
    if not (root / ".git").exists():  # an installed package may lie inside another project's repository
        return ""
    head = _git(root, "rev-parse", "--short=12", "HEAD")
    return head and head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603  # no argument comes from outside
            ["git", *arguments],  # noqa: S607  # the git that the checkout was made with
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
            timeout=GIT_S_MAX,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
