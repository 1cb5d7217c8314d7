"""The end of a child process, seen from the daemon: waited for without blocking, and told in one line."""

import os
import signal
import subprocess
from typing import Final

import trio

STDERR_BYTES_MAX: Final = 2_048  # that are kept: the last words
LAST_WORDS_S: Final = 1.0  # between the end of the socket and that of the process


async def reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a process without blocking the loop: freeing much memory takes the kernel a while."""
    if process.poll() is not None:
        return  # it was dead already, and `poll` has reaped it
    if hasattr(os, "pidfd_open"):
        descriptor = os.pidfd_open(process.pid)
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
        process.wait()
    else:
        await trio.to_thread.run_sync(process.wait)


def last_words(whose: str, status: int, stderr: bytes) -> str:
    """Name the signal or status; what it wrote last belongs to it unless it was killed from outside.

    Args:
        whose: "the engine's child".
        status: its return code; minus the signal that ended it.
        stderr: the end of what it wrote there, untrusted.
    """
    if status == -signal.SIGKILL:
        return f"{whose} was killed"
    cause = signal.Signals(-status).name if status < 0 else f"status {status}"
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    words = f": {printable(lines[-1])}" if lines else ""
    return f"{whose} ended with {cause}{words}"


def printable(text: str) -> str:
    """A child's words for a log or a terminal: no control characters, not long."""
    return "".join(c if c.isprintable() else " " for c in text)[:256]
