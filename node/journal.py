"""The journal: one event for each thing that happened, named in the past tense, carrying ids.

`award_sent request_id=… seller=… price_micro=…` on stderr, the file that `agora logs` reads, the gateway's
`/api/events` and the simulator's trace are this one stream. `event.py` says what an event may carry, `journal_file.py`
how the file is kept and read back.

A journal never stops the daemon: lines that a full disk refused are counted, and reported when it takes them again.
Written from trio's thread only.
"""

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self, TextIO

import trio

from node.errors import StartError
from node.event import Event, Value, clean
from node.journal_file import JournalFile

RING_EVENTS = 1_024  # kept in memory for a reader that has just come
SUBSCRIBER_EVENTS = 256  # a slower one loses the oldest


class Subscription:
    """The events of one live reader; `async for event in subscription`. It holds at most `size`, the newest."""

    def __init__(self, size: int) -> None:
        self._events: deque[Event] = deque(maxlen=size)
        self._dropped = 0
        self._arrived = trio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await self.receive()

    async def receive(self) -> Event:
        """Wait for the next event; `events_dropped count=N` when this reader was too slow for N of them."""
        while not self._events:
            self._arrived = trio.Event()
            await self._arrived.wait()
        if self._dropped:
            oldest = self._events[0]
            fields = {"count": self._dropped}
            self._dropped = 0
            return Event(0, "events_dropped", oldest.time_s, oldest.monotonic_s, fields)
        return self._events.popleft()

    def offer(self, event: Event) -> None:
        """Take an event, at the price of the oldest when there is no room."""
        self._dropped += len(self._events) == self._events.maxlen
        self._events.append(event)
        self._arrived.set()


class Journal:
    """Takes events and hands each to its sinks.

    Args:
        path: the file, or None for no file; created 0600.
        stderr: where readable lines go, or None.
        wall_clock: seconds since 1970; the simulator passes its own.
        monotonic: seconds; likewise.
        ring_events: how many are kept in memory.
        on_event: told of each, at once; a world's trace.

    Raises:
        StartError: the file cannot be opened.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        stderr: TextIO | None = None,
        wall_clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        ring_events: int = RING_EVENTS,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        try:
            self._file = None if path is None else JournalFile(path)
        except OSError as error:
            raise StartError(
                f"cannot open journal {path} ({error.strerror}), expected a file of yours; check free space"
            ) from error
        self._stderr = stderr
        self._wall_clock = wall_clock
        self._monotonic = monotonic
        self._on_event = on_event
        self._ring: deque[Event] = deque(maxlen=ring_events)
        self._subscriptions: dict[Subscription, None] = {}  # in the order they came, which a seed reproduces
        self._count = 0
        self._lines_lost = 0

    def write(self, event: str, /, **fields: object) -> None:
        """Record that something happened. `event` and the names of the fields are our own words, values need not be."""
        self._write(event, clean(fields))

    def recent(self, count: int = RING_EVENTS) -> tuple[Event, ...]:
        """Return the newest events, oldest of them first."""
        return tuple(self._ring)[-count:]

    @asynccontextmanager
    async def subscribe(self, size: int = SUBSCRIBER_EVENTS) -> AsyncIterator[Subscription]:
        """Give the events from now on, until the block is left."""
        subscription = Subscription(size)
        self._subscriptions[subscription] = None
        try:
            yield subscription
        finally:
            del self._subscriptions[subscription]

    def close(self) -> None:
        """Close the file; later events go to the other sinks."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, name: str, fields: Mapping[str, Value]) -> None:
        self._count += 1
        event = Event(self._count, name, self._wall_clock(), self._monotonic(), fields)
        self._ring.append(event)
        for subscription in self._subscriptions:
            subscription.offer(event)
        if self._on_event is not None:
            self._on_event(event)
        if self._stderr is not None:
            try:
                print(event.to_text(), file=self._stderr, flush=True)
            except (OSError, ValueError):  # the terminal is gone
                self._stderr = None
        if self._file is not None:
            try:
                self._file.write_line(event.to_json())
            except OSError:
                self._lines_lost += 1
            else:
                self._report_lost_lines()

    def _report_lost_lines(self) -> None:
        if self._lines_lost:
            lost, self._lines_lost = self._lines_lost, 0
            self._write("journal_lines_lost", {"count": lost})
            if self._lines_lost:  # the report was lost too
                self._lines_lost += lost
