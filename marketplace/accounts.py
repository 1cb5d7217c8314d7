"""The double entry itself: balances that sum to zero, and the holds on them.

`hold` sets credit aside, `post` moves money from one account to another and takes it out of the hold, `void` gives back
what is left. There is no other way to change a balance, so no order of calls can create or lose a micro-credit.
"""

from collections import Counter
from dataclasses import dataclass

from protocol.errors import LocalProtocolError
from protocol.identity import PeerId

DAY_MS = 86_400_000


@dataclass
class _Hold:
    account: PeerId
    left_micro: int


class Accounts:
    """Balances and holds by peer id. Whether a hold or a posting is right is its caller's rule (`ledger.py`)."""

    def __init__(self) -> None:
        self._balances: Counter[PeerId] = Counter()
        self._held: Counter[PeerId] = Counter()
        self._spent: Counter[tuple[PeerId, int]] = Counter()  # by account and UTC day
        self._holds: dict[bytes, _Hold] = {}

    def hold(self, hold_id: bytes, account: PeerId, amount_micro: int) -> None:
        """Set credit aside.

        Raises:
            LocalProtocolError: there is a hold of this id already.
        """
        if hold_id in self._holds:
            raise LocalProtocolError(f"hold {hold_id.hex()[:12]} stands already")
        self._holds[hold_id] = _Hold(account, amount_micro)
        self._held[account] += amount_micro

    def post(self, hold_id: bytes, payer: PeerId, payee: PeerId, amount_micro: int, at_ms: int) -> None:
        """Move money; it comes out of the hold while that stands, and out of the balance alone when it was voided."""
        self._balances[payer] -= amount_micro
        self._balances[payee] += amount_micro
        self._spent[payer, at_ms // DAY_MS] += amount_micro
        if hold := self._holds.get(hold_id):
            hold.left_micro -= amount_micro
            self._held[payer] -= amount_micro

    def void(self, hold_id: bytes) -> None:
        """End a hold; what was paid out of it stays paid. May be called twice."""
        if hold := self._holds.pop(hold_id, None):
            self._held[hold.account] -= hold.left_micro

    def is_held(self, hold_id: bytes) -> bool:
        """Whether the hold stands."""
        return hold_id in self._holds

    def left_micro(self, hold_id: bytes) -> int:
        """What is left of a hold; 0 when it does not stand."""
        hold = self._holds.get(hold_id)
        return hold.left_micro if hold else 0

    def balance_micro(self, account: PeerId) -> int:
        """What was earned less what was paid, holds not taken off; negative is debt."""
        return self._balances[account]

    def held_micro(self, account: PeerId) -> int:
        """What is set aside."""
        return self._held[account]

    def spent_micro(self, account: PeerId, utc_ms: int) -> int:
        """What was paid on the UTC day of this moment."""
        return self._spent[account, utc_ms // DAY_MS]

    def balances(self) -> dict[PeerId, int]:
        """Every balance, by peer id."""
        return {account: self._balances[account] for account in sorted(self._balances)}

    def total_micro(self) -> int:
        """The sum of all balances: 0."""
        return self._balances.total()
