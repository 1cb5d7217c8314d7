"""What each buyer has received and not countersigned: a seller's risk, which `quote` keeps under a small cap.

An attempt counts from its first token until its countersignature is there, whether its receipt was sent, is still to be
drafted, or waits for the buyer to say what it accepted. So a buyer that takes answers and closes the stream before the
receipt is no better off than one that keeps the receipt.

What was sent and, as the buyer says, did not arrive stays in *doubt*: links do lose the last tokens, and liars say so of
all of them. Every credit that the buyer pays takes one of doubt away, so an honest buyer's doubt stays small, and a liar
gets no more than the cap for nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable

from protocol.envelope import Sealed
from protocol.identity import PeerId
from protocol.messages import Receipt


class Exposure:
    """Unsettled micro-credits, per buyer and attempt.

    Args:
        receipts: what the seller's own log shows as unsettled (`Ledger.unsettled`): a restart forgives nobody.
    """

    def __init__(self, receipts: Iterable[Sealed[Receipt]] = ()) -> None:
        self._open: defaultdict[PeerId, dict[tuple[bytes, int], int]] = defaultdict(dict)
        self._doubt: Counter[PeerId] = Counter()
        for receipt in receipts:
            terms = receipt.message
            self.owe(PeerId(terms.payer), terms.job_id, terms.attempt, terms.amount_micro)

    def owe(self, buyer: PeerId, job_id: bytes, attempt: int, amount_micro: int) -> None:
        """So much was delivered in this attempt until now; a later call replaces an earlier one."""
        self._open[buyer][job_id, attempt] = amount_micro

    def settle(self, buyer: PeerId, job_id: bytes, attempt: int, paid_micro: int) -> None:
        """The attempt is over: so much of it was paid, which may be nothing. May be called twice."""
        attempts = self._open.get(buyer, {})
        owed = attempts.pop((job_id, attempt), None)
        if not attempts:
            self._open.pop(buyer, None)
        if owed is not None:
            self._doubt[buyer] += (
                owed - 2 * paid_micro
            )  # what was not paid of it, less what the payment makes good
            if self._doubt[buyer] <= 0:
                del self._doubt[buyer]

    def micro(self, buyer: PeerId) -> int:
        """What the buyer has received and not countersigned."""
        return sum(self._open.get(buyer, {}).values()) + self._doubt[buyer]
