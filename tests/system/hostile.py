"""A hostile peer: `python -m tests.system.hostile ATTACK ADDRESS` sends the real bytes of one attack.

Prints `done` when the attack has been carried out, or `holding` when it goes on until stdin ends.
"""

import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random

import trio
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import PUBSUB_SIGNING_PREFIX

from node.host import negotiation, relay
from node.host import yamux_frame as wire
from node.host.address import Address, parse
from node.host.mux_stream import MuxStream
from node.host.negotiation import uvarint
from node.host.sockets import RawBytes
from node.host.streams import FrameStream
from node.host.upgrade import Upgrader, libp2p_key_pair
from node.host.yamux import Connection
from protocol.errors import StreamBroken
from protocol.identity import Identity
from tests.system.victim import ECHO, FLOOD, NEWS, RAISE

MESHSUB = "/meshsub/1.2.0"


def say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


async def hold() -> None:
    say("holding")
    await trio.to_thread.run_sync(sys.stdin.read)


class Attacker:
    """One key, and ways to get as deep into the victim as each attack needs."""

    def __init__(self, target: Address, nursery: trio.Nursery) -> None:
        self.target = target
        self.identity = Identity.generate()
        self.rng = Random(20_251_121)
        self._nursery = nursery
        self._upgrader = Upgrader(self.identity, lambda stream: stream.reset())

    async def socket(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(self.target.host, self.target.port)

    async def connection(self, *, is_running: bool = True) -> Connection:
        """An authenticated connection; not running, its secured channel takes whatever frames we like."""
        raw = RawBytes(await self.socket(), is_initiator=True, remote=(self.target.host, self.target.port))
        connection = await self._upgrader.outbound(raw, self.target.host, self.target.peer_id)
        if is_running:
            self._nursery.start_soon(self._run, connection)
        return connection

    async def stream(self, protocol: str, connection: Connection | None = None) -> MuxStream:
        stream = (connection or await self.connection()).open_stream()
        await negotiation.propose(stream.receive_exactly, stream.send_all, protocol)
        return stream

    async def _run(self, connection: Connection) -> None:
        await connection.run(idle_s=15, busy_s=1, silence_s=30)


async def until_reset(stream: MuxStream) -> None:
    with trio.fail_after(10):
        try:
            while await stream.receive_some():
                pass
        except StreamBroken:
            pass


# --- the traps of FACTS, one by one ----------------------------------------------------------------------------------


async def non_utf8_negotiation(attacker: Attacker) -> None:
    """Four bytes after the handshake killed stock libp2p; four before it are as good."""
    stream = (await attacker.connection()).open_stream()
    await stream.send_all(b"\x03\xff\xfe\n" * 20)
    await until_reset(stream)
    socket = await attacker.socket()
    await socket.send_all(b"\x03\xff\xfe\n")
    await socket.receive_some()


async def gossip_that_is_no_protobuf(attacker: Attacker) -> None:
    for garbage in (b"\xff" * 40, b"\x0a\x05abc", os.urandom(200)):
        stream = await attacker.stream(MESHSUB)
        await stream.send_all(uvarint(len(garbage)) + garbage)
        await until_reset(stream)
    stream = await attacker.stream(MESHSUB)
    await stream.send_all(uvarint(1 << 30))
    await until_reset(stream)


def signed_message(identity: Identity, data: bytes, topic: str = NEWS.name) -> rpc_pb2.Message:
    keys = libp2p_key_pair(identity)
    message = rpc_pb2.Message(
        data=data, topicIDs=[topic], from_id=ID.from_pubkey(keys.public_key).to_bytes(), seqno=os.urandom(8)
    )
    message.signature = keys.private_key.sign(PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString())
    message.key = keys.public_key.serialize()
    return message


async def send_rpc(stream: MuxStream, rpc: rpc_pb2.RPC) -> None:
    body = rpc.SerializeToString()
    await stream.send_all(uvarint(len(body)) + body)


async def gossip_with_garbage_keys(attacker: Attacker) -> None:
    """The key is parsed before any validator is asked; RSA with bad DER raised where nobody caught it."""
    stream = await attacker.stream(MESHSUB)
    rsa_with_bad_der = b"\x08\x00\x12\x03abc"
    for key in (b"garbage", rsa_with_bad_der, b"", os.urandom(64)):
        message = rpc_pb2.Message(
            data=os.urandom(8),
            topicIDs=[NEWS.name],
            from_id=b"\x12\x20" + os.urandom(32),
            key=key,
            signature=b"s",
        )
        await send_rpc(stream, rpc_pb2.RPC(publish=[message]))
    forged = signed_message(attacker.identity, b"forged")
    forged.data = b"something else"
    await send_rpc(
        stream, rpc_pb2.RPC(publish=[forged, signed_message(attacker.identity, b"after the garbage")])
    )
    await hold()


async def gossip_that_makes_a_validator_raise(attacker: Attacker) -> None:
    stream = await attacker.stream(MESHSUB)
    await send_rpc(stream, rpc_pb2.RPC(publish=[signed_message(attacker.identity, b"raise")]))
    await hold()


async def streams_whose_handler_raises(attacker: Attacker) -> None:
    connection = await attacker.connection()
    for _ in range(20):
        with suppress(StreamBroken):  # the reset may overtake the answer
            await until_reset(await attacker.stream(RAISE.name, connection))


async def slow_reader(attacker: Attacker) -> None:
    """Let the window run dry for longer than stock libp2p's 5 s, then go on: nothing may be lost or reset."""
    stream = FrameStream(await attacker.stream(FLOOD.name), FLOOD)
    assert await stream.receive() == (0).to_bytes(4, "big") * 10_000
    await trio.sleep(6)
    for number in range(1, 200):
        assert await stream.receive() == number.to_bytes(4, "big") * 10_000
    stream.abort()


async def silent_sockets(attacker: Attacker) -> None:
    sockets = [await attacker.socket() for _ in range(400)]
    await hold()
    assert sockets


async def connects_and_disconnects(attacker: Attacker) -> None:
    for number in range(1_000):
        connection = await attacker.connection(is_running=False)
        await connection._secured.close()
        if number % 10 == 0:
            await trio.aclose_forcefully(await attacker.socket())


async def window_ignored(attacker: Attacker) -> None:
    """Data past the window, on a stream whose handler does not read: stock libp2p took 1.58 GB in 15 s."""
    opening = b"\x13/multistream/1.0.0\n" + uvarint(len(FLOOD.name) + 1) + FLOOD.name.encode() + b"\n"
    await push_without_end(attacker, opening)


async def data_after_reset(attacker: Attacker) -> None:
    """The same on a stream that the victim resets at once: nobody holds it, but nobody asked for it either."""
    await push_without_end(attacker, b"\xff\xff")


async def push_without_end(attacker: Attacker, opening: bytes) -> None:
    connection = await attacker.connection(is_running=False)
    secured = connection._secured
    await secured.write(wire.frame(wire.DATA, wire.SYN, 1, len(opening)) + opening)
    frame = wire.frame(wire.DATA, 0, 1, 16_384) + bytes(16_384)
    try:
        for _ in range(20_000):
            await secured.write(frame)
    except Exception:  # noqa: BLE001  whatever it looks like from here, the victim has hung up
        say("cut off")


async def plaintext_impersonation(attacker: Attacker) -> None:
    """Ask for every security but the one that proves a key."""
    socket = await attacker.socket()
    raw = RawBytes(socket, is_initiator=True, remote=("", 0))
    await raw.write(b"\x13/multistream/1.0.0\n")
    assert (await raw.read(20))[1:] == b"/multistream/1.0.0\n"
    for protocol in (b"/plaintext/2.0.0", b"/secio/1.0.0", b"/tls/1.0.0"):
        await raw.write(uvarint(len(protocol) + 1) + protocol + b"\n")
        assert await raw.read(4) == b"\x03na\n"


async def stopped_in_mid_stream(attacker: Attacker) -> None:
    """The test sends SIGSTOP while we hold an open stream."""
    stream = FrameStream(await attacker.stream(ECHO.name), ECHO)
    await stream.send(b"hello")
    assert await stream.receive() == b"hello"
    await hold()


# --- floods ----------------------------------------------------------------------------------------------------------


async def stream_flood(attacker: Attacker) -> None:
    """Ten thousand streams that say nothing."""
    connection = await attacker.connection(is_running=False)
    secured = connection._secured
    try:
        for start in range(0, 10_000, 500):
            await secured.write(
                b"".join(
                    wire.frame(wire.WINDOW, wire.SYN, 2 * number + 1, 0)
                    for number in range(start, start + 500)
                )
            )
    except Exception:  # noqa: BLE001  whatever it looks like from here, the victim has hung up
        say("cut off")
    await hold()


async def pings_without_reading(attacker: Attacker) -> None:
    connection = await attacker.connection(is_running=False)
    secured = connection._secured
    batch = wire.frame(wire.PING, wire.SYN, 0, 1) * 5_000
    try:
        with trio.move_on_after(10):
            for _ in range(2_000):
                await secured.write(batch)
    except Exception:  # noqa: BLE001  whatever it looks like from here, the victim has hung up
        say("cut off")


async def unread_streams(attacker: Attacker) -> None:
    """A full window on every stream we may open, before any protocol is named."""
    connection = await attacker.connection()
    data = bytes([0x80]) * wire.WINDOW_BYTES
    for _ in range(128):
        await connection.open_stream().send_all(data)
    await hold()


async def gossip_flood(attacker: Attacker) -> None:
    stream = await attacker.stream(MESHSUB)
    try:
        for _ in range(2_000):
            await send_rpc(
                stream, rpc_pb2.RPC(publish=[rpc_pb2.Message(data=os.urandom(16), topicIDs=[NEWS.name])])
            )
    except StreamBroken:
        say("cut off")


# --- fuzz ------------------------------------------------------------------------------------------------------------


def random_rpc(rng: Random) -> bytes:
    """An RPC with random fields, or one with a few bytes turned over, or no RPC at all."""
    rpc = rpc_pb2.RPC()
    for _ in range(rng.randrange(3)):
        rpc.publish.add(
            data=rng.randbytes(rng.randrange(200)),
            topicIDs=[rng.choice([NEWS.name, "", "x" * 300]) for _ in range(rng.randrange(3))],
            from_id=rng.randbytes(rng.choice([0, 1, 34, 38])),
            seqno=rng.randbytes(rng.randrange(20)),
            key=rng.randbytes(rng.randrange(80)),
            signature=rng.randbytes(64),
        )
    for _ in range(rng.randrange(3)):
        rpc.subscriptions.add(subscribe=rng.random() < 0.5, topicid=rng.choice([NEWS.name, "", "y" * 500]))
    if rng.random() < 0.7:
        control = rpc.control
        control.ihave.add(topicID=NEWS.name, messageIDs=[rng.randbytes(rng.randrange(40)) for _ in range(3)])
        control.iwant.add(messageIDs=[rng.randbytes(rng.randrange(40)) for _ in range(3)])
        control.graft.add(topicID=rng.choice([NEWS.name, "nowhere"]))
        control.prune.add(topicID=NEWS.name, backoff=rng.randrange(1 << 40)).peers.add(
            peerID=rng.randbytes(10)
        )
    if rng.random() < 0.3:
        rpc.senderRecord = rng.randbytes(50)
    body = bytearray(rpc.SerializeToString())
    for _ in range(rng.choice([0, 0, 1, 5]) if body else 0):
        body[rng.randrange(len(body))] = rng.randrange(256)
    return bytes(body) if rng.random() < 0.8 else rng.randbytes(rng.randrange(300))


async def fuzz_gossip(attacker: Attacker) -> None:
    """A few hundred random frames, each from as fresh a key as it takes to be heard."""
    stream = await attacker.stream(MESHSUB)
    for number in range(400):
        body = random_rpc(attacker.rng)
        try:
            await stream.send_all(uvarint(len(body)) + body)
            with trio.move_on_after(0.005):
                await stream.receive_some()
        except StreamBroken:
            attacker = Attacker(attacker.target, attacker._nursery)
            attacker.rng = Random(number)
            stream = await attacker.stream(MESHSUB)


async def fuzz_frames(attacker: Attacker) -> None:
    """Random yamux: half of it well-formed headers with random fields."""
    for round_ in range(60):
        connection = await Attacker(attacker.target, attacker._nursery).connection(is_running=False)
        rng = Random(round_)
        try:
            for _ in range(20):
                header = wire.HEADER.pack(
                    rng.choice([0, 0, 0, 1]),
                    rng.randrange(6),
                    rng.randrange(16),
                    rng.randrange(6),
                    rng.randrange(300),
                )
                await connection._secured.write(header + rng.randbytes(rng.randrange(300)))
        except Exception:  # noqa: BLE001  the victim has hung up
            continue
        finally:
            await connection._secured.close()


async def fuzz_sockets(attacker: Attacker) -> None:
    """Random bytes at every depth of the handshake."""
    rng = attacker.rng
    for number in range(150):
        socket = await attacker.socket()
        try:
            if number % 3:
                await socket.send_all(b"\x13/multistream/1.0.0\n")
            if number % 3 == 2:
                await socket.send_all(b"\x07/noise\n")
            await socket.send_all(rng.randbytes(rng.randrange(1, 400)))
            await socket.send_eof()
        except trio.BrokenResourceError:
            continue
        finally:
            await trio.aclose_forcefully(socket)


async def fuzz_services(attacker: Attacker) -> None:
    """Random bytes on every protocol the victim serves."""
    for protocol in (ECHO.name, relay.HOP, relay.STOP, MESHSUB):
        for number in range(25):
            one = attacker if number % 8 else Attacker(attacker.target, attacker._nursery)
            stream = await one.stream(protocol)
            await stream.send_all(one.rng.randbytes(one.rng.randrange(1, 500)))
            stream.end()
            await until_reset(stream)
            attacker = one


ATTACKS: dict[str, Callable[[Attacker], Awaitable[None]]] = {
    attack.__name__: attack
    for attack in (
        non_utf8_negotiation,
        gossip_that_is_no_protobuf,
        gossip_with_garbage_keys,
        gossip_that_makes_a_validator_raise,
        streams_whose_handler_raises,
        slow_reader,
        silent_sockets,
        connects_and_disconnects,
        window_ignored,
        data_after_reset,
        plaintext_impersonation,
        stopped_in_mid_stream,
        stream_flood,
        pings_without_reading,
        unread_streams,
        gossip_flood,
        fuzz_gossip,
        fuzz_frames,
        fuzz_sockets,
        fuzz_services,
    )
}


async def main(attack: str, address: str) -> None:
    async with trio.open_nursery() as nursery:
        await ATTACKS[attack](Attacker(parse(address), nursery))
        say("done")
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
