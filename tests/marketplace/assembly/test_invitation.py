import base64
import hashlib
from random import Random
from typing import Any

import msgpack
import pytest
from assembly_town import ANN, BOB, CAT, DAN, EVE, HOUR, NOON, Town
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.assembly import invitation
from marketplace.assembly.invitation import Admission, AlreadyAdmitted, BadInvitation, Invite
from protocol import limits
from protocol.envelope import Sealed
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.identity import Identity, PeerId
from protocol.messages import Entries, JoinRequest, Refusal


def invite(town: Town, by: Identity = ANN, **changes: Any) -> Invite:
    terms = {
        "mesh": town.mesh,
        "seq": (7, 2),
        "time_ms": NOON,
        "ttl_ms": HOUR,
        "uses": 1,
        "owner": "guest",
        "credit_line_micro": 5,
        "addresses": ("/ip4/192.0.2.1/tcp/4420",),
        "rng": Random(1),
    }
    return invitation.make(by, **{**terms, **changes})


def ask(town: Town, invited: Invite, joiner: Identity = CAT) -> Sealed[JoinRequest]:
    return town.seal(invitation.join_request(invited, joiner.peer_id), joiner)


def decide(town: Town, request: Sealed[JoinRequest], *history: Sealed[Any], **changes: Any) -> object:
    terms = {"issuer": ANN.peer_id, "uses_so_far": 0, "utc_ms": NOON + 1, **changes}
    return invitation.check_join(request, assembly=town.assembly(*history), **terms)


def reason(decision: object) -> str:
    assert isinstance(decision, Refusal)
    return decision.reason


# --- the text ---------------------------------------------------------------------------------------------------------
def test_an_invite_text_brings_back_the_invitation() -> None:
    made = invite(Town())

    assert made.text.startswith("agora1")
    assert invitation.parse(made.text, utc_ms=NOON) == made


def test_a_terminal_may_break_the_text_into_lines() -> None:
    made = invite(Town())
    broken = "\n".join(made.text[at : at + 40] for at in range(0, len(made.text), 40))

    assert invitation.parse(f"  {broken}\r\n", utc_ms=NOON) == made


@pytest.mark.parametrize(
    "text", ["", "hello", "http://example.org/agora1", "agora", "\x00\ud800", "agora2abc", "🏛" * 50_000]
)
def test_what_is_no_invitation_is_said_to_be_none(text: str) -> None:
    with pytest.raises(BadInvitation, match="not an invitation"):
        invitation.parse(text, utc_ms=NOON)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-1],
        lambda text: text[:20] + text[21:],
        lambda text: text[:20] + ("A" if text[20] != "A" else "B") + text[21:],
        lambda text: text + "A",
        lambda text: text.lower(),
        lambda text: text + "é",
        lambda _: "agora1",
    ],
)
def test_a_damaged_invitation_is_said_to_be_damaged(damage: Any) -> None:
    with pytest.raises(BadInvitation, match="damaged"):
        invitation.parse(damage(invite(Town()).text), utc_ms=NOON)


def test_an_endless_text_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(BadInvitation, match="longer than"):
        invitation.parse("agora1" + "A" * 10_000_000, utc_ms=NOON)


def test_the_largest_invitation_fits_into_its_text() -> None:
    town = Town()
    made = invite(town, addresses=("/" + "a" * 255,) * 16, owner="é" * 64)

    assert len(made.text) <= limits.INVITATION_CHARS_MAX
    assert invitation.parse(made.text, utc_ms=NOON) == made


def test_an_invitation_tampered_with_is_refused_although_its_checksum_holds() -> None:
    """The attacker who sends one on may compute a checksum, but cannot sign another credit line."""
    made = invite(Town())
    forged = made.sealed.raw.replace(b"guest", b"queen")
    packed = msgpack.packb({"mesh": made.mesh, "seed": made.one_use.seed, "invitation": forged})
    text = "agora1" + base64.urlsafe_b64encode(packed + hashlib.sha256(packed).digest()[:4]).decode()

    with pytest.raises(BadInvitation, match="does not verify"):
        invitation.parse(text, utc_ms=NOON)


def test_an_invitation_with_another_one_use_key_is_refused() -> None:
    made = invite(Town())

    with pytest.raises(BadInvitation, match="does not verify"):
        invitation.parse(Invite(made.sealed, EVE, made.mesh).text, utc_ms=NOON)


def test_an_expired_invitation_says_who_can_give_a_new_one() -> None:
    with pytest.raises(BadInvitation, match=f"expired 60 s ago; ask {ANN.peer_id}"):
        invitation.parse(invite(Town()).text, utc_ms=NOON + HOUR + 60_000)


def test_a_device_of_one_mesh_does_not_join_another() -> None:
    made = invite(Town())

    assert invitation.parse(made.text, utc_ms=NOON, mesh=made.mesh) == made
    with pytest.raises(BadInvitation, match="another home directory"):
        invitation.parse(made.text, utc_ms=NOON, mesh=b"\x01" * 32)


@pytest.mark.parametrize("ttl_ms", [0, int(limits.INVITATION_TTL_S_MAX * 1000) + 1])
def test_no_invitation_is_made_for_ever(ttl_ms: int) -> None:
    with pytest.raises(LocalProtocolError, match="lasts"):
        invite(Town(), ttl_ms=ttl_ms)


def test_no_invitation_is_made_that_nobody_could_read() -> None:
    with pytest.raises(LocalProtocolError, match="refused by every peer"):
        invite(Town(), owner="")


# --- the issuer's decision --------------------------------------------------------------------------------------------
def test_a_joiner_with_a_good_invitation_is_admitted_on_its_terms() -> None:
    town = Town()
    made = invite(town)

    decision = decide(town, ask(town, made))

    assert decision == Admission(CAT.peer_id, "guest", 5, made.sealed.message.invitation_id)


def test_an_expired_invitation_admits_nobody() -> None:
    town = Town()

    assert reason(decide(town, ask(town, invite(town)), utc_ms=NOON + HOUR)) == "expired"


def test_a_used_up_invitation_admits_nobody() -> None:
    town = Town()
    made = invite(town, uses=2)

    assert reason(decide(town, ask(town, made), uses_so_far=2)) == "used_up"
    assert isinstance(decide(town, ask(town, made), uses_so_far=1), Admission)


def test_a_joiner_whose_answer_was_lost_gets_it_again_and_uses_nothing() -> None:
    """Also when the invitation has expired or is used up by now."""
    town = Town()
    made = invite(town)
    admitted = town.admit(CAT)

    decision = decide(town, ask(town, made), admitted, uses_so_far=1, utc_ms=NOON + 2 * HOUR)

    assert decision == AlreadyAdmitted(admitted)


def test_an_invitation_of_another_mesh_is_foreign() -> None:
    town, elsewhere = Town(), Town((ANN, "ann"))

    assert reason(decide(town, ask(town, invite(elsewhere)))) == "foreign"


def test_an_invitation_of_another_member_is_sent_to_its_issuer() -> None:
    """Only the issuer knows how often it was used."""
    town = Town()

    assert reason(decide(town, ask(town, invite(town, by=BOB)))) == "foreign"


def test_a_tampered_invitation_admits_nobody() -> None:
    town = Town()
    made = invite(town)
    forged = JoinRequest(
        invitation=made.sealed.raw.replace(b"guest", b"queen"),
        proof=invitation.proof(made.one_use, CAT.peer_id, town.mesh),
    )

    assert reason(decide(town, town.seal(forged, CAT))) == "tampered"


@pytest.mark.parametrize(
    "proof",
    [
        lambda _town, _made: bytes(64),
        lambda town, _made: invitation.proof(EVE, CAT.peer_id, town.mesh),
        lambda _town, made: invitation.proof(made.one_use, CAT.peer_id, b"\x01" * 32),
        lambda _town, made: made.one_use.sign(CAT.peer_id.encode()),
    ],
    ids=["none", "another key's", "for another mesh", "without its domain"],
)
def test_a_wrong_proof_admits_nobody(proof: Any) -> None:
    town = Town()
    made = invite(town)
    request = JoinRequest(invitation=made.sealed.raw, proof=proof(town, made))

    assert reason(decide(town, town.seal(request, CAT))) == "proof"


def test_an_overheard_proof_admits_nobody_else() -> None:
    """It signs the joiner's peer id, and the request is signed by the key of that id."""
    town = Town()
    overheard = ask(town, invite(town, uses=10), CAT).message

    assert reason(decide(town, town.seal(overheard, EVE))) == "proof"


def test_a_revoked_device_does_not_come_back_on_an_invitation() -> None:
    town = Town()

    decision = decide(town, ask(town, invite(town)), town.admit(CAT), town.revoke(CAT))

    assert reason(decision) == "revoked"


def test_a_voter_needs_no_invitation() -> None:
    town = Town()

    assert reason(decide(town, ask(town, invite(town), BOB))) == "member"


def test_who_is_not_on_the_roll_invites_nobody() -> None:
    town = Town()

    decision = decide(town, ask(town, invite(town, by=EVE)), issuer=EVE.peer_id)

    assert reason(decision) == "authority"


def test_an_invitation_in_another_voters_name_admits_nobody() -> None:
    town = Town()

    assert reason(decide(town, ask(town, invite(town, owner="bob")))) == "authority"


# --- the joiner's check of the answer ------------------------------------------------------------------------------
def open_answer(town: Town, answer: Entries, by: Identity = ANN) -> object:
    return invitation.open_answer(answer, invite(town, by=by), CAT.peer_id)


def test_a_joiner_verifies_the_mesh_from_the_answer_alone() -> None:
    town = Town()
    admitted = town.admit(CAT)
    answer = invitation.answer(town.assembly(admitted), admitted)

    welcome = invitation.open_answer(answer, invite(town), CAT.peer_id)

    assert (welcome.assembly.mesh, welcome.assembly.founder) == (town.mesh, ANN.peer_id)
    assert (welcome.admitted, welcome.entries) == (admitted, (town.founding,))


def test_an_answer_with_the_charter_of_another_mesh_is_refused() -> None:
    town, elsewhere = Town(), Town((ANN, "ann"))

    with pytest.raises(RemoteProtocolError):
        open_answer(town, Entries(entries=(elsewhere.founding.raw, town.admit(CAT).raw)))


def test_an_answer_that_admits_another_device_is_refused() -> None:
    town = Town()

    with pytest.raises(RemoteProtocolError, match="admits"):
        open_answer(town, Entries(entries=(town.founding.raw, town.admit(DAN).raw)))


def test_an_admission_by_a_stranger_is_refused() -> None:
    """A hostile device may hand out texts with a real mesh id, and take what joiners then say."""
    town = Town()

    with pytest.raises(RemoteProtocolError, match="not on its roll"):
        open_answer(town, Entries(entries=(town.founding.raw, town.admit(CAT, by=EVE).raw)), by=EVE)


def test_an_answer_of_other_entries_is_refused() -> None:
    town = Town()
    founding, card, admitted = (
        entry.raw for entry in (town.founding, town.card("a", bytes(32)), town.admit(CAT))
    )

    for entries in (
        (),
        (founding,),
        (founding, card),
        (card, admitted),
        (founding, admitted, card),
        (b"", b""),
    ):
        with pytest.raises(RemoteProtocolError):
            open_answer(town, Entries(entries=entries))


# --- whatever comes in ------------------------------------------------------------------------------------------------
@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.one_of(st.text(), st.text(alphabet="ABab01-_=\n").map("agora1".__add__)))
def test_whatever_is_pasted_only_a_bad_invitation_comes_out(text: str) -> None:
    with pytest.raises(BadInvitation):
        invitation.parse(text, utc_ms=NOON)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_whatever_bytes_have_a_checksum_only_a_bad_invitation_comes_out(packed: bytes) -> None:
    text = "agora1" + base64.urlsafe_b64encode(packed + hashlib.sha256(packed).digest()[:4]).decode()

    with pytest.raises(BadInvitation):
        invitation.parse(text, utc_ms=NOON)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.binary(min_size=64, max_size=64))
def test_whatever_a_joiner_sends_the_issuer_answers(raw: bytes, proof: bytes) -> None:
    town = Town()
    request = town.seal(JoinRequest(invitation=raw, proof=proof), CAT)

    assert reason(decide(town, request)) == "tampered"


def test_peer_ids_in_proofs_are_keys_not_texts() -> None:
    town = Town()
    made = invite(town)

    assert invitation.proof(made.one_use, PeerId(CAT.peer_id), town.mesh) == made.one_use.sign(
        b"agora/join_proof/1\0" + town.mesh + CAT.public_key
    )
