"""Runs a function in a process of its own that is killed at its n-th step on the disk: as by `kill -9`, nothing is tidied up.

Run as a program it takes the home of a new mesh as its argument, founds it again and again, and dies one step later each
time, until one run comes to its end. It prints one line for each run that was killed: how a daemon's start is refused then.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from node.errors import StartError
from node.founding import found
from node.home import Home
from node.keys import load_device_key

STEPS_MAX = 100


def survives(action: Callable[[], object], *, beneath: Path, step: int, names: frozenset[str]) -> bool:
    """Whether an action came to its end before it took this many steps of these names on files beneath a directory."""
    pid = os.fork()
    if pid == 0:
        _die_at(step, beneath, names)
        action()
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return False
    if status != 0:
        raise RuntimeError(f"the process ended with {os.waitstatus_to_exitcode(status)}, expected its death")
    return True


def _die_at(step: int, beneath: Path, names: frozenset[str]) -> None:
    taken = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal taken
        if event not in names or not str(arguments[0]).startswith(str(beneath)):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        taken += 1
        if taken == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def found_a_home(path: Path) -> None:
    """Do what `agora init` does."""
    found(path, mesh_name="town", owner="ann", device_passphrase=None, human_passphrase="a passphrase")


def main(path: Path) -> None:
    """Found a mesh, killed at each step in turn."""
    makes = frozenset({"open", "os.rename", "os.mkdir", "sqlite3.connect"})
    for step in range(1, STEPS_MAX):
        if survives(lambda: found_a_home(path), beneath=path, step=step, names=makes):
            return
        try:
            load_device_key(Home.open(path))
        except StartError as error:
            print(error)  # noqa: T201  # the test reads it
        else:
            print("sound")  # noqa: T201
    raise RuntimeError(f"it took more than {STEPS_MAX} steps")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
