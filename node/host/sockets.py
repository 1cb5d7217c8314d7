"""Byte channels below the encryption: a TCP socket, or a stream through a relay, as libp2p's handshake wants them.

Two traps of libp2p are answered here. Its `read_exactly` gives up after 101 short reads, so a 64 KiB message in small
segments kills the connection: `read` here waits for all it was asked for. And each of its reads is a system call or
two: this one keeps a buffer.
"""

from typing import Protocol

import multiaddr  # type: ignore[import-untyped]  # has no stubs
import trio
from libp2p.abc import IRawConnection
from libp2p.connection_types import ConnectionType

READ_BYTES = 65_536


class ByteStream(Protocol):
    """What a trio socket stream and a `MuxStream` have in common."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return at least one byte, or nothing at the end."""

    async def send_all(self, data: bytes) -> None:
        """Send all of it."""

    async def aclose(self) -> None:
        """Close it."""


class RawBytes(IRawConnection):
    """One byte channel with exact reads, in the shape libp2p's Noise expects."""

    def __init__(self, stream: ByteStream, *, is_initiator: bool, remote: tuple[str, int] | None) -> None:
        self.is_initiator = is_initiator
        self._stream = stream
        self._remote = remote
        self._buffer = bytearray()

    async def read(self, n: int | None = None) -> bytes:
        """Return exactly `n` bytes; raises `EOFError` when the channel ends before that."""
        while len(self._buffer) < (1 if n is None else n):
            some = await self._stream.receive_some(READ_BYTES)
            if not some:
                raise EOFError("channel ended")
            self._buffer += some
        count = len(self._buffer) if n is None else n
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    async def write(self, data: bytes) -> None:
        """Write all of it; called by one task at a time."""
        await self._stream.send_all(data)

    async def close(self) -> None:
        """Close the channel underneath."""
        await trio.aclose_forcefully(self._stream)  # type: ignore[arg-type]  # any `aclose` will do

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the other end's IP address and port; None through a relay."""
        return self._remote

    def get_transport_addresses(self) -> list[multiaddr.Multiaddr]:
        """Return nothing: addresses are the swarm's business."""
        return []

    def get_connection_type(self) -> ConnectionType:
        """Return whether a relay stands in between."""
        return ConnectionType.DIRECT if self._remote else ConnectionType.RELAYED
