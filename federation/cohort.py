"""Who takes part in a run: the cheapest of those that bid, then the fastest, and a lot that nobody can choose."""

import hashlib
from collections.abc import Iterable

from protocol.envelope import Sealed
from protocol.identity import PeerId
from protocol.messages import Enlistment, RunAnnouncement


def choose_cohort(
    announcement: Sealed[RunAnnouncement], enlistments: Iterable[Sealed[Enlistment]]
) -> tuple[Sealed[Enlistment], ...]:
    """Return the best `cohort_max` enlistments within the price, best first; none when fewer than `cohort_min` fit.

    Anybody who holds the announcement and the enlistments, one of each device, comes to the same cohort.
    """
    wanted = announcement.message
    fit = [
        each
        for each in enlistments
        if each.message.announcement == announcement.id and each.message.step_micro <= wanted.step_micro_max
    ]
    fit.sort(key=lambda each: rank(announcement.id, each))
    return tuple(fit[: wanted.cohort_max]) if len(fit) >= wanted.cohort_min else ()


def rank(announcement_id: bytes, enlistment: Sealed[Enlistment]) -> tuple[int, int, bytes]:
    """Return what enlistments are sorted by: price, then speed, then the lot."""
    bid = enlistment.message
    return bid.step_micro, -bid.steps_per_ks, lot(announcement_id, enlistment.sender)


def lot(announcement_id: bytes, peer: PeerId) -> bytes:
    """Return a device's lot in a tie. The id is the coordinator's hash, so no device can choose its key to win."""
    return hashlib.sha256(announcement_id + peer.encode()).digest()
