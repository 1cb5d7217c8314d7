"""A founder's disk dies: its backup brings back the same device, which goes on where its peers say it was."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.local_mesh.processes import until
from tests.system.daemons import ANYBODY, SUM, Device, agora, books_agree, refused, running, three_daemons

pytestmark = pytest.mark.system

PHRASE = {"AGORA_PASSPHRASE": "written on paper"}
Mesh = tuple[Device, Device, Device]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with three_daemons(tmp_path_factory.mktemp("mesh")) as devices:
        yield devices


def test_a_restored_founder_takes_its_log_up_where_its_peers_saw_it(mesh: Mesh, tmp_path: Path) -> None:
    """The backup is older than the last purchase: a device that wrote on from it would contradict itself, and be barred."""
    founder, *sellers = mesh
    file = tmp_path / "founder.backup"
    founder.chat(SUM, ANYBODY, model="tiny")
    until("the first chat is settled", lambda: books_agree(*mesh))

    saved = agora("backup", str(file), home=founder.home, environ=PHRASE)
    founder.chat(SUM, ANYBODY, model="tiny")
    until("the second chat is settled", lambda: books_agree(*mesh) and len(receipts(founder)) >= 2)
    had, balances = receipts(founder), founder.balances()
    founder.stop()
    shutil.rmtree(founder.home)
    restored = agora("restore", str(file), home=tmp_path / "restored", environ=PHRASE)

    assert (saved.returncode, restored.returncode) == (0, 0), saved.stderr + restored.stderr
    again = Device("restored", tmp_path / "restored")
    again.told = founder.told
    with running(again):
        again.start()
        assert again.peer_id == founder.peer_id
        until("its log is confirmed", lambda: again.get("/api/status")["is_durable"])
        until("it has the receipts it lost", lambda: receipts(again) == had)
        assert again.balances() == balances
        until("it sees its sellers", lambda: again.get("/api/models"))
        assert until("it buys again", lambda: bought(again)) != ""
        until("the ledgers agree", lambda: books_agree(again, *sellers))
        assert again.get("/api/status")["warnings"] == []
        assert not any(peer["is_revoked"] for seller in sellers for peer in seller.get("/api/peers"))
        assert len(again.ask("invite")["invitation"]) > 100


def receipts(device: Device) -> set[str]:
    return {receipt["receipt_id"] for receipt in device.get("/api/ledger")["receipts"]}


def bought(device: Device) -> str:
    """Ask in a session of its own, so that it takes an auction."""
    before = len(receipts(device))
    text = device.chat(SUM, {**ANYBODY, "X-Agora-Session": "after the fire"}, model="tiny")
    until("it is paid for", lambda: len(receipts(device)) > before)
    return text


def test_a_backup_overwrites_nothing_and_opens_only_with_its_passphrase(mesh: Mesh, tmp_path: Path) -> None:
    seller = mesh[1]
    file = tmp_path / "seller.backup"
    assert agora("backup", str(file), home=seller.home, environ=PHRASE).returncode == 0
    sealed = file.read_bytes()

    again = refused(agora("backup", str(file), home=seller.home, environ=PHRASE))
    over = refused(agora("restore", str(file), home=seller.home, environ=PHRASE))
    wrong = refused(
        agora("restore", str(file), home=tmp_path / "new", environ={"AGORA_PASSPHRASE": "a guess, a guess"})
    )

    assert "there is a file" in again
    assert "there is a home" in over
    assert "passphrase" in wrong
    assert file.read_bytes() == sealed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seller.backup"]
