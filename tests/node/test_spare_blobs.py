"""What goes when the disk has no room: never what is named, never what is young, never more than helps."""

import pytest

from node.spare_blobs import AGE_S_MIN, Kept, whom_to_drop
from runtime.engine import Digest

OLD, OLDER, OLDEST, YOUNG = (Digest(bytes([number]) * 32) for number in range(4))
KEPT = (
    Kept(OLDER, 200, AGE_S_MIN + 2),
    Kept(YOUNG, 800, AGE_S_MIN - 1),
    Kept(OLD, 400, AGE_S_MIN),
    Kept(OLDEST, 100, AGE_S_MIN + 3),
)


@pytest.mark.parametrize(
    ("wanted_bytes", "dropped"),
    [(0, ()), (1, (OLDEST,)), (100, (OLDEST,)), (101, (OLDEST, OLDER)), (700, (OLDEST, OLDER, OLD))],
)
def test_the_oldest_go_first_and_no_more_of_them_than_make_the_room(
    wanted_bytes: int, dropped: tuple[Digest, ...]
) -> None:
    assert whom_to_drop(KEPT, wanted_bytes, named=()) == dropped


def test_what_is_named_stays_however_old_it_is() -> None:
    assert whom_to_drop(KEPT, 600, named={OLDEST, b"another"}) == (OLDER, OLD)
    assert whom_to_drop(KEPT, 1, named={OLDEST, OLDER, OLD}) == ()


def test_nothing_goes_in_vain() -> None:
    """What is young may be named in a moment; and what does not make enough room is of more use where it is."""
    assert whom_to_drop(KEPT, 701, named=()) == ()
    assert whom_to_drop(KEPT, 601, named={OLDEST}) == ()
