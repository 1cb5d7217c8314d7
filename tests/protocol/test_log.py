import pytest

from protocol.envelope import Sealed, seal
from protocol.errors import BrokenLog, Equivocation
from protocol.identity import Identity
from protocol.log import AuthorLog
from protocol.messages import NO_HASH, Accept, Card, Entry, Head

ANN, BOB = Identity(b"\x01" * 32), Identity(b"\x02" * 32)
MESH = b"\x07" * 32


def card(index: int, prev: bytes, name: str = "a", author: Identity = ANN) -> Sealed[Entry]:
    message = Card(index=index, prev=prev, name=name, model=bytes(32))
    return seal(message, author, mesh=MESH, seq=(1, 1), time_ms=0)


def test_a_log_grows_entry_by_entry() -> None:
    log = AuthorLog(ANN.peer_id, "assembly")
    assert (log.next_index, log.next_prev, log.head) == (0, NO_HASH, None)

    first = card(0, NO_HASH)
    second = card(1, first.id)

    assert [log.append(first), log.append(second)] == [True, True]
    assert (log.next_index, log.next_prev) == (2, second.id)
    assert log.head == Head(author=ANN.peer_id, log="assembly", index=1, entry=second.id)


def test_an_entry_that_is_there_already_changes_nothing() -> None:
    first = card(0, NO_HASH)
    log = AuthorLog(ANN.peer_id, "assembly", [first])

    assert not log.append(first)
    assert log.entries == [first]


def test_a_gap_is_refused() -> None:
    first = card(0, NO_HASH)
    log = AuthorLog(ANN.peer_id, "assembly", [first])

    with pytest.raises(BrokenLog, match=r"entry 2 .* came, expected 1"):
        log.append(card(2, first.id))

    assert log.entries == [first]


def test_an_entry_that_follows_another_one_is_refused() -> None:
    first = card(0, NO_HASH)
    log = AuthorLog(ANN.peer_id, "assembly", [first])

    with pytest.raises(BrokenLog, match="does not follow"):
        log.append(card(1, b"\x09" * 32))

    assert log.entries == [first]


def test_a_fork_shows_both_envelopes() -> None:
    first, fork = card(0, NO_HASH, "a"), card(0, NO_HASH, "b")
    log = AuthorLog(ANN.peer_id, "assembly", [first])

    with pytest.raises(Equivocation) as found:
        log.append(fork)

    assert (found.value.first, found.value.second) == (first.raw, fork.raw)
    assert log.entries == [first]


def test_another_authors_entry_is_refused() -> None:
    log = AuthorLog(ANN.peer_id, "assembly")

    with pytest.raises(BrokenLog, match="in the assembly log of"):
        log.append(card(0, NO_HASH, author=BOB))

    assert log.head is None


def test_an_entry_of_the_authors_other_log_is_refused() -> None:
    accept = Accept(index=0, prev=NO_HASH, award=bytes(32), buyer=BOB.peer_id, job_id=bytes(16), attempt=1)
    log = AuthorLog(ANN.peer_id, "assembly")

    with pytest.raises(BrokenLog, match="bilateral"):
        log.append(seal(accept, ANN, mesh=MESH, seq=(1, 1), time_ms=0))
