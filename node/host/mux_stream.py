"""One stream of a connection: bytes staged to go out, bytes that have come in, and the windows between.

Staging (`send_all`) happens whole or not at all, so cancelling a sender never cuts anything in half; the connection's
one writer takes from the stage in turns. What comes in waits here, at most one window of it.
"""

from collections.abc import Callable
from typing import Protocol

import trio

from node.host import yamux_frame as wire
from node.host.yamux_frame import KIB, WireViolation
from protocol.errors import StreamBroken
from protocol.identity import PeerId

TURN_BYTES = 16 * KIB  # per stream and turn: about 0.2 ms at the 100 MB/s of a loopback connection
STAGED_BYTES = 256 * KIB  # a sender waits when its stream has this much staged; one frame may go over it
UNWANTED_BYTES = 64 * KIB  # sent to a handler that has returned; then the sender is told
SEND_WINDOW_MAX = 1 << 31  # granted by peers; ours is never grown


class Carrier(Protocol):
    """What a stream asks of the connection that carries it."""

    peer_id: PeerId
    is_relayed: bool
    unread_bytes: int
    busy: int

    @property
    def is_closed(self) -> bool:
        """Whether it is dead or dying."""

    def control(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        """Queue a frame without payload; it overtakes data."""

    def schedule(self, stream: "MuxStream") -> None:
        """A stream may have something to say."""

    def forget(self, stream: "MuxStream") -> None:
        """A stream is over."""

    def consumed(self, count: int) -> None:
        """Unread bytes have gone to their reader, or to nobody."""


class MuxStream:
    """One bidirectional byte stream. It offers what a `trio.abc.Stream` does, and `reset`."""

    def __init__(self, connection: Carrier, stream_id: int) -> None:
        self.connection = connection
        self.stream_id = stream_id
        self.is_broken = False
        self.is_discarded = False  # nobody here will read any more
        self.on_over: Callable[[], None] | None = None  # called once, when neither side can say anything more
        self.ended_by_peer = False
        self.incoming = bytearray()
        self.receive_window = wire.WINDOW_BYTES
        self.send_window = wire.WINDOW_BYTES
        self.staged = bytearray()
        self._consumed = 0  # bytes read but not yet granted again
        self._ending = False
        self._end_sent = False
        self._is_holding = False  # the last bytes staged wait for others to go out with
        self._unwanted_bytes = 0
        self._is_counted = True  # whether `incoming` counts as unread bytes of the connection
        self._readable = trio.Event()
        self._writable = trio.Event()

    @property
    def peer_id(self) -> PeerId:
        """The authenticated peer at the other end."""
        return self.connection.peer_id

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return at least one byte, or `b""` when the peer has ended its side. Cancelling loses nothing."""
        await trio.lowlevel.checkpoint()
        while not self.incoming:
            self.release()
            if self.ended_by_peer:
                return b""
            if self.is_broken:
                raise StreamBroken(f"stream of {self.peer_id} broke while reading")
            self._readable = _unset(self._readable)
            await self._readable.wait()
        data = bytes(self.incoming if max_bytes is None else self.incoming[:max_bytes])
        del self.incoming[: len(data)]
        self._grant(len(data))
        return data

    async def receive_exactly(self, count: int) -> bytes:
        """Return exactly `count` bytes; an earlier end is a `StreamBroken`."""
        data = bytearray()
        while len(data) < count:
            some = await self.receive_some(count - len(data))
            if not some:
                raise StreamBroken(f"stream of {self.peer_id} ended after {len(data)} of {count} bytes")
            data += some
        return bytes(data)

    async def send_all(self, data: bytes) -> None:
        """Stage all of `data` at once, after waiting for room. Cancelled while waiting, none of it goes out."""
        await self.wait_for_room(len(data))
        self.stage(data)

    async def wait_for_room(self, count: int) -> None:
        """Wait until so many more bytes may be staged, or the stream is broken."""
        await trio.lowlevel.checkpoint()
        while self.staged and len(self.staged) + count > STAGED_BYTES and not self.is_broken:
            self._writable = _unset(self._writable)
            await self._writable.wait()

    def stage(self, data: bytes, *, hold: bool = False) -> None:
        """Stage all of `data`; held back, it goes out with the next bytes, or when we wait for the peer's."""
        if self.is_broken or self._ending:
            raise StreamBroken(f"stream of {self.peer_id} takes no more bytes")
        self.staged += data
        self._is_holding = hold
        if not hold:
            self.connection.schedule(self)

    async def send_held(self, data: bytes) -> None:
        """Stage all of `data`, held back: an answer of several parts becomes one write."""
        await self.wait_for_room(len(data))
        self.stage(data, hold=True)

    def release(self) -> None:
        """Hold nothing back any more."""
        if self._is_holding:
            self._is_holding = False
            self.connection.schedule(self)

    async def flush(self) -> None:
        """Wait until everything staged has been given to the socket."""
        while self.staged or (self._ending and not self._end_sent):
            if self.is_broken:
                raise StreamBroken(f"stream of {self.peer_id} broke before everything was sent")
            self._writable = _unset(self._writable)
            await self._writable.wait()

    def end(self) -> None:
        """No more bytes from this side; what is staged still goes out."""
        if not self._ending and not self.is_broken:
            self._ending = True
            self.connection.schedule(self)

    def discard(self) -> None:
        """Nobody will read here any more.

        A little of what still arrives is dropped (the peer's end, above all); a peer that goes on and on is told by a
        reset, which comes after everything staged, so that an answer given early is still heard.
        """
        self.is_discarded = True
        unread = len(self.incoming)
        self.incoming_dropped()
        self._drop(unread)
        self._forget_if_done()

    @property
    def is_answered(self) -> bool:
        """Whether our side of it is over, and only the peer's end is missing."""
        return self.is_discarded and self._end_sent

    def reset(self) -> None:
        """Kill both directions at once."""
        if not self.is_broken and not (self._end_sent and self.ended_by_peer):
            self.connection.control(wire.WINDOW, wire.RST, self.stream_id, 0)
        self.incoming_dropped()
        self.break_off()

    async def aclose(self) -> None:
        """Reset, as a `trio.abc.Stream` does when closed in a hurry."""
        self.reset()
        await trio.lowlevel.checkpoint()

    # What the connection calls.

    def feed(self, payload: bytes) -> None:
        """Take one data frame in; the connection has checked the window."""
        self.receive_window -= len(payload)
        if self.is_discarded:
            self._drop(len(payload))
        elif not self.is_broken:
            self.incoming += payload
            if self._is_counted:
                self.connection.unread_bytes += len(payload)
            self._readable.set()

    def _drop(self, count: int) -> None:
        self._unwanted_bytes += count
        if self._unwanted_bytes > UNWANTED_BYTES and self._end_sent and not self.is_broken:
            self.reset()

    def peer_ended(self) -> None:
        """The peer will send no more."""
        self.ended_by_peer = True
        self._readable.set()
        self._forget_if_done()

    def widen(self, increment: int) -> None:
        """The peer grants more bytes."""
        self.send_window += increment
        if self.send_window > SEND_WINDOW_MAX:
            raise WireViolation(f"send window of {self.send_window} bytes")
        self.connection.schedule(self)

    def reset_by_peer(self) -> None:
        """The peer gave the stream up: what it had said before counts only if it had come to its end."""
        if not self.ended_by_peer:
            self.incoming_dropped()
        self.break_off()

    def break_off(self) -> None:
        """The stream is dead; wake whoever waits. Bytes that have arrived stay readable."""
        self.is_broken = True
        self.staged.clear()
        self._readable.set()
        self._writable.set()
        self.connection.forget(self)

    def incoming_dropped(self) -> None:
        """Unread bytes are of no use to anybody any more."""
        self.uncount()
        self.incoming.clear()

    def uncount(self) -> None:
        """The stream is over: what is left in it no longer holds the connection up."""
        if self._is_counted:
            self._is_counted = False
            self.connection.consumed(len(self.incoming))

    def take_turn(self, room: int) -> bytes:
        """Return the next frame to put on the wire, at most `room` bytes of payload; empty when there is none."""
        count = min(len(self.staged), self.send_window, TURN_BYTES, room)
        if count:
            payload = bytes(self.staged[:count])
            del self.staged[:count]
            self.send_window -= count
            self._writable.set()
            return wire.frame(wire.DATA, 0, self.stream_id, count) + payload
        if self._ending and not self._end_sent and not self.staged:
            self._end_sent = True
            self._writable.set()
            self._forget_if_done()
            if self._unwanted_bytes > UNWANTED_BYTES:
                self.reset()
            return wire.frame(wire.WINDOW, wire.FIN, self.stream_id, 0)
        return b""

    def _grant(self, count: int) -> None:
        """Give the window back in halves: one update for many small reads."""
        if self._is_counted:
            self.connection.consumed(count)
        self._consumed += count
        if self._consumed >= wire.WINDOW_BYTES // 2 and not self.is_broken and not self.ended_by_peer:
            self.connection.control(wire.WINDOW, 0, self.stream_id, self._consumed)
            self.receive_window += self._consumed
            self._consumed = 0

    def _forget_if_done(self) -> None:
        if self._end_sent and self.ended_by_peer:
            self.connection.forget(self)


def _unset(event: trio.Event) -> trio.Event:
    """Return an event to wait for: the same one while it is unset, so that nobody waits for one that was replaced."""
    return trio.Event() if event.is_set() else event
