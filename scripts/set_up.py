"""Make `.venv` with everything pinned, and show that it is alive while llama.cpp compiles for minutes.

Runs under any Python 3.11 or 3.12, with the standard library alone. pip's whole output goes to `.venv/setup.log`; the
terminal gets one line that says the step, the compiler's count and the time. A stamp of the inputs makes the next run
a matter of milliseconds; llama.cpp, which is built with our patches, has a stamp of its own (docs/adr/0017).
"""

import hashlib
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Final, Self

ROOT: Final = Path(__file__).resolve().parent.parent
VENV: Final = ROOT / ".venv"
PYTHON: Final = VENV / "bin" / "python"
STAMP: Final = VENV / "setup.stamp"
LOG: Final = VENV / "setup.log"
LLAMA_STAMP: Final = VENV / "llama.stamp"
INPUTS: Final = ("pyproject.toml", "constraints.txt")
PATCHES: Final = ROOT / "scripts" / "llama.cpp"
HOOK: Final = PATCHES / "patch.cmake"
LINES_ON_FAILURE: Final = 25
QUIET_INTERVAL_S: Final = 20.0  # between lines where there is no terminal to redraw

STEPS: Final = (
    (re.compile(r"^Collecting ([\w.-]+)"), "finding {0}"),
    (re.compile(r"^\s*Downloading .*?([\w.]+)-\d"), "downloading {0}"),
    (re.compile(r"Building wheel for ([\w.-]+)"), "building {0}"),
    (re.compile(r"Configuring CMake"), "configuring llama.cpp"),
    (re.compile(r"^\s*\[(\d+)/(\d+)\]"), "compiling llama.cpp, {0} of {1}"),
    (re.compile(r"^\s*\[\s*(\d+)%\]"), "compiling llama.cpp, {0} %"),
    (re.compile(r"^Installing collected packages"), "installing"),
)


class Progress:
    """One line on the terminal, redrawn each second; where there is none, a line now and then."""

    def __init__(self) -> None:
        self.step = "starting"  # what is being done, for the line
        self._lock = Lock()
        self._stopped = Event()
        self._start_s = time.monotonic()
        self._is_terminal = sys.stdout.isatty()
        self._thread = Thread(target=self._draw, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        if self._is_terminal:
            sys.stdout.write("\r\033[K")

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start_s

    def take(self, line: str) -> None:
        """Read one line of pip's output."""
        for pattern, step in STEPS:
            found = pattern.search(line)
            if found:
                with self._lock:
                    self.step = step.format(*found.groups())
                return

    def _draw(self) -> None:
        while not self._stopped.wait(1.0 if self._is_terminal else QUIET_INTERVAL_S):
            with self._lock:
                step = self.step
            minutes, seconds = divmod(int(self.elapsed_s), 60)
            line = f"setup {minutes}:{seconds:02}  {step}"
            sys.stdout.write(f"\r\033[K{line[:100]}" if self._is_terminal else f"{line}\n")
            sys.stdout.flush()


def main() -> int:
    """Return 0 when `.venv` is as the inputs say."""
    if not (3, 11) <= sys.version_info < (3, 13):
        return refuse(f"found Python {sys.version.split()[0]}, expected 3.11 or 3.12; run 'make PYTHON=…'")
    stamp = stamp_now()
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text() == stamp:
        return 0
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return refuse(
            "found no C compiler, expected cc, gcc or clang; install one (Debian: apt install build-essential)"
        )
    if not shutil.which("git"):
        return refuse("found no git, which patches llama.cpp; install it (Debian: apt install git)")
    print("setting up .venv; the first time llama.cpp is compiled, which takes 5 to 9 minutes", flush=True)
    STAMP.unlink(missing_ok=True)
    if subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=False).returncode != 0:
        return refuse(
            "no virtual environment could be made, expected Python's venv (Debian: apt install python3-venv)"
        )
    LOG.unlink(missing_ok=True)
    with Progress() as progress:
        failure = install_llama(progress) or run_pip(progress, "-e", ".[dev,train]")
    if failure is not None:
        return refuse(failure)
    STAMP.write_text(stamp)
    print(f"ready in {progress.elapsed_s:.0f} s", flush=True)
    return 0


def stamp_now() -> str:
    """Return a digest of what the environment is made from, and of where it stands, since scripts carry the path."""
    inputs = [(ROOT / name).read_bytes() for name in INPUTS]
    return digest(*inputs, llama_stamp_now().encode(), str(ROOT).encode())


def llama_stamp_now() -> str:
    """Return a digest of what llama.cpp is compiled from: the release, our patches, how they are applied, for which Python."""
    release = re.findall(rb"^llama-cpp-python\b.*", (ROOT / "constraints.txt").read_bytes(), re.MULTILINE)
    files = [path.read_bytes() for path in (HOOK, *sorted(PATCHES.glob("*.patch")))]
    return digest(*release, *files, str(sys.version_info[:2]).encode())


def digest(*parts: bytes) -> str:
    """Return one digest of several inputs."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def install_llama(progress: Progress) -> str | None:
    """Build and install llama.cpp with our patches, unless that was done; return what went wrong."""
    stamp = llama_stamp_now()
    if LLAMA_STAMP.exists() and LLAMA_STAMP.read_text() == stamp:
        return None
    LLAMA_STAMP.unlink(missing_ok=True)
    failure = run_pip(
        progress,
        "--no-cache-dir",  # pip's cache knows a wheel by its release, whatever patches it has
        "--force-reinstall",
        "--no-deps",
        "--no-binary=llama-cpp-python",
        f"--config-settings=cmake.define.CMAKE_PROJECT_llama_cpp_INCLUDE={HOOK}",
        "llama-cpp-python",
    )
    if failure is not None:
        return failure
    # CMake is silent about a hook for a project that a later release may have renamed.
    log = LOG.read_text(encoding="utf-8")
    for patch in sorted(PATCHES.glob("*.patch")):
        if f"llama.cpp is patched: {patch.name}" not in log:
            return f"llama.cpp was built without {patch.name}: its CMakeLists.txt did not read {HOOK}"
    LLAMA_STAMP.write_text(stamp)
    return None


def run_pip(progress: Progress, *arguments: str) -> str | None:
    """Let pip install; return what went wrong, with its last lines."""
    pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--verbose"]
    last_lines: deque[str] = deque(maxlen=LINES_ON_FAILURE)
    with (
        LOG.open("a", encoding="utf-8") as log,
        subprocess.Popen(
            [*pip, "--progress-bar=off", "-c", "constraints.txt", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            last_lines.append(line.rstrip())
            progress.take(line)
    if process.returncode == 0:
        return None
    why = f"pip ended with status {process.returncode}; the lines above say why, and {LOG} says all"
    return "\n".join([*last_lines, why])


def refuse(message: str) -> int:
    """Say why; return the exit status."""
    print(message, file=sys.stderr)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(refuse("stopped by Ctrl-C; run it again to go on"))
