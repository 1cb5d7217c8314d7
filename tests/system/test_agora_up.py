"""The contract of `agora up`: what it prints, when it is ready, how it ends, and who may come in by its doors."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from node.local_mesh.processes import AGORA, until
from protocol.identity import Identity
from tests.system.daemons import HERE, STORY, SUM, Device, copy_of, running

pytestmark = pytest.mark.system

NOBODY = 65_534
READY_CPU_S_MAX = 2.0


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """A founder with a model and no other member."""
    device = Device.founder("lone", tmp_path_factory.mktemp("lone"))
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


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_stdout_is_one_json_line_and_a_signal_ends_it_with_status_0(
    lone: Device, tmp_path: Path, ending: signal.Signals
) -> None:
    """Whoever starts a daemon reads that line and nothing else; everything that happens is on stderr."""
    home = copy_of_stopped(lone, tmp_path / "home")
    command = [*AGORA, "up", "--home", str(home), "--listen", "/ip4/127.0.0.1/tcp/0"]

    with subprocess.Popen(
        [*command, "--gateway", "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        process.send_signal(ending)
        stdout, stderr = process.communicate(timeout=20)

    assert (process.returncode, stdout) == (0, "")
    assert list(ready) == ["peer_id", "listen", "gateway", "admin"]
    assert ready["peer_id"] == lone.peer_id
    assert [address.rsplit("/", 2)[1:] for address in ready["listen"]] == [["p2p", lone.peer_id]]
    assert ready["gateway"].startswith("http://127.0.0.1:")
    assert ready["admin"] == str(home / "admin.sock")
    assert "Traceback" not in stderr
    assert " ready " in stderr
    assert stderr.splitlines()[-1].endswith(" stopped")
    assert not Path(ready["admin"]).exists()


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
    """Measured in seconds of CPU: those of the clock belong to whatever else the machine does."""
    device = Device("cut-off", copy_of_stopped(lone, tmp_path / "home"))
    device.told = lone.told
    with socket.create_server(("127.0.0.1", 0)) as closed:
        refusing = f"/ip4/127.0.0.1/tcp/{closed.getsockname()[1]}/p2p/{Identity.generate().peer_id}"

    with running(device):
        device.start((refusing, *silent))
        spent = psutil.Process(device.pid).cpu_times()

        assert spent.user + spent.system < READY_CPU_S_MAX
        assert device.chat(SUM, HERE) == lone.chat(SUM, HERE)
        assert device.get("/api/status")["peers"] == 0


def test_a_bootstrap_peer_that_comes_late_is_found(tmp_path: Path, silent: list[str]) -> None:
    """And an address at which nobody ever answers does not hold up the others."""
    founder = Device.founder("founder", tmp_path)
    with running(founder):
        founder.start()
        member = Device.member("member", founder)
        address = founder.listen
        founder.stop()
        with running(member):
            member.start(silent)
            assert member.get("/api/status")["peers"] == 0

            founder.start(listen=address.partition("/p2p/")[0])

            until("they meet", lambda: member.get("/api/status")["peers"] == 1)
            assert founder.get("/api/peers")[0]["is_connected"]


def test_a_restarted_daemon_serves_the_models_it_had(lone: Device) -> None:
    before = lone.chat(STORY, HERE, max_tokens=60)
    lone.stop()

    lone.start()

    assert lone.chat(STORY, HERE, max_tokens=60) == before


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


def test_the_admin_socket_is_the_owners_alone(lone: Device) -> None:
    admin = Path(lone.ready["admin"])

    assert stat.S_IMODE(admin.stat().st_mode) == 0o600
    assert stat.S_IMODE(admin.parent.stat().st_mode) == 0o700
    assert stat.S_ISSOCK(admin.stat().st_mode)


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
def test_another_local_user_gets_no_answer_from_the_admin_socket() -> None:
    """By the directory's mode; and where that was opened by mistake, by the socket's mode."""
    short = Path("/tmp") / f"agora-test-{os.getpid()}"
    device = Device.founder("home", short)
    try:
        with running(device):
            device.start()
            admin = Path(device.ready["admin"])
            short.chmod(0o755)

            assert connect_as(NOBODY, admin) == "PermissionError"
            device.home.chmod(0o755)
            assert connect_as(NOBODY, admin) == "PermissionError"
            admin.chmod(0o666)
            assert connect_as(NOBODY, admin) in ("closed", "BrokenPipeError", "ConnectionResetError")
    finally:
        shutil.rmtree(short)


def test_a_home_with_a_long_path_has_its_socket_elsewhere(lone: Device, tmp_path: Path) -> None:
    """Linux binds 107 bytes at most. The ready line says where it is, and the verbs find it."""
    home = tmp_path / ("long-" * 24)
    device = Device("long", copy_of_stopped(lone, home))

    with running(device):
        device.start()
        admin = Path(device.ready["admin"])

        assert len(os.fsencode(home / "admin.sock")) > 107 >= len(os.fsencode(admin))
        assert stat.S_IMODE(admin.stat().st_mode) == 0o600
        assert stat.S_IMODE(admin.parent.stat().st_mode) == 0o700
        assert device.ask("status")["peer_id"] == lone.peer_id

    assert not admin.parent.exists()
