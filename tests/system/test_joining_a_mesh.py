"""One pasted invitation admits one device; a bad one is refused in one line, and nothing of a home is written."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.home import Home
from node.joining import join
from node.local_mesh.processes import until
from tests.node.dying import survives
from tests.system.daemons import Device, agora, contents, refused, running

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def founder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    device = Device.founder("founder", tmp_path_factory.mktemp("mesh"))
    with running(device):
        device.start()
        yield device


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """The founder of another mesh, not up."""
    device = Device.founder("stranger", tmp_path_factory.mktemp("other"))
    with running(device):
        yield device


def refusal(invitation: str, tmp_path: Path) -> str:
    """Join with an invitation that must not admit, and return the line; no home has come into being."""
    home = tmp_path / "refused"

    line = refused(agora("join", invitation, home=home))

    assert not home.exists()
    return line


def test_a_pasted_invitation_and_up_make_a_member(founder: Device, tmp_path: Path) -> None:
    """Whitespace that a chat program put around it does no harm; the device is its inviter's."""
    pasted = f"  {founder.ask('invite')['invitation']}\n"

    joined = agora("join", pasted, home=tmp_path / "member")

    assert joined.returncode == 0, joined.stderr
    assert "agora up --home" in joined.stdout
    member = Device("member", tmp_path / "member")
    member.told = member.ask("keys", "create")
    member.told["api_key"] = member.told["key"]
    with running(member):
        member.start()
        until("it is connected", lambda: member.get("/api/status")["peers"] == 1)
        until("its log is confirmed", lambda: member.get("/api/status")["is_durable"])
        status = member.get("/api/status")
        assert (status["owner"], status["mesh_id"]) == ("ann", founder.told["mesh_id"])


def test_a_join_that_is_killed_can_be_done_again(founder: Device, tmp_path: Path) -> None:
    """Killed before the last file of the home: no daemon starts from it, and another invitation makes it whole."""
    home = tmp_path / "member"
    invitation = founder.ask("invite", "--uses", "2")["invitation"]

    assert not survives(
        lambda: join(home, invitation), beneath=home, step=1, names=frozenset({"sqlite3.connect"})
    )

    assert "was never finished" in refused(agora("up", "--gateway", "127.0.0.1:0", home=home))
    assert agora("join", invitation, home=home).returncode == 0
    assert Home.open(home).unfinished.exists() is False


def test_an_invitation_used_up(founder: Device, tmp_path: Path) -> None:
    invitation = founder.ask("invite", "--uses", "1")["invitation"]
    assert agora("join", invitation, home=tmp_path / "first").returncode == 0

    assert "used" in refusal(invitation, tmp_path)


def test_an_expired_invitation(founder: Device, tmp_path: Path) -> None:
    made = founder.ask("invite", "--expires", "1s")
    until("it has expired", lambda: time.time() > made["expires_at"])

    assert "expired" in refusal(made["invitation"], tmp_path)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_tampered_invitation(founder: Device, tmp_path: Path, place: float) -> None:
    invitation = founder.ask("invite")["invitation"]
    at = int(len(invitation) * place)
    tampered = invitation[:at] + ("b" if invitation[at] != "b" else "c") + invitation[at + 1 :]

    assert "invitation" in refusal(tampered, tmp_path)


def test_an_invitation_cut_short(founder: Device, tmp_path: Path) -> None:
    assert "invitation" in refusal(founder.ask("invite")["invitation"][:-20], tmp_path)


def test_text_that_is_no_invitation(tmp_path: Path) -> None:
    assert "invitation" in refusal("come over tonight", tmp_path)


@pytest.mark.parametrize("verb", ["join", "init"])
def test_a_home_of_another_mesh_is_left_alone(founder: Device, stranger: Device, verb: str) -> None:
    before = contents(stranger.home)
    arguments = [founder.ask("invite")["invitation"]] if verb == "join" else []

    done = agora(verb, *arguments, home=stranger.home, environ={"AGORA_PASSPHRASE": "long enough"})

    assert "belongs to a mesh already" in refused(done)
    assert contents(stranger.home) == before


def test_a_member_cannot_invite_and_can_leave(founder: Device) -> None:
    """Its daemon stops by itself, and its home starts no other."""
    member = Device.member("leaver", founder)
    with running(member):
        member.start()
        assert "run 'agora invite' on the founder's device" in refused(agora("invite", home=member.home))

        member.ask("leave", "--yes")

        until("its daemon has ended", lambda: member.has_ended)
    assert "this home has left its mesh" in refused(agora("up", "--gateway", "127.0.0.1:0", home=member.home))


def test_an_inviter_whose_log_nobody_has_confirmed_says_so(founder: Device, tmp_path: Path) -> None:
    """After a start it waits for another member, which might know more of its log than itself."""
    member = Device.member("keeper", founder)
    invitation = founder.ask("invite")["invitation"]
    address = founder.listen.partition("/p2p/")[0]
    founder.stop()

    founder.start(listen=address)

    assert "bring another member up first" in refused(agora("invite", home=founder.home))
    assert "can admit nobody now" in refusal(invitation, tmp_path)
    with running(member):
        member.start()
        until("the other member confirms it", lambda: founder.get("/api/status")["is_durable"])
        assert agora("join", invitation, home=tmp_path / "late").returncode == 0


def test_an_inviter_that_is_down_or_has_another_mesh_at_its_address(
    founder: Device, stranger: Device, tmp_path: Path
) -> None:
    invitation = founder.ask("invite")["invitation"]
    address = founder.listen.partition("/p2p/")[0]
    founder.stop()

    down = refusal(invitation, tmp_path)
    stranger.start(listen=address)
    foreign = refusal(invitation, tmp_path)

    assert "is its daemon up" in down
    assert "is its daemon up" in foreign
