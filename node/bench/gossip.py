"""The simulated network's gossip held against real hosts: the same connections, the same delays, the same authors.

Hosts and model are independent but for one number: what a host takes to handle and hand on a message is measured at the
hosts (`handling_s`), and added to each link's latency in the model, which knows no processors.
"""

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from node.bench.figure import Figure, at_most
from node.bench.gossip_hosts import DELAY_S, MESSAGE_BYTES, NEWS, Record, Silence
from node.bench.mesh import helper
from node.local_mesh.processes import LocalMeshFailed
from node.simulation import determinism
from node.simulation.network import Network
from protocol.identity import PeerId
from protocol.mesh import Verdict

if TYPE_CHECKING:
    from node.bench.figures import Bench

SEED: Final = 1
HOSTS: Final = 20
DIALS: Final = 8
PAUSE_S: Final = 0.7  # a message has reached everybody by then
QUIET_S: Final = 10.0  # virtual; nothing is under way any more
DRIFT_PERCENT_MAX: Final = 25.0  # above it the model is another protocol than the one that we run


@dataclass
class Spread:
    """How messages went through a mesh.

    Attributes:
        fan_outs: of each host: peers that it sends a new message to, save to whoever brought it.
        half_s: of each message: when half of the other hosts had it, in seconds since it was published.
        most_s: the same for 95 % of them; of so few hosts that is the last one.
        copies: of each message: how often it came out of a socket, for each of the other hosts.
    """

    fan_outs: list[float] = field(default_factory=list)
    half_s: list[float] = field(default_factory=list)
    most_s: list[float] = field(default_factory=list)
    copies: list[float] = field(default_factory=list)

    def add(self, heard_s: list[float], copies: int) -> None:
        """Add a message that everybody has heard."""
        if len(heard_s) != HOSTS - 1:
            raise LocalMeshFailed(f"a message reached {len(heard_s)} of {HOSTS - 1} hosts, expected all")
        ordered = sorted(heard_s)
        self.half_s.append(_rank(ordered, 0.5))
        self.most_s.append(_rank(ordered, 0.95))
        self.copies.append(copies / (HOSTS - 1))


def chapter(bench: "Bench") -> Iterator[Figure]:
    """Measure hosts, run the model, and say how far it is off."""
    bench.say(f"gossip: {bench.sizes.gossip_messages} messages among {HOSTS} hosts")
    record = measure(bench.sizes.gossip_messages)
    hosts = spread_of(record)
    bench.say("gossip: the same in the simulator")
    model = simulate(record)
    note = (
        f"{HOSTS} hosts in one process, {len(record.dials)} connections on loopback, each behind a delay line of "
        f"{DELAY_S[0] * 1000:.0f}-{DELAY_S[1] * 1000:.0f} ms; {len(record.messages)} messages of {MESSAGE_BYTES} bytes; a "
        f"host's handling, measured and added to the model's latencies: {handling_s(record) * 1000:.1f} ms; "
        "again with `agora bench --only gossip`"
    )
    quantities = [
        ("gossip fan-out", "peers that a host sends a new message to", "", hosts.fan_outs, model.fan_outs),
        ("gossip to half of the hosts", "from publishing to the handler", "s", hosts.half_s, model.half_s),
        (
            "gossip to 95 % of the hosts",
            "the same; of 20 hosts it is the last",
            "s",
            hosts.most_s,
            model.most_s,
        ),
        (
            "gossip copies",
            "that arrive at a host for each message, 1 at best",
            "",
            hosts.copies,
            model.copies,
        ),
    ]
    for name, what, unit, real, simulated in quantities:
        yield Figure(f"{name}, hosts", what, unit, real, note=note)
        yield Figure(f"{name}, model", "the same in `node/simulation/gossip.py`", unit, simulated)
        yield Figure(
            f"{name}, difference",
            "of the means, in percent of the hosts'",
            "%",
            [100 * abs(statistics.fmean(simulated) / statistics.fmean(real) - 1)],
            target=at_most(DRIFT_PERCENT_MAX),
        )
        note = ""


def measure(messages: int) -> Record:
    """Let real hosts gossip, in a process of their own.

    Raises:
        LocalMeshFailed: it ended before it had a result.
    """
    arguments = (str(each) for each in (SEED, HOSTS, DIALS, messages, PAUSE_S))
    with helper("gossip_hosts", *arguments) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        if not line:
            raise LocalMeshFailed("the gossiping hosts ended without a result", process.stderr.read())
        return msgspec.json.decode(line, type=Record)


def spread_of(record: Record) -> Spread:
    """Return how the hosts' messages went."""
    spread = Spread(fan_outs=[float(each) for fan_outs in record.fan_outs for each in fan_outs])
    for message in record.messages:
        spread.add(list(message.heard_s.values()), len(message.copies))
    return spread


def handling_s(record: Record) -> float:
    """Return what a hop takes beyond its line's delay: handing on at one host, and taking in at the next.

    Both are medians, since the hosts share a processor with each other and with whatever else runs.
    """
    delay_s = {frozenset(pair): delay_s for *pair, delay_s in record.dials}
    handing_on = []
    taking_in = []
    for message in record.messages:
        heard_s = {message.author: 0.0, **message.heard_s}
        first_s: dict[int, float] = {}
        for sender, receiver, at_s in message.copies:
            handing_on.append(at_s - heard_s[sender] - delay_s[frozenset((sender, receiver))])
            first_s[receiver] = min(at_s, first_s.get(receiver, math.inf))
        taking_in += [
            heard_s[receiver] - at_s for receiver, at_s in first_s.items() if receiver != message.author
        ]
    return statistics.median(handing_on) + statistics.median(taking_in)


def simulate(record: Record) -> Spread:
    """Let simulated nodes do what the hosts did."""
    spread = Spread()
    determinism.run(partial(_simulate, record, spread), seed=SEED)
    return spread


async def _simulate(record: Record, spread: Spread) -> None:
    network = Network(Random(SEED))  # noqa: S311  the same draw each time
    names = [PeerId(f"host{number}") for number in range(HOSTS)]
    extra_s = handling_s(record)
    for one, other, delay_s in record.dials:
        network.set_latency(names[one], names[other], delay_s + extra_s)
        network.set_latency(names[other], names[one], delay_s + extra_s)
    heard_s: list[float] = []

    async def hear(_data: bytes, _peer: PeerId) -> None:
        heard_s.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        meshes = [network.join(name, Silence()) for name in names]
        for mesh in meshes:
            mesh.subscribe(NEWS, lambda _data, _peer: Verdict.ACCEPT, hear)
            await nursery.start(mesh.run)
        for dialler, answerer, _ in record.dials:
            await meshes[dialler].dial(meshes[answerer].addresses[0])
        await trio.sleep(QUIET_S)
        for number, message in enumerate(record.messages):
            spread.fan_outs += [float(len(mesh.gossip.mesh[NEWS.name])) for mesh in meshes]
            heard_s.clear()
            before, began_s = sum(mesh.gossip.copies for mesh in meshes), trio.current_time()
            await meshes[message.author].publish(NEWS, number.to_bytes(MESSAGE_BYTES))
            await trio.sleep(QUIET_S)
            copies = sum(mesh.gossip.copies for mesh in meshes) - before
            spread.add([at_s - began_s for at_s in heard_s], copies)
        nursery.cancel_scope.cancel()


def _rank(ordered: list[float], share: float) -> float:
    return ordered[math.ceil(share * len(ordered)) - 1]
