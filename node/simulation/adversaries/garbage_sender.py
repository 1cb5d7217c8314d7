"""The garbage sender: bytes that are no message, on every protocol and topic, and its own messages damaged on the way.

A decoder that reserves what a length announces, or a handler that trusts a form, would show here as a dead node.
"""

from typing import ClassVar, Final

from node.simulation.adversaries.adversary import Adversary
from node.simulation.adversaries.wiretap import TappedMesh
from protocol.identity import PeerId
from protocol.mesh import Mesh
from protocol.topics import ASSEMBLY, STREAM_PROTOCOLS, StreamProtocol

GARBAGE_MEAN_S: Final = 0.5
DAMAGED_SHARE: Final = 0.1  # of its own frames
BYTES_MAX: Final = 2_048
NESTED: Final = 200  # MessagePack lists in lists
# An array, a map and a bin that announce four thousand million bytes or items, and bring none.
BOMBS: Final = (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * NESTED)


class GarbageSender(Adversary):
    """Says what nobody can understand."""

    name: ClassVar[str] = "garbage-sender"
    about: ClassVar[str] = "damages frames that it sends, and throws random bytes at every protocol and topic"

    def tap(self, mesh: Mesh) -> Mesh:
        """See `Adversary.tap`."""
        return TappedMesh(mesh, self)

    def outgoing(self, frame: bytes, peer_id: PeerId, protocol: StreamProtocol) -> list[bytes]:
        """See `Tapper`."""
        if not frame or self.rng.random() >= DAMAGED_SHARE:
            return [frame]
        self.strike("damaged", protocol=protocol.name, peer=peer_id)
        return [self._damaged(frame)]

    def incoming(self, frame: bytes, peer_id: PeerId, protocol: StreamProtocol) -> None:
        """See `Tapper`; it does not listen."""

    async def run(self) -> None:
        """See `Adversary.run`."""
        while True:
            await self.pause(GARBAGE_MEAN_S)
            if peers := self.neighbours():
                protocol = self.rng.choice(STREAM_PROTOCOLS)
                await self.attempt(self._throw, self.rng.choice(peers), protocol)
            if self.rng.random() < 1 / len(STREAM_PROTOCOLS):
                await self.daemon.mesh.publish(ASSEMBLY, self._garbage())
                self.strike("gossiped")

    async def _throw(self, to: PeerId, protocol: StreamProtocol) -> None:
        async with self.stream(to, protocol) as stream:
            await stream.send(self._garbage())
            self.strike("thrown", protocol=protocol.name, peer=to)
            await stream.receive()

    def _garbage(self) -> bytes:
        body = self.rng.choice((self.rng.randbytes(self.rng.randint(0, BYTES_MAX)), *BOMBS))
        return bytes(64) + body if self.rng.random() < 1 / 2 else body  # a signature's length before it

    def _damaged(self, frame: bytes) -> bytes:
        """Return the frame with a bit turned, cut short, or with another end; never longer, since no bound is tried here."""
        place = self.rng.randrange(len(frame))
        turned = bytes([frame[place] ^ 1 << self.rng.randrange(8)])
        end = self.rng.randbytes(4)
        return self.rng.choice(
            (frame[:place] + turned + frame[place + 1 :], frame[:place], (frame[:-4] + end)[: len(frame)])
        )
