"""A stream between two simulated nodes: the same promises as over libp2p, with a queue in place of the wire."""

from collections import deque
from collections.abc import Callable

import trio

from protocol.errors import LocalProtocolError, StreamBroken, StreamEnded, TooLarge
from protocol.identity import PeerId
from protocol.topics import StreamProtocol

WINDOW_BYTES = 512 * 1024  # on the way and unread; then the sender waits
UNWANTED_BYTES = 64 * 1024  # sent to a handler that has returned; then the sender is told

# make something happen at the other end, when it and so many bytes have travelled there
Deliver = Callable[[Callable[[], None], int], None]


class MemoryStream:
    """One end of a stream; `twin` is the other."""

    twin: "MemoryStream"

    def __init__(self, peer_id: PeerId, protocol: StreamProtocol, deliver: Deliver) -> None:
        self._peer_id = peer_id
        self._protocol = protocol
        self._deliver = deliver
        self._inbox: deque[bytes | None] = deque()  # None is the said end
        self.pending_bytes = 0  # sent to this end and not yet received
        self._unwanted_bytes = 0
        self._is_broken = False
        self._is_discarded = False
        self._has_ended = False
        self._peer_ended = False
        self._readable = trio.Event()
        self._writable = trio.Event()

    @property
    def peer_id(self) -> PeerId:
        """See `protocol.mesh.Stream`."""
        return self._peer_id

    async def send(self, frame: bytes) -> None:
        """See `protocol.mesh.Stream`."""
        self._protocol.check_length(frame)
        if self._has_ended:
            raise LocalProtocolError(f"frame on {self._protocol.name} after its end was said")
        await trio.lowlevel.checkpoint_if_cancelled()  # others get their turn when it travels
        while self.twin.pending_bytes > WINDOW_BYTES and not self._is_broken:
            self._writable = trio.Event()
            await self._writable.wait()
        if self._is_broken:
            raise StreamBroken(f"stream of {self._peer_id} broke while sending")
        self.twin.pending_bytes += len(frame)
        self._deliver(lambda: self.twin.arrive(frame), len(frame))

    async def receive(self) -> bytes:
        """See `protocol.mesh.Stream`."""
        await trio.lowlevel.checkpoint_if_cancelled()  # others get their turn when it travels
        while not self._inbox:
            if self._peer_ended:
                raise StreamEnded(f"{self._peer_id} has said its last frame")
            if self._is_broken:
                raise StreamBroken(f"stream of {self._peer_id} broke while reading")
            self._readable = trio.Event()
            await self._readable.wait()
        frame = self._inbox.popleft()
        if frame is None:
            self._peer_ended = True
            raise StreamEnded(f"{self._peer_id} has said its last frame")
        if len(frame) > self._protocol.frame_bytes_max:
            self.abort()
            raise TooLarge(f"frame of {len(frame)} bytes, at most {self._protocol.frame_bytes_max}")
        self.pending_bytes -= len(frame)
        self.twin.go_on()
        return frame

    async def end(self) -> None:
        """See `protocol.mesh.Stream`."""
        await trio.lowlevel.checkpoint_if_cancelled()  # others get their turn when it travels
        if not self._has_ended and not self._is_broken:
            self._has_ended = True
            self._deliver(lambda: self.twin.arrive(None), 0)

    def abort(self) -> None:
        """See `protocol.mesh.Stream`."""
        self._inbox.clear()
        if not self._is_broken:
            self.break_off()
            self._deliver(self.twin.reset_by_peer, 0)

    # What the network calls.

    def arrive(self, frame: bytes | None) -> None:
        """A frame has travelled here, or the end."""
        if self._is_discarded:
            self._drop(frame)
        elif not self._is_broken:
            self._inbox.append(frame)
            self._readable.set()

    def go_on(self) -> None:
        """The other end has room again."""
        self._writable.set()

    @property
    def is_over(self) -> bool:
        """Whether neither end can say anything more."""
        return self._is_broken or (self._has_ended and self.twin._has_ended)  # noqa: SLF001  the other half of this

    def _drop(self, frame: bytes | None) -> None:
        self._unwanted_bytes += len(frame or b"")
        if self._unwanted_bytes > UNWANTED_BYTES and not self._is_broken:
            self.break_off()
            self._deliver(self.twin.reset_by_peer, 0)

    def reset_by_peer(self) -> None:
        """The other end gave the stream up: what it had said before counts only if it had come to its end."""
        if None not in self._inbox:
            self._inbox.clear()
        self.break_off()

    def break_off(self) -> None:
        """The stream is dead; frames that have arrived stay readable."""
        self._is_broken = True
        self._readable.set()
        self._writable.set()

    def discard(self) -> None:
        """The handler has returned: a little of what still comes is dropped, and a sender without end is told."""
        self._is_discarded = True
        for frame in self._inbox:
            self._drop(frame)
        self._inbox.clear()
        self.pending_bytes = 0
        self.twin.go_on()
