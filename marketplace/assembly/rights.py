"""Who may write what into its assembly log, and how long such a log may grow.

Voters admit, name, revoke, publish lines, vote and propose the next charter; recovery keys do the last when the roll is lost.
Whoever was ever admitted may accuse, propose patches and agree to a charter that may put it on the roll. Humans approve, veto
and withdraw, with keys that are no devices and no members. Who was on a roll once keeps its right to a log, since what it
writes later does nothing. None of this is ever taken back, so nobody's log breaks off for one
member and goes on for another.
"""

from protocol import limits
from protocol.envelope import Sealed
from protocol.errors import BrokenLog, NotAuthorised
from protocol.messages import (
    Approval,
    Charter,
    CharterConsent,
    Entry,
    Evidence,
    Manifest,
    Veto,
    Withdrawal,
)

_OF_MEMBERS = (Evidence, Manifest, CharterConsent)
_OF_RECOVERY = (Charter, CharterConsent)
_OF_HUMANS = (Approval, Veto, Withdrawal)


def check_right(
    entry: Sealed[Entry], *, is_roll: bool, was_admitted: bool, is_approver: bool, is_recovery: bool
) -> None:
    """Check that an author may write an entry of this kind, at this index.

    Raises:
        NotAuthorised: it may not (yet).
        BrokenLog: its log is full.
    """
    message = entry.message
    if isinstance(message, _OF_HUMANS):
        if not is_approver:
            raise NotAuthorised(f"{entry.sender} signed {a(message)} and is no approver of the charter")
    elif not (
        is_roll
        or (was_admitted and isinstance(message, _OF_MEMBERS))
        or (is_recovery and isinstance(message, _OF_RECOVERY))
    ):
        raise NotAuthorised(f"{entry.sender} signed {a(message)} and is not on the roll")
    is_trusted = is_roll or is_approver
    entries_max = limits.ROLL_LOG_ENTRIES_MAX if is_trusted else limits.MEMBER_LOG_ENTRIES_MAX
    if message.index >= entries_max:
        raise BrokenLog(f"assembly log of {entry.sender} is full, at most {entries_max} entries allowed")


def a(message: Entry) -> str:
    """Return an entry's kind with its article."""
    return f"{'an' if message.kind[0] in 'aeiou' else 'a'} {message.kind}"
