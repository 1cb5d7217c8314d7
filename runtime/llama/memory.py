"""Which models a child has in memory, and which go when another one needs the room. Pure books: the scheduler acts.

Models stay until their memory is needed: first goes the one that was used least recently, of those that nobody uses.
The budget is in bytes. A model that is over it all by itself is tried when nothing else is in memory: the estimate is
on the safe side, and the kernel's own limit decides.

The cache is bounded too: slots share `context_tokens` each, but at most a quarter of the budget, and never less than
one request's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from runtime.engine import Digest
from runtime.llama.process import memory_needed

CACHE_SHARE = 0.25  # of the budget, at most, for one model's cache


@dataclass(frozen=True)
class Footprint:
    """What a model takes in memory.

    Attributes:
        size_bytes: in all, on the safe side.
        cells: tokens that its cache holds, over all slots.
    """

    size_bytes: int
    cells: int


@dataclass
class Resident:
    """A model in memory.

    Attributes:
        keep_until: somebody was told to come back for it: it stays until then, also when nobody uses it.
        drain_at: from then on it may be taken from its users for somebody who waits for another model. It has earned
            by then what its loading cost.
    """

    footprint: Footprint
    keep_until: float = 0.0
    drain_at: float = 0.0


def footprint(
    size_bytes: int, kv_bytes_per_token: int, *, context_tokens: int, slots: int, budget_bytes: int
) -> Footprint:
    """Return what a model will be given.

    Args:
        size_bytes: of the file.
        kv_bytes_per_token: of its cache; 0 if its header does not tell.
        context_tokens: of one request, at most.
        slots: requests at a time.
        budget_bytes: for everything in the child.
    """
    cells = context_tokens * slots
    if kv_bytes_per_token:
        left = budget_bytes - memory_needed(size_bytes, 0)
        affordable = int(min(CACHE_SHARE * budget_bytes, left)) // kv_bytes_per_token
        cells = min(cells, max(context_tokens, affordable))
    return Footprint(memory_needed(size_bytes, kv_bytes_per_token * cells), cells)


CanGo = Callable[[Digest, Resident], bool]


class ModelMemory:
    """The models in one child's memory, the one used least recently first.

    Args:
        budget_bytes: that they may take together.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._residents: dict[Digest, Resident] = {}

    def __contains__(self, model: object) -> bool:
        return model in self._residents

    @property
    def size_bytes(self) -> int:
        """What all of them take."""
        return sum(resident.footprint.size_bytes for resident in self._residents.values())

    def next_to_go(self) -> Iterator[float]:
        """Yield the times at which one may go that may not go before."""
        for resident in self._residents.values():
            yield from (resident.keep_until, resident.drain_at)

    def add(self, model: Digest, resident: Resident) -> None:
        """It was loaded."""
        self._residents[model] = resident

    def use(self, model: Digest) -> Resident:
        """Return a model that is in memory; it is now the one used most recently."""
        resident = self._residents[model] = self._residents.pop(model)
        return resident

    def remove(self, model: Digest) -> None:
        """Its memory was given back."""
        del self._residents[model]

    def clear(self) -> None:
        """The child is gone."""
        self._residents.clear()

    def who_goes(
        self,
        needed: int,
        budget_bytes: int,
        can_go: CanGo,
    ) -> list[Digest] | None:
        """Return who has to go so that so many bytes have a place; None if those who can go are not enough.

        Args:
            needed: by the model that comes.
            budget_bytes: as of now: the device may have less to give than was planned.
            can_go: whether one may; those used least recently are asked first.
        """
        left = self.size_bytes
        going: list[Digest] = []
        for model, resident in self._residents.items():
            if left + needed <= budget_bytes:
                return going
            if can_go(model, resident):
                going.append(model)
                left -= resident.footprint.size_bytes
        is_alone = len(going) == len(self._residents)
        return going if left + needed <= budget_bytes or is_alone else None
