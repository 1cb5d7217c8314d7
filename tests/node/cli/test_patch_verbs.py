"""`patches`, `proposals`, `vote`: what they ask of the daemon, and what they show."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from node.cli.app import run
from node.gateway.app import admin_app
from node.gateway.server import serve_admin
from node.home import Home
from tests.node.gateway.fake_node import PATCH_ID, RUN_ID, FakeNode


@dataclass(frozen=True)
class Told:
    """What a command line came to."""

    status: int
    out: str
    err: str


@pytest.fixture
async def node(tmp_path: Path, nursery: trio.Nursery) -> FakeNode:
    made = FakeNode()
    home = Home.create(tmp_path / "home")
    await nursery.start(partial(serve_admin, admin_app(made), home.admin_socket, made.journal))
    return made


@pytest.fixture
def agora(tmp_path: Path, node: FakeNode, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:  # noqa: ARG001  it serves
    """Run one command line in a thread, as it runs a loop of its own."""

    async def type_in(*words: str) -> Told:
        status = await trio.to_thread.run_sync(run, [*words, "--home", str(tmp_path / "home")])
        told = capsys.readouterr()
        return Told(status, told.out, told.err)

    return type_in


@pytest.mark.parametrize("listing", ["patches", "patches show 5a5a", "proposals"])
async def test_a_listing_is_shown_and_with_json_it_is_the_view(
    listing: str, node: FakeNode, agora: Callable[..., Any]
) -> None:
    view = {"patches": node.patches, "proposals": node.proposals}.get(listing, partial(node.patch, "5a5a"))

    shown, as_json = await agora(*listing.split()), await agora(*listing.split(), "--json")

    assert (shown.status, shown.err) == (0, "")
    assert "tiny" in shown.out
    assert (as_json.status, as_json.err) == (0, "")
    assert json.loads(as_json.out) == msgspec.to_builtins(view())


async def test_the_listings_have_the_keys_that_others_rely_on(agora: Callable[..., Any]) -> None:
    """The outside contract: more keys may follow."""
    (patch,) = json.loads((await agora("patches", "--json")).out)
    (proposal,) = json.loads((await agora("proposals", "--json")).out)

    assert set(patch) >= {
        "id",
        "line",
        "version",
        "state",
        "adapter_digest",
        "base_digest",
        "run_id",
        "scores",
    }
    assert set(proposal) >= {
        "id", "kind", "line", "version", "state", "yes_weight", "roll_weight", "approved_by", "expires_at",
    }  # fmt: skip


async def test_a_patch_is_shown_with_where_it_comes_from_and_what_it_does(agora: Callable[..., Any]) -> None:
    told = await agora("patches", "show", PATCH_ID[:8])

    for what in (
        PATCH_ID,
        RUN_ID,
        "ad" * 32,
        "in force",
        "loaded",
        "without privacy",
        "pumps",
        "0.00",
        "1.00",
    ):
        assert what in told.out.replace("\n", "")


async def test_the_ballots_say_who_has_voted_who_cannot_and_what_is_needed(agora: Callable[..., Any]) -> None:
    told = (await agora("proposals")).out

    for what in (
        "yes 1 of 2, 2 needed",
        "yes of weight 1 more",
        "better",
        "cannot vote",
        "does not hold the base",
    ):
        assert what in told


async def test_vote_and_rollback_ask_the_daemon(node: FakeNode, agora: Callable[..., Any]) -> None:
    voted = await agora("vote", PATCH_ID[:8], "no")
    rolled = await agora("patches", "rollback", PATCH_ID[:8])

    assert (voted.status, rolled.status) == (0, 0)
    assert node.calls == [("vote", PATCH_ID[:8], False), ("roll_back", PATCH_ID[:8])]
    assert "back to the bare base" in rolled.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("vote 5a5a perhaps", "'perhaps'"),
        ("vote 5a yes", "id"),
        ("patches show zz-top", "is no id"),
        ("patches show ffff", "names 0 patches"),
        ("patches rollback ../x", "id"),
    ],
)
async def test_what_cannot_be_asked_is_refused_in_one_line(
    words: str, said: str, node: FakeNode, agora: Callable[..., Any]
) -> None:
    told = await agora(*words.split())

    assert told.status != 0
    assert told.out == ""
    assert said in told.err
    assert told.err.count("\n") == 1
    assert node.calls == []
