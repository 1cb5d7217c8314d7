"""Zero-sum mutual credit, folded from signed bilateral entries.

An award holds credit of its buyer, a countersignature posts a payment out of that hold, and `void` ends it. Money moves
only by a receipt that the seller signed and the payer countersigned (`accounts.py` moves it).

The fold takes facts: what both parties signed counts once, in whatever order the authors' logs arrive. What contradicts
an earlier fact changes nothing and comes back as a `Contradiction`; what no signature can make true (more than the
hold, a price that was not bid) changes nothing and comes back as `Refused`. Neither is raised: an author's log has to
go on behind its bad entry.

Decisions are asked, not folded: `hold` before a promise, `may_post` before a countersignature. What they leave behind
(own holds and voids) is local; credit lines are handed in, since admission sets them.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

from marketplace.accounts import Accounts
from marketplace.receipt import amount_micro
from marketplace.refusal import Contradiction, Refused
from protocol import limits
from protocol.envelope import Sealed, narrow, open_sealed
from protocol.errors import RemoteProtocolError
from protocol.identity import PeerId
from protocol.messages import Accept, Award, Countersignature, Entry, Income, Receipt, Spend

EARLY_MAX = 4_096  # entries kept for awards not heard of yet: a seller's log may come first
IDLE_GRACE_MS = (
    3_600_000  # the last job of a lease may still run: a full cap on a slow device takes most of an hour
)


@dataclass(frozen=True)
class Payment:
    """A posted receipt; `at_ms` is the payer's clock when it countersigned, Unix milliseconds."""

    receipt: Sealed[Receipt]
    countersignature: Sealed[Countersignature]
    payer: PeerId
    payee: PeerId
    amount_micro: int
    at_ms: int


@dataclass
class _Line:
    """An award and what was paid out of it."""

    award: Sealed[Award]
    used_ms: int
    paid_micro: int = 0
    accept: Sealed[Accept] | None = None

    @property
    def left_micro(self) -> int:
        return self.award.message.hold_micro - self.paid_micro


class Ledger:
    """Every account that the entries heard so far tell of.

    Args:
        mesh: the mesh id, to open the receipts inside.
        was_admitted: whether a key belongs to the mesh or once did; only such a payer's word makes income.
    """

    def __init__(self, mesh: bytes, was_admitted: Callable[[PeerId], bool] = lambda _: True) -> None:
        self._mesh = mesh
        self._was_admitted = was_admitted
        self._accounts = Accounts()
        self._lines: dict[bytes, _Line] = {}
        # At most one of a kind per author, job and attempt. Job ids are their buyers' to choose, so the buyer is part of
        # each key: one that copies another's job id must not get that other's honest seller accused.
        self._awards: dict[tuple[str, bytes, int], Sealed[Award]] = {}
        self._claims: dict[tuple[bytes, bytes, int], Sealed[Receipt]] = {}
        self._payments: dict[tuple[str, bytes, int], Payment] = {}
        self._unsettled: defaultdict[str, dict[bytes, Sealed[Receipt]]] = defaultdict(dict)  # by payee
        self._early: OrderedDict[bytes, tuple[bytes, Sealed[Entry]]] = (
            OrderedDict()
        )  # with the award it waits for

    # --- the fold -----------------------------------------------------------------------------------------------------
    def apply(self, entry: Sealed[Entry]) -> Refused | Contradiction | None:
        """Take one verified bilateral entry in; None: it is in, or was before."""
        match entry.message:
            case Award():
                return self._apply_award(cast("Sealed[Award]", entry))
            case Accept():
                return self._apply_accept(cast("Sealed[Accept]", entry))
            case Receipt():
                return self._apply_receipt(cast("Sealed[Receipt]", entry))
            case Countersignature():
                return self._apply_countersignature(cast("Sealed[Countersignature]", entry))
            case Income():
                return self._apply_income(cast("Sealed[Income]", entry))
            case Spend():
                return None  # it stands in the same log, and moves no money
        return Refused("malformed", f"{type(entry.message).kind} is no entry of a ledger")

    def _apply_award(self, award: Sealed[Award]) -> Refused | Contradiction | None:
        terms = award.message
        if award.sender == terms.seller:
            return Refused("parties", f"{award.sender} awards itself")
        first = self._awards.setdefault((award.sender, terms.job_id, terms.attempt), award)
        if first.id != award.id:
            return Contradiction(award.sender, first, award)
        if award.id in self._lines:
            return None
        self._lines[award.id] = _Line(award, used_ms=award.time_ms)
        self._accounts.hold(award.id, award.sender, terms.hold_micro)
        return self._apply_early(award.id)

    def _apply_accept(self, accept: Sealed[Accept]) -> Refused | Contradiction | None:
        terms = accept.message
        line = self._lines.get(terms.award)
        if line is None:
            self._keep_early(accept, terms.award)
            return None
        award = line.award.message
        if (accept.sender, terms.buyer) != (award.seller, line.award.sender):
            return Refused("parties", f"accepted by {accept.sender}, awarded to {award.seller}")
        if (terms.job_id, terms.attempt) != (award.job_id, award.attempt):
            return Refused("job", "the accept names another job than its award")
        if line.accept is not None and line.accept.id != accept.id:
            return Contradiction(accept.sender, line.accept, accept)
        line.accept = accept
        return None

    def _apply_receipt(self, receipt: Sealed[Receipt]) -> Refused | Contradiction | None:
        terms = receipt.message
        if terms.award not in self._lines:
            self._keep_early(receipt, terms.award)
            return None
        if fault := self._fault(receipt):
            return fault
        if found := self._claim(receipt):
            return found
        payment = self._payments.get((terms.payer, terms.job_id, terms.attempt))
        if payment is None or payment.receipt.id != receipt.id:
            self._unsettled[terms.payee][receipt.id] = receipt
        return None

    def _apply_countersignature(self, entry: Sealed[Countersignature]) -> Refused | Contradiction | None:
        try:
            receipt = self._receipt_in(entry)
        except RemoteProtocolError as error:
            return Refused("malformed", str(error))
        terms = receipt.message
        if entry.sender != terms.payer:
            return Refused("parties", f"countersigned by {entry.sender}, payer is {terms.payer}")
        if terms.award not in self._lines:
            self._keep_early(entry, terms.award)
            return None
        key = (terms.payer, terms.job_id, terms.attempt)
        paid = self._payments.get(key)
        if paid is not None and paid.receipt.id == receipt.id:
            return None
        if fault := self._fault(receipt):
            return fault
        if paid is not None:
            return Contradiction(entry.sender, paid.countersignature, entry)
        line = self._lines[terms.award]
        if terms.amount_micro > line.left_micro:
            return _over_hold(terms.amount_micro, line)
        payer, payee = PeerId(terms.payer), PeerId(terms.payee)
        line.paid_micro += terms.amount_micro
        line.used_ms = max(line.used_ms, entry.time_ms)
        self._accounts.post(terms.award, payer, payee, terms.amount_micro, entry.time_ms)
        self._payments[key] = Payment(receipt, entry, payer, payee, terms.amount_micro, entry.time_ms)
        self._unsettled.get(payee, {}).pop(receipt.id, None)
        # A second receipt of the seller is evidence, and yet it is paid, since both signed it: a friend's unpaid first
        # receipt could otherwise hide a debt from whoever heard that one before.
        return self._claim(receipt)

    def _claim(self, receipt: Sealed[Receipt]) -> Contradiction | None:
        terms = receipt.message
        # Under one award only, as `assembly.evidence` sees it: who awards an attempt twice must not incriminate its seller.
        key = (terms.award, terms.job_id, terms.attempt)
        first = self._claims.setdefault(key, receipt)
        return Contradiction(receipt.sender, first, receipt) if first.id != receipt.id else None

    def _fault(self, receipt: Sealed[Receipt]) -> Refused | None:
        """What the award itself says against a receipt, whatever was paid before."""
        terms = receipt.message
        line = self._lines.get(terms.award)
        if line is None:
            return Refused("award_unknown", f"no award {terms.award.hex()[:12]} is known")
        award = line.award.message
        if (receipt.sender, terms.payee, terms.payer) != (award.seller, award.seller, line.award.sender):
            return Refused("parties", "the receipt names other parties than its award")
        if terms.model != award.model:
            return Refused("job", "the receipt names another model than its award")
        is_same_job = (terms.job_id, terms.attempt) == (award.job_id, award.attempt)
        if award.lease_ms == 0 and not is_same_job:
            return Refused("job", "the receipt names another job than its award, which opened no lease")
        most = amount_micro(award, terms.prompt_tokens, terms.completion_tokens)
        if terms.amount_micro > most:
            return Refused("price", f"receipt of {terms.amount_micro}, its counts come to {most}")
        return None

    def _keep_early(self, entry: Sealed[Entry], award_id: bytes) -> None:
        self._early[entry.id] = award_id, entry
        while len(self._early) > EARLY_MAX:
            self._early.popitem(last=False)

    def _apply_early(self, award_id: bytes) -> Contradiction | None:
        entries = [entry for waits_for, entry in self._early.values() if waits_for == award_id]
        for entry in entries:
            del self._early[entry.id]
        found = [self.apply(entry) for entry in entries]
        return next((result for result in found if isinstance(result, Contradiction)), None)

    def _apply_income(self, entry: Sealed[Income]) -> Refused | Contradiction | None:
        """Two entries of the payer, shown by the payee: they count as if the payer's own log had been heard."""
        try:
            award = narrow(open_sealed(entry.message.award, mesh=self._mesh), Award)
            countersigned = narrow(
                open_sealed(entry.message.countersignature, mesh=self._mesh), Countersignature
            )
        except RemoteProtocolError as error:
            return Refused("malformed", str(error))
        if award is None or countersigned is None:
            return Refused("malformed", "an income holds an award and its countersignature")
        if award.message.seller != entry.sender:
            return Refused("parties", f"income of {entry.sender} by an award to {award.message.seller}")
        if not self._was_admitted(award.sender):
            # Keys are free: a member could have itself paid by as many as it makes, and spend that here.
            return Refused("parties", f"income of {entry.sender} from {award.sender}, who was never admitted")
        return self._apply_award(award) or self._apply_countersignature(countersigned)

    def _receipt_in(self, entry: Sealed[Countersignature]) -> Sealed[Receipt]:
        opened = open_sealed(entry.message.receipt, mesh=self._mesh, kinds=frozenset({"receipt"}))
        return cast("Sealed[Receipt]", opened)

    # --- decisions ----------------------------------------------------------------------------------------------------
    def hold(
        self, key: bytes, account: PeerId, amount_micro: int, *, credit_line_micro: int
    ) -> Refused | None:
        """Set credit aside before a promise is made, so that two requests at once cannot spend it twice.

        The buyer holds its reserve before it asks and voids `key` once the award is folded (the award holds from then
        on) or the auction has failed.
        """
        spendable = self.spendable_micro(account, credit_line_micro)
        if amount_micro > spendable:
            return Refused("credit", f"{amount_micro} wanted, {spendable} spendable")
        self._accounts.hold(key, account, amount_micro)
        return None

    def void(self, hold: bytes) -> None:
        """End a hold: a local one by its key, or an award's by the award's id. What was paid stays paid.

        It cannot be undone. For an award it is this node's own view: a receipt that the payer countersigns later
        still counts, as everybody else would count it, so the payer asks `may_post` first.
        """
        self._accounts.void(hold)

    def void_idle(self, utc_ms: int) -> tuple[bytes, ...]:
        """Void the holds of awards whose lease must have ended, and return their ids.

        Nobody tells a third party that a lease is over; without this an award heard of would weigh on its buyer for
        ever. The parties themselves void sooner.
        """
        idle = tuple(
            award_id
            for award_id, line in self._lines.items()
            if self._accounts.is_held(award_id)
            and line.used_ms + line.award.message.lease_ms + IDLE_GRACE_MS < utc_ms
        )
        for award_id in idle:
            self.void(award_id)
        return idle

    def may_post(self, receipt: Sealed[Receipt]) -> Refused | None:
        """Whether the payer may countersign this receipt now; the rest of its check is `receipt.check_receipt`."""
        terms = receipt.message
        if fault := self._fault(receipt):
            return fault
        paid = self._payments.get((terms.payer, terms.job_id, terms.attempt))
        if paid is not None:
            is_same = paid.receipt.id == receipt.id
            return None if is_same else Refused("paid", "another receipt of this job and attempt was paid")
        line = self._lines[terms.award]
        if not self._accounts.is_held(terms.award):
            return Refused("void", "the award's hold was given back")
        return _over_hold(terms.amount_micro, line) if terms.amount_micro > line.left_micro else None

    # --- views --------------------------------------------------------------------------------------------------------
    def balance_micro(self, peer: PeerId) -> int:
        """What the peer earned less what it paid, holds not taken off; negative is debt."""
        return self._accounts.balance_micro(peer)

    def held_micro(self, peer: PeerId) -> int:
        """What the peer has promised and not yet paid."""
        return self._accounts.held_micro(peer)

    def spendable_micro(self, peer: PeerId, credit_line_micro: int) -> int:
        """What the peer can still promise: its balance may fall to minus its credit line, holds counted."""
        return self.balance_micro(peer) - self.held_micro(peer) + credit_line_micro

    def day_spent_micro(self, peer: PeerId, utc_ms: int) -> int:
        """What the peer paid on the UTC day of this moment."""
        return self._accounts.spent_micro(peer, utc_ms)

    def job_spent_micro(self, payer: PeerId, job_id: bytes) -> int:
        """What the payer paid for all attempts at one of its jobs."""
        attempts = range(1, limits.ATTEMPTS_MAX + 1)
        paid = [self._payments.get((payer, job_id, attempt)) for attempt in attempts]
        return sum(payment.amount_micro for payment in paid if payment is not None)

    def award(self, award_id: bytes) -> Sealed[Award] | None:
        """The award of this id, if it has been heard of."""
        line = self._lines.get(award_id)
        return line.award if line else None

    def accept(self, award_id: bytes) -> Sealed[Accept] | None:
        """The seller's accept of an award."""
        line = self._lines.get(award_id)
        return line.accept if line else None

    def remaining_micro(self, award_id: bytes) -> int:
        """What is left of an award's hold; 0 when it is void or unknown."""
        return self._accounts.left_micro(award_id)

    def open_awards(self, buyer: PeerId) -> tuple[Sealed[Award], ...]:
        """The buyer's awards that still hold credit. After a restart all leases are gone: void one's own."""
        awards = (line.award for line in self._lines.values())
        return tuple(each for each in awards if each.sender == buyer and self._accounts.is_held(each.id))

    def payment(self, payer: PeerId, job_id: bytes, attempt: int) -> Payment | None:
        """The payment for one attempt at one of the payer's jobs."""
        return self._payments.get((payer, job_id, attempt))

    def payments(self) -> Iterator[Payment]:
        """Every payment, in the order they were heard of."""
        return iter(self._payments.values())

    def chargeable_micro(self, award_id: bytes) -> int:
        """What a further receipt under the award may come to: the rest of its hold, less what waits to be countersigned."""
        line = self._lines.get(award_id)
        if line is None:
            return 0
        claims = self._unsettled.get(line.award.message.seller, {}).values()
        claimed = sum(each.message.amount_micro for each in claims if each.message.award == award_id)
        return max(0, self.remaining_micro(award_id) - claimed)

    def unsettled(self, payee: PeerId) -> tuple[Sealed[Receipt], ...]:
        """The receipts that the payee signed and that no payer has countersigned."""
        return tuple(self._unsettled.get(payee, {}).values())

    def balances(self) -> dict[PeerId, int]:
        """Every known account's balance, by peer id."""
        return self._accounts.balances()

    def total_micro(self) -> int:
        """The sum of all balances: 0."""
        return self._accounts.total_micro()


def _over_hold(amount_micro: int, line: _Line) -> Refused:
    return Refused("hold", f"receipt of {amount_micro}, {line.left_micro} left of the hold")
