"""The child's side of the socket: a thread that hears and beats while the main one trains.

torch holds the interpreter's lock for short moments only, so the beats go on within a step. The child ends when its socket
does: it never outlives the daemon.
"""

import os
import queue
import select
import socket
import threading
import time
from typing import Final

from protocol.limits import PROGRESS_INTERVAL_S
from runtime.training import wire

BEAT_INTERVAL_S: Final = PROGRESS_INTERVAL_S / 2
STUCK_S: Final = 600.0  # without a step, or a beginning: the beats end, and the daemon kills the child


class CallCancelled(Exception):
    """The daemon does not want the present call any more."""


class Connection:
    """The socket to the daemon.

    Attributes:
        inbox: fits, in the order in which they came.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._cancelled = 0  # the highest call that was: they are asked one at a time
        self._beat: wire.Beat | None = None
        self._moved_at = 0.0
        self.inbox: queue.SimpleQueue[wire.Fit] = queue.SimpleQueue()
        self._begun: queue.SimpleQueue[int] = queue.SimpleQueue()  # calls that may begin, or were cancelled

    def start(self) -> None:
        """Begin to hear and beat."""
        threading.Thread(target=self._run, daemon=True).start()

    def say(self, message: wire.FromChild) -> None:
        """Send a message."""
        frame = wire.encode(message)
        with self._lock:
            self._sock.sendall(frame)

    def work_on(self, call: int, step: int, steps: int) -> None:
        """Beat for this call from now on.

        Raises:
            CallCancelled: it is not wanted any more.
        """
        self._moved_at = time.monotonic()
        self._beat = wire.Beat(call, step, steps)
        if call <= self._cancelled:
            raise CallCancelled

    def wait_to_begin(self, call: int) -> None:
        """Say that everything is ready, and return when the first step may be made.

        Raises:
            CallCancelled: it is not wanted any more.
        """
        self.say(wire.Prepared(call))
        while self._begun.get() != call:
            pass  # of a call that was cancelled before it waited
        if call <= self._cancelled:
            raise CallCancelled

    def rest(self) -> None:
        """Beat no more: nothing is asked of us."""
        self._beat = None

    def _run(self) -> None:
        try:
            self._run_until_end()
        finally:  # the daemon is gone, or this thread is broken: without it the child is of no use
            os._exit(0)

    def _run_until_end(self) -> None:
        frames = wire.frame_reader()
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        beat_at = time.monotonic()
        while True:
            if poll.poll(1_000 * max(0.0, beat_at - time.monotonic())):
                data = self._sock.recv(1 << 18)
                if not data:
                    return
                for body in frames.feed(data):
                    match wire.decode_to_child(body):
                        case wire.Fit() as fit:
                            self.inbox.put(fit)
                        case wire.Begin(call):
                            self._begun.put(call)
                        case wire.Cancel(call):
                            self._cancelled = max(self._cancelled, call)
                            self._begun.put(call)
            now = time.monotonic()
            if now >= beat_at:
                beat_at = now + BEAT_INTERVAL_S
                if (beat := self._beat) is not None and now - self._moved_at < STUCK_S:
                    self.say(beat)
