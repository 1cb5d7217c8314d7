"""Attempts are numbered and fenced: a seller begins each attempt once, and never one older than it has begun.

So a delayed or replayed work message cannot start a job that its buyer has moved on from: it would cost a slot, and a
second stream of tokens under one name.
"""

from collections import OrderedDict

from marketplace.refusal import Refused
from protocol.identity import PeerId

FENCES_MAX = (
    8_192  # jobs remembered; a buyer that floods them out only unfences jobs, which the ledger pays once
)


class Fence:
    """The newest attempt that was begun, per job; the job begun least recently is forgotten first."""

    def __init__(self) -> None:
        self._newest: OrderedDict[tuple[PeerId, bytes], int] = OrderedDict()

    def refusal(self, buyer: PeerId, job_id: bytes, attempt: int) -> Refused | None:
        """Why this attempt may not begin; None when it may. Job ids are each buyer's own."""
        newest = self._newest.get((buyer, job_id), 0)
        if attempt == newest:
            return Refused("replayed", f"attempt {attempt} was begun before")
        if attempt < newest:
            return Refused("fenced", f"attempt {attempt} came, attempt {newest} was begun before")
        return None

    def begin(self, buyer: PeerId, job_id: bytes, attempt: int) -> None:
        """The attempt begins: from now on it and all older ones are refused."""
        self._newest.pop((buyer, job_id), None)
        self._newest[buyer, job_id] = attempt
        while len(self._newest) > FENCES_MAX:
            self._newest.popitem(last=False)
