"""Ctrl-C while an answer streams: one-shot it ends the program, in a conversation only the answer; the node hears of both."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from node.chat import ChatDelta
from node.gateway.app import admin_app
from node.gateway.server import serve_admin
from node.home import Home
from tests.node.gateway.fake_node import HELLO, STARTED, FakeNode

CHAT = (sys.executable, "-m", "node.cli", "chat", "--home")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "home")


@pytest.fixture
async def node(home: Home, nursery: trio.Nursery) -> FakeNode:
    """Says a few letters and then nothing more."""
    node = FakeNode([STARTED, ChatDelta("Hel", 1), trio.Event()])
    await nursery.start(partial(serve_admin, admin_app(node), home.admin_socket, node.journal))
    return node


async def read_until(stream: trio.abc.ReceiveStream, wanted: bytes) -> bytes:
    told = b""
    while wanted not in told:
        piece = await stream.receive_some()
        assert piece, told
        told += piece
    return told


@asynccontextmanager
async def terminal() -> AsyncIterator[tuple[trio.lowlevel.FdStream, int]]:
    ours, theirs = os.openpty()
    try:
        async with trio.lowlevel.FdStream(ours) as stream:
            yield stream, theirs
    finally:
        os.close(theirs)


async def test_ctrl_c_ends_a_single_question_and_the_job(home: Home, node: FakeNode) -> None:
    command = [*CHAT, str(home.path), "hello"]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None

    async with process.stdout, process.stderr:
        await read_until(process.stdout, b"Hel")
        process.send_signal(signal.SIGINT)
        errors = await read_until(process.stderr, b"\n")
        status = await process.wait()

    assert (status, errors) == (130, b"stopped by Ctrl-C\n")
    await node.chat_closed.wait()


async def test_ctrl_c_in_a_conversation_ends_the_answer_alone(home: Home, node: FakeNode) -> None:
    """The next question is asked without the turn that broke off."""
    async with terminal() as (screen, theirs):
        process = await trio.lowlevel.open_process(
            [*CHAT, str(home.path)], stdin=theirs, stdout=theirs, stderr=theirs
        )
        await read_until(screen, b"you  ")
        await screen.send_all(b"first\n")
        await read_until(screen, b"Hel")
        process.send_signal(signal.SIGINT)
        await read_until(screen, b"stopped")
        await node.chat_closed.wait()
        node.script = list(HELLO)
        await screen.send_all(b"second\n")
        await read_until(screen, "“you”".encode())
        await screen.send_all(b"/exit\n")
        status = await process.wait()

    assert status == 0
    assert [[turn.content for turn in request.messages] for request in node.requests] == [
        ["first"],
        ["second"],
    ]
    assert node.requests[0].session == node.requests[1].session is not None
