"""One sealed-bid auction of the spot lane: a few sellers are asked directly, the cheapest bid wins and is paid as bid; of
equally cheap ones the one that promises its first token soonest.

It closes when every seller that is waited for has answered, else at its window:

    OPEN ──── all awaited answered, a bid is there ───────────▶ CLOSED  Won
      │ ───── all asked answered, no bid ─────────────────────▶ CLOSED  NoSale
      │ ───── window over, a bid is there ────────────────────▶ CLOSED  Won
      └ window over, no bid ─▶ OVERTIME ── the next bid ──────▶ CLOSED  Won
                                  └─────── all answered, or 1 s is over ─▶ CLOSED  NoSale

A seller answers once. What comes late, for another request, through another peer or a second time changes nothing. A
bid over the reserve, or for the words of a task that only reads, is an answer that cannot win: its seller is not waited
for any longer.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from marketplace.pricing import Prices
from marketplace.prompt import only_reads
from protocol import limits
from protocol.envelope import Sealed
from protocol.identity import PeerId
from protocol.messages import Bid, Decline, Request

# A bid that promises no time counts as one of a second: an engine that has measured nothing yet comes behind quick ones, and
# before those that have to wait; else it would never have anything to measure.
TTFT_UNSAID_MS = 1_000


@dataclass(frozen=True)
class Absent:
    """A seller that cannot answer, as the asker itself found; nobody signs this."""

    reason: Literal["unreachable", "broke_protocol"]
    detail: str = ""


@dataclass(frozen=True)
class Answer:
    """What one seller said, and how long after the request."""

    peer: PeerId
    after_s: float
    said: Sealed[Bid] | Sealed[Decline] | Absent


@dataclass(frozen=True)
class Declined:
    """A seller that will not do it. `reason` is a `DeclineReason`, or that of an `Absent`."""

    peer: PeerId
    reason: str
    detail: str


@dataclass(frozen=True)
class Won:
    """Action: award the job to this seller at what it bid; `total_micro` is the cost of prompt and cap."""

    seller: PeerId
    bid: Sealed[Bid]
    total_micro: int


@dataclass(frozen=True)
class NoSale:
    """Action: nobody takes it; who said why, and who said nothing."""

    declines: tuple[Declined, ...]
    silent: tuple[PeerId, ...]


class State(Enum):
    """Where an auction is."""

    OPEN = "open"  # inside its window
    OVERTIME = "overtime"  # the window is over without a bid; the next one wins
    CLOSED = "closed"


class Auction:
    """A machine (`protocol/machine.py`) that sells one attempt at one job.

    Args:
        request: as sealed and sent; its id is what bids refer to.
        asked: the sellers it goes to.
        awaited: those of them that the auction waits for (see `Punctuality.awaited`).
        window_s: from `bid_window_s`.
        overtime_s: from `bid_overtime_s`.
        now: when the request goes out.
    """

    def __init__(
        self,
        request: Sealed[Request],
        *,
        asked: tuple[PeerId, ...],
        awaited: frozenset[PeerId],
        window_s: float,
        now: float,
        overtime_s: float = limits.BID_WINDOW_MAX_S,
    ) -> None:
        self.request = request
        self.asked = asked
        self.window_s = min(window_s, limits.BID_WINDOW_MAX_S)
        self.overtime_s = overtime_s
        self.state = State.OPEN
        self.missed: tuple[PeerId, ...] = ()
        self._awaited = awaited & frozenset(asked)
        self._opened_at = now
        self._answers: dict[PeerId, Answer] = {}

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The answers that counted, in the order they came."""
        return tuple(self._answers.values())

    @property
    def deadline(self) -> float | None:
        """The end of the window, or of the overtime; at once when nobody is left to answer; None when closed."""
        if self.state is State.CLOSED:
            return None
        if not self._silent:
            return self._opened_at
        wait_s = self.window_s if self.state is State.OPEN else self.overtime_s
        return self._opened_at + wait_s

    @property
    def declines(self) -> tuple[Declined, ...]:
        """Who will not do it, and why."""
        refusals = [self._refusal(answer) for answer in self._answers.values()]
        return tuple(refusal for refusal in refusals if refusal is not None)

    def is_in_window(self, now: float) -> bool:
        """Whether an answer that comes now is punctual, even if the auction has been decided meanwhile."""
        return now <= self._opened_at + self.window_s

    def handle_message(
        self, sender: str, message: Sealed[Bid] | Sealed[Decline] | Absent, now: float
    ) -> list[Won | NoSale]:
        """Take one seller's answer; `sender` is the peer at the other end of its stream."""
        if ended := self.handle_timeout(now):
            return ended
        peer = PeerId(sender)
        if self.state is State.CLOSED or peer not in self.asked or peer in self._answers:
            return []
        if isinstance(message, Sealed) and not self._is_own(message, peer):
            return []
        self._answers[peer] = Answer(peer, now - self._opened_at, message)
        return self._settle(now)

    def handle_timeout(self, now: float) -> list[Won | NoSale]:
        """The window, or the overtime, may be over."""
        if self.deadline is None or now < self.deadline:
            return []
        if self.state is State.OPEN:
            self.missed = self._silent
            self.state = State.OVERTIME
        return self._settle(now)

    def _settle(self, now: float) -> list[Won | NoSale]:
        best = winner(self.request, self._bids)
        is_waiting = self.state is State.OPEN and not self._awaited <= self._answers.keys()
        if best is not None and not is_waiting:
            self.state = State.CLOSED
            return [Won(best.sender, best, total_micro(self.request.message, best.message))]
        is_over = now >= self._opened_at + self.overtime_s
        if best is None and (is_over or not self._silent):
            self.state = State.CLOSED
            return [NoSale(self.declines, self._silent)]
        return []

    def _is_own(self, answer: Sealed[Bid] | Sealed[Decline], peer: PeerId) -> bool:
        """Whether the answer is to this request, and of the peer whose stream it came on.

        A seller could otherwise pass on what another signed, and hide its own name behind it.
        """
        return answer.sender == peer and answer.message.request == self.request.id

    @property
    def _bids(self) -> list[Sealed[Bid]]:
        return [bid for answer in self._answers.values() if (bid := _bid(answer)) is not None]

    @property
    def _silent(self) -> tuple[PeerId, ...]:
        return tuple(peer for peer in self.asked if peer not in self._answers)

    def _refusal(self, answer: Answer) -> Declined | None:
        bid = _bid(answer)
        if bid is None:
            said = answer.said.message if isinstance(answer.said, Sealed) else answer.said
            assert not isinstance(said, Bid)
            return Declined(answer.peer, said.reason, said.detail)
        detail = _too_dear(self.request.message, bid.message)
        return Declined(answer.peer, "price", detail) if detail else None


def winner(request: Sealed[Request], bids: Iterable[Sealed[Bid]]) -> Sealed[Bid] | None:
    """Return the winning bid within the reserve; None when there is none.

    The cheapest total wins. A tie goes to the soonest first token, so that a warm or a free seller comes before one that
    has to read or to wait; the rest is the lowest lot.

    Anybody who holds the request and the bids, one of each seller, comes to the same winner, in whatever order.
    """
    ranked = [
        (
            total_micro(request.message, bid.message),
            bid.message.ttft_ms or TTFT_UNSAID_MS,
            lot(request.id, bid.sender),
            bid,
        )
        for bid in bids
        if bid.message.request == request.id and not _too_dear(request.message, bid.message)
    ]
    return min(ranked, key=lambda line: line[:3])[3] if ranked else None


def total_micro(request: Request, bid: Bid) -> int:
    """Return what the request's prompt and its whole cap come to at this bid."""
    prices = Prices(bid.prompt_micro, bid.completion_micro)
    return prices.total_micro(request.prompt_tokens, request.completion_tokens_max)


def _too_dear(request: Request, bid: Bid) -> str:
    """What a bid asks for, and what is allowed; empty: it may win."""
    if only_reads(request.task) and bid.completion_micro:
        return f"bid {bid.completion_micro} per word of the task {request.task!r}, 0 allowed"
    total, most = total_micro(request, bid), request.total_micro_max
    return f"bid {total}, at most {most} allowed" if total > most else ""


def lot(request_id: bytes, peer: PeerId) -> bytes:
    """Return a seller's lot in a tie. The request id is the buyer's hash, so no seller can choose its key to win them."""
    return hashlib.sha256(request_id + peer.encode()).digest()


def bid_window_s(round_trips_s: Iterable[float]) -> float:
    """Return how long to wait for bids: 3 × the p90 of the asked peers' round trips, between 50 ms and 1 s.

    With no round trip known it is the longest: a stranger's first answer is worth the wait.
    """
    window_s = limits.BID_WINDOW_ROUND_TRIPS * _p90(round_trips_s, limits.BID_WINDOW_MAX_S)
    return min(max(window_s, limits.BID_WINDOW_MIN_S), limits.BID_WINDOW_MAX_S)


def bid_overtime_s(round_trips_s: Iterable[float]) -> float:
    """Return how long an auction without a bid stays open: a second, and longer where answers cannot come by then.

    A question on a fresh stream takes two round trips; over a satellite that is more than a second.
    """
    overtime_s = limits.BID_OVERTIME_ROUND_TRIPS * _p90(round_trips_s, 0.0)
    return min(max(overtime_s, limits.BID_WINDOW_MAX_S), limits.BID_OVERTIME_MAX_S)


def _p90(seconds: Iterable[float], otherwise: float) -> float:
    ordered = sorted(seconds)
    return ordered[math.ceil(0.9 * len(ordered)) - 1] if ordered else otherwise


def _bid(answer: Answer) -> Sealed[Bid] | None:
    said = answer.said
    return said if isinstance(said, Sealed) and isinstance(said.message, Bid) else None
