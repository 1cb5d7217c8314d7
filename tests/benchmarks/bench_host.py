"""How fast and how steady the host is, two processes on loopback: `python -m tests.benchmarks.bench_host [CONNECTIONS]`.

Prints one JSON line: connect, fresh stream and round trip in milliseconds, throughput, gossip, and what so many inbound
connections, one after another, have done to the memory of the host that answered them.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import trio

from node.host import Host, HostSettings
from node.host.address import parse
from node.host.sockets import RawBytes
from node.host.upgrade import Upgrader
from protocol.errors import StreamEnded
from protocol.identity import Identity, PeerId
from tests.system.victim import ECHO

ROOT = Path(__file__).parents[2]


class Quiet:
    """A journal that nobody reads."""

    def write(self, event: str, /, **fields: object) -> None:
        """Forget it."""


def milliseconds(seconds: list[float]) -> dict[str, float]:
    """Return the median and the worst of a hundred."""
    ranked = sorted(seconds)
    return {
        "p50": round(statistics.median(ranked) * 1e3, 3),
        "p99": round(ranked[len(ranked) * 99 // 100] * 1e3, 3),
    }


async def time_streams(address: str) -> dict[str, object]:
    """Measure connecting, opening streams, asking, and moving bytes."""
    connects, opens, asks = [], [], []
    async with trio.open_nursery() as nursery:
        host = Host(Identity.generate(), HostSettings(listen=(), mdns=False), Quiet())
        await nursery.start(host.run)
        for _ in range(50):
            began = time.perf_counter()
            peer = await host.dial(address)
            connects.append(time.perf_counter() - began)
            await host.disconnect(peer)
        peer = await host.dial(address)
        for _ in range(200):
            began = time.perf_counter()
            stream = await host.open_stream(peer, ECHO)
            await stream.send(b"x")
            await stream.receive()
            opens.append(time.perf_counter() - began)
            await stream.end()
        stream = await host.open_stream(peer, ECHO)
        for _ in range(2_000):
            began = time.perf_counter()
            await stream.send(b"x")
            await stream.receive()
            asks.append(time.perf_counter() - began)
        megabytes_per_s = await move_bytes(host, peer)
        nursery.cancel_scope.cancel()
    return {
        "connect_ms": milliseconds(connects),
        "fresh_stream_and_answer_ms": milliseconds(opens),
        "round_trip_ms": milliseconds(asks),
        "echo_megabytes_per_s_each_way": megabytes_per_s,
    }


async def move_bytes(host: Host, peer: PeerId, count: int = 1_000) -> float:
    """Send frames of 64 KiB and receive each again; return megabytes per second in each direction."""
    stream = await host.open_stream(peer, ECHO)
    frame = bytes(ECHO.frame_bytes_max)

    async def send() -> None:
        for _ in range(count):
            await stream.send(frame)
        await stream.end()

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        try:
            while True:
                await stream.receive()
        except StreamEnded:
            pass
    return round(count * len(frame) / 1e6 / (time.perf_counter() - began), 1)


async def connect_again_and_again(address: str, count: int, victim: psutil.Process) -> dict[str, object]:
    """Connect, prove a key, hang up, `count` times; return what it cost the other side."""
    target = parse(address)
    upgrader = Upgrader(Identity.generate(), lambda stream: stream.reset())

    async def connect() -> None:
        socket = await trio.open_tcp_stream(target.host, target.port)
        raw = RawBytes(socket, is_initiator=True, remote=(target.host, target.port))
        await upgrader.outbound(raw, target.host, target.peer_id)
        await raw.close()

    for _ in range(100):
        await connect()
    before, began = victim.memory_info().rss, time.perf_counter()
    for _ in range(count):
        await connect()
    return {
        "connections": count,
        "connections_per_s": round(count / (time.perf_counter() - began), 1),
        "rss_growth_megabytes": round((victim.memory_info().rss - before) / 1e6, 1),
        "rss_megabytes": round(victim.memory_info().rss / 1e6, 1),
    }


async def main(count: int) -> None:
    """Run everything against one answering process."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tests.system.victim"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    journal, address = b"", ""
    while not address:
        journal += await process.stdout.receive_some()
        *lines, journal = journal.split(b"\n")
        address = next((line["address"] for line in map(json.loads, lines) if line["event"] == "ready"), "")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain, process.stdout)
        result = await time_streams(address)
        result |= await connect_again_and_again(address, count, psutil.Process(process.pid))
        result |= {"answers_afterwards": bool(await time_streams(address))}
        nursery.cancel_scope.cancel()
    await process.stdin.aclose()
    await process.wait()
    sys.stdout.write(json.dumps(result) + "\n")


async def drain(journal: trio.abc.ReceiveStream) -> None:
    """Read the other side's journal, or it would wait for us."""
    while await journal.receive_some():
        pass


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 1_000)
