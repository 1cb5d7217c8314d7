"""Flower as it comes: a SuperLink and SuperNodes on loopback, running `node/bench/nothing_to_train`.

Insecure (no TLS), no telemetry, no installing of dependencies, everything in a directory of its own and on free ports:
what is left is the time of Flower's own messages and processes. Each process is ended by its id, with its children.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil

from node.local_mesh.processes import LocalMeshFailed

APP: Final = Path(__file__).with_name("nothing_to_train")
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 5.0
POLL_INTERVAL_S: Final = 0.1  # the rounds time themselves
PROJECT: Final = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "nothing-to-train"
version = "1.0.0"
description = "Rounds with nothing to train"
license = "Apache-2.0"
dependencies = ["flwr==1.41.0"]

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "agora"

[tool.flwr.app.components]
serverapp = "nothing_to_train.server:app"
clientapp = "nothing_to_train.client:app"

[tool.flwr.app.config]
members = 0
rounds = 0
times = ""
shapes = ""
"""


def rounds_s(
    directory: Path, members: int, rounds: int, shapes: Mapping[str, Sequence[int]], timeout_s: float
) -> list[float]:
    """Return how long each round took, from its configuration to its aggregate.

    Raises:
        LocalMeshFailed: it did not start, or not all rounds ended in time with everybody's answer.
    """
    home, app, times = directory / "home", directory / "app", directory / "times.jsonl"
    home.mkdir(parents=True)
    shutil.copytree(APP, app / APP.name, ignore=shutil.ignore_patterns("__pycache__"))
    (app / "pyproject.toml").write_text(PROJECT)
    times.touch()
    link, *nodes = _free_ports(1 + members)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    config = directory / "run.toml"
    config.write_text(
        f"members = {members}\nrounds = {rounds}\ntimes = {json.dumps(str(times))}\n"
        f"shapes = {json.dumps(json.dumps(dict(shapes)))}\n"
    )
    with ExitStack() as running:
        running.enter_context(
            _process(
                home, "flower-superlink", "--port", str(link), "--disable-runtime-dependency-installation"
            )
        )
        _wait("Flower's SuperLink to listen", START_TIMEOUT_S, lambda: _listens(link))
        for port in nodes:
            running.enter_context(
                _process(home, "flower-supernode", "--superlink", f"127.0.0.1:{link}", "--port", str(port))
            )
        _start_run(home, app, config)
        _wait(f"{rounds} rounds of Flower", timeout_s, lambda: len(_lines(times)) >= rounds)
    ended = _lines(times)
    if any(line["answers"] != members for line in ended):
        raise LocalMeshFailed(f"Flower ended rounds with answers {[line['answers'] for line in ended]}")
    return [line["seconds"] for line in ended]


def _wait(what: str, timeout_s: float, check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() > deadline:
            raise LocalMeshFailed(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(POLL_INTERVAL_S)


def _start_run(home: Path, app: Path, config: Path) -> None:
    started = subprocess.run(
        [_program("flwr"), "run", str(app), "bench", "--run-config", str(config)],
        env=_environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    if started.returncode != 0:
        raise LocalMeshFailed("flwr run failed", started.stdout + started.stderr)


@contextmanager
def _process(home: Path, name: str, *arguments: str) -> Iterator[None]:
    with (home / f"{name}.log").open("a") as log:
        process = subprocess.Popen(
            [_program(name), "--insecure", *arguments],
            env=_environment(home),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all that it has started: SuperExecs outlive the SuperLink that is merely terminated."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.terminate()
    _, left = psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)
    for member in left:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _environment(home: Path) -> dict[str, str]:
    """Its programs start each other by name, so they have to be on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "PATH": path}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _lines(times: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in times.read_text().splitlines()]
