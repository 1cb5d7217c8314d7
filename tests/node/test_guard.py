"""Offences fade, and many in a short time bar a peer; pacing lets a burst through and then keeps its rate."""

import trio
from trio.testing import MockClock

from node.guard import Guard
from node.offences import BARRED_S, OFFENCES_MAX, PEERS_MAX, WINDOW_S, Offences
from node.pace import Pace
from node.peer_events import PeerEvents
from protocol.errors import MalformedMessage
from protocol.identity import PeerId
from protocol.mesh import PeerConnected, PeerEvent, PeerLost

ANN, BOB = PeerId("ann"), PeerId("bob")


class Journal:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def write(self, event: str, /, **fields: object) -> None:
        self.events.append((event, fields))


def test_many_offences_in_a_short_time_bar_a_peer_for_a_while() -> None:
    offences = Offences()

    verdicts = [offences.charge(ANN, now=100) for _ in range(OFFENCES_MAX)]

    assert verdicts == [False] * (OFFENCES_MAX - 1) + [True]
    assert offences.is_barred(ANN, now=100 + BARRED_S - 1)
    assert not offences.is_barred(ANN, now=100 + BARRED_S)
    assert not offences.is_barred(BOB, now=100)


def test_an_offence_now_and_then_bars_nobody() -> None:
    """A peer of another version errs for ever, a little."""
    offences = Offences()
    every_s = 1.1 * WINDOW_S / OFFENCES_MAX

    assert not any(offences.charge(ANN, now=number * every_s) for number in range(1_000))
    assert offences.score(ANN, now=2_000 * every_s) == 0


def test_the_offences_of_many_strangers_are_not_kept_for_ever() -> None:
    offences = Offences()
    offences.charge(ANN, now=0)
    for number in range(PEERS_MAX):
        offences.charge(PeerId(str(number)), now=0)

    assert offences.score(ANN, now=0) == 0
    assert offences.score(PeerId("0"), now=0) == 1


async def test_the_guard_keeps_the_data_of_an_error_out_of_the_journal() -> None:
    """A message may hold a prompt; the place where it was raised does not."""
    journal = Journal()

    async def fail() -> None:
        raise ZeroDivisionError("secret prompt")

    assert await Guard(journal, lambda _: None).run(ANN, "test", fail) is False

    assert "secret" not in str(journal.events)
    ((event, fields),) = journal.events
    assert (event, fields["error"]) == ("handler_failed", "ZeroDivisionError")
    assert str(fields["at"]).startswith("node/test_guard.py:")


async def test_the_guard_lets_cancellation_through_and_judges_what_came_with_it() -> None:
    journal = Journal()

    async def work() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise MalformedMessage("rubbish")

    with trio.move_on_after(0.01) as scope:
        await Guard(journal, lambda _: None).run(ANN, "test", work)

    assert scope.cancel_called
    assert [event for event, _ in journal.events] == ["offence_counted"]


async def test_a_barred_peer_is_cut_off_once_and_not_journaled_again() -> None:
    """Whatever was on its way would else be a line each: an attack on the journal."""
    journal, cut_off = Journal(), []
    guard = Guard(journal, cut_off.append)

    for _ in range(3 * OFFENCES_MAX):
        guard.charge(ANN, "malformed")

    assert cut_off == [ANN]
    assert [event for event, _ in journal.events].count("offence_counted") == OFFENCES_MAX


async def test_a_burst_goes_out_at_once_and_the_rest_at_its_rate(autojump_clock: MockClock) -> None:  # noqa: ARG001
    pace = Pace(per_s=10, burst=5)
    began = trio.current_time()
    times = []

    for _ in range(10):
        await pace.wait()
        times.append(round(trio.current_time() - began, 6))

    assert times == [0, 0, 0, 0, 0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert not pace.take()


async def test_events_of_a_peer_are_told_in_order_and_nobody_waits_for_another(nursery: trio.Nursery) -> None:
    told: list[PeerEvent] = []
    bob_may_go_on = trio.Event()

    async def handler(event: PeerEvent) -> None:
        if event.peer_id == BOB:
            await bob_may_go_on.wait()
        told.append(event)

    events = PeerEvents(Guard(Journal(), lambda _: None))
    events.handlers.append(handler)
    events.add(PeerConnected(BOB, we_dialled=False))
    await nursery.start(start, events)
    await trio.testing.wait_all_tasks_blocked()
    events.add(PeerConnected(ANN, we_dialled=True))
    events.add(PeerLost(BOB))
    await trio.testing.wait_all_tasks_blocked()
    assert told == [PeerConnected(ANN, we_dialled=True)]

    bob_may_go_on.set()
    await trio.testing.wait_all_tasks_blocked()

    assert told[1:] == [PeerConnected(BOB, we_dialled=False), PeerLost(BOB)]
    nursery.cancel_scope.cancel()


async def test_a_peer_that_flaps_while_its_handler_is_busy_costs_two_events(nursery: trio.Nursery) -> None:
    told: list[PeerEvent] = []
    go_on = trio.Event()

    async def handler(event: PeerEvent) -> None:
        await go_on.wait()
        told.append(event)

    events = PeerEvents(Guard(Journal(), lambda _: None))
    events.handlers.append(handler)
    await nursery.start(start, events)
    events.add(PeerConnected(ANN, we_dialled=False))
    await trio.testing.wait_all_tasks_blocked()

    for _ in range(1_000):
        events.add(PeerLost(ANN))
        events.add(PeerConnected(ANN, we_dialled=False))
    go_on.set()
    await trio.testing.wait_all_tasks_blocked()

    assert told == [
        PeerConnected(ANN, we_dialled=False),
        PeerLost(ANN),
        PeerConnected(ANN, we_dialled=False),
    ]
    nursery.cancel_scope.cancel()


async def start(events: PeerEvents, *, task_status: trio.TaskStatus[None]) -> None:
    await events.run(task_status.started)


def test_a_guarded_call_returns_its_default_when_the_rule_raises() -> None:
    journal = Journal()

    async def main() -> None:
        guard = Guard(journal, lambda _: None)
        assert guard.call(ANN, "rule", lambda: 1, otherwise=2) == 1
        assert guard.call(ANN, "rule", lambda: 1 // 0, otherwise=2) == 2

    trio.run(main)

    assert [event for event, _ in journal.events] == ["handler_failed"]
