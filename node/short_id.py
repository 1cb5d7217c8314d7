"""Ids as users type them: their first hexadecimal digits, as long as these mean one thing alone."""

from collections.abc import Sequence
from typing import Final, TypeVar

from node.errors import StartError

DIGITS_MIN: Final = 4  # that a user may leave it at

T = TypeVar("T")


def begins(whole: bytes, prefix: str) -> bool:
    """Whether an id begins with these digits."""
    return whole.hex().startswith(prefix.lower())


def the_only(found: Sequence[T], prefix: str, *, what: str, see: str) -> T:
    """Return the one thing that was found.

    Args:
        found: everything whose id begins so.
        prefix: as it was typed.
        what: the plural of what is looked for.
        see: the command that lists it.

    Raises:
        StartError: none, several, or too few digits.
    """
    if len(prefix) < DIGITS_MIN or len(found) != 1:
        raise StartError(
            f"{prefix[:64]!r} names {len(found)} {what}, expected the first digits of the id of one, {DIGITS_MIN} at "
            f"least; run '{see}'"
        )
    return found[0]
