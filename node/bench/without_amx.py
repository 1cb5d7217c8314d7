"""Runs a program without AMX: `python -m node.bench.without_amx PROGRAM ARGUMENT…`.

The engine's child computes without it (see `runtime/seccomp.py`), so its peers must, for both sides to compute alike.
"""

import ctypes
import os
import sys

from runtime import seccomp

PR_SET_NO_NEW_PRIVS = 38


def main() -> None:
    """Become the program; what it may not do holds across the exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        seccomp.refuse_amx()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
