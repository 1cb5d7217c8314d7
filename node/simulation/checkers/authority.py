"""Laws of authority: who may decide, and what becomes of whoever was barred or contradicts itself."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from marketplace.assembly.assembly import Assembly
from marketplace.assembly.evidence import contradiction
from node.simulation.checkers.scene import Broken, Scene
from node.simulation.virtual_clock import NOON_MS
from protocol.identity import PeerId
from protocol.messages import Accept, Admitted, Award, Card, Charter, Entry, Evidence, Receipt, Revocation

BARRED_WITHIN_MS: Final = 60_000  # docs/SECURITY.md
CLOCKS_MS: Final = 60_000  # by how much two clocks of a storm may differ


def only_the_roll_decides(scene: Scene) -> Iterator[Broken]:
    """Members, names and revocations are the word of keys on the charter's roll, and of nobody else."""
    roll = scene.world.founding.assembly.roll
    for daemon, entry in scene.entries():
        is_decision = isinstance(entry.message, Admitted | Card | Charter | Revocation)
        if is_decision and entry.sender not in roll:
            yield Broken(
                daemon.name,
                f"it goes by a {entry.message.kind} of {scene.name(entry.sender)}, who does not vote",
            )


def nobody_contradicts_itself_unpunished(scene: Scene) -> Iterator[Broken]:
    """Who holds two awards of one attempt, or two accepts or receipts of one award, has their author barred."""
    for daemon in scene.online:
        said: defaultdict[tuple[PeerId, tuple[object, ...]], dict[bytes, None]] = defaultdict(dict)
        for entry in scene.disks[daemon.name]:
            if word := _word(entry.message):
                said[entry.sender, word][entry.id] = None
        for (author, word), different in said.items():
            if len(different) > 1 and not daemon.node.logbook.assembly.is_barred(author):
                yield Broken(
                    daemon.name,
                    f"it holds two {word[0]}s of {scene.name(author)} for one attempt, who is not barred",
                )


def nobody_barred_is_served(scene: Scene) -> Iterator[Broken]:
    """No device accepts an award of a key that was barred more than a minute ago, once the mesh is whole."""
    if not scene.last_chats:
        return
    calm_ms = NOON_MS + int(scene.last_chats[0].at_s * 1000)
    for daemon in scene.online:
        barred = _barred(daemon.node.logbook.assembly)
        for entry in scene.disks[daemon.name] if barred else ():
            message = entry.message
            if not isinstance(message, Accept) or entry.sender != daemon.peer_id:
                continue
            since_ms = barred.get(PeerId(message.buyer))
            if since_ms is not None:
                late_ms = entry.time_ms - max(since_ms, calm_ms)
                if late_ms > BARRED_WITHIN_MS + CLOCKS_MS:
                    yield Broken(
                        daemon.name,
                        f"it accepted an award of {scene.name(message.buyer)} {late_ms / 1000:.0f} s after it knew "
                        "that this key is barred",
                    )


def _barred(assembly: Assembly) -> dict[PeerId, int]:
    """Who is barred, and since when, as the entries themselves say."""
    since: dict[PeerId, int] = {}
    for head in assembly.heads():
        for entry in assembly.entries_after(PeerId(head.author), -1):
            match entry.message:
                case Revocation():
                    peer_id = PeerId(entry.message.peer)
                case Evidence():
                    peer_id = contradiction(entry.message, assembly.mesh).accused
                case _:
                    continue
            since[peer_id] = min(entry.time_ms, since.get(peer_id, entry.time_ms))
    return since


def _word(message: Entry) -> tuple[object, ...] | None:
    """What an honest key says only once."""
    match message:
        case Award():
            return message.kind, message.job_id, message.attempt
        case Accept() | Receipt():
            return message.kind, message.award, message.job_id, message.attempt
        case _:
            return None
