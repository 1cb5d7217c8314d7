"""The bookkeeping of the KV cache, against a model of its cells: one token each, and the sequences that see it."""

import random
from dataclasses import dataclass, field

import pytest

from runtime.llama.prefix_cache import IDLE_ROWS_MAX, PrefixCache, Sequence, common_length

CHUNK = 4
SEQUENCES, SLOTS = 5, 3
CONTEXT = 24
ADAPTERS = (None, b"a" * 32)


@dataclass
class Cell:
    position: int
    token: int
    adapter: bytes | None
    seen_by: set[int]


@dataclass
class Cells:
    """llama.cpp's unified KV cache, as far as it concerns who sees what."""

    can_cut: bool = True
    cells: list[Cell] = field(default_factory=list)

    def copy(self, source: int, target: int, length: int) -> None:
        assert self.can_cut
        assert not self.of(target), "only an empty sequence is copied into"
        for cell in self.cells:
            if source in cell.seen_by and cell.position < length:
                cell.seen_by.add(target)

    def rewind(self, sequence: int, position: int) -> bool:
        done = self.can_cut or position == 0 or position == len(self.of(sequence))
        for cell in self.cells:
            if cell.position >= (position if done else 0):
                cell.seen_by.discard(sequence)
        self.cells = [cell for cell in self.cells if cell.seen_by]
        return done

    def forget_all(self) -> None:
        self.cells.clear()

    def add(self, sequence: int, position: int, token: int, adapter: bytes | None) -> None:
        assert position == len(self.of(sequence)), "a token comes after the one before it"
        self.cells.append(Cell(position, token, adapter, {sequence}))

    def of(self, sequence: int) -> list[Cell]:
        return sorted(
            (cell for cell in self.cells if sequence in cell.seen_by), key=lambda cell: cell.position
        )


@dataclass
class Run:
    """A job: its tokens, and the sequence that it was given."""

    tokens: list[int]
    sequence: Sequence
    adapter: bytes | None


def cache_of(
    memory: Cells,
    *,
    can_share: bool = True,
    cells: int = SLOTS * CONTEXT,
    opening: tuple[int, ...] = (),
) -> PrefixCache:
    return PrefixCache(
        memory,
        sequences=SEQUENCES,
        cells=cells,
        chunk_tokens=CHUNK,
        opening=opening,
        can_share=can_share,
    )


def compute(memory: Cells, cache: PrefixCache, run: Run, count: int, *, is_exact: bool = True) -> None:
    """Do what a step does for one job."""
    start = len(run.sequence.cached)
    tokens = run.tokens[start : start + count]
    cache.make_room(len(tokens))
    for offset, token in enumerate(tokens):
        memory.add(run.sequence.number, start + offset, token, run.adapter)
    cache.computed(run.sequence, tokens, is_exact=is_exact)


def serve(
    memory: Cells, cache: PrefixCache, tokens: list[int], adapter: bytes | None = None
) -> tuple[Sequence, int]:
    """Run a prompt to its end, and return its sequence and what of it had been there."""
    run = Run(tokens, cache.take(tokens, len(tokens), adapter), adapter)
    reused = len(run.sequence.cached)
    while len(run.sequence.cached) < len(tokens):
        compute(memory, cache, run, cache.piece_left(run.sequence, tokens))
    cache.release(run.sequence)
    return run.sequence, reused


@pytest.mark.parametrize("opening", [(), (1, 1, 1)])
@pytest.mark.parametrize("can_share", [True, False])
@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_the_cells_hold_what_the_books_say(
    seed: int, can_share: bool, opening: tuple[int, ...]
) -> None:
    """Prompts that share beginnings come and go; steps are aborted, jobs cancelled, numbers turn out not finite."""
    rng = random.Random(seed)
    memory = Cells(can_cut=can_share)
    cache = cache_of(memory, can_share=can_share, opening=opening)
    runs: list[Run] = []
    reused = 0
    for _ in range(300):
        action = rng.choice(["come", "come", "step", "step", "step", "step", "abort", "go", "refill", "nan"])
        if action == "come" and len(runs) < SLOTS:
            tokens = [rng.choice([1, 1, 1, 2]) for _ in range(rng.randint(1, CONTEXT))]
            adapter = rng.choice(ADAPTERS)
            run = Run(tokens, cache.take(tokens, len(tokens), adapter), adapter)
            assert len(run.sequence.cached) < len(tokens), "the last token is computed, for its logits"
            reused += len(run.sequence.cached)
            runs.append(run)
        elif action == "step":
            is_exact = rng.random() < 0.5
            for run in runs:
                compute(memory, cache, run, rng.randint(1, CHUNK), is_exact=is_exact)
        elif action == "abort" and runs:
            run = rng.choice(runs)
            for token in run.tokens[len(run.sequence.cached) :][: rng.randint(0, CHUNK)]:
                cache.make_room(1)
                memory.add(run.sequence.number, len(memory.of(run.sequence.number)), token, run.adapter)
            cache.take_back(run.sequence)
        elif action == "refill" and runs:
            run = rng.choice(runs)
            cache.refill(run.sequence, run.tokens, len(run.tokens))
        elif action == "go" and runs:
            cache.release(runs.pop(rng.randrange(len(runs))).sequence)
        elif action == "nan" and rng.random() < 0.1:
            cache.forget_all()
        for sequence in cache.sequences:
            cells = memory.of(sequence.number)
            assert [cell.token for cell in cells] == sequence.cached
            assert [cell.position for cell in cells] == list(range(len(cells)))
            assert {cell.adapter for cell in cells} <= {sequence.adapter}
        assert len(memory.cells) <= SLOTS * CONTEXT
        taken = [sequence for sequence in cache.sequences if sequence.is_taken]
        assert taken == sorted((run.sequence for run in runs), key=lambda each: each.number)
        for run in runs:
            assert run.sequence.cached == run.tokens[: len(run.sequence.cached)]
    assert (reused > 0) == can_share


def test_a_beginning_is_copied_from_a_sequence_that_is_still_running() -> None:
    memory = Cells()
    cache = cache_of(memory)
    first = Run([1, 2, 3, 4, 5, 6, 7, 8, 9], cache.take([1, 2, 3, 4, 5, 6, 7, 8, 9], 9, None), None)
    compute(memory, cache, first, CHUNK)
    compute(memory, cache, first, CHUNK)

    second = cache.take([1, 2, 3, 4, 5, 6, 7, 8, 10], 9, None)

    assert second.cached == [1, 2, 3, 4, 5, 6, 7, 8]
    assert len(memory.cells) == 8  # not 16: the cells are shared


def test_the_next_turn_of_a_session_takes_over_its_sequence_and_another_chat_does_not() -> None:
    """A copy would leave the shorter one behind; taking over what others may come back to would lose it."""
    memory = Cells()
    cache = cache_of(memory)
    session, _ = serve(memory, cache, [1, 2, 3, 4, 5, 6])

    other = cache.take([1, 2, 3, 4, 9, 9, 9], 7, None)
    next_turn = cache.take([1, 2, 3, 4, 5, 6, 7, 8], 8, None)

    assert other is not session
    assert other.cached == [1, 2, 3, 4]
    assert next_turn is session


def test_what_one_adapter_computed_never_serves_another() -> None:
    memory = Cells()
    cache = cache_of(memory)
    tokens = list(range(12))
    serve(memory, cache, tokens, ADAPTERS[1])

    _, by_the_base = serve(memory, cache, tokens, None)
    _, by_the_adapter = serve(memory, cache, tokens, ADAPTERS[1])

    assert (by_the_base, by_the_adapter) == (0, 8)


def test_what_was_used_least_recently_makes_room() -> None:
    memory = Cells()
    cache = cache_of(memory, cells=20)
    serve(memory, cache, [1] * 8)
    serve(memory, cache, [2] * 8)
    serve(memory, cache, [1] * 8)

    serve(memory, cache, [3] * 8)

    assert serve(memory, cache, [1] * 8)[1] == 4
    assert serve(memory, cache, [2] * 8)[1] == 0


def test_what_nobody_comes_back_to_is_forgotten_once_it_has_cost_what_it_could_save() -> None:
    """Each row that is computed steps over the idle cells."""
    memory = Cells()
    cache = cache_of(memory)
    waiting, _ = serve(memory, cache, [1] * 8)

    for _ in range(IDLE_ROWS_MAX // CHUNK):
        cache.make_room(CHUNK)
    kept = list(waiting.cached)
    cache.make_room(1)

    assert kept == [1] * 8
    assert memory.of(waiting.number) == []


def test_running_sequences_are_never_forgotten_for_room() -> None:
    memory = Cells()
    cache = cache_of(memory, cells=16)
    running = Run([1] * 8, cache.take([1] * 8, 8, None), None)
    compute(memory, cache, running, 8)
    serve(memory, cache, [2] * 8)

    serve(memory, cache, [3] * 8)

    assert running.sequence.cached == [1] * 8


def test_exact_reuse_goes_on_where_a_cold_run_begins_a_chunk() -> None:
    """What was computed beside others is reused to the last token: it is not exact anyway."""
    memory = Cells()
    cache = cache_of(memory)
    serve(memory, cache, [1, 2, 3, 4, 5, 6])
    mixed = Run([9, 8, 7, 6, 5, 4], cache.take([9, 8, 7, 6, 5, 4], 6, None), None)
    compute(memory, cache, mixed, CHUNK, is_exact=False)
    compute(memory, cache, mixed, CHUNK, is_exact=False)

    alone = cache.take([1, 2, 3, 4, 5, 6, 7, 8], 8, None)
    beside = cache.take([9, 8, 7, 6, 5, 4, 3, 2], 8, None)

    assert (alone.cached, alone.exact_tokens) == ([1, 2, 3, 4], 8)
    assert (beside.cached, beside.exact_tokens) == ([9, 8, 7, 6, 5, 4], 0)


def test_a_guess_at_another_prompt_is_told_right_in_whole_chunks_only() -> None:
    """Else the time to the first token would tell it token by token."""
    memory = Cells()
    cache = cache_of(memory)
    secret = Run([1, 2, 3, 4, 5, 6, 7, 8, 9], cache.take([1, 2, 3, 4, 5, 6, 7, 8, 9], 9, None), None)
    for _ in range(3):
        compute(memory, cache, secret, CHUNK, is_exact=False)
    cache.release(secret.sequence)

    reused = []
    for right in range(4, 9):
        guess = cache.take([*range(1, right + 1), 99, 99], right + 2, None)
        reused.append(len(guess.cached))
        cache.release(guess)
        cache.forget(guess)

    assert reused == [4, 4, 4, 4, 8]


def test_an_opening_is_a_piece_of_its_own_and_chunks_are_counted_from_its_end() -> None:
    memory = Cells()
    cache = cache_of(memory, opening=(1, 2, 3))
    serve(memory, cache, [1, 2, 3, 4, 5, 6, 7, 8, 9])

    reused = []
    for tokens in ([1, 2, 3, 9, 9], [1, 2, 3, 4, 5, 6, 7, 9, 9], [1, 2, 9, 9]):
        job = cache.take(tokens, len(tokens), None)
        reused.append((len(job.cached), cache.piece_left(job, tokens)))
        cache.release(job)
        cache.forget(job)

    assert reused == [(3, 4), (7, 4), (0, 4)]
    cold = cache_of(Cells(), opening=(1, 2, 3)).take([1, 2, 3, 4], 4, None)
    assert cache.piece_left(cold, [1, 2, 3, 4]) == 3


def test_an_opening_is_nothing_to_those_who_use_an_adapter() -> None:
    """It was computed without, so that theirs would be a small step more."""
    memory = Cells()
    cache = cache_of(memory, opening=(1, 2, 3))
    serve(memory, cache, [1, 2, 3, 4, 5, 6, 7, 8])

    job = cache.take([1, 2, 3, 4, 5, 6, 7, 8], 8, ADAPTERS[1])

    assert (job.cached, cache.piece_left(job, [1, 2, 3, 4, 5, 6, 7, 8])) == ([], CHUNK)


def test_numbers_that_are_not_finite_leave_nothing_to_reuse() -> None:
    memory = Cells()
    cache = cache_of(memory)
    serve(memory, cache, [1] * 8)

    cache.forget_all()

    assert memory.cells == []
    assert serve(memory, cache, [1] * 8)[1] == 0


@pytest.mark.parametrize(
    ("left", "right", "length"),
    [([], [1], 0), ([1], [1], 1), ([1, 2, 3], [1, 2, 4, 5], 2), ([2], [1], 0), ([1] * 99, [1] * 64, 64)],
)
def test_the_longest_common_beginning(left: list[int], right: list[int], length: int) -> None:
    assert common_length(left, right) == common_length(right, left) == length
