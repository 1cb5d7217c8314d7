"""What is wrong with this machine or this home, and what to do about it: checks as values, rendered by the CLI.

A check never raises and changes nothing; it may run beside the daemon. Checks of other parts (sandbox level, engine)
are handed in.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial

import psutil
import trio

from node import database
from node.config import Config
from node.home import Home
from node.keys import is_device_key_sealed, load_device_key
from node.patches import HELD_BACK
from node.port import check_free, listen_address
from node.store import measure_fsync_p50_s
from protocol.errors import AgoraError

GIB = 1024**3
DISK_FREE_WARN_BYTES = 2 * GIB  # a model is larger than this
DISK_FREE_FAIL_BYTES = GIB // 10
MEMORY_WARN_BYTES = GIB  # the smallest useful model and its context
FSYNC_WARN_S = 0.02  # each acknowledged receipt waits for one
RELEASED_S = 1_767_225_600  # 2026-01-01: no clock that is right shows an earlier time
CLOCK_BACK_WARN_S = 60.0


class Verdict(Enum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"  # works, but not as well or not as safely as it could
    FAIL = "fail"  # does not start, or not for long


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Attributes:
        found: what is the case.
        advice: what to do; empty if all is well.
    """

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


Check = Callable[[], Finding]


async def examine(home: Home, extra: Sequence[Check] = ()) -> list[Finding]:
    """Run all checks, one after the other, each in a thread; `extra` ones come last."""
    own = (
        _home,
        _device_key,
        _human_key,
        _config,
        _database,
        _disk,
        _fsync,
        _memory,
        _clock,
        _ports,
        _models,
        _patches,
    )
    checks = (*(partial(check, home) for check in own), *extra)
    return [await trio.to_thread.run_sync(_guarded, check) for check in checks]


def _guarded(check: Check) -> Finding:
    try:
        return check()
    except Exception as error:  # noqa: BLE001  # the doctor outlives every patient
        function = check.func if isinstance(check, partial) else check
        name = getattr(function, "__name__", "check").strip("_").replace("_", " ")
        told = str(error) if isinstance(error, AgoraError) else f"{type(error).__name__}: {error}"
        found, _, advice = told.partition("; ")
        return Finding(name, Verdict.FAIL, found, advice)


def _home(home: Home) -> Finding:
    home.check()
    pid = home.holder()
    return Finding(
        "home", Verdict.OK, f"{home.path}, {'no daemon runs' if pid is None else f'daemon {pid} runs'}"
    )


def _device_key(home: Home) -> Finding:
    if is_device_key_sealed(home):
        return Finding("device key", Verdict.OK, "present, under a passphrase")
    return Finding("device key", Verdict.OK, f"peer id {load_device_key(home).peer_id}")


def _human_key(home: Home) -> Finding:
    if not home.human_key.exists():
        return Finding("human key", Verdict.OK, "none: this device approves nothing")
    if home.recovery.exists():
        return Finding(
            "human key",
            Verdict.WARN,
            f"present, and the recovery file {home.recovery} lies on the same disk",
            "move the recovery file to a stick or to paper: it is for the day this disk is gone",
        )
    return Finding("human key", Verdict.OK, "present, under a passphrase")


def _config(home: Home) -> Finding:
    config = Config.load(home.config)
    if not home.config.exists():
        return Finding("config", Verdict.OK, "none: all defaults")
    return Finding("config", Verdict.OK, f"owner {config.owner}, {config.slots} slots")


def _database(home: Home) -> Finding:
    if not home.database.exists():
        return Finding("database", Verdict.OK, "none yet")
    database.check_file(home.database)
    return Finding("database", Verdict.OK, f"sound, {home.database.stat().st_size / 1e6:.1f} MB")


def _disk(home: Home) -> Finding:
    free_bytes = shutil.disk_usage(home.path).free
    found = f"{free_bytes / GIB:.1f} GiB free at {home.path}"
    if free_bytes < DISK_FREE_FAIL_BYTES:
        return Finding("disk", Verdict.FAIL, found, "free some space: a full disk stops all new work")
    if free_bytes < DISK_FREE_WARN_BYTES:
        return Finding("disk", Verdict.WARN, found, "free some space before adding a model")
    return Finding("disk", Verdict.OK, found)


def _fsync(home: Home) -> Finding:
    p50_s = measure_fsync_p50_s(home.path, 50)
    found = f"{p50_s * 1000:.2f} ms until a write is on disk (p50)"
    if p50_s > FSYNC_WARN_S:
        return Finding(
            "fsync", Verdict.WARN, found, "put the home on a faster disk: each receipt waits for it"
        )
    return Finding("fsync", Verdict.OK, found)


def _memory(_: Home) -> Finding:
    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available"
    if memory.available < MEMORY_WARN_BYTES:
        return Finding("memory", Verdict.WARN, found, "close other programs, or serve a smaller model")
    return Finding("memory", Verdict.OK, found)


def _clock(home: Home) -> Finding:
    """A clock that is off makes live messages stale and signed documents expire early or late."""
    now_s = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now_s))
    if now_s < RELEASED_S:
        return Finding("clock", Verdict.FAIL, f"{shown}, before this program was made", "set the clock")
    written_s = max(
        (path.stat().st_mtime for path in (home.journal, home.database) if path.exists()), default=0.0
    )
    if written_s > now_s + CLOCK_BACK_WARN_S:
        return Finding(
            "clock",
            Verdict.WARN,
            f"{shown}, {written_s - now_s:.0f} s before the home's newest file",
            "set the clock",
        )
    return Finding("clock", Verdict.OK, shown)


def _ports(home: Home) -> Finding:
    if home.holder() is not None:
        return Finding("ports", Verdict.OK, "in use by the running daemon")
    config = Config.load(home.config)
    addresses = [("gateway", config.gateway_address())]
    addresses += [("listen", listen_address(multiaddr)) for multiaddr in config.listen]
    for what, (host, port) in addresses:
        check_free(host, port, what=what)
    return Finding(
        "ports", Verdict.OK, ", ".join(f"{host}:{port}" for _, (host, port) in addresses) + " free"
    )


def _models(home: Home) -> Finding:
    files = sorted(home.models.glob("**/*.gguf")) if home.models.is_dir() else []
    if not files:
        return Finding(
            "models",
            Verdict.WARN,
            f"none in {home.models}",
            "run 'agora model add FILE.gguf', or only buy from others",
        )
    size_gib = sum(path.stat().st_size for path in files) / GIB
    return Finding("models", Verdict.OK, f"{len(files)} files, {size_gib:.1f} GiB")


def _patches(home: Home) -> Finding:
    """What the mesh serves and this device does not, because its own canaries fell."""
    try:
        held_back = database.read_kind(home.database, HELD_BACK)
    except AgoraError:  # which is said already
        return Finding("patches", Verdict.OK, "unknown while the database cannot be read")
    if not held_back:
        return Finding("patches", Verdict.OK, "none is held back")
    told = "; ".join(f"{manifest.hex()[:12]}: {why.decode(errors='replace')}" for manifest, why in held_back)
    return Finding(
        "patches",
        Verdict.WARN,
        f"not served here, since they answer worse than their voters were told: {told}",
        "see 'agora proposals' for the way back that it has proposed",
    )
