"""Daemons: real processes with home directories of their own, each ended by its id whatever happens."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from protocol.errors import AgoraError

AGORA = (sys.executable, "-m", "node.cli")
READY_TIMEOUT_S = 30.0
VERB_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0
LOG_LINES = 15
WAIT_TIMEOUT_S = 30.0
POLL_INTERVAL_S = 0.05


class LocalMeshFailed(AgoraError):
    """Something that had to happen did not; one line, and `log` has the daemon's last ones."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


def verb(*arguments: str, home: Path, environ: dict[str, str] | None = None) -> Any:
    """Run one verb of the command line with `--json` and return what it printed.

    Raises:
        LocalMeshFailed: it ended with another status than 0, or not in time.
    """
    called = f"agora {' '.join(arguments[:2])}"
    try:
        done = subprocess.run(
            [*AGORA, *arguments, "--home", str(home), "--json"],
            env={**os.environ, **(environ or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=VERB_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LocalMeshFailed(f"{called} took {VERB_TIMEOUT_S:.0f} s, expected it to end") from error
    if done.returncode != 0:
        raise LocalMeshFailed(f"{called}: {done.stderr.strip()}")
    return json.loads(done.stdout)


class Daemon:
    """One device: `agora up` in a process of its own, logging to a file beside its home.

    Args:
        name: what messages call it.
        home: of a member; it need not be there before `start`.
        launcher: words to put before the command, such as `ip netns exec NAME`.

    Attributes:
        ready: its ready line, whole.
    """

    def __init__(self, name: str, home: Path, *, launcher: Sequence[str] = ()) -> None:
        self.name = name
        self.home = home
        self.peer_id = ""
        self.gateway = ""
        self.ready: dict[str, Any] = {}
        self.listen = ""
        self._launcher = launcher
        self._log_path = home.with_suffix(".log")
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """The process id of the running daemon."""
        assert self._process is not None
        return self._process.pid

    def start(self, bootstrap: Sequence[str] = (), *, listen: str = "/ip4/127.0.0.1/tcp/0") -> None:
        """Start it, on free ports of loopback unless told otherwise, and wait until it is ready.

        Raises:
            LocalMeshFailed: it ended first, or is not ready in time.
        """
        command = [*self._launcher, *AGORA, "up", "--home", str(self.home)]
        command += ["--listen", listen, "--gateway", "127.0.0.1:0"]
        for address in bootstrap:
            command += ["--bootstrap", address]
        with self._log_path.open("a") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C reaches the starter alone, which then ends its daemons in order
            )
        assert self._process.stdout is not None
        line = _first_line(self._process.stdout, READY_TIMEOUT_S)
        if not line:
            status = self._process.poll()
            how = "not ready in time" if status is None else f"ended with status {status}"
            raise LocalMeshFailed(f"{self.name}'s daemon {how}, expected a ready line", self.log())
        self.ready = ready = json.loads(line)
        self.peer_id, self.gateway, self.listen = ready["peer_id"], ready["gateway"], ready["listen"][0]

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._forget()

    def freeze(self) -> None:
        """Make it silent, as a suspended laptop is: nothing is closed, nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen one go on; harmless for any other."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ask it to end, and see that it does; nothing to do for one that does not run."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self.thaw()  # a frozen one would hear nothing
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._forget()

    def detach(self) -> None:
        """Leave it running when this process ends."""
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.returncode = (
            0  # so that the interpreter does not complain of a child it did not wait for
        )
        self._process = None

    def log(self) -> str:
        """Return its last log lines."""
        return _last_lines(self._log_path.read_text(errors="replace")) if self._log_path.exists() else ""

    def _forget(self) -> None:
        assert self._process is not None
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None


def until(
    what: str,
    check: Callable[[], Any],
    *,
    pause_s: float = POLL_INTERVAL_S,
    timeout_s: float = WAIT_TIMEOUT_S,
) -> Any:
    """Return what `check` returns as soon as it is true.

    Raises:
        LocalMeshFailed: it was not in time.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := check()):
        if time.monotonic() > deadline:
            raise LocalMeshFailed(f"waited {timeout_s:.0f} s, expected that {what}")
        time.sleep(pause_s)
    return found


def _first_line(stream: IO[str], timeout_s: float) -> str:
    """Return the first line of a pipe, or nothing if it ends or stays silent."""
    deadline = time.monotonic() + timeout_s
    data = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while not data.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return ""
            piece = os.read(stream.fileno(), 65_536)
            if not piece:
                return ""
            data += piece
    return data.decode()


def _last_lines(text: str) -> str:
    return "\n".join(text.splitlines()[-LOG_LINES:])
