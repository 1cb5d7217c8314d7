"""The owner's verbs over the Unix socket, through the client that the command line uses."""

import os
import socket
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from node.admin_client import AdminClient, DaemonError
from node.chat import BadPrompt, ChatDelta, ChatError, DeclineView, Unsold
from node.errors import StartError
from node.gateway.app import admin_app
from node.gateway.server import serve_admin
from node.home import Home
from node.services.coordinator import TrainOptions
from tests.node.gateway.fake_node import ANN, BOB, JOB_ID, RUN_ID, STARTED, FakeNode

NOBODY = 65_534


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "home")


@pytest.fixture
async def daemon(home: Home, node: FakeNode, nursery: trio.Nursery) -> Path:
    app = admin_app(node)
    path: Path = await nursery.start(partial(serve_admin, app, home.admin_socket, node.journal))
    return path


@pytest.fixture
async def admin(home: Home, daemon: Path) -> AsyncIterator[AdminClient]:
    assert daemon == home.admin_socket
    async with AdminClient(home) as client:
        yield client


def ignore(_: object, *__: object) -> None:
    """Take what is told."""


async def test_the_socket_is_the_owners_alone(daemon: Path) -> None:
    assert stat.S_IMODE((await trio.Path(daemon).stat()).st_mode) == 0o600


async def test_every_listing_is_there_without_a_key(admin: AdminClient) -> None:
    assert (await admin.status())["peer_id"] == ANN
    assert [each["peer_id"] for each in await admin.peers()] == [BOB]
    assert [each["id"] for each in await admin.models()] == ["tiny", "mini"]
    assert [each["job_id"] for each in await admin.jobs()] == [JOB_ID]
    assert (await admin.job(JOB_ID[:8]))["job_id"] == JOB_ID
    assert (await admin.ledger())["balance_micro"] == -5
    assert [each["run_id"] for each in await admin.runs()] == [RUN_ID]
    assert (await admin.training_run(RUN_ID[:8]))["run_id"] == RUN_ID
    assert await admin.charter() == {"version": 1}


async def test_a_run_is_announced_as_it_was_asked_for(admin: AdminClient, node: FakeNode) -> None:
    """What is left out is the node's to choose; parameters of strategies become millionths."""
    await admin.train({"data": "heat", "line": "tiny", "rounds": 4, "parameters": {"beta": 0.2}})
    await admin.steer_run(RUN_ID, "pause")

    assert node.calls == [
        ("train", TrainOptions(data="heat", line="tiny", rounds=4, parameters=(("beta", 200_000),))),
        ("steer_run", RUN_ID, "pause"),
    ]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"data": "heat"}, "line"),
        ({"data": "two words", "line": "tiny"}, "data"),
        ({"data": "heat", "line": "tiny", "rounds": 0}, "rounds"),
        ({"data": "heat", "line": "tiny", "colour": "red"}, "colour"),
    ],
    ids=["no_line", "a_bad_name", "no_rounds", "an_unknown_option"],
)
async def test_a_run_that_makes_no_sense_is_refused(
    admin: AdminClient, node: FakeNode, body: dict[str, object], message: str
) -> None:
    with pytest.raises(DaemonError, match=message) as refused:
        await admin.train(body)

    assert refused.value.status == 400
    assert node.calls == []


async def test_each_verb_reaches_the_node_with_its_terms(admin: AdminClient, node: FakeNode) -> None:
    await admin.invite(expires_s=60, uses=2, owner="bob", credit_line_micro=5)
    await admin.publish_model("cdcdcdcd", "tiny")
    await admin.revoke(BOB, "stolen")

    assert node.calls == [
        ("invite", 60.0, 2, "bob", 5),
        ("publish_model", "cdcdcdcd", "tiny"),
        ("revoke", BOB, "stolen"),
    ]


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        (lambda admin: admin.job("../x"), "job '../x' is no id, expected hex digits; 'agora jobs' lists them"),
        (lambda admin: admin.job("ffff"), "no job 'ffff', or several; 'agora jobs' lists them"),
        (lambda admin: admin.revoke("me"), "peer_id: expected `str` of length >= 52"),
        (lambda admin: admin.publish_model("cdcd", "a b"), None),
        (lambda admin: admin.invite(expires_s=60, uses=0, owner=None, credit_line_micro=0), "uses: expected `int` >= 1"),
        (lambda admin: admin.leave(), "cannot reach a roll member now; try again later"),
    ],
)  # fmt: skip
async def test_a_refused_verb_is_one_line(
    admin: AdminClient, node: FakeNode, verb: object, message: str | None
) -> None:
    with pytest.raises(DaemonError) as caught:
        await verb(admin)  # type: ignore[operator]

    assert message in (None, str(caught.value))
    assert "\n" not in str(caught.value)
    assert node.calls == []


async def test_a_model_is_added_with_its_progress(
    admin: AdminClient, node: FakeNode, nursery: trio.Nursery
) -> None:
    gate = trio.Event()
    node.script = [gate]
    told: list[tuple[int, int]] = []
    first = trio.Event()

    def note(done: int, total: int) -> None:
        told.append((done, total))
        first.set()

    async def open_gate() -> None:
        await first.wait()
        gate.set()

    nursery.start_soon(open_gate)
    with trio.fail_after(5):
        added = await admin.add_model("/m.gguf", name="n", publish=True, progress=note)

    assert added == {"digest": "cd" * 32, "name": "n"}
    assert told == [(1, 2)]
    assert node.calls == [("add_model", "/m.gguf", "n", True)]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/m.txt", "/m.txt is not a GGUF file, expected the magic 'GGUF'"),
        ("/truncated.gguf", "/truncated.gguf ends at byte 1, expected 2"),
    ],
)
async def test_a_model_that_is_none_is_refused_with_what_was_found(
    admin: AdminClient, path: str, message: str
) -> None:
    with pytest.raises(DaemonError) as caught:
        await admin.add_model(path, name=None, publish=False, progress=ignore)

    assert str(caught.value) == message


async def test_a_chat_needs_no_key(admin: AdminClient, node: FakeNode) -> None:
    told: list[str] = []
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}

    job = await admin.chat(body, {"X-Agora-Privacy": "mesh"}, told.append)

    assert ("".join(told), job["job_id"]) == ("Hello “you”", JOB_ID)
    assert node.requests[0].privacy == "mesh"


@pytest.mark.parametrize(
    ("script", "message", "status"),
    [
        ([Unsold("nobody took it", (DeclineView(BOB, "busy", ""),))], "nobody took it: BBBBBBBB: busy", 503),
        ([BadPrompt("too long")], "too long", 400),
        ([STARTED, ChatDelta("a", 1), ChatError("every seller failed")], "every seller failed", 0),
    ],
)
async def test_a_chat_that_fails_is_one_line(
    admin: AdminClient, node: FakeNode, script: list[object], message: str, status: int
) -> None:
    node.script = script  # type: ignore[assignment]

    with pytest.raises(DaemonError) as caught:
        await admin.chat({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}, {}, ignore)

    assert (str(caught.value), caught.value.status) == (message, status)


async def test_without_a_daemon_the_client_says_what_to_run(home: Home) -> None:
    async with AdminClient(home) as admin:
        with pytest.raises(DaemonError) as caught:
            await admin.status()

    assert str(caught.value) == f"no daemon at {home.path}; run 'agora up'"


async def test_a_dead_daemons_socket_is_no_daemon(home: Home) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(home.admin_socket))

    async with AdminClient(home) as admin:
        with pytest.raises(DaemonError, match="run 'agora up'"):
            await admin.status()


async def test_a_daemon_that_dies_in_mid_answer_is_said_to_have(
    home: Home, node: FakeNode, nursery: trio.Nursery
) -> None:
    node.script = [STARTED, ChatDelta("a", 1), trio.Event()]
    serving = trio.CancelScope()

    async def serve(task_status: object = trio.TASK_STATUS_IGNORED) -> None:
        with serving:
            await serve_admin(admin_app(node), home.admin_socket, node.journal, task_status=task_status)

    await nursery.start(serve)
    async with AdminClient(home) as admin:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
        with pytest.raises(DaemonError) as caught:
            await admin.chat(body, {}, lambda text: serving.cancel() if text else None)

    assert str(caught.value) == f"the daemon at {home.path} broke off; see 'agora logs'"


async def test_a_path_that_is_taken_is_refused_at_start(home: Home, node: FakeNode) -> None:
    home.admin_socket.write_text("mine")

    with pytest.raises(StartError) as caught:
        await serve_admin(admin_app(node), home.admin_socket, node.journal)

    assert str(caught.value) == (
        f"cannot make admin socket {home.admin_socket} (Address already in use), expected a free path"
    )
    assert home.admin_socket.read_text() == "mine"


async def _as_nobody(path: Path) -> str:
    """What another user gets: the name of an error, or the bytes."""
    program = (
        "import os, socket, sys\n"
        "os.setgroups([])\n"
        "os.setgid(int(sys.argv[2]))\n"
        "os.setuid(int(sys.argv[2]))\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "try:\n"
        "    s.connect(sys.argv[1])\n"
        "    s.sendall(b'GET /healthz HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n')\n"
        "    print(s.recv(100))\n"
        "except OSError as error:\n"
        "    print(type(error).__name__)\n"
    )
    command = [sys.executable, "-S", "-c", program, str(path), str(NOBODY)]
    done = await trio.run_process(command, capture_stdout=True)
    out: bytes = done.stdout
    return out.decode().strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
async def test_another_user_is_refused_by_the_sockets_mode(
    node: FakeNode, nursery: trio.Nursery, short: Path
) -> None:
    path = await nursery.start(partial(serve_admin, admin_app(node), short / "s", node.journal))

    assert await _as_nobody(path) == "PermissionError"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
async def test_another_user_is_refused_by_uid_when_the_mode_was_opened(
    node: FakeNode, nursery: trio.Nursery, short: Path
) -> None:
    """Somebody's chmod is not an invitation: the kernel says who is on the other end."""
    path = await nursery.start(partial(serve_admin, admin_app(node), short / "s", node.journal))
    path.chmod(0o666)

    assert await _as_nobody(path) in {"b''", "ConnectionResetError", "BrokenPipeError"}


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory that everybody may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        path.chmod(0o755)
        yield path
