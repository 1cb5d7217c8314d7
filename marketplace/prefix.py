"""The digest of what a chat begins with: its system prompt, on one model with one adapter.

Many chats of one application share it, so a seller that has read it once reads only the rest of the next chat. Buyer and
seller compute the same digest, each for itself: the request names it, adverts list those that are warm. It is short on
purpose: enough to find a cache again, too few bytes to prove anything. Whoever knows a system prompt can compute it, so an
advert tells every member that a *known* one was used; `warmth.py` says which ones are never told.
"""

import hashlib
from collections.abc import Sequence
from itertools import takewhile

from protocol import limits
from protocol.messages import Advert, Turn

DOMAIN = b"agora/prefix/1\0"
LENGTH_BYTES = 4  # before each content, so that no two lists of turns read alike


def leading_turns(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return the system turns that a chat begins with; it may have none."""
    return tuple(takewhile(lambda turn: turn.role == "system", turns))


def prefix_digest(model: bytes, adapter: bytes, turns: Sequence[Turn]) -> bytes:
    """Return the digest of a chat's beginning, `PREFIX_BYTES` long; empty when it begins with no system turn.

    Args:
        model: the base's digest.
        adapter: the adapter's, or `NO_HASH`: with another one the same words leave other keys and values.
        turns: the whole chat; what comes after the leading system turns does not count.
    """
    leading = leading_turns(turns)
    if not leading:
        return b""
    hashed = hashlib.sha256(DOMAIN + model + adapter)
    for turn in leading:
        content = turn.content.encode()
        hashed.update(len(content).to_bytes(LENGTH_BYTES, "big") + content)
    return hashed.digest()[: limits.PREFIX_BYTES]


def warm_prefixes(advert: Advert) -> frozenset[bytes]:
    """Return the digests that an advert lists; what is left of a last one that is too short counts for nothing."""
    whole = len(advert.warm) // limits.PREFIX_BYTES * limits.PREFIX_BYTES
    return frozenset(
        advert.warm[start : start + limits.PREFIX_BYTES] for start in range(0, whole, limits.PREFIX_BYTES)
    )
