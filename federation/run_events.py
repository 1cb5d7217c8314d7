"""What a training run hears, and what it wants done: the words of the machine in `federation/training_run.py`."""

from dataclasses import dataclass

from protocol.envelope import Sealed
from protocol.identity import PeerId
from protocol.messages import Decline, Enlistment, RoundUpdate


# --- what comes in, besides sealed enlistments and declines ------------------------------------------------------------
@dataclass(frozen=True)
class Absent:
    """A device that cannot answer the announcement, as the coordinator itself found; nobody signs this."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Joined:
    """A member has verified the cohort and accepted its award."""


@dataclass(frozen=True)
class Lost:
    """A member will not answer: it refused, its stream broke, it could not be reached.

    Attributes:
        round: whose task it will not answer; news of an older one changes nothing. 0: whatever it is at work on.
    """

    reason: str
    round: int = 0


@dataclass(frozen=True)
class Update:
    """A member's update, after the gate.

    Attributes:
        update: as it was signed; its payload has arrived whole.
        fault: why the gate does not let it into the aggregate; empty: it may enter.
    """

    update: Sealed[RoundUpdate]
    fault: str = ""


@dataclass(frozen=True)
class Aggregated:
    """The coordinator holds the round's new state, durably."""

    round: int


@dataclass(frozen=True)
class NotAggregated:
    """The strategy could not make a state of this round's updates."""

    round: int
    reason: str


@dataclass(frozen=True)
class Pause:
    """The user's word: let the clock stand still."""


@dataclass(frozen=True)
class Resume:
    """The user's word: go on."""


@dataclass(frozen=True)
class Cancel:
    """The user's word: end it."""

    reason: str = "cancelled"


Incoming = (
    Sealed[Enlistment]
    | Sealed[Decline]
    | Absent
    | Joined
    | Lost
    | Update
    | Aggregated
    | NotAggregated
    | Pause
    | Resume
    | Cancel
)


# --- what is to be done ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Declined:
    """A device that does not take part, and why."""

    peer: PeerId
    reason: str
    detail: str


@dataclass(frozen=True)
class Open:
    """Action: give each of them its award, and show all of them the cohort."""

    cohort: tuple[Sealed[Enlistment], ...]


@dataclass(frozen=True)
class Unsold:
    """Action: there is no run; tell the user who declined and why."""

    reason: str
    declines: tuple[Declined, ...]


@dataclass(frozen=True)
class Ask:
    """Action: send these members the task of this round, with so much time."""

    round: int
    members: tuple[PeerId, ...]
    left_s: float


@dataclass(frozen=True)
class Refuse:
    """Action: an update does not count; say why, and drop its bytes."""

    peer: PeerId
    round: int
    reason: str


@dataclass(frozen=True)
class Dismiss:
    """Action: this member has left the cohort; it is asked no more."""

    peer: PeerId
    reason: str


@dataclass(frozen=True)
class Aggregate:
    """Action: make the next state of these members' updates, keep it, and say `Aggregated`.

    Attributes:
        fresh: members whose update is of this round.
        stale: members whose update is of the round before.
        missing: members that were asked and have given nothing that counts.
    """

    round: int
    fresh: tuple[PeerId, ...]
    stale: tuple[PeerId, ...]
    missing: tuple[PeerId, ...]


@dataclass(frozen=True)
class Finish:
    """Action: all rounds are done. Who is still at work is told to stop."""

    at_work: tuple[PeerId, ...]


@dataclass(frozen=True)
class Abort:
    """Action: the run has ended before its last round; the newest checkpoint stays."""

    reason: str
    at_work: tuple[PeerId, ...]


Action = Open | Unsold | Ask | Refuse | Dismiss | Aggregate | Finish | Abort
