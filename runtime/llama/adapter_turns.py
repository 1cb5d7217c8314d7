"""Whose adapter the next step computes with: llama.cpp applies one to a whole batch, so several take turns."""

# After a switch llama.cpp plans its memory anew, which takes 2 ms. A step that reads a prompt ends the turn.
TURN_STEPS = 4


class AdapterTurns:
    """Who has waited longest is next, for some steps."""

    def __init__(self) -> None:
        self._current: bytes | None = None
        self._steps_left = 0
        self._turns = 0
        self._had: dict[bytes | None, int] = {}  # the last turn of each, while there are several

    def next(self, adapters: list[bytes | None]) -> bytes | None:
        """Return the adapter of the next step, of those that jobs wait for (None: the base alone)."""
        waiting = dict.fromkeys(adapters)
        if len(waiting) <= 1:
            self._had.clear()
            self._steps_left = 0
            return next(iter(waiting), None)
        if self._steps_left <= 0 or self._current not in waiting:
            self._turns += 1
            self._current = min(waiting, key=lambda each: self._had.get(each, 0))
            self._had[self._current] = self._turns
            self._steps_left = TURN_STEPS
        return self._current

    def took_step(self, *, decodes_only: bool) -> None:
        """A step of that adapter is over."""
        self._steps_left = self._steps_left - 1 if decodes_only else 0
