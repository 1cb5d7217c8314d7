"""Humans' words: signed beside a daemon with a key it never sees, taken like a stranger's, and heard by all."""

from functools import partial
from typing import Any

import pytest
import trio

from node.errors import StartError
from node.human_word import WordKind, sign
from node.simulation.virtual_clock import NOON_MS
from protocol.envelope import Sealed
from protocol.errors import (
    BallotClosed,
    Expired,
    ForeignMesh,
    MalformedMessage,
    NotAuthorised,
    UnknownManifest,
    VetoTooLate,
)
from protocol.messages import NO_HASH, Card, Line, Manifest, Vote
from tests.node.world import Daemon, World, person

HUMAN = person("ann herself")
BASE, EVALUATION, ADAPTER = b"\x11" * 32, b"\x22" * 32, b"\x33" * 32
VETO_S = 3600.0


def utc_ms() -> int:
    return NOON_MS + round(trio.current_time() * 1000)


async def say(daemon: Daemon, entry: type[Any], **fields: Any) -> Sealed[Any]:
    """Write an entry of the device's own and gossip it, as its steward would."""
    node = daemon.node
    sealed = await node.logbook.write(entry, partial(_placed, entry, fields))
    await node.sync.announce(sealed)
    return sealed


def _placed(entry: type[Any], fields: dict[str, Any], index: int, prev: bytes) -> Any:
    return entry(index=index, prev=prev, **fields)


async def propose(world: World, version: int = 1, adapter: bytes = ADAPTER) -> Sealed[Manifest]:
    """A patch that the roll, which is the founder, has voted for."""
    founder = world.founder
    if not founder.node.logbook.assembly.lines():
        await say(founder, Card, name="llama", model=BASE)
        await say(
            founder, Line, name="llama", base=BASE, evaluation=EVALUATION, evaluation_bytes=1, replay=NO_HASH, replay_bytes=0
        )  # fmt: skip
    manifest = await say(
        founder,
        Manifest,
        line="llama", version=version, parent=NO_HASH, base=BASE, adapter=adapter, adapter_bytes=9, shape=None,
        rolls_back_to=0, run=bytes(16), rounds=0, cohort=(), evaluation=EVALUATION, before=(), after=(),
        expires_at=utc_ms() + 7 * 24 * 3_600_000, reason="knows the codes",
    )  # fmt: skip
    await say(
        founder, Vote, manifest=manifest.id, line="llama", version=version, is_yes=True, scores=(), private="none",
        reason="",
    )  # fmt: skip
    await world.run(1)
    return manifest


async def speak(daemon: Daemon, kind: WordKind, target: bytes, reason: str = "") -> dict[str, Any]:
    """What the command line does for a human at this device."""
    place = daemon.node.place_word(HUMAN.peer_id, kind, target.hex()[:8])
    return await daemon.node.take_word(sign(HUMAN, kind, place, reason=reason, utc_ms=utc_ms()))


def in_force(daemon: Daemon) -> bytes | None:
    manifest = daemon.node.logbook.assembly.ratified("llama", utc_ms())
    return manifest.message.adapter if manifest else None


def fingerprints(*daemons: Daemon) -> set[bytes]:
    return {daemon.node.logbook.assembly.fingerprint() for daemon in daemons}


async def test_what_a_human_approves_everybody_hears_of_and_may_load(world: World) -> None:
    bob = await world.add("bob")
    manifest = await propose(world)
    place = bob.node.place_word(HUMAN.peer_id, "approval", manifest.id.hex()[:6])
    assert (place["index"], place["state"], place["still_needed"]) == (0, "certified", "approval of a human")
    assert (place["line"], place["version"], place["reason"]) == ("llama", 1, "knows the codes")

    said = await speak(bob, "approval", manifest.id)
    await world.run(1)

    assert (said["state"], said["still_needed"]) == ("ratified", "")
    assert [in_force(daemon) for daemon in (world.founder, bob)] == [ADAPTER, ADAPTER]
    assert world.founder.events("entry_heard")[-1]["author"] == HUMAN.peer_id


async def test_a_device_that_was_away_learns_what_a_human_said_from_any_member(world: World) -> None:
    """A late joiner verifies the certificate and the approval alone."""
    manifest = await propose(world)
    await speak(world.founder, "approval", manifest.id)

    late = await world.add("late")
    await world.until(lambda: in_force(late) == ADAPTER)

    assert fingerprints(late) == fingerprints(world.founder)


async def test_a_veto_and_a_withdrawal_take_back_what_was_in_force(world: World) -> None:
    bob = await world.add("bob")
    first = await propose(world)
    await speak(world.founder, "approval", first.id)
    second = await propose(world, 2, b"\x44" * 32)
    await speak(world.founder, "approval", second.id)
    await world.run(1)
    assert in_force(bob) == b"\x44" * 32

    await speak(bob, "veto", second.id, "answers rudely")
    await world.run(1)
    assert [in_force(daemon) for daemon in (world.founder, bob)] == [ADAPTER, ADAPTER]

    await speak(world.founder, "withdrawal", ADAPTER, "trained on the wrong logs")
    await world.run(1)
    assert [in_force(daemon) for daemon in (world.founder, bob)] == [None, None]


async def test_a_veto_after_the_window_is_refused_by_its_name_and_changes_nothing(world: World) -> None:
    manifest = await propose(world)
    place = world.founder.node.place_word(HUMAN.peer_id, "veto", manifest.id.hex())
    await speak(world.founder, "approval", manifest.id)
    await trio.sleep(VETO_S)
    before = fingerprints(world.founder)

    with pytest.raises(VetoTooLate, match="withdraw its adapter"):
        world.founder.node.place_word(HUMAN.peer_id, "veto", manifest.id.hex())
    late = sign(HUMAN, "veto", {**place, "index": 1, "prev": _head(world)}, reason="", utc_ms=utc_ms())
    with pytest.raises(VetoTooLate):
        await world.founder.node.take_word(late)

    assert fingerprints(world.founder) == before
    assert in_force(world.founder) == ADAPTER


def _head(world: World) -> str:
    head = world.founder.node.logbook.assembly.head(HUMAN.peer_id)
    assert head is not None
    return head.entry.hex()


async def test_two_hurried_words_of_one_human_bar_nobody(world: World) -> None:
    """Two terminals sign at one index. The second is refused, and handed to nobody: it would be evidence."""
    bob = await world.add("bob")
    manifest = await propose(world)
    place = world.founder.node.place_word(HUMAN.peer_id, "approval", manifest.id.hex())
    raws = [sign(HUMAN, kind, place, reason="", utc_ms=utc_ms()) for kind in ("approval", "veto")]
    await world.founder.node.take_word(raws[0])

    with pytest.raises(StartError, match="say it again"):
        await world.founder.node.take_word(raws[1])
    await world.run(5)

    for daemon in (world.founder, bob):
        assert not daemon.node.logbook.assembly.is_barred(HUMAN.peer_id)
        assert in_force(daemon) == ADAPTER


async def test_words_of_no_approver_of_another_mesh_or_of_the_future_are_refused(world: World) -> None:
    manifest = await propose(world)
    node = world.founder.node
    place = node.place_word(HUMAN.peer_id, "approval", manifest.id.hex())
    before = fingerprints(world.founder)

    with pytest.raises(StartError, match="no approver"):
        node.place_word(person("mallory").peer_id, "approval", manifest.id.hex())
    with pytest.raises(NotAuthorised):
        await node.take_word(sign(person("mallory"), "approval", place, reason="", utc_ms=utc_ms()))
    foreign = {**place, "mesh_id": (b"\x99" * 32).hex()}
    with pytest.raises(ForeignMesh):
        await node.take_word(sign(HUMAN, "approval", foreign, reason="", utc_ms=utc_ms()))
    with pytest.raises(Expired, match="future"):
        await node.take_word(sign(HUMAN, "approval", place, reason="", utc_ms=utc_ms() + 120_000))
    with pytest.raises(MalformedMessage):
        await node.take_word(manifest.raw)

    assert fingerprints(world.founder) == before
    assert in_force(world.founder) is None


async def test_an_id_must_name_one_proposal(world: World) -> None:
    manifest = await propose(world)
    node = world.founder.node

    for target in ("ffff", manifest.id.hex()[:3], ""):
        with pytest.raises(StartError, match="expected the first digits"):
            node.place_word(HUMAN.peer_id, "approval", target)
    await speak(world.founder, "approval", manifest.id)
    with pytest.raises(BallotClosed, match="ratified already"):
        node.place_word(HUMAN.peer_id, "approval", manifest.id.hex())


async def test_a_word_on_a_proposal_that_is_not_here_is_refused(world: World) -> None:
    manifest = await propose(world)
    place = world.founder.node.place_word(HUMAN.peer_id, "approval", manifest.id.hex())
    unknown = {**place, "manifest": (b"\x77" * 32).hex()}

    with pytest.raises(UnknownManifest):
        await world.founder.node.take_word(sign(HUMAN, "approval", unknown, reason="", utc_ms=utc_ms()))

    assert world.founder.node.logbook.assembly.head(HUMAN.peer_id) is None


# --- lines --------------------------------------------------------------------------------------------------------------
async def test_a_voter_publishes_a_line_and_its_sets_are_blobs(world: World, tmp_path: Any) -> None:
    bob = await world.add("bob")
    await say(world.founder, Card, name="llama", model=BASE)
    questions, examples = tmp_path / "questions.jsonl", tmp_path / "examples.jsonl"
    questions.write_text('{"prompt": "2+2", "domain": "maths", "response": "4"}\n\n', encoding="utf-8")
    examples.write_text('{"domain": "echo", "prompt": "say é", "response": "é"}\n', encoding="utf-8")

    made = await world.founder.node.publish_line("llama", str(questions), str(examples))
    await world.run(1)

    line = bob.node.logbook.assembly.line("llama")
    assert line is not None
    assert (line.base, line.evaluation.hex()) == (BASE, made["evaluation_digest"])
    blob = await world.founder.blobs.read(line.evaluation)
    assert blob == b'{"domain":"maths","prompt":"2+2","response":"4"}\n'
    assert line.evaluation_bytes == len(blob)
    assert await world.founder.blobs.read(line.replay) == examples.read_bytes().replace(b": ", b":").replace(
        b", ", b","
    )
    assert bob.node.lines() == [made]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"domain": "a", "prompt": "q", "response": "r"}\nnot json\n', "line 2"),
        ('{"domain": "a", "prompt": "q"}\n', "line 1"),
        ('{"domain": "a", "prompt": 4, "response": "r"}\n', "line 1"),
        ('{"domain": "a b", "prompt": "q", "response": "r"}\n', "line 1"),
        ("", "0 domains"),
        ("".join(f'{{"domain": "d{n}", "prompt": "q", "response": "r"}}\n' for n in range(33)), "33 domains"),
        ('{"domain": "a", "prompt": "q", "response": "r"}\n' * 4_097, "over 4096"),
    ],
)
async def test_a_set_that_is_none_is_refused_with_its_file_and_line(
    world: World, tmp_path: Any, text: str, said: str
) -> None:
    await say(world.founder, Card, name="llama", model=BASE)
    file = tmp_path / "questions.jsonl"
    file.write_text(text, encoding="utf-8")

    with pytest.raises(StartError, match=said) as caught:
        await world.founder.node.publish_line("llama", str(file), None)

    assert str(file) in str(caught.value)
    assert world.founder.node.lines() == []


async def test_only_a_voter_publishes_a_line_and_only_of_a_published_model(
    world: World, tmp_path: Any
) -> None:
    bob = await world.add("bob")
    file = tmp_path / "questions.jsonl"
    file.write_text('{"domain": "a", "prompt": "q", "response": "r"}\n', encoding="utf-8")

    with pytest.raises(StartError, match="roll"):
        await bob.node.publish_line("llama", str(file), None)
    with pytest.raises(StartError, match="no published model"):
        await world.founder.node.publish_line("llama", str(file), None)
    await say(world.founder, Card, name="llama", model=BASE)
    with pytest.raises(StartError, match="cannot read"):
        await world.founder.node.publish_line("llama", str(tmp_path / "missing"), None)

    assert world.founder.node.lines() == []
