"""How many rows that mean nothing make a batch quicker.

**Decoding.** llama.cpp's kernels for repacked weights take four rows at a time and the odd ones one by one: on a CPU three rows take
272 ms and four 129 ms, fifteen 531 ms and sixteen 322 ms (a 1B model in Q4_0). Other weights and devices have no such
steps. So what is quicker is measured as the batches come, for each size; the other way is tried now and then.

**The last piece of a prompt.** llama.cpp's attention on a CPU takes 64 rows as one tile and fewer one by one, which is
ten times the work for each: after 960 tokens 64 rows take 1.1 s and 44 take 2.7 s. Here nothing is measured: a cache is
exact only where everybody fills it in batches of the same shape, so the rule looks at nothing but the piece and its place.
"""

GROUP = 4
TILE = 64  # GGML_FA_TILE_Q
# Tokens before a row that cost its attention as much as a row costs all else: 260 in a 1B model, 570 in an 8B one.
ROW_CELLS = 512
TRY_OTHER_EVERY = 32  # steps of odd sizes
NEW_WEIGHT = 0.2  # of a slower time: one that was disturbed is forgotten soon


def to_add_to_piece(rows: int, start: int) -> int:
    """Return how many rows to add to a piece of a prompt that is computed alone, on a CPU.

    Args:
        rows: of the piece; one is left alone.
        start: tokens before it.
    """
    if rows <= 1:
        return 0
    missing = max(0, TILE - rows)
    return missing if rows * start >= ROW_CELLS * missing else -rows % GROUP


class Padding:
    """What was measured, by the number of rows that are needed."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, bool], float] = {}
        self._steps = 0

    def to_add(self, rows: int) -> int:
        """Return how many rows to add to so many."""
        missing = -rows % GROUP
        if not missing:
            return 0
        self._steps += 1
        plain, padded = self._seconds.get((rows, False)), self._seconds.get((rows, True), 0.0)
        is_padded = plain is None or padded <= plain
        if self._steps % TRY_OTHER_EVERY == 0:
            is_padded = not is_padded
        return missing if is_padded else 0

    def learn(self, rows: int, added: int, seconds: float) -> None:
        """Note how long a batch took that only decoded."""
        key = rows, added > 0
        known = self._seconds.get(key, seconds)
        self._seconds[key] = min(seconds, known + NEW_WEIGHT * (seconds - known))
