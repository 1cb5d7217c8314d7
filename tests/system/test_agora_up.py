"""The contract of `agora up`: what it prints, when it is ready, how it ends, and who may come in by its doors."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from node.local_mesh.processes import AGORA, until
from protocol.identity import Identity
from tests.system.daemons import HERE, STORY, SUM, Device, copy_of, running

pytestmark = pytest.mark.system

NOBODY = 65_534


@pytest.fixture(scope="module")
def lone() -> Iterator[Device]:
    """A founder with a model and no other member, its home where every user of the machine may look for it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        device = Device.founder("lone", Path(directory))
        with running(device):
            device.start()
            device.hold()
            yield device


@pytest.fixture
def silent() -> Iterator[list[str]]:
    """Addresses where connections are taken and nothing is ever said, each of another peer."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        port = server.getsockname()[1]
        yield [f"/ip4/127.0.0.1/tcp/{port}/p2p/{Identity.generate().peer_id}" for _ in range(3)]


@pytest.mark.parametrize(
    ("ending", "name"),
    [(signal.SIGINT, "home"), (signal.SIGTERM, "long-" * 24)],
    ids=["SIGINT", "SIGTERM-long-path"],
)
def test_stdout_is_one_json_line_and_a_signal_ends_it_with_status_0(
    lone: Device, tmp_path: Path, ending: signal.Signals, name: str
) -> None:
    """Whoever starts a daemon reads that line and nothing else; everything that happens is on stderr.

    Linux binds a socket to 107 bytes at most: with a longer path the ready line says where it is instead.
    """
    home = copy_of_stopped(lone, tmp_path / name)
    command = [*AGORA, "up", "--home", str(home), "--listen", "/ip4/127.0.0.1/tcp/0"]

    with subprocess.Popen(
        [*command, "--gateway", "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            admin = Path(ready["admin"])
            modes = [stat.S_IMODE(path.stat().st_mode) for path in (admin, admin.parent)]
            status = Device("copy", home).ask("status")
        finally:
            process.send_signal(ending)
            stdout, stderr = process.communicate(timeout=20)

    assert (process.returncode, stdout) == (0, "")
    assert list(ready) == ["peer_id", "listen", "gateway", "admin"]
    assert ready["peer_id"] == status["peer_id"] == lone.peer_id
    assert [address.rsplit("/", 2)[1:] for address in ready["listen"]] == [["p2p", lone.peer_id]]
    assert ready["gateway"].startswith("http://127.0.0.1:")
    assert modes == [0o600, 0o700]
    assert len(os.fsencode(admin)) <= 107
    assert (admin == home / "admin.sock") == (name == "home")
    assert not admin.exists()
    assert " ready " in stderr
    assert stderr.splitlines()[-1].endswith(" stopped")


def copy_of_stopped(device: Device, target: Path) -> Path:
    """Copy the home of a daemon that rests meanwhile."""
    device.freeze()
    try:
        return copy_of(device.home, target)
    finally:
        device.thaw()


def test_dead_bootstrap_peers_hold_up_neither_the_start_nor_local_models(
    lone: Device, tmp_path: Path, silent: list[str]
) -> None:
    """An address that never answers is given up after 10 s; nothing has waited for that."""
    device = Device("cut-off", copy_of_stopped(lone, tmp_path / "home"))
    device.told = lone.told
    with socket.create_server(("127.0.0.1", 0)) as closed:
        refusing = f"/ip4/127.0.0.1/tcp/{closed.getsockname()[1]}/p2p/{Identity.generate().peer_id}"

    with running(device):
        device.start((refusing, *silent))

        before, ready, _ = device.home.with_suffix(".log").read_text().partition(" ready ")
        assert ready
        assert not any(address in before for address in silent)
        assert device.chat(SUM, HERE) == lone.chat(SUM, HERE)
        assert device.get("/api/status")["peers"] == 0


def test_without_a_key_the_gateway_answers_401(lone: Device) -> None:
    url = f"{lone.gateway}/v1/models"
    forged = {"Authorization": "Bearer agora_" + "A" * 43}

    assert httpx.get(url, trust_env=False).status_code == 401
    assert httpx.get(url, headers=forged, trust_env=False).status_code == 401
    assert httpx.get(f"{lone.gateway}/healthz", trust_env=False).status_code == 200


def test_a_foreign_web_page_gets_nothing_from_the_gateway(lone: Device) -> None:
    """DNS rebinding: the page's own name points here, so the browser sends it along."""
    key = {"Authorization": f"Bearer {lone.told['api_key']}"}

    for header in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        answer = httpx.get(f"{lone.gateway}/api/status", headers={**key, **header}, trust_env=False)
        assert answer.status_code == 403


def test_a_key_that_was_revoked_opens_nothing(lone: Device) -> None:
    """At once, while the daemon runs."""
    made = lone.ask("keys", "create", "--name", "stolen")
    headers = {"Authorization": f"Bearer {made['key']}"}
    assert httpx.get(f"{lone.gateway}/v1/models", headers=headers, trust_env=False).status_code == 200

    lone.ask("keys", "revoke", made["key_id"])

    assert httpx.get(f"{lone.gateway}/v1/models", headers=headers, trust_env=False).status_code == 401


def connect_as(uid: int, path: Path) -> str:
    """Return what another user's process gets who connects to a Unix socket."""
    code = (
        "import socket, sys\n"
        "try:\n"
        "    client = socket.socket(socket.AF_UNIX)\n"
        "    client.settimeout(5)\n"
        "    client.connect(sys.argv[1])\n"
        "    client.sendall(b'GET /api/status HTTP/1.1\\r\\nHost: agora\\r\\n\\r\\n')\n"
        "    print(client.recv(100) or 'closed')\n"
        "except OSError as error:\n"
        "    print(type(error).__name__)\n"
    )
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if python is None:
        pytest.skip("no Python that another user may run")
    done = subprocess.run(
        [python, "-c", code, str(path)],
        user=uid,
        group=uid,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become somebody else")
def test_another_local_user_gets_no_answer_from_the_admin_socket(lone: Device) -> None:
    """By the directory's mode; where that was opened by mistake, by the socket's; and else by who asks."""
    admin = Path(lone.ready["admin"])
    try:
        assert connect_as(NOBODY, admin) == "PermissionError"
        lone.home.chmod(0o755)
        assert connect_as(NOBODY, admin) == "PermissionError"
        admin.chmod(0o666)
        assert connect_as(NOBODY, admin) in ("closed", "BrokenPipeError", "ConnectionResetError")
    finally:
        lone.home.chmod(0o700)
        admin.chmod(0o600)


def test_a_daemon_that_comes_back_is_found_again_and_serves_what_it_had(
    lone: Device, silent: list[str]
) -> None:
    """Its member had started without it, and addresses at which nobody ever answers held it up no longer than a start."""
    answer = lone.chat(STORY, HERE, max_tokens=60)
    member = Device.member("member", lone)
    address = lone.listen.partition("/p2p/")[0]
    lone.stop()
    with running(member):
        member.start(silent)
        assert member.get("/api/status")["peers"] == 0

        lone.start(listen=address)

        until("they meet", lambda: member.get("/api/status")["peers"] == 1)
        assert lone.get("/api/peers")[0]["is_connected"]
        assert lone.chat(STORY, HERE, max_tokens=60) == answer
