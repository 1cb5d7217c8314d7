"""How soon one more job can begin, with those that are on their way counted in."""

from marketplace.room import Coming, Room

ROOM = Room(slots=2, slots_free=2, queued=0, queue_free=3, wait_ms=0)


def test_what_is_coming_takes_slots_first_and_places_in_the_queue_then() -> None:
    """Work of 8 s in two slots: who comes third waits about 4 s, and who comes fourth about 6."""
    assert ROOM.beside(0, 0.0) == ROOM
    assert ROOM.beside(1, 4.0) == Room(slots=2, slots_free=1, queued=0, queue_free=3, wait_ms=0)
    assert ROOM.beside(2, 8.0) == Room(slots=2, slots_free=0, queued=0, queue_free=3, wait_ms=4_000)
    assert ROOM.beside(3, 12.0) == Room(slots=2, slots_free=0, queued=1, queue_free=2, wait_ms=6_000)


def test_a_burst_is_not_promised_one_slot_many_times_over() -> None:
    room, taken = ROOM, 0

    while not room.why_busy:
        taken += 1
        room = ROOM.beside(taken, 4.0 * taken)

    assert taken == 3, "two slots, and one place that is free in 4 s; the next would wait 6 s"
    assert room.why_busy == "2 slots in use, 1 waiting: free in about 6.0 s, at most 5 s wanted"


def test_a_queue_is_never_promised_beyond_its_end() -> None:
    room = ROOM.beside(9, 0.0)

    assert (room.slots_free, room.queue_free) == (0, 0)
    assert room.why_busy == "2 slots in use, 7 waiting, and nobody more may wait"


def test_a_job_is_on_its_way_until_the_engine_has_it() -> None:
    coming = Coming()
    coming.expect("one", 2.0)
    coming.expect("two", 3.0)

    assert (len(coming), coming.seconds) == (2, 5.0)
    coming.arrived("one")
    coming.arrived("one")
    assert (len(coming), coming.seconds) == (1, 3.0)
