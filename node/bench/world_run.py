"""One simulated world, alone in its process, so that its time and memory are its own.

`python -m node.bench.world_run SCENARIO NODES SECONDS SEED` prints a JSON line: what it took and what the nodes sent.
"""

import resource
import sys
import time
from pathlib import Path

import msgspec

from node.simulation.main import simulate
from node.simulation.options import SimulationOptions
from node.simulation.scenario import load
from node.simulation.trace import Header, Trace

KIB_PER_MB = 1_000_000 / 1_024


class WorldRun(msgspec.Struct, frozen=True):
    """What a world took and sent.

    Attributes:
        wall_s, cpu_s: of the simulation; imports are not counted.
        rss_mb: at its highest.
        chats: asked.
        finished: of these.
        messages, bytes: of all nodes together.
    """

    nodes: int
    seconds: float
    wall_s: float
    cpu_s: float
    rss_mb: float
    chats: int
    finished: int
    messages: int
    bytes: int
    digest: str

    @property
    def node_seconds(self) -> float:
        """Virtual seconds times nodes."""
        return self.nodes * self.seconds


def run(scenario: str, nodes: int, seconds: float, seed: int) -> WorldRun:
    """Run a world and return what it took."""
    options = SimulationOptions(load(scenario), nodes, seconds, seed)
    began_s, cpu_s = time.perf_counter(), time.process_time()
    seen = simulate(options, Trace(Header.of(options)))
    traffic = seen.traffic.values()
    return WorldRun(
        nodes=seen.nodes,
        seconds=seen.seconds,
        wall_s=time.perf_counter() - began_s,
        cpu_s=time.process_time() - cpu_s,
        rss_mb=_rss_max_kib() / KIB_PER_MB,
        chats=len(seen.outcomes),
        finished=sum(outcome.state == "finished" for outcome in seen.outcomes),
        messages=sum(each.messages for each in traffic),
        bytes=sum(each.bytes for each in traffic),
        digest=seen.digest,
    )


def _rss_max_kib() -> int:
    """Return the most memory that this program has had; `getrusage` would count what its parent had when it forked."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    scenario, nodes, seconds, seed = sys.argv[1:]
    sys.stdout.buffer.write(msgspec.json.encode(run(scenario, int(nodes), float(seconds), int(seed))) + b"\n")
