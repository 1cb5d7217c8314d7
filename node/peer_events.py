"""Telling the node of peers that come and go: in order for each peer, and no peer's handler holds up another's."""

from collections.abc import Callable
from functools import partial

import trio

from node.guard import Guard
from protocol.identity import PeerId
from protocol.mesh import PeerConnected, PeerEvent, PeerHandler, PeerLost


class PeerEvents:
    """The events that wait to be told.

    A peer that flaps while its handler is busy costs no memory: a meeting that nobody has heard of is taken back by
    the loss that follows it. A loss is never taken back, since a new meeting needs a new hello.
    """

    def __init__(self, guard: Guard) -> None:
        self.handlers: list[PeerHandler] = []
        self._guard = guard
        self._pending: dict[PeerId, list[PeerEvent]] = {}
        self._telling: set[PeerId] = set()
        self._nursery: trio.Nursery | None = None

    def add(self, event: PeerEvent) -> None:
        """Tell of an event soon."""
        pending = self._pending.setdefault(event.peer_id, [])
        if pending and isinstance(pending[-1], PeerConnected) and isinstance(event, PeerLost):
            pending.pop()
        else:
            pending.append(event)
        if self._nursery is not None:
            self._begin(event.peer_id)

    async def run(self, ready: Callable[[], None]) -> None:
        """Tell until cancelled."""
        self._telling.clear()
        try:
            async with trio.open_nursery() as self._nursery:
                for peer_id in list(self._pending):
                    self._begin(peer_id)
                ready()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def _begin(self, peer_id: PeerId) -> None:
        if peer_id not in self._telling and self._nursery is not None:
            try:
                self._nursery.start_soon(self._tell_all, peer_id)
            except RuntimeError:  # it has just closed, and whoever disconnects us now must not fail for it
                return
            self._telling.add(peer_id)

    async def _tell_all(self, peer_id: PeerId) -> None:
        while self._pending.get(peer_id):
            event = self._pending[peer_id].pop(0)
            for handler in self.handlers:
                await self._guard.run(peer_id, "watch", partial(handler, event))
        self._pending.pop(peer_id, None)
        self._telling.discard(peer_id)
