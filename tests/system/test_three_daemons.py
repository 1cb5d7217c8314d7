"""The main job on real processes: a founder that only buys, two sellers, and what it survives.

One mesh stands through all of it, in the order of the file: what one test leaves behind meets the next.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import openai
import pytest

from node.local_mesh.processes import until
from tests.gguf_files import LOOP_BOMB, tiny_model
from tests.system.daemons import (
    ANYBODY,
    HERE,
    MODEL,
    ROOT,
    STORY,
    SUM,
    Device,
    agora,
    books_agree,
    contents,
    refused,
    three_daemons,
)

pytestmark = pytest.mark.system

Mesh = tuple[Device, Device, Device]
BLOW_AFTER_CHUNKS = 20  # of about 250
BLOWS_MAX = 5  # the whole answer takes a tenth of a second: on a busy machine a blow may come behind it


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with three_daemons(tmp_path_factory.mktemp("mesh")) as devices:
        yield devices


@pytest.fixture(scope="module")
def story(mesh: Mesh) -> str:
    """The greedy answer, undisturbed."""
    return mesh[0].chat(STORY, ANYBODY, model="tiny")


def stream(device: Device, blow: Callable[[dict[str, Any]], None] | None = None) -> tuple[str, str]:
    """Stream the story through a gateway, deal a blow in its middle, and return its text and the job's id."""
    pieces: list[str] = []
    job_id = ""
    with (
        device.client() as client,
        client.chat.completions.create(
            model="tiny",
            messages=STORY,  # type: ignore[arg-type]
            stream=True,
            extra_headers={**ANYBODY, "X-Agora-Session": secrets.token_hex(8)},  # no lease: an auction
        ) as chunks,
    ):
        for number, chunk in enumerate(chunks):
            job_id = chunk.id.removeprefix("chatcmpl-")
            pieces += [choice.delta.content or "" for choice in chunk.choices]
            if number == BLOW_AFTER_CHUNKS and blow is not None:
                blow(device.get(f"/api/jobs/{job_id}")["attempts"][-1])
    return "".join(pieces), job_id


def by_id(mesh: Mesh, peer_id: str) -> Device:
    return next(device for device in mesh if device.peer_id == peer_id)


def both_sell(mesh: Mesh) -> None:
    """Wait until the founder hears of both sellers again, as after a restart."""
    founder = mesh[0]
    digest = next(model["digest"] for model in founder.get("/api/models") if model["id"] == "tiny")
    until("both sellers are back", lambda: founder.sees(digest, 2))
    until("both are connected", lambda: founder.get("/api/status")["peers"] == 2)


# --- a chat -------------------------------------------------------------------------------------------------------


def test_the_stock_client_gets_an_answer_that_was_bought(mesh: Mesh, story: str) -> None:
    """Streamed or whole, it is the same text; both sellers are asked; the receipt is signed by both and in all books."""
    founder = mesh[0]

    text, job_id = stream(founder)

    job = founder.settled(job_id)
    [attempt] = job["attempts"]
    assert text == story
    assert len(story) > 300
    assert sorted(attempt["asked"]) == sorted(seller.peer_id for seller in mesh[1:])
    assert {answer["peer_id"] for answer in (*attempt["bids"], *attempt["declines"])} == set(attempt["asked"])
    assert attempt["seller"] == next(bid["peer_id"] for bid in attempt["bids"] if bid["is_winner"])
    assert job["price_micro"] == 10 * job["prompt_tokens"] + 40 * job["completion_tokens"]
    until("the three ledgers agree", lambda: books_agree(*mesh))


def test_a_model_nobody_has_is_404_and_names_those_there_are(mesh: Mesh) -> None:
    with mesh[0].client() as client, pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-17", messages=SUM, extra_headers=ANYBODY)  # type: ignore[arg-type]

    assert caught.value.body["code"] == "model_not_found"  # type: ignore[index]
    assert "it has: tiny" in caught.value.body["message"]  # type: ignore[index]


def test_no_seller_is_503_with_the_declines_and_their_reasons(mesh: Mesh) -> None:
    """A prompt that must not leave a device without the model; and sellers that may not sell: too little memory of context."""
    founder = mesh[0]
    with founder.client() as client:
        with pytest.raises(openai.InternalServerError) as local:
            client.chat.completions.create(model="tiny", messages=SUM, extra_headers=HERE)  # type: ignore[arg-type]
        long = [{"role": "user", "content": "word " * 3_000}]
        with pytest.raises(openai.BadRequestError) as context:
            client.chat.completions.create(model="tiny", messages=long, extra_headers=ANYBODY)  # type: ignore[arg-type]

    assert local.value.status_code == 503
    assert "is not on this device" in local.value.body["message"]  # type: ignore[index]
    assert "context" in context.value.body["message"]  # type: ignore[index]


# --- models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["no_gguf", "truncated", "empty", "template_bomb"])
def test_a_hostile_model_file_is_refused_with_what_was_found(mesh: Mesh, tmp_path: Path, fault: str) -> None:
    """Nothing of it stays in the home, and the daemon serves on."""
    seller = mesh[1]
    file = tmp_path / "model.gguf"
    match fault:
        case "no_gguf":
            file.write_bytes(b"MZ this is a program\n" * 4096)
            expected = "it is no GGUF"
        case "truncated":
            whole = MODEL.read_bytes()
            file.write_bytes(whole[: len(whole) // 2])
            expected = "it is cut short"
        case "empty":
            file.touch()
            expected = "it is cut short"
        case "template_bomb":
            tiny_model(file, template=LOOP_BOMB)
            expected = "template"
    before = contents(seller.home / "models")

    line = refused(agora("model", "add", str(file), home=seller.home))

    assert expected in line
    assert contents(seller.home / "models") == before
    assert seller.chat(SUM, HERE, model="tiny") != ""


# --- failover -----------------------------------------------------------------------------------------------------


def broken_off(
    mesh: Mesh, story: str, blow: Callable[[Device], None], mend: Callable[[Device], None]
) -> tuple[dict[str, Any], Device]:
    """Stream the story through a blow: the client sees the same text, two attempts by two sellers, and one is paid.

    Returns the job, and the seller that was struck. A blow that came too late is mended, and dealt again.
    """
    founder = mesh[0]
    struck: list[Device] = []

    def strike(attempt: dict[str, Any]) -> None:
        struck.append(by_id(mesh, attempt["seller"]))
        blow(struck[-1])

    for _ in range(BLOWS_MAX):
        text, job_id = stream(founder, strike)
        assert text == story
        if len(founder.get(f"/api/jobs/{job_id}")["attempts"]) > 1:
            break
        mend(struck[-1])

    job = founder.settled(job_id)
    assert [attempt["outcome"] for attempt in job["attempts"]] == ["failed", "settled"]
    first, second = job["attempts"]
    assert first["seller"] != second["seller"]
    assert first["tokens"] > 0
    assert first["tokens"] + second["tokens"] == job["completion_tokens"]
    return job, struck[-1]


def test_a_seller_killed_in_mid_answer_is_replaced_without_a_seam(mesh: Mesh, story: str) -> None:
    def revive(device: Device) -> None:
        device.start()
        both_sell(mesh)

    _, killed = broken_off(mesh, story, Device.kill, revive)

    revive(killed)
    assert killed.chat(SUM, HERE, model="tiny") != ""
    until("the three ledgers agree", lambda: books_agree(*mesh))


def test_a_seller_that_falls_silent_in_mid_answer_is_replaced_without_a_seam(mesh: Mesh, story: str) -> None:
    """SIGSTOP closes nothing: only the missing frames tell. It is paid for what arrived once it is back."""

    def wake(device: Device) -> None:
        device.thaw()
        both_sell(mesh)

    try:
        job, _ = broken_off(mesh, story, Device.freeze, wake)
    finally:
        for device in mesh:
            device.thaw()

    both_sell(mesh)
    until(
        "the silent one is paid for what arrived",
        lambda: len(mesh[0].get(f"/api/jobs/{job['job_id']}")["receipts"]) == 2,
    )
    until("the three ledgers agree", lambda: books_agree(*mesh))


def test_an_engine_child_killed_in_mid_answer_costs_its_daemon_nothing(mesh: Mesh, story: str) -> None:
    def strike(device: Device) -> None:
        os.kill(device.engine_child().pid, signal.SIGKILL)

    def wait_for_the_next(device: Device) -> None:
        assert until("its engine is back", lambda: device.chat(SUM, HERE, model="tiny"))

    _, struck = broken_off(mesh, story, strike, wait_for_the_next)

    wait_for_the_next(struck)
    until("the three ledgers agree", lambda: books_agree(*mesh))


# --- the buyer ----------------------------------------------------------------------------------------------------


def acknowledged(founder: Device) -> set[str]:
    return {receipt["receipt_id"] for receipt in founder.get("/api/ledger")["receipts"]}


@pytest.mark.parametrize("seed", [1, 2])
def test_a_buyer_killed_at_any_moment_has_every_receipt_that_it_acknowledged(mesh: Mesh, seed: int) -> None:
    founder = mesh[0]
    rng = Random(seed)
    known = acknowledged(founder)
    is_over = threading.Event()

    def keep_asking() -> None:
        while not is_over.is_set():
            try:
                founder.chat(SUM, ANYBODY, model="tiny", timeout=10)
                known.update(acknowledged(founder))
            except Exception:  # noqa: BLE001  # it is being killed
                return

    client = threading.Thread(target=keep_asking)
    client.start()
    before = len(known)
    until(
        "some answers are bought",
        lambda: len(known) > before + rng.randrange(2, 6),
        pause_s=rng.uniform(0.001, 0.02),
    )
    founder.kill()
    is_over.set()
    client.join()

    founder.start()

    assert acknowledged(founder) >= known
    both_sell(mesh)
    assert founder.chat(SUM, ANYBODY, model="tiny") != ""
    until("the three ledgers agree", lambda: books_agree(*mesh))


# --- the examples -------------------------------------------------------------------------------------------------


def example(device: Device, *command: str) -> str:
    done = subprocess.run(
        [*command, "44 + 25"],
        cwd=ROOT,
        env={
            **os.environ,
            "AGORA_API_KEY": device.told["api_key"],
            "AGORA_GATEWAY": device.gateway,
            "AGORA_PRIVACY": "mesh",
            "NO_PROXY": "*",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_with_the_openai_client(mesh: Mesh) -> None:
    shown = example(mesh[0], sys.executable, "examples/openai_client.py")

    assert mesh[0].chat(SUM, ANYBODY, model="tiny") in shown
    assert shown.endswith(" tokens\n")
    assert "tiny: " in shown


def test_the_example_with_curl(mesh: Mesh) -> None:
    shown = example(mesh[0], "bash", "examples/curl.sh")

    assert '"id":"tiny"' in shown
    assert "data: [DONE]" in shown
    assert '"receipts":["' in shown


# --- the founder's disk dies ---------------------------------------------------------------------------------------


def test_a_restored_founder_takes_its_log_up_where_its_peers_saw_it(mesh: Mesh, tmp_path: Path) -> None:
    """The backup is older than the last purchase: a device that wrote on from it would contradict itself, and be barred."""
    founder, *sellers = mesh
    file = tmp_path / "founder.backup"
    phrase = {"AGORA_PASSPHRASE": "written on paper"}

    saved = agora("backup", str(file), home=founder.home, environ=phrase)
    before = acknowledged(founder)
    stream(founder)
    until("that is settled", lambda: acknowledged(founder) > before and books_agree(*mesh))
    had, balances, peer_id = acknowledged(founder), founder.balances(), founder.peer_id
    founder.stop()
    shutil.rmtree(founder.home)
    wrong = refused(
        agora("restore", str(file), home=founder.home, environ={"AGORA_PASSPHRASE": "a guess, a guess"})
    )
    restored = agora("restore", str(file), home=founder.home, environ=phrase)
    again = refused(agora("restore", str(file), home=founder.home, environ=phrase))
    founder.start()

    assert (saved.returncode, restored.returncode) == (0, 0), saved.stderr + restored.stderr
    assert "passphrase" in wrong
    assert "there is a home" in again
    assert founder.peer_id == peer_id
    until("its log is confirmed", lambda: founder.get("/api/status")["is_durable"])
    until("it has the receipts it lost", lambda: acknowledged(founder) == had)
    assert founder.balances() == balances
    both_sell(mesh)
    _, job_id = stream(founder)
    founder.settled(job_id)
    until("the ledgers agree", lambda: books_agree(*mesh))
    assert founder.get("/api/status")["warnings"] == []
    assert not any(peer["is_revoked"] for seller in sellers for peer in seller.get("/api/peers"))
    assert founder.ask("invite")["uses"] == 1


# --- a seller is revoked ------------------------------------------------------------------------------------------


def test_a_revoked_seller_is_dropped_by_everybody_and_never_asked_again(mesh: Mesh) -> None:
    """A stolen device: what it still holds is of no use, since nobody speaks with it any more."""
    founder, stolen, other = mesh

    founder.ask("revoke", stolen.peer_id[-8:], "--reason", "stolen", "--yes")

    for device in (founder, other):
        until("its connection is gone", lambda device=device: is_dropped(device, stolen))
    text, job_id = stream(founder)
    assert text != ""
    assert founder.settled(job_id)["attempts"][0]["asked"] == [other.peer_id]
    until("it is cut off and knows why", lambda: "barred" in " ".join(stolen.get("/api/status")["warnings"]))
    assert stolen.get("/api/status")["peers"] == 0
    assert stolen.chat(SUM, HERE, model="tiny") != ""


def is_dropped(device: Device, peer: Device) -> bool:
    seen = {entry["peer_id"]: entry for entry in device.get("/api/peers")}.get(peer.peer_id)
    return seen is None or (not seen["is_connected"] and (seen["is_revoked"] or not seen["is_admitted"]))
