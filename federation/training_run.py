"""A training run as its coordinator sees it: who takes part, when a round is over, when all of it is.

A machine (`protocol/machine.py`). The service that drives it sends what it says and aggregates; whether an update's
bytes are fit to be aggregated is found by `federation/gate.py` and told here as a `fault`.

| state       | what comes in                               | what follows                                                 |
|-------------|---------------------------------------------|--------------------------------------------------------------|
| ENLISTING   | enlistment, decline                         | kept, one of each device; sealed until the window ends       |
|             | window over, `cohort_min` fit               | `Open` with the best `cohort_max` -> OPENING                 |
|             | window over, fewer                          | `Unsold`, with everybody's reason -> ABORTED                 |
| OPENING     | `Joined`, `Lost`                            | when all have answered, or after `OPENING_S`:                |
|             |   `cohort_min` joined                       | `Ask` round 1 -> ROUND                                       |
|             |   fewer                                     | `Abort`                                                      |
| ROUND n     | update of round n, asked for                | counted                                                      |
|             | update of round n - 1, late                 | carried over into round n, unless a fresh one replaces it    |
|             | any other update                            | `Refuse`; nothing changed                                    |
|             | faulty update, `Lost`                       | `Refuse`; one failure                                        |
|             | nobody is waited for, or the deadline:      | who was waited for has failed once, and stays at work        |
|             |   `cohort_min` updates                      | `Aggregate` -> AGGREGATING                                   |
|             |   fewer                                     | `Ask` those that failed once more, one more `round_ms`       |
|             |   not enough members left (they fail twice) | `Abort`                                                      |
| AGGREGATING | `Aggregated`                                | `Ask` round n + 1, or after the last `Finish` -> FINISHED    |
| any of them | `Pause`                                     | the clock stands still; updates that arrive are kept         |
|             | `Resume`                                    | it goes on with the time that was left                       |
|             | `Cancel`                                    | `Abort` -> ABORTED                                           |

Two failures in a row, and a member leaves the cohort (`Dismiss`). Whoever is still at work when its round closes is not
asked in the next one; its update counts there, one round stale. Staler ones are dropped. A member has at most one
update in an aggregate. No loss of members ends a run while `cohort_min` stand.

Whoever joined has agreed to a cohort that it was shown, and counted its *parties* there: devices of one owner hide nobody from
that owner. So each aggregate is of as many parties as were shown, up to `cohort_min` of them, and no run goes on with fewer.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Self

from federation.cohort import choose_cohort
from federation.run_events import (
    Abort,
    Absent,
    Action,
    Aggregate,
    Aggregated,
    Ask,
    Cancel,
    Declined,
    Dismiss,
    Finish,
    Incoming,
    Joined,
    Lost,
    NotAggregated,
    Open,
    Pause,
    Refuse,
    Resume,
    Unsold,
    Update,
)
from protocol.envelope import Sealed
from protocol.identity import PeerId
from protocol.messages import Decline, Enlistment, RoundUpdate, RunAnnouncement

OPENING_S = 30.0  # to verify the cohort, to make an award durable, and to answer
FAILURES_MAX = 2  # in a row: a phone that was out of reach once is asked again


class State(Enum):
    """Where a run is."""

    ENLISTING = "enlisting"
    OPENING = "opening"
    ROUND = "round"
    AGGREGATING = "aggregating"
    PAUSED = "paused"
    FINISHED = "finished"
    ABORTED = "aborted"


@dataclass
class _Member:
    """One of the cohort.

    Attributes:
        failures: in a row.
        asked_for: the round whose task it is at work on; 0: none.
        answered_for: the newest round that it has given an update for that counts; 0: none.
        stale_for: the round *into* which its late update is carried; 0: none.
    """

    failures: int = 0
    asked_for: int = 0
    answered_for: int = 0
    stale_for: int = 0


class TrainingRun:
    """A run, from its announcement to its end.

    Args:
        announcement: as sealed and gossiped; its sender is the coordinator, whose words alone steer the run.
        now: when it went out.
        parties: how many hide each other's updates among some devices; each device is one where nobody says otherwise.
    """

    def __init__(
        self,
        announcement: Sealed[RunAnnouncement],
        *,
        now: float,
        parties: Callable[[Collection[PeerId]], int] = len,
    ) -> None:
        self._parties = parties
        self._parties_min = 0  # that the cohort was shown, up to `cohort_min`
        self.announcement = announcement
        self.round = 0
        self.reason = ""
        self._state = State.ENLISTING
        self._is_paused = False
        self._is_aggregated = False
        self._ends_at = now + announcement.message.window_ms / 1_000
        self._left_s = 0.0  # until the deadline, while paused
        self._enlistments: dict[PeerId, Sealed[Enlistment]] = {}
        self._declines: dict[PeerId, Declined] = {}
        self._members: dict[PeerId, _Member] = {}
        self._opening: set[PeerId] = set()  # asked to join, no answer yet

    @classmethod
    def continued(
        cls,
        announcement: Sealed[RunAnnouncement],
        cohort: Iterable[PeerId],
        *,
        shown: Iterable[PeerId] = (),
        rounds_done: int,
        now: float,
        parties: Callable[[Collection[PeerId]], int] = len,
    ) -> tuple[Self, list[Action]]:
        """Return a run that its coordinator takes up again after a restart, and what to do first.

        The members have their awards; the round that was under way is asked for anew. `shown` is the cohort as it was at
        the opening, those that have left since among it.
        """
        run = cls(announcement, now=now, parties=parties)
        run._promise({*cohort, *shown})
        run._members = {peer: _Member() for peer in cohort}
        run.round = rounds_done
        run._state = State.AGGREGATING
        return run, run._go_on(now)

    @property
    def state(self) -> State:
        """Where it is; what has ended is not paused."""
        return State.PAUSED if self._is_paused and not self.is_over else self._state

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self._state in {State.FINISHED, State.ABORTED}

    @property
    def deadline(self) -> float | None:
        """The end of the window, of the opening, of the round; None while aggregating, while paused, and at the end."""
        has_one = self._state in {State.ENLISTING, State.OPENING, State.ROUND} and not self._is_paused
        return self._ends_at if has_one else None

    @property
    def cohort(self) -> tuple[PeerId, ...]:
        """The members that have not left."""
        return tuple(self._members)

    @property
    def declines(self) -> tuple[Declined, ...]:
        """Who does not take part, and why."""
        return tuple(self._declines.values())

    @property
    def enlistments(self) -> tuple[Sealed[Enlistment], ...]:
        """The bids so far, one of each device."""
        return tuple(self._enlistments.values())

    @property
    def waiting_for(self) -> tuple[PeerId, ...]:
        """The members whose answer would let this round, or the opening, end before its deadline."""
        if self._state is State.OPENING:
            return tuple(peer for peer in self._members if peer in self._opening)
        return tuple(peer for peer, member in self._members.items() if member.asked_for == self.round > 0)

    def counts(self, peer: PeerId, number: int) -> bool:
        """Whether an update of this member and round has been taken; a second one that is refused does not undo it."""
        member = self._members.get(peer)
        return member is not None and number in {member.answered_for, member.stale_for - 1}

    def handle_message(self, sender: str, message: Incoming, now: float) -> list[Action]:
        """Take in what a device, or the coordinator itself, has said; `sender` is authenticated."""
        before = self.handle_timeout(now)
        return before + self._handle(PeerId(sender), message, now)

    def handle_timeout(self, now: float) -> list[Action]:
        """The window, the opening or the round may be over."""
        if self.deadline is None or now < self.deadline:
            return []
        match self._state:
            case State.ENLISTING:
                return self._choose(now)
            case State.OPENING:
                silent = sorted(self._opening)
                left = [action for peer in silent for action in self._leave(peer, "no answer in time")]
                return left + self._begin(now)
            case _:
                return self._close(now, is_late=True)

    def _handle(self, sender: PeerId, message: Incoming, now: float) -> list[Action]:
        if isinstance(message, Update):
            return self._take(sender, message, now)
        if self.is_over:
            return []
        match message:
            case Sealed() | Absent():
                self._hear(sender, message)
                return []
            case Joined():
                self._opening.discard(sender)
                return self._opened(now)
            case Lost(reason, number):
                return self._lose(sender, reason, number, now)
        if sender != self.announcement.sender:
            return []  # from here on only the coordinator itself is heard
        match message:
            case Aggregated(number) if self._state is State.AGGREGATING and number == self.round:
                self._is_aggregated = True
                return [] if self._is_paused else self._go_on(now)
            case NotAggregated(number, reason) if self._state is State.AGGREGATING and number == self.round:
                return self._abort(f"round {number} could not be aggregated: {reason}")
            case Pause() if not self._is_paused:
                self._is_paused, self._left_s = True, max(0.0, self._ends_at - now)
            case Resume() if self._is_paused:
                self._is_paused, self._ends_at = False, now + self._left_s
                return self._resumed(now)
            case Cancel(reason):
                return self._abort(reason)
        return []

    # --- enlisting and opening -------------------------------------------------------------------------------------
    def _hear(self, sender: PeerId, said: Sealed[Enlistment] | Sealed[Decline] | Absent) -> None:
        """Keep the first answer of each device, if it is its own and to this announcement."""
        if self._state is not State.ENLISTING or sender in self._enlistments or sender in self._declines:
            return
        if isinstance(said, Absent):
            self._declines[sender] = Declined(sender, said.reason, said.detail)
            return
        if said.sender != sender:
            return  # passed on: its seller would hide behind another's name
        match said.message:
            case Enlistment(announcement=announcement) if announcement == self.announcement.id:
                self._enlistments[sender] = said
            case Decline(request=request, reason=reason, detail=detail) if request == self.announcement.id:
                self._declines[sender] = Declined(sender, reason, detail)

    def _choose(self, now: float) -> list[Action]:
        chosen = choose_cohort(self.announcement, self._enlistments.values())
        if not chosen:
            found, wanted = len(self._enlistments), self.announcement.message.cohort_min
            dear = self.announcement.message.step_micro_max
            self._state = State.ABORTED
            self.reason = f"{found} enlisted at up to {dear} a step, at least {wanted} wanted"
            return [Unsold(self.reason, self.declines)]
        self._members = {enlistment.sender: _Member() for enlistment in chosen}
        self._promise(self._members)
        self._opening = set(self._members)
        self._state = State.OPENING
        self._ends_at = now + OPENING_S
        return [Open(chosen)]

    def _opened(self, now: float) -> list[Action]:
        """Begin when everybody has answered."""
        is_open = self._state is State.OPENING and not self._opening and not self._is_paused
        return self._begin(now) if is_open else []

    def _begin(self, now: float) -> list[Action]:
        self._opening.clear()
        return self._go_on(now)

    # --- a round ---------------------------------------------------------------------------------------------------
    def _go_on(self, now: float) -> list[Action]:
        """Begin the next round, or end after the last."""
        if self.round == self.announcement.message.recipe.rounds:
            self._state = State.FINISHED
            return [Finish(self._at_work())]
        if too_few := self._too_few(self._members, "of the cohort are left"):
            return self._abort(too_few)
        self.round += 1
        self._is_aggregated = False
        self._state = State.ROUND
        free = tuple(peer for peer, member in self._members.items() if not member.asked_for)
        return self._ask(free, now)

    def _ask(self, members: tuple[PeerId, ...], now: float) -> list[Action]:
        """Set the round's deadline, and give these members its task."""
        left_s = self.announcement.message.round_ms / 1_000
        self._ends_at = now + left_s
        for peer in members:
            self._members[peer].asked_for = self.round
        return [Ask(self.round, members, left_s)] if members else []

    def _take(self, sender: PeerId, message: Update, now: float) -> list[Action]:
        """Count an update, or say why it does not count."""
        said = message.update
        number = said.message.round
        if reason := self._why_not(sender, said):
            return [Refuse(sender, number, reason)]
        member = self._members[sender]
        member.asked_for = 0
        if message.fault:
            refused: list[Action] = [Refuse(sender, number, message.fault)]
            return refused + self._fail(sender, message.fault) + self._close_early(now)
        member.failures = 0
        if number == self.round and self._state is State.ROUND:
            member.answered_for, member.stale_for = number, 0
        else:
            member.stale_for = number + 1
        return self._close_early(now)

    def _why_not(self, sender: PeerId, said: Sealed[RoundUpdate]) -> str:
        """Return why an update does not count, whatever is in it; empty: it may."""
        number = said.message.round
        member = self._members.get(sender)
        if self.is_over:
            return "the run is over"
        if said.sender != sender:
            return "signed by another than who sent it"
        if said.message.run != self.announcement.message.run:
            return "of another run"
        if member is None:
            return "not a member of the cohort"
        if number > self.round:
            return f"of round {number}, which has not begun"
        if self.counts(sender, number):
            return f"the second of round {number}"
        if number < self.round - 1:
            return f"of round {number}, which is over"
        return "" if number == member.asked_for else f"of round {number}, which it was not asked for"

    def _lose(self, sender: PeerId, reason: str, number: int, now: float) -> list[Action]:
        if self._state is State.OPENING and sender in self._opening:
            self._opening.discard(sender)
            return self._leave(sender, reason) + self._opened(now)
        member = self._members.get(sender)
        if member is None or not member.asked_for or number not in {0, member.asked_for}:
            return []
        member.asked_for = 0
        return self._fail(sender, reason) + self._close_early(now)

    def _fail(self, peer: PeerId, reason: str) -> list[Action]:
        member = self._members[peer]
        member.failures += 1
        return self._leave(peer, reason) if member.failures >= FAILURES_MAX else []

    def _leave(self, peer: PeerId, reason: str) -> list[Action]:
        del self._members[peer]
        return [Dismiss(peer, reason)]

    def _close_early(self, now: float) -> list[Action]:
        """Close the round when nobody is waited for."""
        is_done = self._state is State.ROUND and not self._is_paused and not self.waiting_for
        return self._close(now, is_late=False) if is_done else []

    def _close(self, now: float, *, is_late: bool) -> list[Action]:
        """Aggregate what is there, or give those that failed one more chance."""
        actions: list[Action] = []
        if is_late:
            for peer in self._at_work():
                actions += self._fail(peer, f"no update of round {self._members[peer].asked_for} in time")
        fresh = self._with(lambda member: member.answered_for == self.round)
        stale = self._with(lambda member: member.stale_for == self.round)
        missing = tuple(peer for peer in self._members if peer not in fresh + stale)
        if not (too_few := self._too_few(fresh + stale, f"updates in round {self.round}")):
            self._state = State.AGGREGATING
            return [*actions, Aggregate(self.round, fresh, stale, missing)]
        if self._too_few(self._members, "of the cohort are left"):
            return actions + self._abort(too_few)
        # whoever has given nothing has failed, and leaves at the next failure: this cannot go on for long
        again = tuple(peer for peer in missing if not self._members[peer].asked_for)
        return actions + self._ask(again, now)

    def _resumed(self, now: float) -> list[Action]:
        """Catch up with what came while the clock stood still."""
        if self._state is State.AGGREGATING and self._is_aggregated:
            return self._go_on(now)
        return self._opened(now) + self._close_early(now)

    def _abort(self, reason: str) -> list[Action]:
        self._state, self.reason = State.ABORTED, reason
        return [Abort(reason, self._at_work())]

    # --- company ---------------------------------------------------------------------------------------------------
    def _promise(self, shown: Collection[PeerId]) -> None:
        self._parties_min = min(self._wanted, self._parties(shown))

    def _too_few(self, peers: Collection[PeerId], what: str) -> str:
        """Return why the updates of these devices must not be aggregated by themselves; empty: they may."""
        if len(peers) < self._wanted:
            return f"{len(peers)} {what}, at least {self._wanted} wanted"
        if (parties := self._parties(peers)) < self._parties_min:
            return f"{len(peers)} {what}, of {parties} owners, at least {self._parties_min} owners wanted"
        return ""

    @property
    def _wanted(self) -> int:
        return self.announcement.message.cohort_min

    def _at_work(self) -> tuple[PeerId, ...]:
        return self._with(lambda member: member.asked_for > 0)

    def _with(self, is_so: Callable[[_Member], bool]) -> tuple[PeerId, ...]:
        return tuple(peer for peer, member in self._members.items() if is_so(member))
