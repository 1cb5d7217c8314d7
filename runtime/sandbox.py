"""Starts a Python main as a child that can reach almost nothing, and closes the sandbox from inside it.

The daemon calls `spawn`. The child starts with an empty environment, three standard streams and one socket; its main
imports what it needs (trusted code), then calls `Confinement.enter` and only then touches anything of a stranger.

Levels: S3 is Landlock + seccomp + rlimits; S2 lacks one of the first two; S1 is rlimits alone.
"""

import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

from runtime import landlock, seccomp

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
FILES_MAX = 64  # open files: the model's parts, libraries' own; a descriptor leak ends here
# Counted by the kernel over all processes of the user, so a small number would keep honest children from starting
# threads. It only bounds a fork bomb where there is no seccomp to refuse the fork.
PROCESSES_MAX = 4_096

ROOT = Path(__file__).resolve().parent.parent  # where the packages are: a checkout, or site-packages


@dataclass(frozen=True)
class Confinement:
    """What a child may have.

    Attributes:
        socket_fd: its end of the socket pair.
        parent_pid: the daemon; the child ends with it.
        readable: files and directories it may read; Python's own are added.
        memory_bytes_max: address space.
    """

    socket_fd: int
    parent_pid: int
    readable: tuple[str, ...]
    memory_bytes_max: int

    @classmethod
    def from_arguments(cls, arguments: list[str]) -> "Confinement":
        """Read what `spawn` wrote on the command line."""
        fields = json.loads(arguments[0])
        return cls(
            fields["socket_fd"], fields["parent_pid"], tuple(fields["readable"]), fields["memory_bytes_max"]
        )

    def take_socket(self) -> socket.socket:
        """Return the child's end of the pair; once, since whoever has it closes it."""
        return socket.socket(fileno=self.socket_fd)

    def enter(self) -> str:
        """Close the sandbox and return the level reached. It cannot be opened again.

        Raises:
            RuntimeError: threads are running already; they would stay outside.
        """
        if threading.active_count() > 1:
            raise RuntimeError("the sandbox must be closed before threads are started")
        self._die_with_parent()
        for limit, wanted in (
            (resource.RLIMIT_CORE, 0),  # a core file holds prompts
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_NOFILE, FILES_MAX),
            (resource.RLIMIT_NPROC, PROCESSES_MAX),
            (resource.RLIMIT_AS, self.memory_bytes_max),
        ):
            _, hard = resource.getrlimit(limit)
            value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(limit, (value, value))
        if sys.platform != "linux":
            return "S1"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            return "S1"
        closed = [landlock.restrict([*_python_paths(), *self.readable]), seccomp.restrict()]
        return f"S{1 + sum(closed)}"

    def _die_with_parent(self) -> None:
        """An orphan would keep its memory and the model; the socket's end is the second way to notice."""
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != self.parent_pid:  # it died before the line above
                sys.exit(0)


def limit_memory(size_bytes: int) -> None:
    """Lower or raise this process's address space, up to what its confinement allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    size_bytes = size_bytes if hard == resource.RLIM_INFINITY else min(size_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (size_bytes, hard))


def spawn(
    main: str,
    readable: tuple[Path, ...],
    memory_bytes_max: int,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start `python -m main` with a confinement as its argument; return it and our end of the socket pair.

    Nothing of the daemon's environment is handed on, only `environment` and what every child needs.

    Its stderr is a pipe for the caller to read: a failed assertion in a library says there what it was. Call from the
    main thread: the kernel sends the parent-death signal when the *thread* that started the child ends, and trio's
    own `open_process` starts children from worker threads, which end after 10 idle seconds. Starting takes about
    2 ms, as Python uses vfork here.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        confinement = Confinement(
            socket_fd=theirs.fileno(),
            parent_pid=os.getpid(),
            readable=tuple(str(path.resolve()) for path in readable),
            memory_bytes_max=memory_bytes_max,
        )
        variables = {
            "PYTHONPATH": str(ROOT),
            "LANG": "C.UTF-8",
            "MALLOC_ARENA_MAX": "1",  # each arena takes 64 MB of address space
            "GGML_NO_BACKTRACE": "1",  # a failed assertion would start gdb where it is installed
            **environment,
        }
        try:
            process = subprocess.Popen(  # noqa: S603  (our own interpreter and our own main)
                # -P: the working directory is no place to import from; -s: nor is the user's; -B: it cannot write.
                [sys.executable, "-P", "-s", "-B", "-m", main, json.dumps(asdict(confinement))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                close_fds=True,
                pass_fds=(theirs.fileno(),),
                env=variables,
                cwd="/",
            )
        except BaseException:
            ours.close()
            raise
    return process, ours


def _python_paths() -> list[str]:
    """Where Python finds modules and the linker finds libraries: what may be imported late is still found."""
    known = sysconfig.get_paths()
    paths = {known[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths |= {str(ROOT / package) for package in ("protocol", "runtime")}
    libraries = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/sys/devices/system/cpu")
    return sorted(paths | set(libraries))
