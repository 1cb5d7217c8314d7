"""Frames on a stream: a length in front of each, and an end that is said.

On the wire: four bytes of length, big-endian, then that many bytes; the length 0xFFFFFFFF is the end. A TCP connection
whose process was killed looks like a clean end of file, so an end of file without that mark is a broken stream.
"""

import struct
from contextlib import suppress

from node.host.mux_stream import MuxStream
from protocol.errors import LocalProtocolError, StreamBroken, StreamEnded, TooLarge
from protocol.identity import PeerId
from protocol.topics import StreamProtocol

_LENGTH = struct.Struct("!I")
_END = _LENGTH.pack(0xFFFFFFFF)


class FrameStream:
    """The `Stream` of the mesh port, over one multiplexed stream."""

    def __init__(self, raw: MuxStream, protocol: StreamProtocol, *, proposal: bytes = b"") -> None:
        """Wrap a stream: a negotiated one, or a fresh one to a peer that has agreed to the same `proposal` before.

        The proposal then goes out together with the first frame, and is to come back in front of the peer's first.
        A peer that has changed its mind breaks the stream.
        """
        self._raw = raw
        self._protocol = protocol
        self._unsaid = proposal
        self._awaited = proposal
        self._buffer = bytearray()
        self._has_ended = False
        self._peer_ended = False

    @property
    def peer_id(self) -> PeerId:
        """The peer at the other end, as the handshake proved it."""
        return self._raw.peer_id

    async def send(self, frame: bytes) -> None:
        """See `protocol.mesh.Stream.send`."""
        self._protocol.check_length(frame)
        if self._has_ended:
            raise LocalProtocolError(f"frame on {self._protocol.name} after its end was said")
        await self._say(_LENGTH.pack(len(frame)) + frame)

    async def receive(self) -> bytes:
        """See `protocol.mesh.Stream.receive`."""
        try:
            if self._unsaid:
                self._raw.stage(self._take_unsaid())
            while self._awaits_agreement():
                await self._read_more()
            while True:
                frame = self._next_frame()
                if frame is not None:
                    return frame
                await self._read_more()
        except (StreamBroken, TooLarge):
            self.abort()
            raise

    async def end(self) -> None:
        """See `protocol.mesh.Stream.end`."""
        if self._raw.is_broken:
            return
        if not self._has_ended:
            try:
                await self._say(_END)
            except StreamBroken:
                return
            self._has_ended = True
            self._raw.end()
        with suppress(StreamBroken):
            await self._raw.flush()

    def abort(self) -> None:
        """See `protocol.mesh.Stream.abort`."""
        self._raw.reset()

    def discard(self) -> None:
        """The handler has returned: nobody will read what still comes."""
        self._raw.discard()

    async def _say(self, data: bytes) -> None:
        await self._raw.wait_for_room(len(data))
        self._raw.stage(self._take_unsaid() + data)

    def _take_unsaid(self) -> bytes:
        proposal, self._unsaid = self._unsaid, b""
        return proposal

    def _awaits_agreement(self) -> bool:
        """Whether the peer's answer to our proposal is still missing; any other answer is none."""
        answer = bytes(self._buffer[: len(self._awaited)])
        if not self._awaited.startswith(answer):
            raise StreamBroken(f"{self.peer_id} does not agree to {self._protocol.name} any more")
        if len(answer) < len(self._awaited):
            return True
        del self._buffer[: len(answer)]
        self._awaited = b""
        return False

    async def _read_more(self) -> None:
        some = await self._raw.receive_some()
        if not some:
            raise StreamBroken(f"stream of {self.peer_id} stopped without saying so")
        self._buffer += some

    def _next_frame(self) -> bytes | None:
        if self._peer_ended:
            raise StreamEnded(f"{self.peer_id} has said its last frame")
        if len(self._buffer) < _LENGTH.size:
            return None
        if self._buffer.startswith(_END):
            self._peer_ended = True
            raise StreamEnded(f"{self.peer_id} has said its last frame")
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > self._protocol.frame_bytes_max:
            raise TooLarge(
                f"frame of {length} bytes on {self._protocol.name}, at most {self._protocol.frame_bytes_max}"
            )
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        frame = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        return frame
