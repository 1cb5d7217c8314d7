"""A peer computes without AMX, as the engine's child does, and is free otherwise."""

import platform
import subprocess
import sys

import pytest

ASK = """
import ctypes, errno, socket
libc = ctypes.CDLL(None, use_errno=True)
refused = libc.syscall(158, 0x1023, 18) == -1 and ctypes.get_errno() == errno.EPERM
socket.socket().close()
print(refused, libc.syscall(39) > 0)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AMX is x86_64's")
def test_the_permission_for_amx_is_refused_and_nothing_else() -> None:
    command = [sys.executable, "-m", "node.bench.without_amx", sys.executable, "-c", ASK]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "True True\n")
