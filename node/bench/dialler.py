"""Makes inbound connections for somebody else: each one with a fresh key, one after another.

`python -m node.bench.dialler ADDRESS COUNT SECONDS_MAX`: a connection is a TCP connect, multistream for Noise, the Noise
handshake with a new Ed25519 key, multistream for yamux, and the end of the socket. Prints how many were made after each
tenth of them, and at the end.
"""

import sys

import trio

from node.host.address import Address, parse
from node.host.sockets import RawBytes
from node.host.upgrade import Upgrader
from protocol.identity import Identity

TENTHS = 10


async def connect_and_leave(target: Address) -> None:
    """Prove a key that was never seen before, and go."""
    socket = await trio.open_tcp_stream(target.host, target.port)
    raw = RawBytes(socket, is_initiator=True, remote=(target.host, target.port))
    try:
        upgrader = Upgrader(Identity.generate(), lambda stream: stream.reset())
        await upgrader.outbound(raw, target.host, target.peer_id)
    finally:
        await raw.close()


async def main(address: str, count: int, seconds_max: float) -> None:
    """Make the connections, as many as the time allows."""
    target = parse(address)
    made = 0
    with trio.move_on_after(seconds_max):
        while made < count:
            await connect_and_leave(target)
            made += 1
            if made % max(1, count // TENTHS) == 0:
                print(made, flush=True)
    print(made, flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
