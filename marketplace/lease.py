"""A lease: the award that a session's requests go under, straight to the same seller, without an auction.

Buyer and seller each keep a table of them. A lease ends when it has been idle for as long as its award says, when its
seller is lost, when a newer one takes its session, or when the table is full; an award without a session is a lease of
one job. However it ends, its running jobs are settled first, and `expire` names its award: the one place from which
holds are voided.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from marketplace.fence import Fence
from marketplace.pricing import Prices
from marketplace.refusal import Refused
from protocol.envelope import Sealed
from protocol.identity import PeerId
from protocol.messages import NO_HASH, Award, Privacy, Work

LEASES_MAX = 1_024  # sessions served at a time; the one used least recently goes to auction again


@dataclass(frozen=True)
class Session:
    """What a lease serves. The privacy class is part of it: a chat never rides on a lease that was sold more widely.

    So is the adapter: when a name's head moves on, its sessions go to auction again.
    """

    digest: bytes
    model: bytes
    privacy: Privacy
    adapter: bytes = NO_HASH


@dataclass
class Lease:
    """One award in use.

    Attributes:
        running: what each job under way may come to, by (job id, attempt).
        privacy: of the request that it was sold for; the narrower one where nobody said.
    """

    award: Sealed[Award]
    session: Session | None
    used_at: float
    running: dict[tuple[bytes, int], int] = field(default_factory=dict)
    is_retired: bool = False
    privacy: Privacy = "owner"

    @property
    def seller(self) -> PeerId:
        """Who serves it."""
        return PeerId(self.award.message.seller)

    @property
    def prices(self) -> Prices:
        """As bid, for every job of the lease."""
        return Prices(self.award.message.prompt_micro, self.award.message.completion_micro)

    @property
    def running_micro(self) -> int:
        """What the jobs under way may come to."""
        return sum(self.running.values())

    def is_over(self, now: float) -> bool:
        """Whether no further job may begin under it."""
        return self.is_retired or now - self.used_at > self.award.message.lease_ms / 1000


class Leases:
    """The leases of one side: those a buyer pays for, or those a seller serves."""

    def __init__(self) -> None:
        self._leases: OrderedDict[bytes, Lease] = OrderedDict()  # by award id; the least recently used first
        self._by_session: dict[Session, bytes] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def get(self, award_id: bytes) -> Lease | None:
        """The lease of an award."""
        return self._leases.get(award_id)

    def open(
        self,
        award: Sealed[Award],
        now: float,
        session: Session | None = None,
        *,
        privacy: Privacy = "owner",
    ) -> Lease:
        """Begin a lease. The buyer names its session; a seller, and a buyer without one, do not."""
        lease = Lease(award, session, used_at=now, privacy=privacy)
        self._leases[award.id] = lease
        if session is not None:
            if (older := self._by_session.get(session)) is not None:
                self.retire(older)
            self._by_session[session] = award.id
        unretired = [award_id for award_id, each in self._leases.items() if not each.is_retired]
        for award_id in unretired[: max(0, len(unretired) - LEASES_MAX)]:
            self.retire(award_id)
        return lease

    def find(
        self,
        session: Session,
        *,
        prompt_tokens: int,
        completion_tokens_max: int,
        remaining_micro: Callable[[bytes], int],
        now: float,
    ) -> Lease | None:
        """Return the lease that the session's next request may use; None: sell it by auction.

        Args:
            session: of the request.
            prompt_tokens: the buyer's estimate.
            completion_tokens_max: the request's cap.
            remaining_micro: `Ledger.remaining_micro`; what is left of the hold must cover all running jobs and this one.
            now: monotonic seconds.
        """
        lease = self._leases.get(self._by_session.get(session, b""))
        if lease is None or lease.is_over(now):
            return None
        needed = lease.running_micro + lease.prices.total_micro(prompt_tokens, completion_tokens_max)
        return lease if needed <= remaining_micro(lease.award.id) else None

    def begin(self, award_id: bytes, job_id: bytes, attempt: int, *, total_micro: int, now: float) -> None:
        """A job begins under the lease; it may come to `total_micro`."""
        lease = self._leases[award_id]
        lease.running[job_id, attempt] = total_micro
        lease.used_at = now
        self._leases.move_to_end(award_id)

    def finish(self, award_id: bytes, job_id: bytes, attempt: int, *, now: float) -> None:
        """The job is settled, or given up: nothing more will be paid for it. May be called twice."""
        lease = self._leases.get(award_id)
        if lease is not None and lease.running.pop((job_id, attempt), None) is not None:
            lease.used_at = now
            if lease.award.message.lease_ms == 0:
                self.retire(award_id)  # it was for this one job

    def retire(self, award_id: bytes) -> None:
        """No further job goes under this lease; those under way are still settled."""
        lease = self._leases.get(award_id)
        if lease is None:
            return
        lease.is_retired = True
        if lease.session is not None and self._by_session.get(lease.session) == award_id:
            del self._by_session[lease.session]

    def retire_of(self, seller: PeerId) -> None:
        """No further job goes under any lease of this seller's."""
        for award_id in [award_id for award_id, lease in self._leases.items() if lease.seller == seller]:
            self.retire(award_id)

    def expire(self, now: float) -> tuple[bytes, ...]:
        """Forget the leases that are over and have no job under way; return their awards, whose holds are to be voided."""
        ended = tuple(
            award_id for award_id, lease in self._leases.items() if lease.is_over(now) and not lease.running
        )
        for award_id in ended:
            self.retire(award_id)
            del self._leases[award_id]
        return ended


def may_work(
    work: Work,
    buyer: PeerId,
    *,
    leases: Leases,
    fence: Fence,
    total_micro: int,
    chargeable_micro: int,
    now: float,
) -> Refused | None:
    """Return why a seller will not begin this work; None when it may.

    Args:
        work: as it came.
        buyer: who signed it.
        leases: those that the seller serves.
        fence: the attempts it has begun.
        total_micro: what the work's prompt and cap come to at the award's prices.
        chargeable_micro: `Ledger.chargeable_micro` of the award.
        now: monotonic seconds.
    """
    lease = leases.get(work.award)
    if lease is None:
        return Refused("award_unknown", "no such award is served here; it has ended, or was before a restart")
    terms = lease.award.message
    if buyer != lease.award.sender:
        return Refused("parties", "the award is another buyer's")
    if refused := fence.refusal(buyer, work.job_id, work.attempt):
        return refused
    if terms.lease_ms == 0 and (work.job_id, work.attempt) != (terms.job_id, terms.attempt):
        return Refused("job", "the award is for one job, and this is another")
    if lease.is_over(now):
        return Refused("void", "the lease is over")
    if total_micro + lease.running_micro > chargeable_micro:
        return Refused(
            "hold", f"{total_micro} and {lease.running_micro} under way, {chargeable_micro} left of the hold"
        )
    return None
