"""A connection cut into streams: the yamux multiplexer, with every peer held to the rules.

libp2p's own muxer lets a peer push past its receive window (1.58 GB in 15 s), cuts a frame in half when a write is
cancelled, and resets a writer whose reader pauses for 5 s. So this one is ours; it speaks the same wire format.

Who may write what, when:

- A stream *stages* bytes (`send_all`), which either happens whole or not at all, so cancelling a sender is harmless.
- One writer task per connection moves staged bytes to the socket: control frames first, then the streams in turn,
  16 KiB each, so a token frame does not wait behind a 64 MiB blob. Nothing ever cancels a write half way.
- A reader that pauses only lets its window run dry. A peer that writes past it is cut off.
- Everything held for a peer is bounded: streams, staged and unread bytes, control frames.

Source: yamux specification, https://github.com/hashicorp/yamux/blob/master/spec.md
"""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import trio

from node.host import yamux_frame as wire
from node.host.mux_stream import MuxStream
from node.host.yamux_frame import HEADER, KIB, WINDOW_BYTES, WireViolation
from protocol.errors import StreamBroken
from protocol.identity import PeerId

BATCH_BYTES = 63 * KIB  # a batch fits one Noise message (65,519 bytes of plaintext)
UNREAD_BYTES = (
    8 * 1024 * KIB
)  # over all streams of a connection; beyond, its socket is left unread until they drain
LATE_BYTES = (
    8 * 1024 * KIB
)  # on the way when their streams were reset; a peer that sends more ignores its windows
INBOUND_STREAMS = 128  # open at once; 64 job streams are the most a peer has reason for
CONTROL_FRAMES = 1_024  # answers waiting for a peer that asks without ever reading


class Secured(Protocol):
    """The encrypted byte channel below: what a Noise session offers."""

    async def read(self, n: int | None = None) -> bytes:
        """Return what has arrived, at least one byte; raises when there will be nothing more."""

    async def write(self, data: bytes) -> None:
        """Write all of it."""

    async def close(self) -> None:
        """Close the channel."""


class Connection:
    """One authenticated connection to a peer, from its first stream to its death.

    Attributes:
        heard_at: trio time of the last byte from the peer.
        round_trip_s: the last heartbeat's round trip; None before the first.
        busy: how many application streams are open; heartbeats are quick while there are any.
        agreed: the protocols that we have opened streams of; the next stream of one need not wait for the peer's word.
    """

    def __init__(
        self,
        secured: Secured,
        peer_id: PeerId,
        *,
        we_dialled: bool,
        remote_ip: str,
        is_relayed: bool,
        accept: Callable[[MuxStream], None],
    ) -> None:
        self.peer_id = peer_id
        self.we_dialled = we_dialled
        self.remote_ip = remote_ip
        self.is_relayed = is_relayed
        self.closed = trio.Event()
        self.close_reason = ""
        self.violation = ""
        self.heard_at = trio.current_time()
        self.used_at = self.heard_at
        self.round_trip_s: float | None = None
        self.agreed: set[str] = set()
        self.unread_bytes = 0
        self._busy = 0
        self._secured = secured
        self._accept = accept
        self._streams: dict[int, MuxStream] = {}
        self._next_id = 1 if we_dialled else 2
        self._newest_inbound = 0
        self._late_bytes = 0  # may still arrive on streams that we have reset
        self._control: deque[bytes] = deque()
        self._waiting: dict[int, MuxStream] = {}  # streams with something to say, in turn
        self._work = trio.Event()
        self._idle = trio.Event()
        self._room = trio.Event()
        self._became_busy = trio.Event()
        self._pong = trio.Event()
        self._ping_id = 0
        self._closing = trio.Event()

    @property
    def is_closed(self) -> bool:
        """Whether it is dead or dying; no stream can be opened any more."""
        return self._closing.is_set()

    @property
    def busy(self) -> int:
        """How many application streams are open."""
        return self._busy

    @busy.setter
    def busy(self, count: int) -> None:
        self._busy = count
        self.used_at = trio.current_time()
        if count:
            self._became_busy.set()

    def open_stream(self) -> MuxStream:
        """Begin a new stream, which the peer learns with its first bytes; raises `StreamBroken` on a dead connection."""
        if self.is_closed:
            raise StreamBroken(f"connection to {self.peer_id} is closed")
        stream = MuxStream(self, self._next_id)
        self._streams[self._next_id] = stream
        self.control(wire.WINDOW, wire.SYN, self._next_id, 0, wake=False)
        self._next_id += 2
        return stream

    def close(self, reason: str) -> None:
        """Begin to end the connection; everything on it breaks. Wait for `closed` to know it is over."""
        if not self._closing.is_set():
            self.close_reason = reason
            self._closing.set()

    async def run(self, *, idle_s: float, busy_s: float, silence_s: float) -> None:
        """Serve the connection until it dies, for whatever reason; never raises.

        Args:
            idle_s: between heartbeats while no application stream is open, at most; there is no other wake-up.
            busy_s: the same while there is one.
            silence_s: without a byte for this long after a heartbeat, the peer is gone.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                nursery.start_soon(self._write)
                nursery.start_soon(self._heartbeat, idle_s, busy_s, silence_s)
                await self._closing.wait()
                with trio.move_on_after(
                    0.2
                ):  # goodbye, and what was staged before it, if the peer still reads
                    self.control(wire.GO_AWAY, 0, 0, 1 if self.violation else 0)
                    await self._idle.wait()
                nursery.cancel_scope.cancel()
        finally:
            self.close("cancelled")
            for stream in list(self._streams.values()):
                stream.break_off()
            self.closed.set()
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await _close_quietly(self._secured)

    # What the streams call.

    def control(self, kind: int, flags: int, stream_id: int, length: int, *, wake: bool = True) -> None:
        """Queue a frame without payload; it overtakes data. Without `wake` it goes out with whatever comes next."""
        if len(self._control) >= CONTROL_FRAMES:
            self.violation = "does not read"
            self.close("peer asks without reading the answers")
            return
        self._control.append(wire.frame(kind, flags, stream_id, length))
        if wake:
            self._wake()

    def schedule(self, stream: MuxStream) -> None:
        """A stream may have something to say."""
        self._waiting[stream.stream_id] = stream
        self._wake()

    def forget(self, stream: MuxStream) -> None:
        """A stream is over."""
        if self._streams.pop(stream.stream_id, None):
            if not stream.ended_by_peer:
                self._late_bytes = min(self._late_bytes + stream.receive_window, LATE_BYTES)
            if stream.on_over is not None:
                stream.on_over()
        self._waiting.pop(stream.stream_id, None)
        stream.uncount()

    def consumed(self, count: int) -> None:
        """Unread bytes have gone to their reader, or to nobody."""
        self.unread_bytes -= count
        if self.unread_bytes <= UNREAD_BYTES:
            self._room.set()

    def _wake(self) -> None:
        if self._idle.is_set():
            self._idle = trio.Event()
        self._work.set()

    # The three tasks.

    async def _write(self) -> None:
        try:
            while True:
                batch = self._next_batch()
                if batch:
                    await self._secured.write(batch)
                else:
                    self._idle.set()
                    self._work = trio.Event()
                    await self._work.wait()
        except Exception as error:  # noqa: BLE001  whatever the transport raises, this connection is over, only this one
            self.close(f"write: {type(error).__name__}")

    def _next_batch(self) -> bytes:
        frames: list[bytes] = []
        size = 0
        while self._control and size < BATCH_BYTES:
            frames.append(self._control.popleft())
            size += HEADER.size
        while self._waiting and size + HEADER.size < BATCH_BYTES:
            stream_id = next(iter(self._waiting))
            stream = self._waiting.pop(stream_id)
            frame = stream.take_turn(BATCH_BYTES - size - HEADER.size)
            if frame:
                frames.append(frame)
                size += len(frame)
                self._waiting[stream_id] = stream  # to the end of the line
        return b"".join(frames)

    async def _read(self) -> None:
        buffer = bytearray()
        try:
            while True:
                while self.unread_bytes > UNREAD_BYTES:
                    self._room = trio.Event()
                    await self._room.wait()
                data = await self._secured.read()
                if not data:
                    self.close("peer hung up")
                    return
                self.heard_at = trio.current_time()
                buffer += data
                del buffer[: self._take_frames(buffer)]
        except WireViolation as violation:
            self.violation = str(violation)
            self.close(f"violation: {violation}")
        except Exception as error:  # noqa: BLE001  decryption, framing, sockets: this connection is over, only this one
            self.close(f"read: {type(error).__name__}")

    def _take_frames(self, buffer: bytearray) -> int:
        """Handle every whole frame in the buffer; return how many bytes they took."""
        offset = 0
        while len(buffer) - offset >= HEADER.size:
            version, kind, flags, stream_id, length = HEADER.unpack_from(buffer, offset)
            if version != 0 or kind > wire.GO_AWAY:
                raise WireViolation(f"frame of version {version} and type {kind}")
            end = offset + HEADER.size
            if kind == wire.DATA:
                if length > WINDOW_BYTES:
                    raise WireViolation(f"data frame of {length} bytes, the window is {WINDOW_BYTES}")
                if len(buffer) - end < length:
                    break
                self._take_data(flags, stream_id, bytes(buffer[end : end + length]))
                end += length
            elif kind == wire.WINDOW:
                self._take_window(flags, stream_id, length)
            elif kind == wire.PING:
                self._take_ping(flags, length)
            else:
                self.close(f"peer said goodbye ({length})")
            offset = end
        return offset

    def _take_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & wire.SYN:
            self._begin_inbound(stream_id)
        stream = self._streams.get(stream_id)
        if stream is None:
            self._late_bytes -= len(payload)
            if self._late_bytes < 0:
                raise WireViolation(
                    f"{len(payload)} bytes on stream {stream_id}, which is over, with no window left"
                )
            return  # it crossed our reset
        if len(payload) > stream.receive_window:
            raise WireViolation(f"{len(payload)} bytes with a window of {stream.receive_window}")
        if payload:
            stream.feed(payload)
        self._take_flags(stream, flags)

    def _take_window(self, flags: int, stream_id: int, increment: int) -> None:
        if flags & wire.SYN:
            self._begin_inbound(stream_id)
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.widen(increment)
            self._take_flags(stream, flags)

    def _take_flags(self, stream: MuxStream, flags: int) -> None:
        if flags & wire.RST:
            stream.reset_by_peer()
        elif flags & wire.FIN:
            stream.peer_ended()

    def _take_ping(self, flags: int, value: int) -> None:
        if flags & wire.SYN:
            self.control(wire.PING, wire.ACK, 0, value)
        elif value == self._ping_id:
            self._pong.set()

    def _begin_inbound(self, stream_id: int) -> None:
        if stream_id % 2 == self._next_id % 2 or stream_id <= self._newest_inbound:
            raise WireViolation(f"new stream with id {stream_id} after {self._newest_inbound}")
        self._newest_inbound = stream_id
        inbound = [stream for key, stream in self._streams.items() if key % 2 != self._next_id % 2]
        if len(inbound) >= INBOUND_STREAMS:
            over = next((stream for stream in inbound if stream.is_answered), None)
            if over is None:
                self.control(wire.WINDOW, wire.RST, stream_id, 0)
                return
            over.reset()  # answered long ago; the peer just never ended its side
        stream = self._streams[stream_id] = MuxStream(self, stream_id)
        self.control(wire.WINDOW, wire.ACK, stream_id, 0, wake=False)  # `accept` has something to say at once
        self._accept(stream)

    async def _heartbeat(self, idle_s: float, busy_s: float, silence_s: float) -> None:
        while True:
            self._ping_id = (self._ping_id + 1) & 0xFFFFFFFF
            self._pong = trio.Event()
            sent_at = trio.current_time()
            self.control(wire.PING, wire.SYN, 0, self._ping_id)
            with trio.move_on_after(silence_s):
                await self._pong.wait()
                self.round_trip_s = trio.current_time() - sent_at
            if not self._pong.is_set() and self.heard_at <= sent_at:
                self.close(f"silent for {silence_s} s")
                return
            await self._rest(idle_s, busy_s)

    async def _rest(self, idle_s: float, busy_s: float) -> None:
        """Wait for the next heartbeat; those of all connections share their ticks, and so their wake-ups.

        A connection that has become busy waits for its next quick tick: a ping at once would only be in the way of what
        made it busy.
        """
        if not self._busy:
            self._became_busy = trio.Event()
            with trio.move_on_at(_next_tick(idle_s)):
                await self._became_busy.wait()
            if not self._became_busy.is_set():
                return
        await trio.sleep_until(_next_tick(busy_s))


def _next_tick(interval_s: float) -> float:
    return (trio.current_time() // interval_s + 1) * interval_s


async def _close_quietly(secured: Secured) -> None:
    with suppress(Exception):  # closing a dead transport may fail in any way; it is closed then
        await secured.close()
