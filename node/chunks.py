"""Bytes of a known length over a stream, as bare frames: all of `BLOB_CHUNK_BYTES_MAX` but for the last.

A stream stages two chunks at most and then its sender waits, and a connection gives each of its streams a turn of 16 KiB,
so a blob never holds up the tokens of a chat for longer than that. Whoever receives gives each chunk
`BLOB_CHUNK_TIMEOUT_S`: since all but the last are full, dripping single bytes does not keep it waiting for ever.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import trio

from protocol.errors import MalformedMessage, StreamBroken
from protocol.limits import BLOB_CHUNK_BYTES_MAX, BLOB_CHUNK_TIMEOUT_S
from protocol.mesh import Stream


def chunk_count(size: int) -> int:
    """How many frames so many bytes take."""
    return -(-size // BLOB_CHUNK_BYTES_MAX)


async def send_bytes(stream: Stream, data: bytes) -> None:
    """Send bytes whose length the other end has been told.

    Raises:
        StreamBroken: the stream is gone.
    """
    for start in range(0, len(data), BLOB_CHUNK_BYTES_MAX):
        await stream.send(data[start : start + BLOB_CHUNK_BYTES_MAX])


async def receive_chunks(stream: Stream, size: int) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of so many bytes; to be closed by its reader if that does not read to the end.

    Raises:
        StreamBroken, StreamEnded: the stream is gone, a chunk took too long, or the peer ended before all had come.
        MalformedMessage: a chunk is longer or shorter than it must be.
    """
    left = size
    while left:
        expected = min(BLOB_CHUNK_BYTES_MAX, left)
        with trio.move_on_after(BLOB_CHUNK_TIMEOUT_S) as waiting:
            chunk = await stream.receive()
        if waiting.cancelled_caught:
            raise StreamBroken(f"{stream.peer_id} sent no chunk for {BLOB_CHUNK_TIMEOUT_S:g} s")
        if len(chunk) != expected:
            raise MalformedMessage(
                f"peer {stream.peer_id} sent a chunk of {len(chunk)} bytes, expected {expected}"
            )
        left -= len(chunk)
        yield chunk


async def receive_bytes(stream: Stream, size: int) -> bytes:
    """Return so many bytes; see `receive_chunks`. The caller has bounded `size`."""
    received = bytearray()
    async with aclosing(receive_chunks(stream, size)) as chunks:
        async for chunk in chunks:
            received += chunk
    return bytes(received)
