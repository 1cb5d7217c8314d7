"""The one guard: everything that runs because a peer did something runs under it.

In stock libp2p an unexpected exception in any inbound handler cancels the whole host: one packet, one dead process.
Under the guard an exception costs the peer its stream and, if the fault was the peer's, an offence. If the fault was
ours it is journaled with the place where it happened, never with the data that made it happen.
"""

import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, TypeVarTuple

import trio

from node.offences import Offences
from protocol.errors import MeshError, RemoteProtocolError
from protocol.identity import PeerId

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class Journal(Protocol):
    """Where events go: `node.journal.Journal`."""

    def write(self, event: str, /, **fields: object) -> None:
        """Write one event, named in the past tense, with its ids."""


class Guard:
    """Runs work on behalf of peers; holds the offences that come of it."""

    def __init__(self, journal: Journal, cut_off: Callable[[PeerId], None]) -> None:
        """`cut_off` closes every connection of a peer."""
        self.journal = journal
        self.offences = Offences()
        self._cut_off = cut_off

    async def run(self, peer_id: PeerId, where: str, work: Callable[[], Awaitable[None]]) -> bool:
        """Run `work` and swallow what it raises; return whether it went well. Cancellation passes through."""
        went_well = True
        try:
            await work()
        except* Exception as group:  # noqa: BLE001  that is the point of the guard
            went_well = False
            self._judge(peer_id, where, list(_leaves(group)))
        return went_well

    def call(self, peer_id: PeerId, where: str, rule: Callable[[], Result], otherwise: Result) -> Result:
        """Call a plain function the same way; return `otherwise` if it raises."""
        try:
            return rule()
        except Exception as error:  # noqa: BLE001  that is the point of the guard
            self._judge(peer_id, where, [error])
            return otherwise

    def charge(self, peer_id: PeerId, offence: str, where: str = "") -> None:
        """Count an offence; a peer with too many is cut off and barred for a while."""
        if self.offences.is_barred(peer_id, trio.current_time()):
            return  # what was on its way when we cut it off is not worth a line each
        self.journal.write("offence_counted", peer_id=peer_id, offence=offence, where=where)
        if self.offences.charge(peer_id, trio.current_time()):
            self.journal.write("peer_barred", peer_id=peer_id, offence=offence)
            self._cut_off(peer_id)

    def _judge(self, peer_id: PeerId, where: str, errors: list[Exception]) -> None:
        ours = [error for error in errors if not isinstance(error, RemoteProtocolError | MeshError)]
        theirs = [error for error in errors if isinstance(error, RemoteProtocolError)]
        for error in ours:
            self.journal.write(
                "handler_failed", peer_id=peer_id, where=where, error=type(error).__name__, at=place_of(error)
            )
        if theirs:
            self.charge(peer_id, theirs[0].offence, where)


@dataclass(frozen=True)
class Guarded(Generic[*Arguments]):
    """A handler that can only be run under the guard; the registries of the host hold nothing else."""

    guard: Guard
    where: str
    handler: Callable[[*Arguments], Awaitable[None]]

    async def __call__(self, peer_id: PeerId, *arguments: *Arguments) -> bool:
        """Run the handler on behalf of a peer; return whether it went well."""
        return await self.guard.run(peer_id, self.where, lambda: self.handler(*arguments))


def _leaves(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def place_of(error: BaseException) -> str:
    """Return `file.py:line` where an exception was raised; its message may hold a peer's bytes and stays out."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{'/'.join(frames[-1].filename.split('/')[-2:])}:{frames[-1].lineno}" if frames else "unknown"
