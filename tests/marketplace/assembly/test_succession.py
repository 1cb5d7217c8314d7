"""From one charter to the next: both rolls agree, each key once, and the order of the words does not matter."""

import hashlib
from random import Random

import pytest

from marketplace.assembly.charter import founding_charter
from marketplace.assembly.succession import Reign, consents, reign, succession
from protocol.envelope import Sealed, seal
from protocol.identity import Identity
from protocol.messages import NO_HASH, Charter, CharterConsent, Entry, RollEntry

MESH = b"m" * 32


def person(name: str) -> Identity:
    return Identity(hashlib.sha256(name.encode()).digest())


ANN, BOB, CAT, DAN, EVE, LOST = (person(name) for name in ("ann", "bob", "cat", "dan", "eve", "recovery"))


def charter(version: int, *voters: Identity, pass_percent: int = 67) -> Charter:
    first = founding_charter(
        "town",
        founder=voters[0].public_key,
        owner="ann",
        approver=person("human").public_key,
        recovery=(LOST.public_key,),
    )
    fields = {name: getattr(first, name) for name in first.__struct_fields__}
    roll = tuple(RollEntry(key=key.public_key, owner=key.peer_id[-8:], weight=1) for key in voters)
    return Charter(**{**fields, "version": version, "roll": roll, "pass_percent": pass_percent})


def sealed(message: Entry, by: Identity, at_ms: int) -> Sealed[Entry]:
    return seal(message, by, mesh=MESH, seq=(1, at_ms), time_ms=at_ms)


def proposed(message: Charter, by: Identity, at_ms: int) -> Sealed[Charter]:
    return sealed(message, by, at_ms)  # type: ignore[return-value]


def agreed(to: Sealed[Charter], by: Identity, at_ms: int) -> Sealed[CharterConsent]:
    word = CharterConsent(index=0, prev=NO_HASH, charter=to.id, version=to.message.version)
    return sealed(word, by, at_ms)  # type: ignore[return-value]


def founding(*voters: Identity) -> Reign:
    return reign(MESH, charter(1, *voters), 0)


def rolls(reigns: list[Reign]) -> list[set[str]]:
    return [set(each.roll) for each in reigns]


def test_a_roll_grows_when_the_old_one_and_the_newcomers_agree() -> None:
    second = proposed(charter(2, ANN, BOB, CAT), ANN, 10)
    words = [agreed(second, BOB, 20), agreed(second, CAT, 30)]

    reigns = succession(founding(ANN), [second], words)

    assert rolls(reigns) == [{ANN.peer_id}, {ANN.peer_id, BOB.peer_id, CAT.peer_id}]
    assert reigns[1].since_ms == 30


def test_the_new_roll_must_agree_at_its_own_threshold() -> None:
    """Else a founder could name voters who are not there, and block every ballot."""
    second = proposed(charter(2, ANN, BOB, CAT), ANN, 10)

    assert len(succession(founding(ANN), [second], [agreed(second, BOB, 20)])) == 1


def test_a_minority_cannot_put_the_others_out() -> None:
    second = proposed(charter(2, EVE), EVE, 10)

    assert len(succession(founding(ANN, BOB, EVE), [second], [])) == 1


def test_one_key_counts_once() -> None:
    second = proposed(charter(2, ANN, BOB), ANN, 10)
    words = [agreed(second, ANN, 20), agreed(second, ANN, 30)]

    assert len(succession(founding(ANN, BOB), [second], words)) == 1


def test_a_version_that_is_skipped_comes_into_force_never() -> None:
    third = proposed(charter(3, ANN), ANN, 10)

    assert len(succession(founding(ANN), [third], [])) == 1


def test_a_stranger_may_not_propose() -> None:
    second = proposed(charter(2, ANN, EVE), EVE, 10)

    assert len(succession(founding(ANN), [second], [agreed(second, ANN, 20)])) == 1


def test_a_recovery_key_stands_for_a_lost_roll_but_the_new_roll_still_agrees() -> None:
    second = proposed(charter(2, BOB), LOST, 10)

    assert len(succession(founding(ANN), [second], [])) == 1
    assert rolls(succession(founding(ANN), [second], [agreed(second, BOB, 20)]))[-1] == {BOB.peer_id}


def test_a_recovery_key_of_an_older_charter_stands_for_nothing() -> None:
    second = charter(2, ANN)
    without = proposed(
        Charter(**{**{n: getattr(second, n) for n in second.__struct_fields__}, "recovery": ()}), ANN, 5
    )
    third = proposed(charter(3, EVE), LOST, 10)

    assert len(succession(founding(ANN), [without, third], [agreed(third, EVE, 20)])) == 2


@pytest.mark.parametrize(("voters", "needed"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (7, 5), (9, 7)])
def test_the_threshold_is_a_share_of_the_whole_roll(voters: int, needed: int) -> None:
    names = [person(str(number)) for number in range(voters)]

    assert founding(*names).weight_to_pass == needed


def test_what_is_missing_is_named() -> None:
    found = consents(founding(ANN, BOB), charter(2, ANN, BOB, CAT), [ANN.peer_id])

    assert (found.old_weight, found.old_needed, found.new_weight, found.new_needed) == (1, 2, 1, 3)
    assert found.missing == (BOB.peer_id, CAT.peer_id)
    assert not found.is_enough


def test_any_order_of_the_words_gives_the_same_succession() -> None:
    second = proposed(charter(2, ANN, BOB, CAT, DAN), ANN, 10)
    rival = proposed(charter(2, ANN, EVE), BOB, 11)
    third = proposed(charter(3, BOB, CAT, DAN), CAT, 12)
    words = [
        agreed(second, BOB, 20),
        agreed(second, CAT, 31),
        agreed(rival, EVE, 15),
        agreed(third, BOB, 40),
        agreed(third, DAN, 41),
        agreed(third, ANN, 42),
        agreed(second, DAN, 25),
    ]
    expected = succession(founding(ANN), [second, rival, third], words)

    for seed in range(50):
        charters, shuffled = [second, rival, third], list(words)
        Random(seed).shuffle(charters)
        Random(seed + 1).shuffle(shuffled)
        assert succession(founding(ANN), charters, shuffled) == expected

    assert [each.charter.version for each in expected] == [1, 2, 3]
    assert [each.since_ms for each in expected] == [0, 25, 41]
