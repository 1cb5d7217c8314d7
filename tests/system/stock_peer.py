"""An honest peer on stock py-libp2p, none of our code below the frames: `python -m tests.system.stock_peer ADDRESS`."""

import sys
from contextlib import suppress

import multiaddr
import trio
from libp2p import new_host
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service

from tests.system.victim import ECHO, NEWS

FRAME = bytes(range(256)) * 200
FRAMES = 40  # 2 MB each way: many windows


def say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


async def main(address: str) -> None:
    keys = create_new_key_pair()
    host = new_host(
        key_pair=keys,
        sec_opt={NOISE: Noise(keys, create_noise_key_pair().private_key)},
        muxer_opt={YAMUX: Yamux},
    )
    router = GossipSub(["/meshsub/1.2.0", "/meshsub/1.1.0"], 6, 4, 12, heartbeat_interval=1)
    pubsub = Pubsub(host, router, strict_signing=True)
    target = info_from_p2p_addr(multiaddr.Multiaddr(address))
    host.set_stream_handler(TProtocol(ECHO.name), answer)
    async with host.run([]), background_trio_service(pubsub), background_trio_service(router):
        await pubsub.wait_until_ready()
        news = await pubsub.subscribe(NEWS.name)
        await host.connect(target)
        await exchange_frames(await host.new_stream(target.peer_id, [ECHO.name]))
        say("echoed")
        await pubsub.wait_for_subscription(target.peer_id, NEWS.name)
        await pubsub.publish(NEWS.name, b"stock news")
        say("published")
        while not (await news.get()).data.startswith(b"answer"):
            pass
        say("heard")
        await trio.to_thread.run_sync(sys.stdin.read)


async def answer(stream: INetStream) -> None:
    """Send back whatever comes; stock negotiation has read what it needed and not a byte more."""
    with suppress(StreamEOF):
        while data := await stream.read(65_536):
            await stream.write(data)
    await stream.close()


async def exchange_frames(stream: INetStream) -> None:
    async def send() -> None:
        for _ in range(FRAMES):
            await stream.write(len(FRAME).to_bytes(4, "big") + FRAME)
        await stream.write(b"\xff\xff\xff\xff")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        received = bytearray()
        while len(received) < FRAMES * (len(FRAME) + 4) + 4:
            received += await stream.read(65_536)
    assert received == (len(FRAME).to_bytes(4, "big") + FRAME) * FRAMES + b"\xff\xff\xff\xff"
    await stream.close()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
