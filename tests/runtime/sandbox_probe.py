"""A main for the sandbox: closes it, then tries what a hijacked child would try, and tells how each went."""

# ruff: noqa: PTH108, PTH123, PTH208  (the plain calls are what is tried)

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading

from runtime.sandbox import Confinement


def attempts(allowed: str, forbidden: str) -> dict[str, object]:
    libc = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: int) -> None:
        if libc.syscall(number, *arguments) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    return {
        "read the model": lambda: open(allowed, "rb").read(4),
        "read /etc/passwd": lambda: open("/etc/passwd").read(),
        "read another file": lambda: open(forbidden).read(),
        "list a directory": lambda: os.listdir("/"),
        "read the parent's memory": lambda: open(f"/proc/{os.getppid()}/mem", "rb"),
        "write a file": lambda: open("/tmp/agora-sandbox-probe", "w"),
        "append to the model": lambda: open(allowed, "ab"),
        "truncate the model": lambda: os.truncate(allowed, 0),
        "remove the model": lambda: os.unlink(allowed),
        "make a TCP socket": lambda: socket.socket(socket.AF_INET),
        "make a Unix socket": lambda: socket.socket(socket.AF_UNIX),
        "make a socket pair": socket.socketpair,
        "run a program": lambda: os.execv("/bin/true", ["true"]),
        "start a process": lambda: subprocess.run(["/bin/true"], check=True),
        "fork": os.fork,
        "signal the parent": lambda: os.kill(os.getppid(), signal.SIGUSR1),
        "trace": lambda: call(101 if os.uname().machine == "x86_64" else 117, 0, 0, 0, 0),
        "set up io_uring": lambda: call(425, 1, 0),
        "open a process": lambda: call(434, os.getppid(), 0),
        "take a descriptor of the parent": lambda: call(438, 3, 0, 0),
        "allocate 4 GiB": lambda: bytearray(4 << 30),
        "start a thread": start_thread,
        "import a module late": lambda: __import__("wave"),
        "say something": lambda: os.write(2, b"still here\n"),
    }


def start_thread() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()


def main() -> None:
    confinement = Confinement.from_arguments(sys.argv[1:])
    sock = confinement.take_socket()
    allowed, forbidden = json.loads(sock.recv(4_096))
    tries = attempts(allowed, forbidden)
    level = confinement.enter()
    results: dict[str, str] = {"level": level}
    for name, attempt in tries.items():
        try:
            attempt()
        except (OSError, MemoryError) as error:
            results[name] = type(error).__name__
        else:
            results[name] = "done"
    sock.sendall(json.dumps(results).encode())


if __name__ == "__main__":
    main()
