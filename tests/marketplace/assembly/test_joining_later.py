"""A device that is invited by somebody who came onto the roll after the founding: it sees how from the answer alone."""

from itertools import permutations
from random import Random
from typing import Any

import pytest

from marketplace.assembly import invitation
from marketplace.assembly.invitation import Invite, Welcome
from protocol.envelope import Sealed
from protocol.errors import NotAuthorised, RemoteProtocolError
from protocol.identity import Identity
from protocol.messages import Admitted, Entries
from tests.marketplace.assembly.assembly_town import ANN, BOB, CAT, DAN, EVE, HOUR, NOON, Town
from tests.marketplace.assembly.test_changing_charters import agree, founded, grown, propose


def invite(town: Town, by: Identity) -> Invite:
    made = invitation.make(
        by, mesh=town.mesh, seq=(1, 1), time_ms=NOON, ttl_ms=HOUR, uses=1, owner="dan", credit_line_micro=1,
        addresses=("/ip4/127.0.0.1/tcp/1",), rng=Random(1),
    )  # fmt: skip
    return invitation.parse(made.text, utc_ms=NOON)


def opened(town: Town, by: Identity, admitted: Sealed[Admitted], history: list[Sealed[Any]]) -> Welcome:
    answer = Entries(entries=(town.founding.raw, admitted.raw))
    return invitation.open_answer(answer, invite(town, by), DAN.peer_id, [entry.raw for entry in history])


def test_a_later_voters_invitation_is_followed_back_to_the_founding() -> None:
    town = founded()
    written = grown(town)
    admitted = town.admit(DAN, by=BOB, at=NOON + HOUR // 2)
    told = list(invitation.history(town.assembly(*written, admitted)))

    welcome = opened(town, BOB, admitted, told)

    assert set(welcome.assembly.roll) == {ANN.peer_id, BOB.peer_id, CAT.peer_id}
    assert welcome.assembly.is_member(DAN.peer_id)
    assert welcome.entries[0] == town.founding
    assert set(welcome.entries) == set(told)


def test_what_is_kept_can_be_folded_in_its_order() -> None:
    town = founded()
    written = grown(town)
    admitted = town.admit(DAN, by=BOB, at=NOON + HOUR // 2)

    welcome = opened(town, BOB, admitted, list(invitation.history(town.assembly(*written, admitted))))

    assert town.assembly(*welcome.entries[1:]).fingerprint() == welcome.assembly.fingerprint()


def test_in_whatever_order_a_history_comes_it_says_the_same() -> None:
    town = founded()
    written = grown(town)
    admitted = town.admit(DAN, by=BOB, at=NOON + HOUR // 2)
    fingerprints = {
        opened(town, BOB, admitted, [*order, admitted]).assembly.fingerprint()
        for order in permutations(written)
    }

    assert len(fingerprints) == 1


def test_an_inviter_that_shows_no_way_onto_the_roll_is_refused() -> None:
    town = founded()
    grown(town)
    admitted = town.admit(DAN, by=BOB, at=NOON + HOUR // 2)

    with pytest.raises(NotAuthorised, match="not on its roll"):
        opened(town, BOB, admitted, [])


def test_a_charter_that_an_inviter_makes_for_itself_puts_it_on_no_roll() -> None:
    town = founded()
    own = propose(town, EVE, EVE)

    with pytest.raises(NotAuthorised, match="not on its roll"):
        opened(town, EVE, town.admit(DAN, by=EVE), [own, agree(town, own, EVE)])


def test_a_charter_that_too_few_agreed_to_puts_nobody_on_the_roll() -> None:
    town = founded()
    admissions = town.admit(BOB), town.admit(CAT)
    second = propose(town, ANN, ANN, BOB, CAT)

    with pytest.raises(NotAuthorised, match="not on its roll"):
        opened(town, BOB, town.admit(DAN, by=BOB), [*admissions, second, agree(town, second, BOB)])


@pytest.mark.parametrize("garbage", [b"", b"\x00" * 100, b"\x81\xa1v\x01"])
def test_a_history_of_other_bytes_is_refused(garbage: bytes) -> None:
    town = founded()
    answer = Entries(entries=(town.founding.raw, town.admit(DAN, by=ANN).raw))

    with pytest.raises(RemoteProtocolError):
        invitation.open_answer(answer, invite(town, ANN), DAN.peer_id, [garbage])
