"""Which models stay in a child's memory, and how large their caches are."""

from hypothesis import given
from hypothesis import strategies as st

from runtime.engine import Digest
from runtime.llama.memory import Footprint, ModelMemory, Resident, footprint
from runtime.llama.process import memory_needed

GIB = 1 << 30
A, B, C, D = (Digest(bytes(31) + name) for name in (b"a", b"b", b"c", b"d"))


def memory_with(*models: Digest, size_bytes: int = 10, budget_bytes: int = 30) -> ModelMemory:
    memory = ModelMemory(budget_bytes)
    for model in models:
        memory.add(model, Resident(Footprint(size_bytes, cells=1)))
    return memory


def anybody(_model: Digest, _resident: Resident) -> bool:
    return True


def test_nobody_goes_while_there_is_room() -> None:
    assert memory_with(A, B).who_goes(10, 30, anybody) == []


def test_the_one_used_least_recently_goes_first() -> None:
    memory = memory_with(A, B, C)

    memory.use(A)

    assert memory.who_goes(10, 30, anybody) == [B]
    assert memory.who_goes(20, 30, anybody) == [B, C]


def test_who_is_in_use_stays() -> None:
    memory = memory_with(A, B, C)

    assert memory.who_goes(10, 30, lambda model, _resident: model == C) == [C]
    assert memory.who_goes(20, 30, lambda model, _resident: model == C) is None


def test_a_model_over_the_whole_budget_is_tried_alone() -> None:
    """The estimate is on the safe side, and the kernel's limit decides: a large model ran before there was a budget."""
    memory = memory_with(A, B)

    assert memory.who_goes(99, 30, anybody) == [A, B]
    assert memory.who_goes(99, 30, lambda model, _resident: model == A) is None
    assert ModelMemory(30).who_goes(99, 30, anybody) == []


def test_what_others_took_of_the_machine_is_not_there() -> None:
    assert memory_with(A, B).who_goes(10, 20, anybody) == [A]


@given(
    sizes=st.lists(st.integers(1, 20), max_size=6),
    needed=st.integers(1, 30),
    budget=st.integers(1, 60),
    free=st.sets(st.integers(0, 5)),
)
def test_who_goes_is_enough_and_nobody_in_use(
    sizes: list[int], needed: int, budget: int, free: set[int]
) -> None:
    memory = ModelMemory(budget)
    for number, size in enumerate(sizes):
        memory.add(Digest(bytes(31) + bytes([number])), Resident(Footprint(size, cells=1)))

    going = memory.who_goes(needed, budget, lambda model, _resident: model[-1] in free)

    can_go = [number for number in range(len(sizes)) if number in free]
    left = sum(sizes) - sum(sizes[number] for number in can_go)
    fits = left + needed <= budget
    if going is None:
        assert not fits
        assert len(can_go) < len(sizes)
        return
    numbers = [model[-1] for model in going]
    assert numbers == can_go[: len(numbers)]
    assert fits or len(numbers) == len(sizes)
    if numbers and fits:  # and no more than needed
        assert sum(sizes) - sum(sizes[number] for number in numbers[:-1]) + needed > budget


def test_each_slot_has_a_context_of_its_own_where_memory_allows() -> None:
    given = footprint(GIB, 32_768, context_tokens=4_096, slots=4, budget_bytes=16 * GIB)

    assert given == Footprint(memory_needed(GIB, 32_768 * 16_384), 16_384)


def test_on_a_small_machine_slots_share_fewer_cells() -> None:
    """An 8B model on a machine of 16 GB: 128 KiB a token, four contexts of 8,192 would take 4 GiB."""
    budget = int(0.8 * 16 * GIB)

    given = footprint(5 * GIB, 131_072, context_tokens=8_192, slots=4, budget_bytes=budget)

    assert given.cells == budget // 4 // 131_072 == 26_214
    assert given.size_bytes <= budget


def test_one_whole_context_is_always_given() -> None:
    given = footprint(5 * GIB, 131_072, context_tokens=4_096, slots=4, budget_bytes=2 * GIB)

    assert given.cells == 4_096


def test_a_cache_of_unknown_size_is_not_cut() -> None:
    assert footprint(GIB, 0, context_tokens=512, slots=4, budget_bytes=GIB).cells == 2_048
