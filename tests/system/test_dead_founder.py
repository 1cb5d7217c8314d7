"""The founder's device is gone for good: the recovery file brings the mesh back, on any member's device."""

import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from node.local_mesh.processes import until
from tests.system.daemons import Device, agora, contents, refused

pytestmark = pytest.mark.system

PASSPHRASE = "a passphrase of bob's"


def have_met(*devices: Device) -> bool:
    connected = [
        {peer["peer_id"] for peer in device.ask("peers") if peer["is_connected"]} for device in devices
    ]
    return all(len(peers) == len(devices) for peers in connected)  # the others, and the founder


@pytest.fixture
def orphans(tmp_path: Path) -> "Orphans":
    return Orphans(tmp_path)


class Orphans:
    """Two members whose founder's disk is dead; its recovery file and code were kept elsewhere."""

    def __init__(self, directory: Path) -> None:
        self.founder = Device.founder("founder", directory / "mesh")
        self.kept = directory / "stick"
        self.kept.mkdir(mode=0o700)

    def begin(self, stack: ExitStack) -> tuple[Device, Device]:
        """Let the founder take two in, and die."""
        self.founder.start()
        try:
            bob, cat = (Device.member(name, self.founder) for name in ("bob", "cat"))
            bob.start()
            stack.callback(bob.stop)
            cat.start((bob.listen,))  # addresses on loopback are not told to others
            stack.callback(cat.stop)
            until("they have met", lambda: have_met(bob, cat))
        finally:
            self.founder.kill()
        self.file.write_bytes((self.founder.home / "recovery.agora").read_bytes())
        self.file.chmod(0o600)
        shutil.rmtree(self.founder.home)
        return bob, cat

    @property
    def file(self) -> Path:
        return self.kept / "recovery.agora"

    def code(self, text: str = "") -> str:
        path = self.kept / "code"
        path.write_text(text or self.founder.told["recovery_code"])
        return str(path)

    def passphrase(self) -> str:
        path = self.kept / "passphrase"
        path.write_text(PASSPHRASE)
        return str(path)


def test_a_member_takes_the_mesh_over_with_the_recovery_file_alone(orphans: Orphans) -> None:
    with ExitStack() as stack:
        bob, cat = orphans.begin(stack)
        assert "only devices on the charter's roll" in refused(
            agora("charter", "propose", "--voter", bob.peer_id, home=bob.home)
        )

        outcome = bob.ask(
            "charter", "recover", str(orphans.file), "--code-file", orphans.code(),
            "--passphrase-file", orphans.passphrase(), "--yes",
        )  # fmt: skip

        assert (outcome["version"], outcome["in_force"]) == (2, True)
        until("cat knows who decides now", lambda: cat.ask("charter")["version"] == 2)
        (voter,) = cat.ask("charter")["roll"]
        assert voter["key"] == bob.ask("charter")["roll"][0]["key"]
        assert orphans.founder.peer_id not in {
            peer["peer_id"] for peer in bob.ask("peers") if peer["is_admitted"]
        }
        dan = Device.member("dan", bob)
        dan.start()
        stack.callback(dan.stop)
        assert dan.ask("charter")["version"] == 2
        assert (bob.home / "human.key").is_file()


def test_a_wrong_code_or_a_file_of_another_mesh_changes_nothing(orphans: Orphans, tmp_path: Path) -> None:
    other = Device.founder("other", tmp_path / "elsewhere")
    with ExitStack() as stack:
        bob, _ = orphans.begin(stack)
        before = {name: data for name, data in contents(bob.home).items() if name.endswith(".key")}

        def recover(file: Path, code: str) -> str:
            return refused(
                agora(
                    "charter",
                    "recover",
                    str(file),
                    "--code-file",
                    orphans.code(code),
                    "--passphrase-file",
                    orphans.passphrase(),
                    "--yes",
                    home=bob.home,
                )
            )

        assert "passphrase" in recover(orphans.file, "KQXWR" * 5)
        assert "not in this mesh's charter" in recover(
            other.home / "recovery.agora", other.told["recovery_code"]
        )

        assert bob.ask("charter")["version"] == 1
        assert {name: data for name, data in contents(bob.home).items() if name.endswith(".key")} == before
