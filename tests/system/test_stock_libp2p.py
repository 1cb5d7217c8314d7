"""We replaced libp2p's swarm, muxer and negotiation, not its wire: a stock peer still talks to us."""

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from node.host import Host, HostSettings
from protocol.identity import Identity, PeerId
from protocol.mesh import Verdict
from tests.system.victim import ECHO, NEWS, echo

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]


class Quiet:
    def write(self, event: str, /, **fields: object) -> None:
        pass


async def test_a_stock_libp2p_peer_streams_and_gossips_with_us() -> None:
    """Two megabytes each way through both multiplexers, and a message each way through both routers.

    Then we ask: once as strangers do, and again with the proposal and the question in one write.
    """
    host = Host(Identity.generate(), HostSettings(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False), Quiet())
    heard = trio.Event()

    async def hear(data: bytes, _peer: PeerId) -> None:
        if data == b"stock news":
            heard.set()

    host.serve(ECHO, echo)
    host.subscribe(NEWS, lambda _data, _peer: Verdict.ACCEPT, hear)
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "tests.system.stock_peer", host.addresses[0]],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        said = b""
        try:
            with trio.fail_after(40):
                while b"published" not in said:
                    some = await process.stdout.receive_some()
                    assert some, said
                    said += some
                await heard.wait()
                number = 0
                while b"heard" not in said:
                    await host.publish(NEWS, b"answer %d" % number)
                    number += 1
                    with trio.move_on_after(0.5):
                        said += await process.stdout.receive_some()
                (stock,) = host.connected
                for question in (b"first", b"second", b"third"):
                    stream = await host.open_stream(stock, ECHO)
                    await stream.send(question)
                    assert await stream.receive() == question
                    await stream.end()
        finally:
            process.kill()
            await process.wait()
        nursery.cancel_scope.cancel()
