"""Which blobs go when the disk has no room for another one: those that nobody names, the oldest first, and none in vain.

What was put or fetched is named a while later: when the round is trained, when the manifest is signed. So what is young
stays, whoever names it or not.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from runtime.engine import Digest

AGE_S_MIN = 3_600.0  # four rounds of the usual time


@dataclass(frozen=True)
class Kept:
    """A blob of this device, and how long ago it was put or fetched."""

    digest: Digest
    size_bytes: int
    age_s: float


def whom_to_drop(kept: Iterable[Kept], wanted_bytes: int, named: Collection[bytes]) -> tuple[Digest, ...]:
    """Return the blobs whose room is enough; none when that of all that may go is not."""
    spare = [each for each in kept if each.age_s >= AGE_S_MIN and each.digest not in named]
    dropped: list[Digest] = []
    for each in sorted(spare, key=lambda each: (-each.age_s, each.digest)):
        if wanted_bytes <= 0:
            break
        dropped.append(each.digest)
        wanted_bytes -= each.size_bytes
    return tuple(dropped) if wanted_bytes <= 0 else ()
