"""The gossip comparison: what it reads from a record, and that the model plays a record's own mesh."""

from functools import partial
from random import Random

import pytest
import trio

from node.bench.gossip import HOSTS, Spread, handling_s, simulate, spread_of
from node.bench.gossip_hosts import LOOPBACK, DelayLine, Gossiped, Record, draw_dials
from node.local_mesh.processes import LocalMeshFailed


def flood(dials: list[tuple[int, int, float]], author: int, handling_s: float) -> Gossiped:
    """A message that each host hands on to every connected peer but the one that brought it."""
    delay_s = {pair: each for one, other, each in dials for pair in ((one, other), (other, one))}
    heard_s = {author: 0.0}
    brought: dict[int, int] = {}
    for _ in range(HOSTS):
        for (sender, receiver), each in delay_s.items():
            at_s = heard_s.get(sender, 1e9) + each + handling_s
            if at_s < heard_s.get(receiver, 1e9):
                heard_s[receiver], brought[receiver] = at_s, sender
    copies = [
        (sender, receiver, heard_s[sender] + each + handling_s * 0.75)
        for (sender, receiver), each in delay_s.items()
        if brought.get(sender) != receiver
    ]
    del heard_s[author]
    return Gossiped(author, heard_s, copies)


def test_a_hosts_handling_is_what_a_hop_takes_beyond_its_line() -> None:
    dials = draw_dials(Random(2), HOSTS, 8)

    assert handling_s(Record(dials, [flood(dials, 3, 0.008)])) == pytest.approx(0.008)


def test_the_model_is_late_by_what_the_hosts_lines_and_handling_are() -> None:
    """Eager copies take the shortest way through the mesh, which is at best the shortest through all connections."""
    dials = draw_dials(Random(2), HOSTS, 8)
    record = Record(dials, [flood(dials, author, 0.008) for author in range(5)])

    flooded, model = spread_of(record), simulate(record)

    assert all(
        at_most <= at_s <= 2.5 * at_most for at_most, at_s in zip(flooded.most_s, model.most_s, strict=True)
    )
    assert all(most >= half for half, most in zip(model.half_s, model.most_s, strict=True))
    assert max(model.copies) < min(flooded.copies)
    assert len(model.fan_outs) == 5 * HOSTS


def test_a_message_that_missed_a_host_is_no_figure() -> None:
    with pytest.raises(LocalMeshFailed, match="reached 18 of 19"):
        Spread().add([0.1] * (HOSTS - 2), copies=60)


def test_each_pair_of_hosts_is_connected_once() -> None:
    pairs = [frozenset(pair) for *pair, _ in draw_dials(Random(2), HOSTS, 8)]

    assert len(set(pairs)) == len(pairs)
    assert {host for pair in pairs for host in pair} == set(range(HOSTS))


async def test_a_delay_line_keeps_bytes_in_order_and_makes_them_late(nursery: trio.Nursery) -> None:
    async def echo(stream: trio.SocketStream) -> None:
        async for chunk in stream:
            await stream.send_all(chunk)

    listeners = await nursery.start(partial(trio.serve_tcp, echo, 0, host=LOOPBACK))
    line = DelayLine(listeners[0].socket.getsockname()[1])
    stream = await trio.open_tcp_stream(LOOPBACK, await line.open(nursery))
    line.delay_s = 0.02
    began_s = trio.current_time()

    async with stream:
        for number in range(10):
            await stream.send_all(b"%d" % number)
        answer = b""
        while len(answer) < 10:
            answer += await stream.receive_some()

    assert answer == b"0123456789"
    assert trio.current_time() - began_s >= 0.04
