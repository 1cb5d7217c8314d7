from typing import Any

import pytest
from assembly_town import ANN, BOB, CAT, DAN, EVE, NOON, Town, charter_of

from marketplace.assembly.assembly import Assembly
from marketplace.assembly.charter import CharterFacts, explain, open_entry, passes, weight_to_pass
from protocol.envelope import seal
from protocol.errors import ForeignMesh, MalformedMessage, NotAuthorised
from protocol.identity import Identity
from protocol.messages import NO_HASH, Charter

VOTERS = [(key, f"owner {number}") for number, key in enumerate((ANN, BOB, CAT, DAN, EVE))]


def found(charter: Charter, by: Identity = ANN, **changes: object) -> Assembly:
    fields = {"mesh": NO_HASH, "seq": (1, 1), "time_ms": NOON, **changes}
    return Assembly.found(seal(charter, by, **fields))


def test_the_hash_of_the_founding_charter_is_the_mesh_id() -> None:
    town = Town()

    assembly = Assembly.found(town.founding)

    assert assembly.mesh == town.founding.id
    assert assembly.founder == ANN.peer_id
    assert [(head.author, head.index, head.entry) for head in assembly.heads()] == [
        (ANN.peer_id, 0, town.mesh)
    ]


def test_a_founder_off_its_own_roll_is_refused() -> None:
    with pytest.raises(NotAuthorised, match="not on its roll"):
        found(charter_of((ANN, "ann")), by=EVE)


def test_a_charter_sealed_under_another_mesh_founds_nothing() -> None:
    """Else a later charter of one mesh could be passed off as the beginning of another."""
    with pytest.raises(ForeignMesh):
        found(charter_of((ANN, "ann")), mesh=b"\x01" * 32)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"index": 1},
        {"prev": b"\x01" * 32},
        {"approvers": (ANN.public_key, ANN.public_key)},
        {"recovery": (EVE.public_key, EVE.public_key)},
    ],
)
def test_a_charter_with_a_wrong_beginning_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage):
        found(charter_of((ANN, "ann"), **changes))


def test_a_key_that_stands_on_the_roll_twice_is_refused() -> None:
    """One key would have two votes."""
    with pytest.raises(MalformedMessage, match="roll"):
        found(charter_of((ANN, "ann"), (BOB, "bob"), (BOB, "also bob")))


def test_a_charter_that_expires_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="expires"):
        found(charter_of((ANN, "ann")), ttl_ms=1)


def test_the_founding_charter_opens_in_its_own_mesh_only() -> None:
    town = Town()

    assert open_entry(town.founding.raw, town.mesh) == town.founding
    with pytest.raises(ForeignMesh, match="founds mesh"):
        open_entry(town.founding.raw, b"\x01" * 32)


def test_no_other_kind_may_hide_under_the_missing_mesh_id() -> None:
    """Only a charter is ever sealed under `NO_HASH`; its content proves the mesh, an admission's would not."""
    town = Town()
    stray = town.seal(town.admit(EVE).message, ANN, mesh=NO_HASH)

    with pytest.raises(MalformedMessage, match="not expected here"):
        open_entry(stray.raw, town.mesh)


@pytest.mark.parametrize(
    ("voters", "needed"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (6, 5), (7, 5), (8, 6), (9, 7)]
)
def test_two_thirds_of_the_roll_pass(voters: int, needed: int) -> None:
    assert weight_to_pass(voters) == needed
    assert [passes(yes, voters) for yes in (needed - 1, needed)] == [False, True]


@pytest.mark.parametrize(
    ("voters", "facts"),
    [
        (VOTERS[:1], CharterFacts(1, 1, 1, 1, absent_to_block=1, is_byzantine_safe=False)),
        (VOTERS[:3], CharterFacts(3, 3, 3, 3, absent_to_block=1, is_byzantine_safe=False)),
        (VOTERS[:4], CharterFacts(4, 4, 4, 3, absent_to_block=2, is_byzantine_safe=True)),
        (VOTERS[:5], CharterFacts(5, 5, 5, 4, absent_to_block=2, is_byzantine_safe=True)),
    ],
)
def test_a_charter_is_explained_in_numbers(voters: list[tuple[Identity, str]], facts: CharterFacts) -> None:
    assert explain(charter_of(*voters)) == facts


def test_many_devices_of_two_owners_are_not_byzantine_safe() -> None:
    voters = [(key, f"owner {number % 2}") for number, (key, _) in enumerate(VOTERS)]

    assert not explain(charter_of(*voters)).is_byzantine_safe
