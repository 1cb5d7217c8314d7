"""The queue in front of an engine: fair between payers, first come first served within one, bounded."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime.llama.waiting import WaitingQueue

ITEMS_MAX = 6


def filled(*payers: str) -> WaitingQueue[str]:
    """A queue of items named by payer and number: 'a1', 'a2', 'b1'…"""
    queue: WaitingQueue[str] = WaitingQueue()
    counts: dict[str, int] = {}
    for payer in payers:
        counts[payer] = counts.get(payer, 0) + 1
        assert queue.offer(payer, f"{payer}{counts[payer]}", len(payers)) is None
    return queue


def drain(queue: WaitingQueue[str]) -> list[str]:
    taken = []
    while (item := queue.take(lambda _item: True)) is not None:
        taken.append(item)
    return taken


def test_payers_take_turns_however_many_requests_one_of_them_has() -> None:
    assert drain(filled("a", "a", "a", "a", "b", "c", "b")) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_a_newcomer_waits_one_round_at_most() -> None:
    queue = filled("a", "a", "a", "b", "b")
    assert queue.take(lambda _item: True) == "a1"

    queue.offer("c", "c1", 10)

    assert drain(queue) == ["b1", "a2", "c1", "b2", "a3"]


def test_who_cannot_start_keeps_their_place_and_holds_up_nobody() -> None:
    queue = filled("a", "a", "b")

    assert queue.take(lambda item: item != "a1") == "a2"
    assert queue.take(lambda item: item != "a1") == "b1"
    assert queue.take(lambda item: item != "a1") is None
    assert drain(queue) == ["a1"]


def test_whoever_is_put_back_is_the_next() -> None:
    queue = filled("a", "b", "a")
    assert queue.take(lambda _item: True) == "a1"

    queue.put_back("a", "a1")

    assert drain(queue) == ["a1", "b1", "a2"]


def test_the_newest_of_the_payer_with_the_most_makes_room_for_one_who_has_none() -> None:
    queue = filled("a", "a", "b", "a")

    assert queue.offer("c", "c1", 4) == "a3"
    assert list(queue) == ["a1", "b1", "c1", "a2"]


@pytest.mark.parametrize("payers", [("a", "a", "a"), ("a", "b", "c"), ("a", "a", "b")])
def test_a_payer_with_as_many_as_any_is_refused_when_the_queue_is_full(payers: tuple[str, ...]) -> None:
    queue = filled(*payers)
    before = list(queue)

    assert queue.offer("a", "a9", 3) == "a9"
    assert list(queue) == before


def test_nobody_is_cut_short_only_to_swap_places() -> None:
    """Else two payers could push each other out for ever, and nobody would be served."""
    queue = filled("a", "a", "b")

    assert queue.offer("b", "b2", 3) == "b2"
    assert list(queue) == ["a1", "b1", "a2"]


def test_a_queue_without_any_place_refuses() -> None:
    assert WaitingQueue[str]().offer("a", "a1", 0) == "a1"


@given(st.lists(st.sampled_from("abcd"), max_size=30))
def test_between_two_turns_of_a_payer_every_other_who_waits_has_one(payers: list[str]) -> None:
    """Nobody starves: the gap between two turns is at most the number of payers."""
    queue = filled(*payers)
    foreseen = list(queue)

    taken = drain(queue)

    assert taken == foreseen
    for payer in set(payers):
        numbers = [int(item[1:]) for item in taken if item[0] == payer]
        assert numbers == sorted(numbers)
        turns = [place for place, item in enumerate(taken) if item[0] == payer]
        for turn, following in itertools.pairwise(turns):
            between = taken[turn + 1 : following]
            later = {item[0] for item in taken[following + 1 :]} - {payer}
            assert later <= {item[0] for item in between}
            assert len(between) == len({item[0] for item in between})


class QueueLife(RuleBasedStateMachine):
    """Any order of offers, takes and removals keeps the bound, loses nobody and shares the places out."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: WaitingQueue[str] = WaitingQueue()
        self.here: dict[str, str] = {}  # item: payer, oldest first
        self.number = 0

    @rule(payer=st.sampled_from("abc"))
    def offer(self, payer: str) -> None:
        self.number += 1
        item = f"{payer}{self.number}"
        counts = self.counts()
        leaver = self.queue.offer(payer, item, ITEMS_MAX)
        self.here[item] = payer
        if leaver is None:
            assert sum(counts.values()) < ITEMS_MAX
            return
        assert sum(counts.values()) == ITEMS_MAX
        loser = self.here.pop(leaver)
        if leaver == item:
            assert max(counts.values()) - counts.get(payer, 0) < 2
        else:
            assert counts[loser] == max(counts.values())
            assert leaver == max(
                (each for each, its in [*self.here.items(), (leaver, loser)] if its == loser),
                key=lambda each: int(each[1:]),
            )

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(list(self.here)))
        del self.here[item]
        assert self.queue.remove(item)
        assert not self.queue.remove(item)

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        ready = data.draw(st.sets(st.sampled_from(list(self.here))))
        taken = self.queue.take(ready.__contains__)
        if taken is None:
            assert not ready
            return
        assert taken in ready
        payer = self.here.pop(taken)
        assert all(int(each[1:]) > int(taken[1:]) for each in ready if self.here.get(each) == payer)

    def counts(self) -> dict[str, int]:
        payers = list(self.here.values())
        return {payer: payers.count(payer) for payer in payers}

    @invariant()
    def everybody_is_there_once(self) -> None:
        assert sorted(self.queue) == sorted(self.here)
        assert len(self.queue) == len(self.here) <= ITEMS_MAX
        assert all(item in self.queue for item in self.here)


TestQueueLife = QueueLife.TestCase
