"""Whose adapter the next step computes with."""

from runtime.llama.adapter_turns import TURN_STEPS, AdapterTurns

RED, BLUE = b"r" * 32, b"b" * 32


def steps(turns: AdapterTurns, adapters: list[bytes | None], count: int) -> list[bytes | None]:
    taken = []
    for _ in range(count):
        taken.append(turns.next(adapters))
        turns.took_step(decodes_only=True)
    return taken


def test_who_is_alone_has_every_step() -> None:
    assert steps(AdapterTurns(), [RED, RED], 9) == [RED] * 9
    assert steps(AdapterTurns(), [], 1) == [None]


def test_several_take_turns_of_some_steps_and_nobody_is_left_out() -> None:
    taken = steps(AdapterTurns(), [RED, None, BLUE, RED], 3 * TURN_STEPS)

    assert taken == [RED] * TURN_STEPS + [None] * TURN_STEPS + [BLUE] * TURN_STEPS


def test_a_step_that_reads_a_prompt_ends_the_turn() -> None:
    turns = AdapterTurns()
    first = turns.next([RED, BLUE])
    turns.took_step(decodes_only=False)

    assert (first, turns.next([RED, BLUE])) == (RED, BLUE)


def test_a_turn_ends_with_its_last_job() -> None:
    turns = AdapterTurns()
    first = turns.next([RED, BLUE, None])
    turns.took_step(decodes_only=True)

    assert (first, turns.next([BLUE, None])) == (RED, BLUE)
