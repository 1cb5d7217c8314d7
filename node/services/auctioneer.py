"""Hold one auction: ask the sellers directly, each on its own job stream, and keep the winner's stream open.

The award is the next frame on that stream, so winning costs no further round trip. A seller that answers after the
auction was decided, yet inside the window, was punctual all the same and is waited for the next time.
"""

from contextlib import suppress
from dataclasses import dataclass

import trio

from marketplace.auction import Absent, Auction, NoSale, Won, bid_overtime_s, bid_window_s, total_micro
from marketplace.punctuality import Punctuality
from node.clock import Clock
from node.directory import Directory
from node.jobs import Answer, Attempt
from node.machine_driver import drive
from node.wire import Wire
from protocol import limits
from protocol.envelope import Sealed, narrow
from protocol.errors import MeshError, RemoteProtocolError
from protocol.identity import PeerId
from protocol.mesh import Mesh, Stream
from protocol.messages import Bid, Decline, Request
from protocol.topics import JOB

BidOrDecline = Sealed[Bid] | Sealed[Decline] | Absent


@dataclass(frozen=True)
class Sale:
    """The winner, its bid, and the open stream on which it waits for the award."""

    seller: PeerId
    bid: Sealed[Bid]
    total_micro: int
    stream: Stream


class Auctioneer:
    """Asks sellers on behalf of the buyer. Its questions run in the buyer's nursery, past the auction's end."""

    def __init__(
        self,
        mesh: Mesh,
        wire: Wire,
        clock: Clock,
        directory: Directory,
        punctuality: Punctuality,
        nursery: trio.Nursery,
    ) -> None:
        self._mesh = mesh
        self._directory = directory
        self._wire = wire
        self._clock = clock
        self._punctuality = punctuality
        self._nursery = nursery

    async def hold(self, request: Request, sellers: tuple[PeerId, ...], attempt: Attempt) -> Sale | NoSale:
        """Ask these sellers and return who won; what each said is noted in the attempt as it comes."""
        opened_at = self._clock.now()
        sealed = self._wire.seal(request)
        round_trips = [trip for seller in sellers if (trip := self._mesh.round_trip_s(seller)) is not None]
        auction = Auction(
            sealed,
            asked=sellers,
            awaited=self._punctuality.awaited(sellers),
            window_s=bid_window_s(round_trips),
            overtime_s=bid_overtime_s(round_trips),
            now=opened_at,
        )
        attempt.asked += sellers
        attempt.window_s = auction.window_s
        streams: dict[PeerId, Stream] = {}
        send, inbox = trio.open_memory_channel[tuple[str, BidOrDecline]](len(sellers) + 1)
        for seller in sellers:
            self._nursery.start_soon(self._ask, seller, sealed, auction, streams, send)
        result: Won | NoSale = NoSale((), ())
        try:
            result = await drive(auction, inbox, self._clock, lambda action: action)
        finally:
            inbox.close()
            winner = result.seller if isinstance(result, Won) else None
            for peer, stream in streams.items():
                if peer != winner:
                    stream.abort()  # whoever has not answered yet may still show that it is punctual
            self._note(auction, attempt, opened_at)
        if isinstance(result, Won):
            return Sale(result.seller, result.bid, result.total_micro, streams[result.seller])
        return result

    async def _ask(
        self,
        seller: PeerId,
        request: Sealed[Request],
        auction: Auction,
        streams: dict[PeerId, Stream],
        send: trio.MemorySendChannel[tuple[str, BidOrDecline]],
    ) -> None:
        answer: BidOrDecline | None = None
        stream: Stream | None = None
        try:
            with trio.move_on_after(auction.overtime_s):
                stream = await self._mesh.open_stream(seller, JOB)
                await stream.send(request.raw)
                heard = await self._wire.receive(stream, Bid, Decline)
                answer = narrow(heard, Bid) or narrow(heard, Decline)
        except RemoteProtocolError as error:
            self._mesh.charge(seller, error.offence)
            answer = Absent("broke_protocol", str(error)[: limits.DETAIL_CHARS_MAX])
        except MeshError as error:
            self._directory.forget(seller)
            answer = Absent("unreachable", str(error)[: limits.DETAIL_CHARS_MAX])
        if isinstance(answer, Sealed) and auction.is_in_window(self._clock.now()):
            self._punctuality.answered(seller)
        is_heard = False
        if answer is not None:
            with suppress(trio.BrokenResourceError):  # the auction may be over
                send.send_nowait((seller, answer))
                is_heard = True
        if stream is not None and is_heard:
            streams[seller] = stream
        elif stream is not None:
            stream.abort()

    def _note(self, auction: Auction, attempt: Attempt, opened_at: float) -> None:
        for missed in auction.missed:
            self._punctuality.missed(missed)
        took_s = self._clock.now() - opened_at
        attempt.auction_s += took_s
        answered = {answer.peer: answer for answer in auction.answers}
        for seller in auction.asked:
            known = answered.get(seller)
            if known is None:
                attempt.answers.append(Answer(seller, took_s, reason="silent"))
            elif isinstance(known.said, Absent):
                attempt.answers.append(
                    Answer(seller, known.after_s, reason=known.said.reason, detail=known.said.detail)
                )
            elif isinstance(known.said.message, Bid):
                total = total_micro(auction.request.message, known.said.message)
                attempt.answers.append(Answer(seller, known.after_s, known.said.message, total))
            else:
                said = known.said.message
                attempt.answers.append(Answer(seller, known.after_s, reason=said.reason, detail=said.detail))
